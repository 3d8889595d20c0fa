//! Who may send events.

use std::sync::Arc;

use axum::http::{HeaderMap, Uri, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::Utc;
use tidemill_common::auth::{ApiKey, Keys, Scope, credential, forbidden};
use tidemill_common::problem::Problem;

/// Segment's libraries send the key as the user name of `Basic` credentials.
pub fn basic(headers: &HeaderMap) -> Option<String> {
    let (scheme, encoded) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (key, _) = decoded.split_once(':')?;
    Some(key.to_owned())
}

/// The key that a request came with, if it may write events.
pub async fn writer(keys: &Keys, headers: &HeaderMap, uri: &Uri) -> Result<Arc<ApiKey>, Problem> {
    let basic = basic(headers);
    let in_header = basic.as_deref().or_else(|| credential(headers));
    let key = keys.authenticate(in_header.or_else(|| in_url(uri)), Utc::now()).await?;
    key.require(Scope::Write)?;
    if in_header.is_none() && !may_stand_in_url(&key.scopes) {
        let detail = "only keys that can do nothing but write may stand in the URL; \
                      send this one as 'Authorization: Bearer <key>'";
        return Err(forbidden(detail));
    }
    Ok(key)
}

/// Keys are base64url, so they need no decoding.
fn in_url(uri: &Uri) -> Option<&str> {
    uri.query()?.split('&').find_map(|pair| pair.strip_prefix("api_key="))
}

/// Logs and proxies see what stands in the URL.
fn may_stand_in_url(scopes: &[Scope]) -> bool {
    scopes.iter().all(|scope| *scope == Scope::Write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_can_do_nothing_but_write_may_stand_in_the_url() {
        assert!(may_stand_in_url(&[Scope::Write]));
        assert!(!may_stand_in_url(&[Scope::Read, Scope::Write]));
        assert!(!may_stand_in_url(&[Scope::Write, Scope::Admin]));
    }

    #[test]
    fn the_user_name_of_basic_credentials_is_the_key() {
        let basic = |value: &'static str| {
            basic(&HeaderMap::from_iter([(header::AUTHORIZATION, axum::http::HeaderValue::from_static(value))]))
        };
        assert_eq!(basic("Basic dG1fazo="), Some("tm_k".to_owned()));
        assert_eq!(basic("basic  dG1fazpwdw=="), Some("tm_k".to_owned()));
        for other in ["Bearer dG1fazo=", "Basic", "Basic !", "Basic dG1faw==", "Basic /w=="] {
            assert_eq!(basic(other), None, "{other}");
        }
    }

    #[test]
    fn the_key_stands_anywhere_in_the_query() {
        let find = |uri: &'static str| in_url(&Uri::from_static(uri)).map(str::to_owned);
        assert_eq!(find("/collect?api_key=k"), Some("k".to_owned()));
        assert_eq!(find("/collect?v=1&api_key=k&x"), Some("k".to_owned()));
        assert_eq!(find("/collect?my_api_key=k"), None);
        assert_eq!(find("/collect"), None);
    }
}

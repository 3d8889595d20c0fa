//! Which pages of other origins may send events from a browser.

use anyhow::bail;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Headers that a page may send, beside CloudEvents' `ce-*`.
const ALLOWED: [&str; 6] =
    ["authorization", "content-encoding", "content-type", "idempotency-key", "x-api-key", "x-requested-with"];
/// Headers that a page may read.
const EXPOSED: &str = "RateLimit, RateLimit-Policy, Retry-After";
/// A browser need not ask again for so many seconds; no browser remembers longer.
const MAX_AGE: &str = "7200";

/// The origins that are let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Every one, but without credentials of the browser's own (cookies).
    All,
    /// These.
    Listed(Vec<String>),
}

impl Origins {
    /// From the setting: origins separated by commas, or `*`.
    pub fn parse(setting: &str) -> anyhow::Result<Self> {
        let listed: Vec<&str> = setting.split(',').map(str::trim).filter(|origin| !origin.is_empty()).collect();
        if listed == ["*"] {
            return Ok(Self::All);
        }
        for origin in &listed {
            let host = origin.split_once("://").map(|(_, host)| host);
            if host.is_none_or(|host| host.is_empty() || host.contains('/')) || !origin.is_ascii() {
                bail!("CORS_ORIGINS has {origin:?}; give origins like https://shop.example without a path, or only *");
            }
        }
        Ok(Self::Listed(listed.into_iter().map(str::to_ascii_lowercase).collect()))
    }

    /// Who asks, if it is a page of another origin: to be kept for [`Origins::allow`].
    pub fn origin(headers: &HeaderMap) -> Option<HeaderValue> {
        headers.get(header::ORIGIN).cloned()
    }

    /// The answer to a browser that asks before it sends.
    pub fn preflight<B>(&self, request: &Request<B>) -> Option<Response> {
        let headers = request.headers();
        if request.method() != Method::OPTIONS || !headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
            return None;
        }
        let mut response = StatusCode::NO_CONTENT.into_response();
        let answer = response.headers_mut();
        answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST"));
        answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
        let asked = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).and_then(|names| names.to_str().ok());
        if let Ok(allowed) = HeaderValue::try_from(allowed(asked.unwrap_or_default())) {
            answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        }
        Some(response)
    }

    /// Lets the page read the answer, if its origin is let in.
    pub fn allow(&self, origin: &HeaderValue, answer: &mut HeaderMap) {
        let allowed = match self {
            Self::All => HeaderValue::from_static("*"),
            Self::Listed(listed) => {
                answer.append(header::VARY, HeaderValue::from_static("Origin"));
                if !listed.iter().any(|one| origin.as_bytes().eq_ignore_ascii_case(one.as_bytes())) {
                    return PREFLIGHT.iter().for_each(|name| drop(answer.remove(name)));
                }
                // Browsers send beacons with credentials.
                answer.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
                origin.clone()
            }
        };
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    }
}

const PREFLIGHT: [HeaderName; 3] =
    [header::ACCESS_CONTROL_ALLOW_METHODS, header::ACCESS_CONTROL_ALLOW_HEADERS, header::ACCESS_CONTROL_MAX_AGE];

/// Those of the headers asked for that may be sent; all that may be, where none is asked for.
fn allowed(asked: &str) -> String {
    let may = |name: &&str| ALLOWED.contains(name) || name.starts_with("ce-");
    let asked = asked.to_ascii_lowercase();
    let names: Vec<&str> = asked.split(',').map(str::trim).filter(may).collect();
    if names.is_empty() { ALLOWED.join(", ") } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_listed_without_a_path() {
        assert_eq!(Origins::parse("").expect("none"), Origins::Listed(vec![]));
        assert_eq!(Origins::parse(" * ").expect("all"), Origins::All);
        let two = Origins::parse("https://A.example, http://localhost:3000,").expect("two");
        assert_eq!(two, Origins::Listed(vec!["https://a.example".into(), "http://localhost:3000".into()]));
        for bad in ["a.example", "https://a.example/", "*,https://a.example", "https://", "https://ä.example"] {
            assert!(Origins::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_headers_that_mean_something_are_allowed() {
        assert_eq!(allowed("Content-Type, ce-id,X-Evil"), "content-type, ce-id");
        assert_eq!(allowed(""), ALLOWED.join(", "));
    }
}

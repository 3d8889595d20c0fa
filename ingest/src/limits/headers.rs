//! `RateLimit-Policy` and `RateLimit` of draft-ietf-httpapi-ratelimit-headers.

use std::fmt::Write;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::Standing;

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");

/// Writes both for the limits there are. Every limit is full again within a second.
pub fn write(key: Option<Standing>, project: Option<Standing>, answer: &mut HeaderMap) {
    let (mut policy, mut state) = (String::new(), String::new());
    let named = [("key", key), ("project", project)];
    for (name, Standing { rate, left }) in named.into_iter().filter_map(|(name, limit)| Some((name, limit?))) {
        let comma = if policy.is_empty() { "" } else { ", " };
        let _ = write!(policy, "{comma}\"{name}\";q={rate};w=1"); // a String grows
        let _ = write!(state, "{comma}\"{name}\";r={left};t=1");
    }
    for (name, value) in [(POLICY, policy), (STATE, state)] {
        if let Ok(value) = HeaderValue::try_from(value) {
            answer.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn limits_are_told_as_the_draft_has_it() {
        let standing = |rate, left| NonZeroU32::new(rate).map(|rate| Standing { rate, left });
        let told = |key, project| {
            let mut answer = HeaderMap::new();
            write(key, project, &mut answer);
            [POLICY, STATE].map(|name| answer[name].to_str().expect("text").to_owned())
        };
        assert_eq!(told(standing(100, 57), None), [r#""key";q=100;w=1"#, r#""key";r=57;t=1"#]);
        assert_eq!(
            told(standing(100, 57), standing(1_000, 0)),
            [r#""key";q=100;w=1, "project";q=1000;w=1"#, r#""key";r=57;t=1, "project";r=0;t=1"#]
        );
    }
}

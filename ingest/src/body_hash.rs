//! The hash of an event as its producer sent it: the same eventId with another hash is another event.
//!
//! It covers the producer's own fields in one order, before anything is filled in, and does not depend on
//! the order of keys in `properties` or on white space: a retry may be serialised anew.

use std::fmt;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::stages::RawEvent;

/// The first 16 bytes of a SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyHash([u8; 16]);

impl BodyHash {
    /// The hash of an event.
    pub fn of(event: &RawEvent<'_>) -> Self {
        let mut sha = Sha256::new();
        text(&mut sha, Some(&event.event_id));
        text(&mut sha, Some(&event.event_type));
        text(&mut sha, event.timestamp.map(|at| at.to_string()).as_deref());
        text(&mut sha, event.user_id.as_deref());
        text(&mut sha, event.session_id.as_deref());
        text(&mut sha, event.event_action.as_deref());
        match &event.properties {
            None => sha.update([0]),
            // What is nested too deeply for a tree, or has numbers beyond it, counts as it was written.
            Some(properties) => match serde_json::from_str(properties) {
                Ok(tree) => value(&mut sha, &tree),
                Err(_) => text(&mut sha, Some(properties)),
            },
        }
        let mut hash = [0; 16];
        hash.copy_from_slice(&sha.finalize()[..16]);
        Self(hash)
    }

    /// A hash as it was displayed.
    pub fn read(hex: &str) -> Option<Self> {
        let right = hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit());
        right.then(|| u128::from_str_radix(hex, 16).ok()).flatten().map(|number| Self(number.to_be_bytes()))
    }
}

impl fmt::Display for BodyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// Lengths stand before texts, so that no two lists of fields look alike.
fn text(sha: &mut Sha256, text: Option<&str>) {
    match text {
        None => sha.update([0]),
        Some(text) => {
            sha.update([1]);
            sha.update((text.len() as u64).to_be_bytes());
            sha.update(text);
        }
    }
}

fn value(sha: &mut Sha256, tree: &Value) {
    match tree {
        Value::Null => sha.update([2]),
        Value::Bool(truth) => sha.update([3, u8::from(*truth)]),
        Value::Number(number) => {
            sha.update([4]);
            text(sha, Some(&number.to_string()));
        }
        Value::String(string) => {
            sha.update([5]);
            text(sha, Some(string));
        }
        Value::Array(items) => {
            sha.update([6]);
            sha.update((items.len() as u64).to_be_bytes());
            items.iter().for_each(|item| value(sha, item));
        }
        Value::Object(map) => {
            // serde_json's map keeps another order when some crate turns on `preserve_order`.
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| key.as_str());
            sha.update([7]);
            sha.update((entries.len() as u64).to_be_bytes());
            for (key, item) in entries {
                text(sha, Some(key));
                value(sha, item);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(json: &str) -> BodyHash {
        let raw = serde_json::from_str(json).expect("test JSON");
        BodyHash::of(&RawEvent::parse(raw).expect("test event"))
    }

    #[test]
    fn order_and_white_space_do_not_matter() {
        let one = hash(r#"{"eventId":"e","eventType":"t","userId":"u","properties":{"a":1,"b":{"x":[1,2],"y":null}}}"#);
        let other = hash(
            r#"{ "properties": {"b":{"y":null,"x":[1, 2]},"a":1}, "userId":"\u0075", "sessionId":null,
                 "eventType":"t", "eventId":"e", "unknown":7 }"#,
        );
        assert_eq!(one, other);
    }

    #[test]
    fn every_field_matters() {
        let bodies = [
            r#"{"eventId":"e","eventType":"t"}"#,
            r#"{"eventId":"e","eventType":"u"}"#,
            r#"{"eventId":"e","eventType":"t","userId":"u"}"#,
            r#"{"eventId":"e","eventType":"t","sessionId":"u"}"#,
            r#"{"eventId":"e","eventType":"t","eventAction":"u"}"#,
            r#"{"eventId":"e","eventType":"t","timestamp":"2026-01-31T12:00:00Z"}"#,
            r#"{"eventId":"e","eventType":"t","properties":{}}"#,
            r#"{"eventId":"e","eventType":"t","properties":{"a":1}}"#,
            r#"{"eventId":"e","eventType":"t","properties":{"a":"1"}}"#,
            r#"{"eventId":"e","eventType":"t","properties":{"a":[1]}}"#,
        ];
        for (i, one) in bodies.iter().enumerate() {
            for (j, other) in bodies.iter().enumerate() {
                assert_eq!(hash(one) == hash(other), i == j, "{one} {other}");
            }
        }
    }

    #[test]
    fn what_no_tree_can_hold_is_hashed_as_text() {
        let deep = |leaf: &str| {
            let properties = format!("{{\"a\":{}{leaf}{}}}", "[".repeat(500), "]".repeat(500));
            hash(&format!(r#"{{"eventId":"e","eventType":"t","properties":{properties}}}"#))
        };
        assert_eq!(deep("1"), deep("1"));
        assert_ne!(deep("1"), deep("2"));
    }

    #[test]
    fn is_read_as_it_is_displayed() {
        let hash = hash(r#"{"eventId":"e","eventType":"t"}"#);
        assert_eq!(BodyHash::read(&hash.to_string()), Some(hash));
        assert_eq!(BodyHash::read("+0000000000000000000000000000001"), None);
    }
}

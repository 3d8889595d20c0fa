//! The hash of an event as its producer sent it: the same eventId with another hash is another event.
//!
//! It covers the producer's own fields in one order, before anything is filled in, and does not depend on
//! the order of keys in `properties` or on white space: a retry may be serialised anew. It need not withstand
//! attack: who can make events collide can as well send the same one.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use xxhash_rust::xxh3::{xxh3_128, xxh3_128_with_seed};

use crate::stages::RawEvent;

/// 128 bits of XXH3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyHash(u128);

impl BodyHash {
    /// The hash of an event.
    pub fn of(event: &RawEvent<'_>) -> Self {
        let texts = [
            Some(&event.event_id),
            Some(&event.event_type),
            event.user_id.as_ref(),
            event.session_id.as_ref(),
            event.event_action.as_ref(),
        ];
        let mut hash = scalar(Kind::Time, &event.timestamp.unwrap_or(i64::MIN).to_le_bytes());
        for text in texts {
            hash = chain(hash, text.map_or(ABSENT, |text| scalar(Kind::String, text.as_bytes())));
        }
        Self(chain(hash, event.properties.as_deref().map_or(ABSENT, properties)))
    }

    /// A hash from its bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// Its bytes.
    pub fn bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// A hash as it was displayed.
    pub fn read(hex: &str) -> Option<Self> {
        let right = hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit());
        right.then(|| u128::from_str_radix(hex, 16).ok()).flatten().map(Self)
    }
}

impl fmt::Display for BodyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Keeps values of different types apart.
#[derive(Clone, Copy)]
enum Kind {
    Time = 1,
    String,
    Unsigned,
    Signed,
    Float,
    Null,
    False,
    True,
    Array,
    Object,
    Text,
}

const ABSENT: u128 = 0;

fn scalar(kind: Kind, bytes: &[u8]) -> u128 {
    xxh3_128_with_seed(bytes, kind as u64)
}

/// Depends on the order of its arguments.
fn chain(before: u128, next: u128) -> u128 {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&before.to_le_bytes());
    bytes[16..].copy_from_slice(&next.to_le_bytes());
    xxh3_128(&bytes)
}

fn properties(json: &str) -> u128 {
    let mut reader = serde_json::Deserializer::from_str(json);
    // What is nested too deeply for a reader, or has numbers beyond it, counts as it was written.
    JsonValue.deserialize(&mut reader).unwrap_or_else(|_| scalar(Kind::Text, json.as_bytes()))
}

/// Hashes a JSON value while it is read, without building it.
struct JsonValue;

impl<'de> DeserializeSeed<'de> for JsonValue {
    type Value = u128;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<u128, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for JsonValue {
    type Value = u128;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<u128, E> {
        Ok(if value { Kind::True as u128 } else { Kind::False as u128 })
    }

    fn visit_unit<E>(self) -> Result<u128, E> {
        Ok(Kind::Null as u128)
    }

    fn visit_u64<E>(self, value: u64) -> Result<u128, E> {
        Ok(scalar(Kind::Unsigned, &value.to_le_bytes()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<u128, E> {
        Ok(scalar(Kind::Signed, &value.to_le_bytes()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<u128, E> {
        Ok(scalar(Kind::Float, &value.to_le_bytes()))
    }

    fn visit_str<E>(self, value: &str) -> Result<u128, E> {
        Ok(scalar(Kind::String, value.as_bytes()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<u128, A::Error> {
        let mut hash = Kind::Array as u128;
        while let Some(item) = items.next_element_seed(JsonValue)? {
            hash = chain(hash, item);
        }
        Ok(hash)
    }

    /// A sum, so that the order of the keys does not matter.
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<u128, A::Error> {
        let mut sum = Kind::Object as u128;
        while let Some(key) = entries.next_key_seed(JsonValue)? {
            sum = sum.wrapping_add(chain(key, entries.next_value_seed(JsonValue)?));
        }
        Ok(scalar(Kind::Object, &sum.to_le_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    fn hash(json: &str) -> BodyHash {
        BodyHash::of(&parse::one(json).expect("test JSON").expect("test event"))
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
            r#"{"eventId":"e","eventType":"t","properties":{"a":1.0}}"#,
            r#"{"eventId":"e","eventType":"t","properties":{"a":-1}}"#,
            r#"{"eventId":"e","eventType":"t","properties":{"a":null}}"#,
            r#"{"eventId":"e","eventType":"t","properties":{"a":true}}"#,
            r#"{"eventId":"e","eventType":"t","properties":{"a":{}}}"#,
            r#"{"eventId":"e","eventType":"t","properties":{"a":[]}}"#,
            r#"{"eventId":"e","eventType":"t","properties":{"b":1}}"#,
            r#"{"eventId":"e","eventType":"t","properties":{"a":1,"b":2}}"#,
            r#"{"eventId":"e","eventType":"t","properties":{"a":2,"b":1}}"#,
            r#"{"eventId":"e","eventType":"t","properties":{"a":[1,2]}}"#,
            r#"{"eventId":"e","eventType":"t","properties":{"a":[2,1]}}"#,
            r#"{"eventId":"e","eventType":"t","properties":{"a":{"a":1}}}"#,
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
        assert_eq!(BodyHash::from_bytes(hash.bytes()), hash);
        assert_eq!(BodyHash::read("+0000000000000000000000000000001"), None);
    }
}

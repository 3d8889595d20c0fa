//! The Redis keys and values of this crate.
//!
//! `event:{project}:{eventId}` holds `P:<token>` while the event is in flight, and
//! `C:<topic incarnation>:<partition>:<offset>:<body hash>` once it is in the log.

use std::fmt;

use crate::body_hash::BodyHash;

/// How long a claim stands, in milliseconds: longer than a delivery can take.
pub const CLAIM_MS: u64 = 10_000;
/// How long a confirmation stands, in milliseconds: the dedupe window.
pub const CONFIRMED_MS: u64 = 24 * 3_600 * 1_000;
/// Deletes KEYS[1] if it still holds ARGV[1]: a claim that ran out may be another's by now.
pub const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// The key of an event.
pub fn event(project: &str, event_id: &str) -> String {
    format!("event:{project}:{event_id}")
}

/// The value of a claim.
pub fn claimed(token: &str) -> String {
    format!("P:{token}")
}

/// Where an event stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The topic's incarnation; blank if it was not known when the event was confirmed.
    pub incarnation: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// The hash of the producer's own fields.
    pub body: BodyHash,
}

impl Stored {
    /// As clients see it.
    pub fn position(&self) -> String {
        format!("{}:{}", self.partition, self.offset)
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "C:{}:{}:{}:{}", self.incarnation, self.partition, self.offset, self.body)
    }
}

/// What an event's key holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Held<'a> {
    /// A claim, by its token.
    Claimed(&'a str),
    /// A confirmation.
    Stored(Stored),
    /// Nothing that we wrote.
    Unknown,
}

impl<'a> Held<'a> {
    /// Reads a value.
    pub fn read(value: &'a str) -> Self {
        match value.split_once(':') {
            Some(("P", token)) => Held::Claimed(token),
            Some(("C", rest)) => stored(rest).map_or(Held::Unknown, Held::Stored),
            _ => Held::Unknown,
        }
    }
}

fn stored(text: &str) -> Option<Stored> {
    let mut parts = text.split(':');
    let stored = Stored {
        incarnation: parts.next()?.to_owned(),
        partition: parts.next()?.parse().ok()?,
        offset: parts.next()?.parse().ok()?,
        body: BodyHash::read(parts.next()?)?,
    };
    parts.next().is_none().then_some(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_they_are_written() {
        let stored =
            Stored { incarnation: "kQ-_9w".into(), partition: 3, offset: 41, body: BodyHash::of(&Default::default()) };
        let text = stored.to_string();
        assert!(text.starts_with("C:kQ-_9w:3:41:"), "{text}");
        assert_eq!(Held::read(&text), Held::Stored(stored));
        assert_eq!(Held::read(&claimed("t")), Held::Claimed("t"));
    }

    #[test]
    fn other_values_are_unknown() {
        for text in ["", "1", "C:", "C:x:3:41", "C:x:a:41:00", "X:1"] {
            assert_eq!(Held::read(text), Held::Unknown, "{text}");
        }
    }
}

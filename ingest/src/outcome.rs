//! What becomes of an event: every one of a request ends in exactly one [`Outcome`].

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidemill_common::event::Invalid;

use crate::body_hash::BodyHash;
use crate::json_schemas::Violation;
use crate::keys::Stored;
use crate::limits::Whose;
use crate::stages::{Encoded, Refused};

/// What an event is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All in-sync replicas hold it, here, or this gateway's disk.
    Accepted(Position),
    /// It was in the log already, here.
    Duplicate(Position),
    /// Its eventId belongs to another event.
    Reused,
    /// It is not an event.
    Invalid(Invalid),
    /// It breaks the JSON Schema of its type.
    Violates(Violation),
    /// A limit is used up.
    Limited(Whose, Duration),
    /// Nothing is known of it yet: send it again.
    Retry(Duration),
}

/// Where an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Position {
    /// In the log.
    Log {
        /// The partition.
        partition: i32,
        /// The offset.
        offset: i64,
    },
    /// On this gateway's disk, until Kafka takes events again.
    Spooled,
}

/// As clients see it: `<partition>:<offset>` or `spooled`.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log { partition, offset } => write!(f, "{partition}:{offset}"),
            Self::Spooled => f.write_str("spooled"),
        }
    }
}

impl From<&Stored> for Position {
    fn from(stored: &Stored) -> Self {
        Self::Log { partition: stored.partition, offset: stored.offset }
    }
}

/// An event's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Its id, if it has one.
    pub event_id: Option<String>,
    /// What became of it.
    pub outcome: Outcome,
}

impl From<Refused> for Answered {
    fn from(refused: Refused) -> Self {
        Self { event_id: refused.event_id, outcome: Outcome::Invalid(refused.invalid) }
    }
}

/// What became of an eventId in one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// This request brought it into the log.
    Delivered(Stored),
    /// It had been in the log before.
    Known(Stored),
    /// This request brought it into the spool.
    Spooled,
    /// Another request has it in flight, or its delivery failed.
    Open(Duration),
}

/// After a failure of our own, and for copies of what is not in the log yet.
pub const SOON: Duration = Duration::from_secs(1);

impl Fate {
    /// The outcome of one event with this id: the first of the request, or a copy of that one.
    fn outcome(&self, event: BodyHash, first: BodyHash, is_first: bool) -> Outcome {
        match self {
            Fate::Delivered(stored) if is_first => Outcome::Accepted(stored.into()),
            Fate::Delivered(stored) | Fate::Known(stored) if event == stored.body => Outcome::Duplicate(stored.into()),
            Fate::Spooled if is_first => Outcome::Accepted(Position::Spooled),
            Fate::Spooled if event == first => Outcome::Retry(SOON),
            Fate::Open(retry_after) if event == first => Outcome::Retry(*retry_after),
            _ => Outcome::Reused,
        }
    }
}

/// The first event of each eventId in a request, which stands for its copies.
#[derive(Debug, PartialEq, Eq)]
pub struct Firsts {
    /// Where they stand among the request's events.
    pub at: Vec<usize>,
    /// For each event, which of `at` is its own.
    pub of: Vec<usize>,
}

impl Firsts {
    /// Finds them.
    pub fn of(encoded: &Encoded) -> Self {
        let events = encoded.events();
        if events.len() == 1 {
            return Self { at: vec![0], of: vec![0] };
        }
        let mut seen = std::collections::HashMap::with_capacity(events.len());
        let mut firsts = Self { at: Vec::with_capacity(events.len()), of: Vec::with_capacity(events.len()) };
        for (index, event) in events.iter().enumerate() {
            let first = *seen.entry(encoded.id(event)).or_insert_with(|| {
                firsts.at.push(index);
                firsts.at.len() - 1
            });
            firsts.of.push(first);
        }
        firsts
    }

    /// The outcome of each event, from the fates of the firsts.
    pub fn outcomes(&self, encoded: &Encoded, fates: &[Fate]) -> Vec<Outcome> {
        let events = encoded.events();
        let outcome = |index: usize| {
            let first = self.of[index];
            let at = self.at[first];
            fates[first].outcome(events[index].body, events[at].body, at == index)
        };
        (0..events.len()).map(outcome).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_common::codec::Encoder;

    use crate::stages::{RawEvent, Receipt};

    fn body(event_type: &str) -> BodyHash {
        BodyHash::of(&RawEvent { event_type: event_type.into(), ..RawEvent::default() })
    }

    fn stored(body: BodyHash) -> Stored {
        Stored { partition: 3, offset: 7, body }
    }

    #[test]
    fn copies_share_the_fate_of_the_first() {
        let (same, other) = (body("a"), body("b"));
        let position = || Position::Log { partition: 3, offset: 7 };
        let wait = Duration::from_secs(1);
        let delivered = Fate::Delivered(stored(same));
        assert_eq!(delivered.outcome(same, same, true), Outcome::Accepted(position()));
        assert_eq!(delivered.outcome(same, same, false), Outcome::Duplicate(position()));
        assert_eq!(delivered.outcome(other, same, false), Outcome::Reused);
        let known = Fate::Known(stored(same));
        assert_eq!(known.outcome(same, same, true), Outcome::Duplicate(position()));
        assert_eq!(known.outcome(other, other, true), Outcome::Reused);
        assert_eq!(known.outcome(same, other, false), Outcome::Duplicate(position()));
        assert_eq!(Fate::Spooled.outcome(same, same, true), Outcome::Accepted(Position::Spooled));
        assert_eq!(Fate::Spooled.outcome(same, same, false), Outcome::Retry(SOON), "it is not in the log yet");
        assert_eq!(Fate::Spooled.outcome(other, same, false), Outcome::Reused);
        let open = Fate::Open(wait);
        assert_eq!(open.outcome(same, same, true), Outcome::Retry(wait));
        assert_eq!(open.outcome(same, same, false), Outcome::Retry(wait));
        assert_eq!(open.outcome(other, same, false), Outcome::Reused);
    }

    #[test]
    fn each_id_is_claimed_once() {
        let receipt = Receipt { at: 1_800_000_000_000_000, client_address: None, user_agent: None };
        let mut encoded = Encoded::default();
        for id in ["a", "b", "a", "c", "b"] {
            let raw = RawEvent { event_id: id.into(), event_type: "t".into(), ..RawEvent::default() };
            encoded.push(&raw, &receipt, Encoder::new(1), &[], 6).expect("valid");
        }
        let firsts = Firsts::of(&encoded);
        assert_eq!(firsts, Firsts { at: vec![0, 1, 3], of: vec![0, 1, 0, 2, 1] });
    }
}

//! Events of 300 bytes, as bytes that are ready to send: per event only the eventId and the timestamp change.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::DateTime;

use crate::random::{ID_BYTES, mix, uuid};

/// Length of every event.
pub const EVENT_BYTES: usize = 300;

const ID_AT: usize = r#"{"eventId":""#.len();
const TIMESTAMP_AT: usize = ID_AT + ID_BYTES + r#"","timestamp":""#.len();
const TIMESTAMP_BYTES: usize = "2026-01-01T00:00:00.000Z".len();
const BLANK_ID: &str = "00000000-0000-4000-8000-000000000000";
const BLANK_TIMESTAMP: &str = "2026-01-01T00:00:00.000Z";

const TYPES: [&str; 6] = ["page_view", "page_view", "page_view", "product_view", "add_to_cart", "search"];
const DEVICES: [&str; 3] = ["mobile", "desktop", "tablet"];
const FILLER: &str =
    "Lightweight waterproof jacket with a hood, two pockets and a lining of recycled wool, in five colours";

/// Event number `number` of a pool as large as wanted; all have other users, sessions and products.
pub fn template(number: u64) -> Vec<u8> {
    let random = mix(number);
    let head = format!(
        r#"{{"eventId":"{BLANK_ID}","timestamp":"{BLANK_TIMESTAMP}","eventType":"{}","userId":"user-{}","sessionId":"s-{:012x}","properties":{{"page":"/products/{}","device":"{}","price":{}.{},"title":""#,
        TYPES[random as usize % TYPES.len()],
        random % 100_000,
        mix(random) >> 16,
        random >> 13 & 0xffff,
        DEVICES[random as usize / 7 % DEVICES.len()],
        random % 90 + 10,
        random % 89 + 10,
    );
    let tail = r#""}}"#;
    let room = EVENT_BYTES - head.len() - tail.len();
    let start = random as usize / 11 % (FILLER.len() - room);
    [head.as_str(), &FILLER[start..start + room], tail].concat().into_bytes()
}

/// Makes an event a new one: writes an eventId and a timestamp into it.
pub fn renew(event: &mut [u8], ids: &Ids, timestamp: &Timestamp) {
    event[ID_AT..ID_AT + ID_BYTES].copy_from_slice(&ids.next());
    event[TIMESTAMP_AT..TIMESTAMP_AT + TIMESTAMP_BYTES].copy_from_slice(&timestamp.text);
}

/// An event's id.
pub fn id(event: &[u8]) -> &[u8] {
    &event[ID_AT..ID_AT + ID_BYTES]
}

/// UUIDs that never repeat, in this run or another.
pub struct Ids {
    next: AtomicU64,
    seed: u64,
}

impl Ids {
    /// Ids that differ from those of any other start.
    pub fn new() -> Self {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        Self { next: AtomicU64::new(0), seed: mix(nanos ^ u64::from(std::process::id()) << 40) }
    }

    fn next(&self) -> [u8; ID_BYTES] {
        let high = mix(self.seed.wrapping_add(self.next.fetch_add(1, Ordering::Relaxed)));
        uuid(high, mix(high ^ self.seed))
    }
}

/// The time now as RFC 3339, formatted once per millisecond.
pub struct Timestamp {
    millis: i64,
    text: [u8; TIMESTAMP_BYTES],
}

impl Timestamp {
    /// One that has still to be set.
    pub fn new() -> Self {
        Self { millis: -1, text: [b'0'; TIMESTAMP_BYTES] }
    }

    /// Sets it to a time.
    pub fn set(&mut self, now: SystemTime) {
        let millis = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        if millis == self.millis {
            return;
        }
        self.millis = millis;
        let text = DateTime::from_timestamp_millis(millis).unwrap_or_default().format("%Y-%m-%dT%H:%M:%S%.3fZ");
        self.text.copy_from_slice(text.to_string().as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::time::Duration;

    #[test]
    fn every_event_is_json_of_the_same_length() {
        for number in 0..10_000 {
            let event = template(number);
            assert_eq!(event.len(), EVENT_BYTES);
            let json: serde_json::Value = serde_json::from_slice(&event).expect("JSON");
            assert!(json["properties"]["price"].is_number());
        }
    }

    #[test]
    fn renewing_changes_id_and_timestamp_only() {
        let (ids, mut timestamp, mut event) = (Ids::new(), Timestamp::new(), template(7));
        timestamp.set(UNIX_EPOCH + Duration::from_millis(1_700_000_000_123));
        renew(&mut event, &ids, &timestamp);
        let (before, after): (serde_json::Value, serde_json::Value) =
            (serde_json::from_slice(&template(7)).expect("JSON"), serde_json::from_slice(&event).expect("JSON"));
        assert_eq!(after["timestamp"], "2023-11-14T22:13:20.123Z");
        assert_eq!(after["eventId"].as_str().map(str::as_bytes), Some(id(&event)));
        assert_ne!(after["eventId"], before["eventId"]);
        assert_eq!(after["properties"], before["properties"]);
        assert_eq!(after["userId"], before["userId"]);
    }

    #[test]
    fn ids_are_uuids_and_never_repeat() {
        let ids = Ids::new();
        let seen: HashSet<_> = (0..100_000).map(|_| ids.next()).collect();
        assert_eq!(seen.len(), 100_000);
        assert_ne!(Ids::new().next(), Ids::new().next());
    }
}

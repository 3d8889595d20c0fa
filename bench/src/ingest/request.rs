//! Requests of the gateway's load: bytes that are ready to send.

use std::net::SocketAddr;

use memchr::memmem;

use super::events::{self, EVENT_BYTES, Ids, Timestamp};

/// Where requests go and what they carry.
#[derive(Clone)]
pub struct Target {
    /// The server.
    pub address: SocketAddr,
    /// Path of the resource.
    pub path: String,
    /// The API key, where one is asked for.
    pub key: Option<String>,
    /// Whether an answer tells the fate of each event, as ours does.
    pub verdicts: bool,
}

impl Target {
    /// How many of a request's events an answer says were accepted.
    pub fn accepted(&self, status: u16, body: &[u8], events: usize) -> usize {
        match status {
            200..300 if self.verdicts => memmem::find_iter(body, br#""status":"accepted""#).count(),
            200..300 => events,
            _ => 0,
        }
    }
}

/// A request of some events, made new for each sending.
pub struct Request {
    bytes: Vec<u8>,
    events: Vec<usize>,
}

impl Request {
    /// A request with `count` events, of which the first has the number `first`. One event goes as an object,
    /// several as an array.
    pub fn new(target: &Target, count: usize, first: u64) -> Self {
        let length = if count == 1 { EVENT_BYTES } else { count * (EVENT_BYTES + 1) + 1 };
        let key = target.key.as_ref().map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
        let mut bytes = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\n{key}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n",
            target.path, target.address
        )
        .into_bytes();
        let mut events = Vec::with_capacity(count);
        for number in 0..count {
            match number {
                0 if count == 1 => {}
                0 => bytes.push(b'['),
                _ => bytes.push(b','),
            }
            events.push(bytes.len());
            bytes.extend_from_slice(&events::template(first + number as u64));
        }
        if count > 1 {
            bytes.push(b']');
        }
        Self { bytes, events }
    }

    /// The bytes to send, with new ids and the time now.
    pub fn renewed(&mut self, ids: &Ids, timestamp: &Timestamp) -> &[u8] {
        for &at in &self.events {
            events::renew(&mut self.bytes[at..at + EVENT_BYTES], ids, timestamp);
        }
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target { address: ([127, 0, 0, 1], 1).into(), path: "/v1/events".into(), key: Some("k".into()), verdicts: true }
    }

    #[test]
    fn requests_say_their_length_and_are_json() {
        for count in [1, 2, 100] {
            let mut request = Request::new(&target(), count, 0);
            let bytes = request.renewed(&Ids::new(), &Timestamp::new()).to_vec();
            let end = memmem::find(&bytes, b"\r\n\r\n").expect("a head");
            let head = std::str::from_utf8(&bytes[..end]).expect("text");
            let length = head.split("Content-Length: ").nth(1).and_then(|length| length.parse().ok());
            assert_eq!(length, Some(bytes.len() - end - 4));
            let json: serde_json::Value = serde_json::from_slice(&bytes[end + 4..]).expect("JSON");
            assert_eq!(json.as_array().map_or(1, Vec::len), count);
            assert_eq!(json.is_object(), count == 1);
        }
    }

    #[test]
    fn verdicts_are_counted_where_there_are_some() {
        let body = br#"{"results":[{"status":"accepted"},{"status":"retry"},{"status":"accepted"}]}"#;
        assert_eq!(target().accepted(202, body, 3), 2);
        assert_eq!(target().accepted(503, body, 3), 0);
        let plain = Target { verdicts: false, ..target() };
        assert_eq!(plain.accepted(200, body, 3), 3);
    }
}

//! The event, and the rules that every part of the pipeline holds it to.

use serde::{Deserialize, Serialize};

/// Longest `eventId`, in characters.
pub const MAX_EVENT_ID: usize = 128;
/// Longest `eventType`, in characters.
pub const MAX_EVENT_TYPE: usize = 100;
/// Longest `userId`, `sessionId` and `eventAction`, in characters: they stand in Postgres keys.
pub const MAX_NAME: usize = 256;

/// 2000-01-01T00:00:00Z, in microseconds.
const EARLIEST: i64 = 946_684_800_000_000;
/// How far a timestamp may lie ahead of its receipt, in microseconds.
const AHEAD: i64 = 24 * 3_600 * 1_000_000;
/// Readers of the log judge against the append time, which is later or earlier than the gateway's receipt
/// by clock skew; with this slack nothing that the gateway accepted is ever refused behind it.
const APPEND_SLACK: i64 = 3_600 * 1_000_000;

/// One event, as it stands in Kafka (`schemas/event.avsc`). Times are microseconds since 1970, UTC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Unique for one event, kept by retries; the record's key.
    pub event_id: String,
    /// What happened.
    pub event_type: String,
    /// When it happened.
    pub timestamp: i64,
    /// When the gateway received it; absent from native producers.
    #[serde(default)]
    pub received_at: Option<i64>,
    /// Who did it.
    #[serde(default)]
    pub user_id: Option<String>,
    /// In which session, by the producer's own name for it.
    #[serde(default)]
    pub session_id: Option<String>,
    /// A finer name beside the type.
    #[serde(default)]
    pub event_action: Option<String>,
    /// A JSON object, as text.
    #[serde(default)]
    pub properties: Option<String>,
    /// The client's address, truncated or dropped by setting.
    #[serde(default)]
    pub client_address: Option<String>,
    /// The client's user agent.
    #[serde(default)]
    pub user_agent: Option<String>,
}

/// Why an event is invalid. `field` is its JSON name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// The JSON name of the field at fault.
    pub field: &'static str,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

impl Invalid {
    /// An error about one field.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}

/// An event whose texts stand elsewhere: what the gateway encodes, and what readers of the log look at, without
/// copying them first.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[allow(missing_docs)] // the fields of [`Event`]
pub struct EventRef<'a> {
    pub event_id: &'a str,
    pub event_type: &'a str,
    pub timestamp: i64,
    pub received_at: Option<i64>,
    pub user_id: Option<&'a str>,
    pub session_id: Option<&'a str>,
    pub event_action: Option<&'a str>,
    pub properties: Option<&'a str>,
    pub client_address: Option<&'a str>,
    pub user_agent: Option<&'a str>,
}

impl Event {
    /// An event that says nothing but this; the time is in microseconds since 1970.
    pub fn new(event_id: impl Into<String>, event_type: impl Into<String>, timestamp: i64) -> Self {
        Self {
            event_id: event_id.into(),
            event_type: event_type.into(),
            timestamp,
            received_at: None,
            user_id: None,
            session_id: None,
            event_action: None,
            properties: None,
            client_address: None,
            user_agent: None,
        }
    }

    /// The same event, borrowed.
    pub fn as_ref(&self) -> EventRef<'_> {
        EventRef {
            event_id: &self.event_id,
            event_type: &self.event_type,
            timestamp: self.timestamp,
            received_at: self.received_at,
            user_id: self.user_id.as_deref(),
            session_id: self.session_id.as_deref(),
            event_action: self.event_action.as_deref(),
            properties: self.properties.as_deref(),
            client_address: self.client_address.as_deref(),
            user_agent: self.user_agent.as_deref(),
        }
    }
}

impl EventRef<'_> {
    /// The gateway's check: `received_at` is its own clock, in microseconds. That `properties` is a JSON object
    /// it knows from parsing.
    pub fn validate(&self, received_at: i64) -> Result<(), Invalid> {
        self.check(received_at + AHEAD)
    }

    /// The check of every reader of the log. It depends on nothing but the record, so that the stream,
    /// the archiver and a replay years later give one verdict. Whoever reads the properties anyway can hand in what says
    /// the same as [`is_object`].
    pub fn validate_appended(&self, append_time_ms: i64, is_object: impl FnOnce(&str) -> bool) -> Result<(), Invalid> {
        self.check(append_time_ms.saturating_mul(1_000).saturating_add(AHEAD + APPEND_SLACK))?;
        match self.properties {
            Some(properties) if !is_object(properties) => Err(Invalid::new("properties", "must be a JSON object")),
            _ => Ok(()),
        }
    }

    /// The same event, on its own.
    pub fn to_event(&self) -> Event {
        let text = |text: Option<&str>| text.map(str::to_owned);
        Event {
            event_id: self.event_id.to_owned(),
            event_type: self.event_type.to_owned(),
            timestamp: self.timestamp,
            received_at: self.received_at,
            user_id: text(self.user_id),
            session_id: text(self.session_id),
            event_action: text(self.event_action),
            properties: text(self.properties),
            client_address: text(self.client_address),
            user_agent: text(self.user_agent),
        }
    }

    fn check(&self, latest: i64) -> Result<(), Invalid> {
        text("eventId", Some(self.event_id), MAX_EVENT_ID)?;
        text("eventType", Some(self.event_type), MAX_EVENT_TYPE)?;
        text("userId", self.user_id, MAX_NAME)?;
        text("sessionId", self.session_id, MAX_NAME)?;
        text("eventAction", self.event_action, MAX_NAME)?;
        if self.timestamp < EARLIEST {
            return Err(Invalid::new(
                "timestamp",
                "is before the year 2000; send RFC 3339 in UTC, e.g. 2026-01-31T12:00:00Z",
            ));
        }
        if self.timestamp > latest {
            return Err(Invalid::new("timestamp", "is more than 24 hours in the future; check the sender's clock"));
        }
        Ok(())
    }
}

/// Present fields are 1 to `max` characters. U+0000 is refused because Postgres cannot store it in text.
fn text(field: &'static str, value: Option<&str>, max: usize) -> Result<(), Invalid> {
    let Some(value) = value else { return Ok(()) };
    if value.is_empty() {
        return Err(Invalid::new(field, format!("must have 1 to {max} characters, but is empty")));
    }
    // Bytes bound characters from above, so most values need no counting.
    if value.len() > max {
        let characters = value.chars().count();
        if characters > max {
            return Err(Invalid::new(field, format!("must have 1 to {max} characters, but has {characters}")));
        }
    }
    if value.contains('\0') {
        return Err(Invalid::new(field, "must not contain the character U+0000"));
    }
    Ok(())
}

/// Whether a text is a JSON object.
pub fn is_object(json: &str) -> bool {
    json.trim_start().starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(json).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000_000;

    fn event() -> Event {
        Event::new("e-1", "page_view", NOW)
    }

    fn field(change: impl FnOnce(&mut Event)) -> Option<&'static str> {
        let mut event = event();
        change(&mut event);
        event.as_ref().validate(NOW).err().map(|invalid| invalid.field)
    }

    #[test]
    fn limits_are_counted_in_characters() {
        assert_eq!(field(|_| ()), None);
        assert_eq!(field(|e| e.event_id = "ä".repeat(128)), None);
        assert_eq!(field(|e| e.event_id = "ä".repeat(129)), Some("eventId"));
        assert_eq!(field(|e| e.event_id = String::new()), Some("eventId"));
        assert_eq!(field(|e| e.event_type = "x".repeat(101)), Some("eventType"));
        assert_eq!(field(|e| e.user_id = Some("x".repeat(257))), Some("userId"));
        assert_eq!(field(|e| e.session_id = Some("a\0b".into())), Some("sessionId"));
        assert_eq!(field(|e| e.event_action = Some(String::new())), Some("eventAction"));
    }

    #[test]
    fn timestamps_lie_between_2000_and_tomorrow() {
        assert_eq!(field(|e| e.timestamp = EARLIEST), None);
        assert_eq!(field(|e| e.timestamp = EARLIEST - 1), Some("timestamp"));
        assert_eq!(field(|e| e.timestamp = NOW + AHEAD), None);
        assert_eq!(field(|e| e.timestamp = NOW + AHEAD + 1), Some("timestamp"));
    }

    #[test]
    fn readers_forgive_an_hour_of_clock_skew() {
        let mut event = event();
        event.timestamp = NOW + AHEAD + APPEND_SLACK;
        assert!(event.as_ref().validate_appended(NOW / 1_000, is_object).is_ok());
        event.timestamp += 1;
        assert!(event.as_ref().validate_appended(NOW / 1_000, is_object).is_err());
    }

    #[test]
    fn properties_are_an_object() {
        let good = |properties: &str| {
            let event = Event { properties: Some(properties.into()), ..event() };
            event.as_ref().validate_appended(NOW / 1_000, is_object).is_ok()
        };
        assert!(good(" {\"a\":[1]}"));
        assert!(!good("[1]"));
        assert!(!good("{\"a\":"));
    }
}

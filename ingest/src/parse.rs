//! JSON to events. What is not JSON fails the request; what is not an event fails only itself, naming its
//! field.

use std::borrow::Cow;

use chrono::DateTime;
use serde::Deserialize;
use serde_json::value::RawValue;
use tidemill_common::event::Invalid;

use crate::stages::{RawEvent, Refused};

/// The events of a body, not yet looked into.
#[derive(Debug)]
pub enum Body<'a> {
    /// One event.
    One(&'a RawValue),
    /// An array of events.
    Many(Vec<&'a RawValue>),
}

/// Splits a JSON body. The error says where the JSON breaks.
pub fn json(body: &[u8]) -> Result<Body<'_>, serde_json::Error> {
    match body.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') => serde_json::from_slice(body).map(Body::Many),
        _ => serde_json::from_slice(body).map(Body::One),
    }
}

/// The fields of an event, each still to be looked into so that an error can name it. `null` is absent.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields<'a> {
    #[serde(borrow)]
    event_id: Option<&'a RawValue>,
    event_type: Option<&'a RawValue>,
    timestamp: Option<&'a RawValue>,
    user_id: Option<&'a RawValue>,
    session_id: Option<&'a RawValue>,
    event_action: Option<&'a RawValue>,
    properties: Option<&'a RawValue>,
}

const NAMES: [&str; 7] = ["eventId", "eventType", "timestamp", "userId", "sessionId", "eventAction", "properties"];

impl<'a> RawEvent<'a> {
    /// The event in a JSON object. Fields with other names are ignored.
    pub fn parse(json: &'a RawValue) -> Result<Self, Refused> {
        let fields = fields(json.get()).map_err(|invalid| Refused { event_id: None, invalid })?;
        let event_id = required("eventId", fields.event_id).map_err(|invalid| Refused { event_id: None, invalid })?;
        match rest(&fields) {
            Ok(rest) => Ok(Self { event_id, ..rest }),
            Err(invalid) => Err(Refused { event_id: Some(event_id.into_owned()), invalid }),
        }
    }
}

fn fields(json: &str) -> Result<Fields<'_>, Invalid> {
    // serde would take an array for a struct's fields in order.
    if !json.starts_with('{') {
        return Err(Invalid::new("event", "must be a JSON object"));
    }
    serde_json::from_str(json).map_err(|error| {
        let error = error.to_string();
        let twice = NAMES.into_iter().find(|name| error.contains(&format!("duplicate field `{name}`")));
        match twice {
            Some(name) => Invalid::new(name, "must stand only once in an event"),
            None => Invalid::new("event", error),
        }
    })
}

fn rest<'a>(fields: &Fields<'a>) -> Result<RawEvent<'a>, Invalid> {
    Ok(RawEvent {
        event_id: Cow::default(),
        event_type: required("eventType", fields.event_type)?,
        timestamp: fields.timestamp.map(timestamp).transpose()?,
        user_id: optional("userId", fields.user_id)?,
        session_id: optional("sessionId", fields.session_id)?,
        event_action: optional("eventAction", fields.event_action)?,
        properties: fields.properties.map(object).transpose()?,
    })
}

fn required<'a>(field: &'static str, json: Option<&'a RawValue>) -> Result<Cow<'a, str>, Invalid> {
    optional(field, json)?.ok_or_else(|| Invalid::new(field, "is missing; every event must have it"))
}

fn optional<'a>(field: &'static str, json: Option<&'a RawValue>) -> Result<Option<Cow<'a, str>>, Invalid> {
    json.map(|json| string(field, json)).transpose()
}

fn string<'a>(field: &'static str, json: &'a RawValue) -> Result<Cow<'a, str>, Invalid> {
    let text = json.get();
    let Some(inner) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return Err(Invalid::new(field, format!("must be a string, but is {}", kind(json))));
    };
    if !inner.contains('\\') {
        return Ok(Cow::Borrowed(inner));
    }
    // A string can still hold half of a surrogate pair, which is no character.
    let unescaped: Result<String, _> = serde_json::from_str(text);
    unescaped.map(Cow::Owned).map_err(|_| Invalid::new(field, "must be a string of Unicode characters"))
}

fn timestamp(json: &RawValue) -> Result<i64, Invalid> {
    let text = string("timestamp", json)?;
    match DateTime::parse_from_rfc3339(&text) {
        Ok(time) => Ok(time.timestamp_micros()),
        Err(error) => {
            let problem = format!("must be RFC 3339, e.g. 2026-01-31T12:00:00Z ({error})");
            Err(Invalid::new("timestamp", problem))
        }
    }
}

fn object(json: &RawValue) -> Result<Cow<'_, str>, Invalid> {
    if json.get().starts_with('{') {
        return Ok(Cow::Borrowed(json.get()));
    }
    Err(Invalid::new("properties", format!("must be a JSON object, but is {}", kind(json))))
}

fn kind(json: &RawValue) -> &'static str {
    match json.get().as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<RawEvent<'_>, Refused> {
        RawEvent::parse(serde_json::from_str(json).expect("test JSON"))
    }

    #[test]
    fn numbers_in_properties_keep_their_text() {
        let event = parse(r#"{"eventId":"e","eventType":"t","properties": {"price":12.50,"big":1e400} }"#);
        assert_eq!(event.expect("valid").properties.as_deref(), Some(r#"{"price":12.50,"big":1e400}"#));
    }

    #[test]
    fn times_are_read_with_their_zone() {
        let event = parse(r#"{"eventId":"e","eventType":"t","timestamp":"2026-01-31T13:00:00.000001+01:00"}"#);
        assert_eq!(event.expect("valid").timestamp, Some(1_769_860_800_000_001));
    }

    #[test]
    fn errors_name_the_field() {
        let table = [
            (r#"{"eventType":"t"}"#, "eventId"),
            (r#"{"eventId":null,"eventType":"t"}"#, "eventId"),
            (r#"{"eventId":7,"eventType":"t"}"#, "eventId"),
            (r#"{"eventId":"\ud800","eventType":"t"}"#, "eventId"),
            (r#"{"eventId":"e","eventId":"f","eventType":"t"}"#, "eventId"),
            (r#"{"eventId":"e"}"#, "eventType"),
            (r#"{"eventId":"e","eventType":["t"]}"#, "eventType"),
            (r#"{"eventId":"e","eventType":"t","timestamp":1769860800}"#, "timestamp"),
            (r#"{"eventId":"e","eventType":"t","timestamp":"yesterday"}"#, "timestamp"),
            (r#"{"eventId":"e","eventType":"t","userId":{}}"#, "userId"),
            (r#"{"eventId":"e","eventType":"t","sessionId":true}"#, "sessionId"),
            (r#"{"eventId":"e","eventType":"t","eventAction":1}"#, "eventAction"),
            (r#"{"eventId":"e","eventType":"t","properties":"{}"}"#, "properties"),
            (r#"["e","t",null,null,null,null,null]"#, "event"),
            ("17", "event"),
        ];
        for (json, field) in table {
            assert_eq!(parse(json).expect_err(json).invalid.field, field, "{json}");
        }
    }

    #[test]
    fn an_error_knows_the_event_where_it_can() {
        let refused = parse(r#"{"properties":[],"eventId":"e","eventType":"t"}"#).expect_err("wrong type");
        assert_eq!(refused.event_id.as_deref(), Some("e"));
    }

    #[test]
    fn a_body_is_one_event_or_an_array() {
        assert!(matches!(json(b" {}").expect("JSON"), Body::One(_)));
        assert!(matches!(json(b"\n[{},1]").expect("JSON"), Body::Many(events) if events.len() == 2));
        assert!(json(b"").is_err());
        assert!(json(b"{\"a\":").is_err());
        assert!(json(b"[{}] x").is_err());
        assert!(json(b"{\"a\":\"\xff\"}").is_err());
    }
}

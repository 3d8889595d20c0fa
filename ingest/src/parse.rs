//! JSON to events. What is not JSON fails the request; what is not an event fails only itself, naming its
//! field.
//!
//! The text is gone through once. Each field is kept as it stands there and looked into afterwards, so that an
//! error can name it.

use std::borrow::Cow;
use std::fmt;

use chrono::DateTime;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use tidemill_common::event::Invalid;

use crate::stages::{RawEvent, Refused};

/// An event, or why something is none.
pub type Parsed<'a> = Result<RawEvent<'a>, Refused>;

/// The events of a body.
#[derive(Debug)]
pub enum Body<'a> {
    /// One event.
    One(Parsed<'a>),
    /// An array of events.
    Many(Vec<Parsed<'a>>),
}

/// The events in a JSON body. The error says where the JSON breaks.
pub fn json(body: &[u8]) -> Result<Body<'_>, NotJson> {
    let text = std::str::from_utf8(body).map_err(|error| NotJson(error.to_string()))?;
    match text.bytes().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') => many(text).map(Body::Many),
        _ => one(text).map(Body::One),
    }
}

/// What a reader stumbles over may still be JSON, and then costs only the event it stands in.
fn many(text: &str) -> Result<Vec<Parsed<'_>>, NotJson> {
    if let Ok(elements) = serde_json::from_str::<Vec<Element<'_>>>(text) {
        return Ok(elements.into_iter().map(Element::into_event).collect());
    }
    let elements: Vec<&RawValue> = serde_json::from_str(text).map_err(NotJson::from)?;
    elements.into_iter().map(|element| one(element.get())).collect()
}

/// The event in a JSON text.
pub fn one(text: &str) -> Result<Parsed<'_>, NotJson> {
    match serde_json::from_str::<Element<'_>>(text) {
        Ok(element) => Ok(element.into_event()),
        Err(error) => match serde_json::from_str::<&RawValue>(text) {
            Ok(_) => Ok(Err(nameless(Invalid::new("event", error.to_string())))),
            Err(error) => Err(error.into()),
        },
    }
}

/// Where and why a text is not JSON.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotJson(String);

impl From<serde_json::Error> for NotJson {
    fn from(error: serde_json::Error) -> Self {
        Self(error.to_string())
    }
}

/// A JSON value that should be an event.
enum Element<'a> {
    Object(Fields<'a>),
    Other,
}

/// The fields of an event, each still to be looked into. `null` is absent.
#[derive(Default)]
struct Fields<'a> {
    event_id: Option<&'a RawValue>,
    event_type: Option<&'a RawValue>,
    timestamp: Option<&'a RawValue>,
    user_id: Option<&'a RawValue>,
    session_id: Option<&'a RawValue>,
    event_action: Option<&'a RawValue>,
    properties: Option<&'a RawValue>,
    /// The name of a field that stands there twice.
    twice: Option<&'static str>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Name {
    EventId,
    EventType,
    Timestamp,
    UserId,
    SessionId,
    EventAction,
    Properties,
    #[serde(other)]
    Unknown,
}

impl<'de: 'a, 'a> Deserialize<'de> for Element<'a> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(ElementVisitor)
    }
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Element<'de>, A::Error> {
        let mut fields = Fields::default();
        while let Some(name) = entries.next_key::<Name>()? {
            let (field, name) = match name {
                Name::EventId => (&mut fields.event_id, "eventId"),
                Name::EventType => (&mut fields.event_type, "eventType"),
                Name::Timestamp => (&mut fields.timestamp, "timestamp"),
                Name::UserId => (&mut fields.user_id, "userId"),
                Name::SessionId => (&mut fields.session_id, "sessionId"),
                Name::EventAction => (&mut fields.event_action, "eventAction"),
                Name::Properties => (&mut fields.properties, "properties"),
                Name::Unknown => {
                    entries.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if field.replace(entries.next_value()?).is_some() {
                fields.twice = Some(name);
            }
        }
        Ok(Element::Object(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Element<'de>, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Element::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Element<'de>, E> {
        Ok(Element::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Element<'de>, E> {
        Ok(Element::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Element<'de>, E> {
        Ok(Element::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Element<'de>, E> {
        Ok(Element::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Element<'de>, E> {
        Ok(Element::Other)
    }

    fn visit_unit<E>(self) -> Result<Element<'de>, E> {
        Ok(Element::Other)
    }
}

impl<'a> Element<'a> {
    fn into_event(self) -> Parsed<'a> {
        let Element::Object(fields) = self else {
            return Err(nameless(Invalid::new("event", "must be a JSON object")));
        };
        if let Some(name) = fields.twice {
            return Err(nameless(Invalid::new(name, "must stand only once in an event")));
        }
        let event_id = required("eventId", fields.event_id).map_err(nameless)?;
        match fields.rest() {
            Ok(rest) => Ok(RawEvent { event_id, ..rest }),
            Err(invalid) => Err(Refused { event_id: Some(event_id.into_owned()), invalid }),
        }
    }
}

/// A refusal of something that has no eventId.
pub fn nameless(invalid: Invalid) -> Refused {
    Refused { event_id: None, invalid }
}

impl<'a> Fields<'a> {
    /// All but the eventId.
    fn rest(&self) -> Result<RawEvent<'a>, Invalid> {
        Ok(RawEvent {
            event_id: Cow::default(),
            event_type: required("eventType", self.event_type)?,
            timestamp: present(self.timestamp).map(timestamp).transpose()?,
            user_id: optional("userId", self.user_id)?,
            session_id: optional("sessionId", self.session_id)?,
            event_action: optional("eventAction", self.event_action)?,
            properties: present(self.properties).map(object).transpose()?,
        })
    }
}

fn present(json: Option<&RawValue>) -> Option<&RawValue> {
    json.filter(|json| json.get() != "null")
}

/// The text of a field that must be there.
pub fn required<'a>(field: &'static str, json: Option<&'a RawValue>) -> Result<Cow<'a, str>, Invalid> {
    optional(field, json)?.ok_or_else(|| Invalid::new(field, "is missing; every event must have it"))
}

/// The text of a field, if it is there.
pub fn optional<'a>(field: &'static str, json: Option<&'a RawValue>) -> Result<Option<Cow<'a, str>>, Invalid> {
    present(json).map(|json| string(field, json)).transpose()
}

/// The text of a JSON string: as it stands there, if nothing in it is escaped.
pub fn string<'a>(field: &'static str, json: &'a RawValue) -> Result<Cow<'a, str>, Invalid> {
    let text = json.get();
    let Some(inner) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return Err(Invalid::new(field, format!("must be a string, but is {}", kind(json))));
    };
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Ok(Cow::Borrowed(inner));
    }
    // A string can still hold half of a surrogate pair, which is no character.
    let unescaped: Result<String, _> = serde_json::from_str(text);
    unescaped.map(Cow::Owned).map_err(|_| Invalid::new(field, "must be a string of Unicode characters"))
}

/// Microseconds since 1970.
pub fn timestamp(json: &RawValue) -> Result<i64, Invalid> {
    let text = string("timestamp", json)?;
    match DateTime::parse_from_rfc3339(&text) {
        Ok(time) => Ok(time.timestamp_micros()),
        Err(error) => {
            let problem = format!("must be RFC 3339, e.g. 2026-01-31T12:00:00Z ({error})");
            Err(Invalid::new("timestamp", problem))
        }
    }
}

/// The text of a JSON object.
pub fn object(json: &RawValue) -> Result<Cow<'_, str>, Invalid> {
    if json.get().starts_with('{') {
        return Ok(Cow::Borrowed(json.get()));
    }
    Err(Invalid::new("properties", format!("must be a JSON object, but is {}", kind(json))))
}

/// What a JSON value is.
pub fn kind(json: &RawValue) -> &'static str {
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

    fn parse(json: &str) -> Parsed<'_> {
        one(json).expect("test JSON")
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
    fn texts_are_copied_only_where_they_are_escaped() {
        let event = parse(r#"{"eventId":"e","eventType":"t\u0075","userId":null}"#).expect("valid");
        assert!(matches!(event.event_id, Cow::Borrowed("e")));
        assert_eq!(event.event_type, "tu");
        assert_eq!(event.user_id, None);
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
            ("-1.5", "event"),
            ("\"e\"", "event"),
            ("true", "event"),
            ("null", "event"),
            ("1e400", "event"),
            ("\"\\ud800\"", "event"),
            ("{\"\\ud800\":1}", "event"),
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
        let Body::Many(events) = json(br#"[{"\ud800":1},{"eventId":"e","eventType":"t"}]"#).expect("JSON") else {
            panic!("it is an array")
        };
        assert!(events[0].is_err() && events[1].is_ok(), "an odd event costs its neighbours nothing");
        assert!(json(b"").is_err());
        assert!(json(b"{\"a\":").is_err());
        assert!(json(b"[{}] x").is_err());
        assert!(json(b"{\"a\":\"\xff\"}").is_err());
    }
}

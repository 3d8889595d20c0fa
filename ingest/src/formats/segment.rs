//! What Segment's client libraries send.
//!
//! | type | eventType | properties |
//! |---|---|---|
//! | `track` | the event's name | `properties` |
//! | `page`, `screen` | `page`, `screen` | `properties`, with the name as `page`, and `category` |
//! | `identify` | `identify` | `traits` |
//! | `group` | `group` | `traits`, with `groupId` |
//! | `alias` | `alias` | `previousId` |
//!
//! messageId → eventId, userId (else anonymousId) → userId, context.sessionId → sessionId. The timestamp is kept as
//! the client sent it, not moved by `sentAt`: a message that is sent again must stay the same event.

use std::borrow::Cow;
use std::collections::HashMap;

use chrono::DateTime;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use tidemill_common::event::Invalid;

use crate::parse::{NotJson, Parsed, kind, nameless, object, string};
use crate::stages::{RawEvent, Refused};

/// The calls, each also a path of its own.
const TYPES: &str = "track, page, screen, identify, group or alias";

#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(borrow)]
    batch: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Message<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    message_id: Option<&'a RawValue>,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow)]
    original_timestamp: Option<&'a RawValue>,
    #[serde(borrow)]
    user_id: Option<&'a RawValue>,
    #[serde(borrow)]
    anonymous_id: Option<&'a RawValue>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    category: Option<&'a RawValue>,
    #[serde(borrow)]
    properties: Option<&'a RawValue>,
    #[serde(borrow)]
    traits: Option<&'a RawValue>,
    #[serde(borrow)]
    group_id: Option<&'a RawValue>,
    #[serde(borrow)]
    previous_id: Option<&'a RawValue>,
    #[serde(borrow)]
    context: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Context<'a> {
    #[serde(borrow, rename = "sessionId")]
    session_id: Option<&'a RawValue>,
}

/// The messages of a batch.
pub fn batch(body: &[u8]) -> Result<Vec<Parsed<'_>>, NotJson> {
    let Batch { batch } = serde_json::from_slice(body)?;
    Ok(batch.into_iter().map(|message| parsed(message, None)).collect())
}

/// One message of this type.
pub fn single<'a>(body: &'a [u8], call: &'static str) -> Result<Vec<Parsed<'a>>, NotJson> {
    Ok(vec![parsed(serde_json::from_slice(body)?, Some(call))])
}

fn parsed<'a>(json: &'a RawValue, call: Option<&'static str>) -> Parsed<'a> {
    if !json.get().starts_with('{') {
        return Err(nameless(Invalid::new("event", format!("must be a JSON object, but is {}", kind(json)))));
    }
    let message: Message<'_> = serde_json::from_str(json.get())
        .map_err(|error| nameless(Invalid::new("event", format!("is no Segment message: {error}"))))?;
    let event_id = text("messageId", message.message_id)
        .and_then(|id| id.ok_or_else(|| Invalid::new("messageId", "is missing; every message must have it")))
        .map_err(nameless)?;
    match message.rest(call) {
        Ok(rest) => Ok(RawEvent { event_id, ..rest }),
        Err(invalid) => Err(Refused { event_id: Some(event_id.into_owned()), invalid }),
    }
}

impl<'a> Message<'a> {
    /// All but the eventId.
    fn rest(&self, call: Option<&'static str>) -> Result<RawEvent<'a>, Invalid> {
        let call = match (call, text("type", self.kind)?) {
            (Some(call), _) => Cow::Borrowed(call),
            (None, Some(kind)) => kind,
            (None, None) => return Err(Invalid::new("type", format!("is missing; it is one of {TYPES}"))),
        };
        let (event_type, properties) = match call.as_ref() {
            "track" => (self.event_name()?, self.properties()?),
            "page" | "screen" => (call, self.shown()?),
            "identify" => (call, self.traits()?),
            "group" => (call, with("groupId", text("groupId", self.group_id)?, self.traits()?)),
            "alias" => (call, with("previousId", text("previousId", self.previous_id)?, self.traits()?)),
            other => return Err(Invalid::new("type", format!("must be one of {TYPES}, but is {other:?}"))),
        };
        let user_id = text("userId", self.user_id)?;
        Ok(RawEvent {
            event_id: Cow::default(),
            event_type,
            timestamp: self.timestamp.or(self.original_timestamp).map(micros).transpose()?,
            user_id: user_id.map_or_else(|| text("anonymousId", self.anonymous_id), |user| Ok(Some(user)))?,
            session_id: self.session_id()?,
            event_action: None,
            properties,
        })
    }

    fn event_name(&self) -> Result<Cow<'a, str>, Invalid> {
        let name = text("event", self.event)?
            .ok_or_else(|| Invalid::new("event", "is missing; a track message must name its event"))?;
        Ok(match name {
            Cow::Borrowed(name) => Cow::Borrowed(name.trim()),
            Cow::Owned(name) => Cow::Owned(name.trim().to_owned()),
        })
    }

    fn properties(&self) -> Result<Option<Cow<'a, str>>, Invalid> {
        self.properties.map(object).transpose()
    }

    /// The properties of a page or screen.
    fn shown(&self) -> Result<Option<Cow<'a, str>>, Invalid> {
        let properties = with("category", text("category", self.category)?, self.properties()?);
        Ok(with("page", text("name", self.name)?, properties))
    }

    fn traits(&self) -> Result<Option<Cow<'a, str>>, Invalid> {
        let named = |_| Invalid::new("traits", "must be a JSON object");
        self.traits.map(|traits| object(traits).map_err(named)).transpose()
    }

    /// A context is only looked into; whatever else it holds is its sender's business.
    fn session_id(&self) -> Result<Option<Cow<'a, str>>, Invalid> {
        let context = self.context.filter(|context| context.get().starts_with('{'));
        match context.map(|context| serde_json::from_str::<Context<'_>>(context.get())) {
            Some(Ok(context)) => text("sessionId", context.session_id),
            _ => Ok(None),
        }
    }
}

/// A text, or a number as it stands there: some libraries send ids so. Empty is absent.
fn text<'a>(field: &'static str, json: Option<&'a RawValue>) -> Result<Option<Cow<'a, str>>, Invalid> {
    let text = match json {
        Some(json) if kind(json) == "a number" => Cow::Borrowed(json.get()),
        Some(json) => string(field, json)?,
        None => return Ok(None),
    };
    Ok(Some(text).filter(|text| !text.is_empty()))
}

fn micros(json: &RawValue) -> Result<i64, Invalid> {
    let problem = |error| Invalid::new("timestamp", format!("must be ISO 8601 with a zone ({error})"));
    let time = string("timestamp", json)?;
    DateTime::parse_from_rfc3339(&time).map(|time| time.timestamp_micros()).map_err(problem)
}

/// The object with another member, unless it has that one already. One that a reader cannot take apart (half a
/// surrogate pair in a name, deep nesting) stays as it is.
fn with<'a>(name: &str, value: Option<Cow<'a, str>>, object: Option<Cow<'a, str>>) -> Option<Cow<'a, str>> {
    let Some(value) = value else { return object };
    let object = object.unwrap_or(Cow::Borrowed("{}"));
    let members: HashMap<Cow<'_, str>, IgnoredAny> = match serde_json::from_str(&object) {
        Ok(members) => members,
        Err(_) => return Some(object),
    };
    if members.contains_key(name) {
        return Some(object);
    }
    let value = serde_json::Value::from(value.as_ref());
    let (comma, rest) = (if members.is_empty() { "" } else { "," }, object.get(1..).unwrap_or("}"));
    Some(Cow::Owned(format!("{{\"{name}\":{value}{comma}{rest}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(json: &str) -> RawEvent<'_> {
        let mut events = single_or_batch(json);
        events.remove(0).expect(json)
    }

    fn single_or_batch(json: &str) -> Vec<Parsed<'_>> {
        vec![parsed(serde_json::from_str(json).expect("JSON"), None)]
    }

    #[test]
    fn each_call_has_its_event_type_and_properties() {
        let table = [
            (
                r#""type":"track","event":" Order Done ","properties":{"total":1.50}"#,
                "Order Done",
                Some(r#"{"total":1.50}"#),
            ),
            (r#""type":"track","event":"t""#, "t", None),
            (
                r#""type":"page","name":"Home \"x\"","properties":{"url":"/"}"#,
                "page",
                Some(r#"{"page":"Home \"x\"","url":"/"}"#),
            ),
            (r#""type":"page","name":"Home","properties":{"page":"/"}"#, "page", Some(r#"{"page":"/"}"#)),
            (r#""type":"page","name":"Home","properties":{"\ud800":1}"#, "page", Some(r#"{"\ud800":1}"#)),
            (r#""type":"page","properties":{}"#, "page", Some("{}")),
            (r#""type":"screen","name":"Main""#, "screen", Some(r#"{"page":"Main"}"#)),
            (r#""type":"screen","name":"Main","properties":{ }"#, "screen", Some(r#"{"page":"Main" }"#)),
            (r#""type":"identify","traits":{"plan":"pro"}"#, "identify", Some(r#"{"plan":"pro"}"#)),
            (r#""type":"group","groupId":7,"traits":{"a":1}"#, "group", Some(r#"{"groupId":"7","a":1}"#)),
            (r#""type":"alias","previousId":"old""#, "alias", Some(r#"{"previousId":"old"}"#)),
        ];
        for (members, event_type, properties) in table {
            let json = format!(r#"{{"messageId":"m",{members}}}"#);
            let event = good(&json);
            assert_eq!((event.event_type.as_ref(), event.properties.as_deref()), (event_type, properties), "{json}");
        }
    }

    #[test]
    fn users_sessions_and_times_are_taken_over() {
        let json = r#"{"messageId":"m","type":"identify","userId":"","anonymousId":"a","context":{"sessionId":17},
            "timestamp":"2026-01-31T12:00:00+00:00","sentAt":"2026-01-31T13:00:00Z"}"#;
        let event = good(json);
        assert_eq!((event.user_id.as_deref(), event.session_id.as_deref()), (Some("a"), Some("17")));
        assert_eq!(event.timestamp, Some(1_769_860_800_000_000));
        let json = r#"{"messageId":"m","type":"track","event":"t","userId":7,"anonymousId":"a","context":[]}"#;
        assert_eq!(good(json).user_id.as_deref(), Some("7"));
    }

    #[test]
    fn errors_name_the_field() {
        let table = [
            ("{}", "messageId"),
            (r#"{"messageId":{}}"#, "messageId"),
            (r#"{"messageId":"m"}"#, "type"),
            (r#"{"messageId":"m","type":"delete"}"#, "type"),
            (r#"{"messageId":"m","type":"track"}"#, "event"),
            (r#"{"messageId":"m","type":"track","event":"t","properties":1}"#, "properties"),
            (r#"{"messageId":"m","type":"identify","traits":[]}"#, "traits"),
            (r#"{"messageId":"m","type":"identify","timestamp":1}"#, "timestamp"),
            (r#"{"messageId":"m","type":"identify","userId":true}"#, "userId"),
            (r#"{"messageId":"m","messageId":"n"}"#, "event"),
            (r#"["m"]"#, "event"),
        ];
        for (json, field) in table {
            assert_eq!(single_or_batch(json).remove(0).expect_err(json).invalid.field, field, "{json}");
        }
        assert!(batch(b"[]").is_err() && batch(b"{}").is_err() && batch(br#"{"batch":1}"#).is_err());
        assert_eq!(batch(br#"{"batch":[{},1],"writeKey":"k","sentAt":"x"}"#).expect("a batch").len(), 2);
        assert!(single(br#"{"messageId":"m","event":"t"}"#, "track").expect("JSON")[0].is_ok());
    }
}

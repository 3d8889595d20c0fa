//! What clients send. The parsers read it without types like these; the contract test holds both together.
#![allow(dead_code)] // descriptions, never made

use std::borrow::Cow;

use serde::Serialize;
use tidemill_common::event::{MAX_EVENT_ID, MAX_EVENT_TYPE, MAX_NAME};
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Type};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};

// The attributes below take numbers only.
const _: () = assert!(MAX_EVENT_ID == 128 && MAX_EVENT_TYPE == 100 && MAX_NAME == 256);

/// An example of an NDJSON body.
pub const LINES: &str = concat!(
    r#"{"eventId":"view-1","eventType":"page_view","userId":"u-7"}"#,
    "\n",
    r#"{"eventId":"view-2","eventType":"page_view","userId":"u-8"}"#,
    "\n",
);

/// An event. Other members are ignored.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "eventId": "order-1001", "eventType": "purchase", "userId": "u-7", "sessionId": "s-42",
    "properties": {"page": "checkout", "price": 12.30},
}))]
pub struct Event {
    /// Unique for one event, and kept when it is sent again.
    #[schema(min_length = 1, max_length = 128)]
    event_id: String,
    /// What happened.
    #[schema(min_length = 1, max_length = 100)]
    event_type: String,
    /// When: after the year 1999 and at most 24 h ahead. The time of receipt, if absent.
    #[schema(format = DateTime, example = "2026-01-31T12:00:00Z")]
    timestamp: Option<String>,
    /// Who did it.
    #[schema(min_length = 1, max_length = 256)]
    user_id: Option<String>,
    /// In which session, by the sender's own name for it.
    #[schema(min_length = 1, max_length = 256)]
    session_id: Option<String>,
    /// A finer name beside the type.
    #[schema(min_length = 1, max_length = 256)]
    event_action: Option<String>,
    /// Whatever else there is to say, at most 900,000 bytes of it.
    #[schema(value_type = Option<Object>)]
    properties: Option<()>,
}

/// A CloudEvent 1.0. `source` and extensions not named here are not kept.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({
    "specversion": "1.0", "id": "ce-1", "source": "/shop", "type": "com.example.signup", "data": {"plan": "pro"},
}))]
pub struct CloudEvent {
    #[schema(inline)]
    specversion: SpecVersion,
    /// The event's `eventId`.
    #[schema(min_length = 1, max_length = 128)]
    id: String,
    #[schema(min_length = 1)]
    source: String,
    /// Its `eventType`.
    #[schema(min_length = 1, max_length = 100)]
    r#type: String,
    /// Its `timestamp`.
    #[schema(format = DateTime, example = "2026-01-31T12:00:00Z")]
    time: Option<String>,
    /// Its `userId`, where the gateway is set so.
    subject: Option<String>,
    /// Its `userId`.
    #[schema(min_length = 1, max_length = 256)]
    userid: Option<String>,
    /// Its `sessionId`.
    #[schema(min_length = 1, max_length = 256)]
    sessionid: Option<String>,
    /// Its `eventAction`.
    #[schema(min_length = 1, max_length = 256)]
    eventaction: Option<String>,
    /// Its `properties`; what is no object becomes their member `data`.
    #[schema(value_type = Value, required = false)]
    data: (),
    /// Instead of `data`: becomes the member `data_base64` of its `properties`.
    data_base64: Option<String>,
}

#[derive(Serialize, ToSchema)]
enum SpecVersion {
    #[serde(rename = "1.0")]
    One,
}

/// What comes with events.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct EventHeaders {
    /// Within 24 h a repetition of the request gets its first answer again, word for word. Not for NDJSON and binary
    /// CloudEvents, whose events' own ids say the same.
    #[param(rename = "Idempotency-Key", nullable = false, min_length = 1, max_length = 255, pattern = "[!-~]")]
    idempotency_key: Option<String>,
    /// How the body is compressed.
    #[param(rename = "Content-Encoding", nullable = false, inline)]
    content_encoding: Option<Coding>,
    /// With this or `ce-id` the body is a CloudEvent's data, and its attributes stand in the headers.
    #[param(rename = "ce-specversion", nullable = false, inline)]
    specversion: Option<SpecVersion>,
    #[param(rename = "ce-id", nullable = false, min_length = 1, max_length = 128)]
    id: Option<String>,
    #[param(rename = "ce-source", nullable = false, min_length = 1)]
    source: Option<String>,
    #[param(rename = "ce-type", nullable = false, min_length = 1, max_length = 100)]
    kind: Option<String>,
    #[param(rename = "ce-time", nullable = false, format = DateTime)]
    time: Option<String>,
    #[param(rename = "ce-subject", nullable = false)]
    subject: Option<String>,
    #[param(rename = "ce-userid", nullable = false, min_length = 1, max_length = 256)]
    userid: Option<String>,
    #[param(rename = "ce-sessionid", nullable = false, min_length = 1, max_length = 256)]
    sessionid: Option<String>,
    #[param(rename = "ce-eventaction", nullable = false, min_length = 1, max_length = 256)]
    eventaction: Option<String>,
}

/// What comes with Segment's messages.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct SegmentHeaders {
    /// How the body is compressed.
    #[param(rename = "Content-Encoding", nullable = false, inline)]
    content_encoding: Option<Coding>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Coding {
    Identity,
    Gzip,
    Deflate,
    Br,
    Zstd,
}

/// What Segment's libraries send. Other members are ignored.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"batch": [
    {"type": "track", "messageId": "m-1", "userId": "u-7", "event": "Order Completed", "properties": {"price": 12.30}},
]}))]
pub struct SegmentBatch {
    #[schema(min_items = 1)]
    batch: Vec<SegmentMessage>,
}

/// A message of Segment's. Numbers are taken for texts.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({"type": "page", "messageId": "m-2", "anonymousId": "a-1", "name": "Home"}))]
pub struct SegmentMessage {
    /// track, page, screen, identify, group or alias; where a path says so already, it is not looked at.
    r#type: Option<String>,
    /// The event's `eventId`.
    message_id: String,
    /// Its `timestamp`: ISO 8601 with a zone.
    #[schema(format = DateTime, example = "2026-01-31T12:00:00Z")]
    timestamp: Option<String>,
    /// Its `userId`.
    user_id: Option<String>,
    /// Its `userId`, where there is no other.
    anonymous_id: Option<String>,
    /// The `eventType` of a `track` message.
    event: Option<String>,
    /// The name of a page or screen.
    name: Option<String>,
    category: Option<String>,
    /// Its `properties`.
    #[schema(value_type = Option<Object>)]
    properties: Option<()>,
    /// The `properties` of identify, group and alias messages.
    #[schema(value_type = Option<Object>)]
    traits: Option<()>,
    group_id: Option<String>,
    previous_id: Option<String>,
    /// `sessionId` in it becomes the event's.
    #[schema(value_type = Option<Object>)]
    context: Option<()>,
}

/// An event or an array of them.
pub struct Events;

/// An array of CloudEvents.
pub struct CloudEvents;

/// An event per line.
pub struct Lines;

impl ToSchema for Events {
    fn name() -> Cow<'static, str> {
        "Events".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((Event::name().into(), Event::schema()));
        Event::schemas(schemas);
    }
}

impl PartialSchema for Events {
    fn schema() -> RefOr<Schema> {
        let description = "An event, or an array of them, which may also hold what is none: each gets its verdict.";
        let one = OneOfBuilder::new().item(Ref::from_schema_name(Event::name())).item(several::<Event>());
        one.description(Some(description)).into()
    }
}

impl ToSchema for CloudEvents {
    fn name() -> Cow<'static, str> {
        "CloudEvents".into()
    }
}

impl PartialSchema for CloudEvents {
    fn schema() -> RefOr<Schema> {
        several::<CloudEvent>().into()
    }
}

fn several<T: ToSchema>() -> ArrayBuilder {
    ArrayBuilder::new().items(RefOr::Ref(Ref::from_schema_name(T::name()))).min_items(Some(1))
}

impl ToSchema for Lines {
    fn name() -> Cow<'static, str> {
        "Lines".into()
    }
}

impl PartialSchema for Lines {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some("[!-~]"));
        text.description(Some("An event per line. They are admitted while more of them are still on their way.")).into()
    }
}

//! How far an event has got: `RawEvent` → `ValidEvent` → `EncodedEvent`.

use std::borrow::Cow;

use tidemill_common::codec::Encoder;
use tidemill_common::event::{Event, Invalid};
use tidemill_common::home::home_partition;

use crate::body_hash::BodyHash;

/// Most bytes of `properties`, so that the record stays below Kafka's limit of 1 MB (a broker's default)
/// with its other fields, and with what the stream worker adds.
const MAX_PROPERTIES: usize = 900_000;

/// An event as its producer sent it: the right types, nothing else checked, nothing filled in.
/// It borrows from the request wherever a value stands there as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RawEvent<'a> {
    /// `eventId`
    pub event_id: Cow<'a, str>,
    /// `eventType`
    pub event_type: Cow<'a, str>,
    /// `timestamp`, in microseconds.
    pub timestamp: Option<i64>,
    /// `userId`
    pub user_id: Option<Cow<'a, str>>,
    /// `sessionId`
    pub session_id: Option<Cow<'a, str>>,
    /// `eventAction`
    pub event_action: Option<Cow<'a, str>>,
    /// `properties`: the text of a JSON object, as it was written, so that numbers keep theirs.
    pub properties: Option<Cow<'a, str>>,
}

/// What the gateway adds to the events of a request.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// When the request came, in microseconds since 1970.
    pub at: i64,
    /// The client's address, as far as it is kept.
    pub client_address: Option<String>,
    /// The client's user agent.
    pub user_agent: Option<String>,
}

/// Something that is not an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its eventId, if it has one.
    pub event_id: Option<String>,
    /// What is wrong with it.
    pub invalid: Invalid,
}

/// An event that keeps the rules.
#[derive(Debug)]
pub struct ValidEvent {
    event: Event,
    body: BodyHash,
}

/// An event as it goes into the log.
#[derive(Debug)]
pub struct EncodedEvent {
    /// Its id, the record's key.
    pub event_id: String,
    /// Where all copies of it meet.
    pub partition: i32,
    /// Tells its copies from other events with its id.
    pub body: BodyHash,
    /// Framed Avro.
    pub value: Vec<u8>,
}

impl RawEvent<'_> {
    /// Checks the rules, and fills in what the gateway knows.
    pub fn validate(self, receipt: &Receipt) -> Result<ValidEvent, Refused> {
        let body = BodyHash::of(&self);
        let event = Event {
            event_id: self.event_id.into_owned(),
            event_type: self.event_type.into_owned(),
            timestamp: self.timestamp.unwrap_or(receipt.at),
            received_at: Some(receipt.at),
            user_id: self.user_id.map(Cow::into_owned),
            session_id: self.session_id.map(Cow::into_owned),
            event_action: self.event_action.map(Cow::into_owned),
            properties: self.properties.map(Cow::into_owned),
            client_address: receipt.client_address.clone(),
            user_agent: receipt.user_agent.clone(),
        };
        match event.validate(receipt.at).and_then(|()| fits_a_record(&event)) {
            Ok(()) => Ok(ValidEvent { event, body }),
            Err(invalid) => Err(Refused { event_id: Some(event.event_id), invalid }),
        }
    }
}

/// All other fields are bounded by the rules.
fn fits_a_record(event: &Event) -> Result<(), Invalid> {
    let bytes = event.properties.as_ref().map_or(0, String::len);
    if bytes <= MAX_PROPERTIES {
        return Ok(());
    }
    Err(Invalid::new("properties", format!("must have at most {MAX_PROPERTIES} bytes, but has {bytes}")))
}

impl ValidEvent {
    /// Its type.
    pub fn event_type(&self) -> &str {
        &self.event.event_type
    }

    /// The record that goes into the log.
    pub fn encode(self, encoder: &Encoder, partitions: i32) -> EncodedEvent {
        EncodedEvent {
            value: encoder.encode(&self.event),
            partition: home_partition(self.event.event_id.as_bytes(), partitions),
            event_id: self.event.event_id,
            body: self.body,
        }
    }

    /// Its id, when there is nothing else left to do with it.
    pub fn into_event_id(self) -> String {
        self.event.event_id
    }
}

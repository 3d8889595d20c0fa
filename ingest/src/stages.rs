//! How far an event has got: `RawEvent` → `EncodedEvent`, and what goes with it.

use std::borrow::Cow;

use tidemill_common::codec::Encoder;
use tidemill_common::event::{EventRef, Invalid};
use tidemill_common::home::{Route, Spread, home_in, home_partition};

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

/// Events as they go into the log, one behind the other: a request's events are copied once, into here.
#[derive(Debug, Default)]
pub struct Encoded {
    /// How many partitions the project's own topic has, as far as is known.
    partitions: i32,
    values: Vec<u8>,
    events: Vec<EncodedEvent>,
}

/// One event as it goes into the log.
#[derive(Debug, Clone, Copy)]
pub struct EncodedEvent {
    /// Where all copies of it meet: the partition's number in the project.
    pub partition: i32,
    /// Tells its copies from other events with its id.
    pub body: BodyHash,
    id: (usize, usize),
    value: (usize, usize),
}

impl RawEvent<'_> {
    /// With what the gateway knows, if it keeps the rules.
    fn fill_in<'a>(&'a self, receipt: &'a Receipt) -> Result<EventRef<'a>, Invalid> {
        let event = EventRef {
            event_id: &self.event_id,
            event_type: &self.event_type,
            timestamp: self.timestamp.unwrap_or(receipt.at),
            received_at: Some(receipt.at),
            user_id: self.user_id.as_deref(),
            session_id: self.session_id.as_deref(),
            event_action: self.event_action.as_deref(),
            properties: self.properties.as_deref(),
            client_address: receipt.client_address.as_deref(),
            user_agent: receipt.user_agent.as_deref(),
        };
        event.validate(receipt.at)?;
        fits_a_record(&event)?;
        Ok(event)
    }
}

/// All other fields are bounded by the rules.
fn fits_a_record(event: &EventRef<'_>) -> Result<(), Invalid> {
    let bytes = event.properties.map_or(0, str::len);
    if bytes <= MAX_PROPERTIES {
        return Ok(());
    }
    Err(Invalid::new("properties", format!("must have at most {MAX_PROPERTIES} bytes, but has {bytes}")))
}

impl Encoded {
    /// Room for so many events from a body of this size.
    pub fn with_capacity(events: usize, bytes: usize) -> Self {
        Self { partitions: 1, values: Vec::with_capacity(bytes), events: Vec::with_capacity(events) }
    }

    /// Checks the rules, fills in what the gateway knows and writes the event behind the others.
    pub fn push(
        &mut self,
        raw: &RawEvent<'_>,
        receipt: &Receipt,
        encoder: Encoder,
        routes: &[Route],
        partitions: i32,
    ) -> Result<(), Invalid> {
        let event = raw.fill_in(receipt)?;
        self.partitions = partitions;
        let start = self.values.len();
        encoder.encode_into(&event, &mut self.values);
        let id = start + Encoder::EVENT_ID + if event.event_id.len() < 64 { 1 } else { 2 };
        self.events.push(EncodedEvent {
            partition: home_in(routes, Spread { partitions, routes: routes.len() }, &event),
            body: BodyHash::of(raw),
            id: (id, id + event.event_id.len()),
            value: (start, self.values.len()),
        });
        Ok(())
    }

    /// Forgets the last event.
    pub fn take_back(&mut self) {
        if let Some(event) = self.events.pop() {
            self.values.truncate(event.value.0);
        }
    }

    /// The events, in order.
    pub fn events(&self) -> &[EncodedEvent] {
        &self.events
    }

    /// The partition of the project's own topic where an event would belong if there were no routes.
    pub fn own(&self, event: &EncodedEvent) -> i32 {
        home_partition(self.id(event), self.partitions)
    }

    /// An event's id, the record's key.
    pub fn id(&self, event: &EncodedEvent) -> &[u8] {
        &self.values[event.id.0..event.id.1]
    }

    /// The same as text.
    pub fn id_text(&self, event: &EncodedEvent) -> &str {
        std::str::from_utf8(self.id(event)).expect("it was written from a str")
    }

    /// An event's record: framed Avro.
    pub fn value(&self, event: &EncodedEvent) -> &[u8] {
        &self.values[event.value.0..event.value.1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_every_length_are_found_again() {
        let receipt = Receipt { at: 1_800_000_000_000_000, client_address: None, user_agent: None };
        let mut encoded = Encoded::default();
        let ids: Vec<String> = (1..=128).chain([32]).map(|n| "ä".repeat(n)).collect();
        for id in &ids {
            let raw = RawEvent { event_id: id.into(), event_type: "t".into(), ..RawEvent::default() };
            encoded.push(&raw, &receipt, Encoder::new(1), &[], 6).expect("valid");
        }
        let found: Vec<&str> = encoded.events().iter().map(|event| encoded.id_text(event)).collect();
        assert_eq!(found, ids);
        assert!(encoded.events().iter().all(|event| encoded.value(event).starts_with(&[0, 0, 0, 0, 1])));
    }
}

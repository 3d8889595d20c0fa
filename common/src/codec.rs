//! Avro in the Confluent framing: `0x00`, the schema id as four big-endian bytes, the datum
//! (<https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format>).

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, RwLock};

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;

use crate::event::{Event, EventRef};
use crate::registry::{Registry, RegistryError};

/// The envelope's schema, as it is registered.
pub const EVENT_SCHEMA: &str = include_str!("../../schemas/event.avsc");

/// A record may claim at most this many bytes for one string. The library's own cap is 512 MiB.
const MAX_ALLOCATION: usize = 16 * 1024 * 1024;
const FRAME: usize = 5;

static EVENT: LazyLock<Schema> = LazyLock::new(|| {
    apache_avro::util::max_allocation_bytes(MAX_ALLOCATION);
    Schema::parse_str(EVENT_SCHEMA).expect("schemas/event.avsc is valid Avro")
});

/// Why a value cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not the Confluent framing.
    #[error("the value is not framed Avro: it must start with 0x00 and a 4-byte schema id, then the datum")]
    Framing,
    /// The registry does not know the schema (any more, or yet).
    #[error("the schema registry has no schema {0}")]
    UnknownSchema(u32),
    /// The datum does not fit its schema, or the schema does not make an event.
    #[error("the value is not an event under schema {id}: {reason}")]
    Datum {
        /// The schema id in the frame.
        id: u32,
        /// What the Avro reader said.
        reason: String,
    },
    /// The registry cannot be asked: nothing is known about the value yet.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Writes events. The schema id is that of the topic's subject.
///
/// The datum is written by hand, field by field in the order of `schemas/event.avsc`: it takes a twentieth of
/// what going through a schema's tree takes, and this is the path of every event. The tests hold it against
/// `apache_avro`'s writer and reader.
#[derive(Debug, Clone, Copy)]
pub struct Encoder {
    id: u32,
}

impl Encoder {
    /// Where the eventId's length stands in a value; its bytes follow.
    pub const EVENT_ID: usize = FRAME;

    /// An encoder for a topic whose subject gave this schema id.
    pub fn new(id: u32) -> Self {
        Self { id }
    }

    /// The framed value of an event.
    pub fn encode(&self, event: &Event) -> Vec<u8> {
        let mut value = Vec::with_capacity(FRAME + 128 + event.properties.as_ref().map_or(0, String::len));
        self.encode_into(&event.as_ref(), &mut value);
        value
    }

    /// Appends the framed value of an event.
    pub fn encode_into(&self, event: &EventRef<'_>, out: &mut Vec<u8>) {
        out.push(0);
        out.extend_from_slice(&self.id.to_be_bytes());
        string(event.event_id, out);
        string(event.event_type, out);
        long(event.timestamp, out);
        optional(event.received_at, out, long);
        for text in [
            event.user_id,
            event.session_id,
            event.event_action,
            event.properties,
            event.client_address,
            event.user_agent,
        ] {
            optional(text, out, string);
        }
    }
}

/// A union with `null` as its first branch
/// (<https://avro.apache.org/docs/1.12.0/specification/#binary-encoding>).
fn optional<T>(value: Option<T>, out: &mut Vec<u8>, write: impl FnOnce(T, &mut Vec<u8>)) {
    match value {
        None => out.push(0),
        Some(value) => {
            out.push(2); // branch 1, zigzag
            write(value, out);
        }
    }
}

fn string(text: &str, out: &mut Vec<u8>) {
    long(text.len() as i64, out);
    out.extend_from_slice(text.as_bytes());
}

/// Zigzag, then seven bits a byte, lowest first.
fn long(number: i64, out: &mut Vec<u8>) {
    let mut rest = ((number << 1) ^ (number >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Reads events written under any registered schema that has the envelope's required fields. Schemas are
/// fetched once; errors are never cached. Cheap to clone.
#[derive(Clone)]
pub struct Decoder {
    registry: Registry,
    schemas: Arc<RwLock<HashMap<u32, Arc<Schema>>>>,
}

impl Decoder {
    /// A decoder that asks this registry.
    pub fn new(registry: Registry) -> Self {
        Self { registry, schemas: Arc::default() }
    }

    /// The event in a framed value.
    pub async fn decode(&self, value: &[u8]) -> Result<Event, DecodeError> {
        let id = schema_id(value)?;
        let schema = match self.cached(id) {
            Some(schema) => schema,
            None => self.fetch(id).await?,
        };
        let mut datum = &value[FRAME..];
        let event = GenericDatumReader::builder(&schema).build().and_then(|reader| reader.read_deser(&mut datum));
        match event {
            Ok(_) if !datum.is_empty() => Err(datum_error(id, "bytes are left over behind the datum")),
            Ok(event) => Ok(event),
            Err(error) => Err(datum_error(id, error)),
        }
    }

    fn cached(&self, id: u32) -> Option<Arc<Schema>> {
        self.schemas.read().expect("no holder panics").get(&id).cloned()
    }

    async fn fetch(&self, id: u32) -> Result<Arc<Schema>, DecodeError> {
        LazyLock::force(&EVENT); // lowers the allocation cap before the first datum is read
        let text = self.registry.schema(id).await.map_err(|error| match error {
            RegistryError::Unknown(id) => DecodeError::UnknownSchema(id),
            other => DecodeError::Registry(other),
        })?;
        let schema = Arc::new(Schema::parse_str(&text).map_err(|error| datum_error(id, error))?);
        self.schemas.write().expect("no holder panics").insert(id, Arc::clone(&schema));
        Ok(schema)
    }
}

/// The schema id in a framed value.
pub fn schema_id(value: &[u8]) -> Result<u32, DecodeError> {
    match value {
        [0, a, b, c, d, ..] => Ok(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => Err(DecodeError::Framing),
    }
}

fn datum_error(id: u32, reason: impl ToString) -> DecodeError {
    DecodeError::Datum { id, reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use apache_avro::writer::datum::GenericDatumWriter;
    use proptest::prelude::*;

    use super::*;

    fn event() -> impl Strategy<Value = Event> {
        let text = || proptest::option::of(".{0,200}");
        let fields = (text(), text(), text(), text(), text(), text());
        (".{1,128}", ".{1,100}", any::<i64>(), any::<Option<i64>>(), fields).prop_map(
            |(event_id, event_type, timestamp, received_at, fields)| {
                let (user_id, session_id, event_action, properties, client_address, user_agent) = fields;
                Event {
                    event_id,
                    event_type,
                    timestamp,
                    received_at,
                    user_id,
                    session_id,
                    event_action,
                    properties,
                    client_address,
                    user_agent,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn writes_what_the_avro_library_writes_and_reads(event in event()) {
            let value = Encoder::new(7).encode(&event);
            let mut expected = vec![0, 0, 0, 0, 7];
            let writer = GenericDatumWriter::builder(&EVENT).build().expect("a schema");
            writer.write_ser(&mut expected, &event).expect("an event");
            prop_assert_eq!(&value, &expected);
            let mut datum = &value[FRAME..];
            let read: Event =
                GenericDatumReader::builder(&EVENT).build().expect("a schema").read_deser(&mut datum).expect("readable");
            prop_assert_eq!(read, event);
        }
    }
}

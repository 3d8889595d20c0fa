//! Avro in the Confluent framing: `0x00`, the schema id as four big-endian bytes, the datum
//! (<https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format>).

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, RwLock};

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;

use crate::event::Event;
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
pub struct Encoder {
    writer: GenericDatumWriter<'static>,
    id: u32,
}

impl Encoder {
    /// An encoder for a topic whose subject gave this schema id.
    pub fn new(id: u32) -> Self {
        let writer = GenericDatumWriter::builder(&EVENT).build().expect("schemas/event.avsc has no open references");
        Self { writer, id }
    }

    /// The framed value of an event.
    pub fn encode(&self, event: &Event) -> Vec<u8> {
        let mut value = Vec::with_capacity(FRAME + 128 + event.properties.as_ref().map_or(0, String::len));
        value.push(0);
        value.extend_from_slice(&self.id.to_be_bytes());
        self.writer.write_ser(&mut value, event).expect("an Event has the fields of schemas/event.avsc");
        value
    }
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

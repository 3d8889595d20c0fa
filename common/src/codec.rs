//! Avro in the Confluent framing: `0x00`, the schema id as four big-endian bytes, the datum
//! (<https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format>).

pub mod datum;
pub mod processed;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, RwLock};

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;

use self::datum::BadDatum;
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

    /// Appends the framed value of an event in the envelope's layout.
    pub fn frame_into(&self, datum: &[u8], out: &mut Vec<u8>) {
        self.begin(out);
        out.extend_from_slice(datum);
    }

    /// Appends the framed value of an event.
    pub fn encode_into(&self, event: &EventRef<'_>, out: &mut Vec<u8>) {
        self.begin(out);
        datum::write(event, out);
    }

    fn begin(&self, out: &mut Vec<u8>) {
        out.push(0);
        out.extend_from_slice(&self.id.to_be_bytes());
    }
}

/// Reads events written under any registered schema that has the envelope's required fields. Schemas are
/// fetched once; errors are never cached. Cheap to clone.
#[derive(Clone)]
pub struct Decoder {
    registry: Registry,
    layouts: Arc<RwLock<HashMap<u32, Layout>>>,
}

/// How a schema's data lie.
#[derive(Clone)]
enum Layout {
    /// As the envelope's own.
    Envelope,
    /// As this schema says.
    Of(Arc<Schema>),
}

impl Layout {
    fn of(schema: Schema) -> Self {
        // The canonical form is what readers resolve by: names, types and order, nothing else.
        let envelope = schema.canonical_form() == EVENT.canonical_form();
        if envelope { Self::Envelope } else { Self::Of(Arc::new(schema)) }
    }

    fn read<'a>(&self, datum: &'a [u8]) -> Result<Decoded<'a>, String> {
        let schema = match self {
            Self::Envelope => {
                let event = datum::read(datum).map_err(|error| error.to_string())?;
                return Ok(Decoded::Envelope { event, datum });
            }
            Self::Of(schema) => schema,
        };
        let mut rest = datum;
        let event = GenericDatumReader::builder(schema).build().and_then(|reader| reader.read_deser(&mut rest));
        match event {
            Ok(_) if !rest.is_empty() => Err(BadDatum::LeftOver.to_string()),
            event => event.map(Decoded::Other).map_err(|error| error.to_string()),
        }
    }
}

/// An event as it was read.
#[derive(Debug, Clone, PartialEq)]
pub enum Decoded<'a> {
    /// From the envelope's own layout: it borrows the value's texts.
    Envelope {
        /// The event.
        event: EventRef<'a>,
        /// Its bytes.
        datum: &'a [u8],
    },
    /// From another schema's.
    Other(Event),
}

impl<'a> Decoded<'a> {
    /// The event.
    pub fn event(&self) -> EventRef<'_> {
        match self {
            Self::Envelope { event, .. } => *event,
            Self::Other(event) => event.as_ref(),
        }
    }

    /// The event, on its own.
    pub fn into_event(self) -> Event {
        match self {
            Self::Envelope { event, .. } => event.to_event(),
            Self::Other(event) => event,
        }
    }

    /// Its datum in the envelope's layout, for [`datum::read`].
    pub fn datum(&self) -> Cow<'a, [u8]> {
        match self {
            Self::Envelope { datum, .. } => Cow::Borrowed(datum),
            Self::Other(event) => {
                let mut datum = Vec::new();
                datum::write(&event.as_ref(), &mut datum);
                Cow::Owned(datum)
            }
        }
    }
}

impl Decoder {
    /// A decoder that asks this registry.
    pub fn new(registry: Registry) -> Self {
        Self { registry, layouts: Arc::default() }
    }

    /// The event in a framed value, on its own.
    pub async fn decode(&self, value: &[u8]) -> Result<Event, DecodeError> {
        Ok(self.read(value).await?.into_event())
    }

    /// The event in a framed value.
    pub async fn read<'a>(&self, value: &'a [u8]) -> Result<Decoded<'a>, DecodeError> {
        let id = schema_id(value)?;
        let layout = match self.cached(id) {
            Some(layout) => layout,
            None => self.fetch(id).await?,
        };
        layout.read(&value[FRAME..]).map_err(|reason| DecodeError::Datum { id, reason })
    }

    fn cached(&self, id: u32) -> Option<Layout> {
        self.layouts.read().expect("no holder panics").get(&id).cloned()
    }

    async fn fetch(&self, id: u32) -> Result<Layout, DecodeError> {
        LazyLock::force(&EVENT); // lowers the allocation cap before the first datum is read
        let text = self.registry.schema(id).await.map_err(|error| match error {
            RegistryError::Unknown(id) => DecodeError::UnknownSchema(id),
            other => DecodeError::Registry(other),
        })?;
        let schema = Schema::parse_str(&text).map_err(|error| DecodeError::Datum { id, reason: error.to_string() })?;
        let layout = Layout::of(schema);
        self.layouts.write().expect("no holder panics").insert(id, layout.clone());
        Ok(layout)
    }
}

/// The schema id in a framed value.
pub fn schema_id(value: &[u8]) -> Result<u32, DecodeError> {
    match value {
        [0, a, b, c, d, ..] => Ok(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => Err(DecodeError::Framing),
    }
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

    fn by_the_library(mut datum: &[u8]) -> Option<Event> {
        let reader = GenericDatumReader::builder(&EVENT).build().expect("a schema");
        reader.read_deser(&mut datum).ok().filter(|_| datum.is_empty())
    }

    proptest! {
        #[test]
        fn writes_and_reads_what_the_avro_library_does(event in event()) {
            let value = Encoder::new(7).encode(&event);
            let mut expected = vec![0, 0, 0, 0, 7];
            let writer = GenericDatumWriter::builder(&EVENT).build().expect("a schema");
            writer.write_ser(&mut expected, &event).expect("an event");
            prop_assert_eq!(&value, &expected);
            prop_assert_eq!(by_the_library(&value[FRAME..]), Some(event.clone()));
            let read = Layout::Envelope.read(&value[FRAME..]).expect("a datum");
            prop_assert_eq!(&*read.datum(), &value[FRAME..]);
            prop_assert_eq!(&*Decoded::Other(event.clone()).datum(), &value[FRAME..]);
            prop_assert_eq!(read.into_event(), event.clone());
        }

        /// So that a record has one verdict, whichever way it is read.
        #[test]
        fn refuses_what_the_avro_library_refuses(
            event in event(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut datum = Encoder::new(7).encode(&event).split_off(FRAME);
            for (at, byte) in changes {
                let at = at.index(datum.len().min(24)); // lengths and branches stand mostly at the beginning
                datum[at] = byte;
            }
            if let Some(at) = cut {
                datum.truncate(at.index(datum.len()));
            }
            prop_assert_eq!(Layout::Envelope.read(&datum).ok().map(Decoded::into_event), by_the_library(&datum));
        }
    }

    #[test]
    fn a_number_is_as_long_as_the_avro_library_takes_it() {
        let datum = Encoder::new(7).encode(&Event::new("e", "t", i64::MIN)).split_off(FRAME);
        for last in [0, 1, 2, 0x7f, 0x80, 0xff] {
            let mut datum = datum.clone();
            assert_eq!(std::mem::replace(&mut datum[13], last), 1, "the tenth byte of the timestamp");
            let read = Layout::Envelope.read(&datum).ok().map(Decoded::into_event);
            assert_eq!(read.is_some(), last < 0x80, "{last}");
            assert_eq!(read, by_the_library(&datum), "{last}");
        }
    }

    #[test]
    fn the_envelope_is_known_by_its_layout() {
        let same = Schema::parse_str(&EVENT_SCHEMA.replace("when it happened, UTC", "when")).expect("a schema");
        assert!(matches!(Layout::of(same), Layout::Envelope));
        let other = Schema::parse_str(&EVENT_SCHEMA.replace("eventAction", "action")).expect("a schema");
        assert!(matches!(Layout::of(other), Layout::Of(_)));
    }
}

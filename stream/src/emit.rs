//! What the stream sends on: strays to their home partition, first sights to the processed topic, and what
//! is no event to the dead letters. All of it may be sent again after a crash; readers tell by the headers.

use std::fmt::Write;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use rdkafka::error::KafkaError;
use tidemill_common::codec::{Decoded, Encoder};
use tidemill_common::dead_letters::REDRIVE_OF;
use tidemill_common::home::home_partition;
use tidemill_common::kafka::{Outgoing, Producer, Record, Sending};
use tidemill_common::names::{dlq_topic, processed_topic};
use tidemill_common::origin::{Origin, SOURCE};
use tidemill_common::projects::Project;
use tidemill_common::registry::{Registry, RegistryError};
use tidemill_common::verdict::{Rejection, TOO_LARGE};

use crate::enrich::Traits;
use crate::quick_map::QuickMap;

/// The schema of the processed topics, as it is registered: the event's, and behind it what was found out.
pub const PROCESSED_SCHEMA: &str = include_str!("../../schemas/processed.avsc");

/// Header of dead letters: the topic.
pub const SOURCE_TOPIC: &str = "source-topic";
/// Header of dead letters: which step refused it.
pub const STAGE: &str = "stage";
/// Header of dead letters: a stable word.
pub const REASON: &str = "reason";
/// Header of dead letters: a sentence for people.
pub const DETAIL: &str = "detail";
/// Header of dead letters: how often the record has been refused, when it was sent through again too.
pub const ATTEMPTS: &str = "attempts";
/// Header of dead letters: when it was refused, RFC 3339. It differs between copies of one dead letter.
pub const TIME: &str = "time";

/// Records to send. Their keys and values stand one behind the other, since there are many of them.
#[derive(Debug, Default)]
pub struct Emissions {
    list: Vec<Emission>,
    bytes: Vec<u8>,
}

/// Where a record to send stands, and what is not bytes of it.
#[derive(Debug)]
struct Emission {
    topic: Arc<str>,
    partition: i32,
    /// Its key begins here, if it has one,
    key: Option<usize>,
    /// its value here,
    value: usize,
    /// and it ends here.
    end: usize,
    /// Where the record first stood, which its first header says.
    first: Option<Origin>,
    headers: Vec<(&'static str, String)>,
}

/// Makes records of the processed topics; knows them and their schema ids.
pub struct Emitter {
    registry: Registry,
    known: QuickMap<String, (Arc<str>, Encoder)>,
}

impl Emitter {
    /// An emitter that has sent nothing.
    pub fn new(registry: Registry) -> Self {
        Self { registry, known: QuickMap::default() }
    }

    /// A first sight for the processed topic, which has as many partitions as the project's own, in the one of its number.
    pub async fn processed(
        &mut self,
        project: &Project,
        record: &Record,
        event: &Decoded<'_>,
        traits: &Traits,
        emissions: &mut Emissions,
    ) -> Result<(), RegistryError> {
        if !self.known.contains_key(&project.id) {
            let topic = processed_topic(&project.id);
            let id = self.registry.register(&format!("{topic}-value"), PROCESSED_SCHEMA).await?;
            self.known.insert(project.id.clone(), (topic.into(), Encoder::new(id)));
        }
        let (topic, encoder) = &self.known[&project.id];
        let (key, partition) = (event.event().event_id.as_bytes(), record.partition % project.partitions);
        emissions.add(Arc::clone(topic), partition, Some(key), Some(record.into()), Vec::new(), |value| {
            encode(encoder, event, traits, value);
        });
        Ok(())
    }
}

/// Appends the framed value under [`PROCESSED_SCHEMA`]: the event as it came, and behind it what was found out.
fn encode(encoder: &Encoder, event: &Decoded<'_>, traits: &Traits, value: &mut Vec<u8>) {
    let country = traits.country.as_ref().map(|country| country.as_str());
    let names = [traits.device.map(|device| device.as_str()), traits.source.map(|source| source.as_str()), country];
    encoder.frame_into(&event.datum(), value);
    for name in names {
        let Some(name) = name else {
            value.push(0); // the union's branch: null
            continue;
        };
        // The branch and the length, zigzag; these names are shorter than what one byte can say.
        value.extend([2, (name.len() as u8) << 1]);
        value.extend_from_slice(name.as_bytes());
    }
}

/// Adds a stray, sent to where all copies of its eventId meet. One that was sent before keeps its first origin, and one that
/// is sent through again stays so.
pub fn stray(record: &Record, (topic, partition): (String, i32), emissions: &mut Emissions) {
    let kept = |name: &'static str| {
        let value = record.header(name)?;
        Some((name, String::from_utf8_lossy(value).into_owned()))
    };
    let (source, redrive) = (kept(SOURCE), kept(REDRIVE_OF));
    let first = source.is_none().then(|| record.into());
    let headers = source.into_iter().chain(redrive).collect();
    emissions.copy(topic, partition, (record.key(), record.value()), first, headers);
}

/// Adds a dead letter: the record as it came (but for one that is too large), with why, when, how often and from where: it
/// was refused `first` there.
pub fn dead_letter(
    project: &Project,
    record: &Record,
    first: Origin,
    attempts: i32,
    rejection: &Rejection,
    now: DateTime<Utc>,
    emissions: &mut Emissions,
) {
    let partition = match record.key() {
        Some(key) => home_partition(key, project.dlq_partitions),
        None => record.partition % project.dlq_partitions,
    };
    let headers = vec![
        (SOURCE_TOPIC, record.topic.to_string()),
        (STAGE, rejection.stage.to_owned()),
        (REASON, rejection.reason.to_owned()),
        (DETAIL, rejection.detail.clone()),
        (ATTEMPTS, attempts.to_string()),
        (TIME, now.to_rfc3339_opts(SecondsFormat::Millis, true)),
    ];
    // What is too large to be sent on still stands at its origin.
    let fits = rejection.reason != TOO_LARGE;
    let bytes = if fits { (record.key(), record.value()) } else { (None, [].as_slice()) };
    emissions.copy(dlq_topic(&project.id), partition, bytes, Some(first), headers);
}

impl Emissions {
    /// As many as these: so there is room for what comes next.
    pub fn room_for_as_many(&self) -> Self {
        Self { list: Vec::with_capacity(self.list.len()), bytes: Vec::with_capacity(self.bytes.len()) }
    }

    fn add(
        &mut self,
        topic: Arc<str>,
        partition: i32,
        key: Option<&[u8]>,
        first: Option<Origin>,
        headers: Vec<(&'static str, String)>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(key.unwrap_or_default());
        let value = self.bytes.len();
        write(&mut self.bytes);
        let (key, end) = (key.map(|_| start), self.bytes.len());
        self.list.push(Emission { topic, partition, key, value, end, first, headers });
    }

    fn copy(
        &mut self,
        topic: String,
        partition: i32,
        (key, value): (Option<&[u8]>, &[u8]),
        first: Option<Origin>,
        headers: Vec<(&'static str, String)>,
    ) {
        self.add(topic.into(), partition, key, first, headers, |bytes| bytes.extend_from_slice(value));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Forgets all but the first so many.
    pub fn truncate(&mut self, len: usize) {
        self.list.truncate(len);
        self.bytes.truncate(self.list.last().map_or(0, |last| last.end));
    }

    /// Sends them all.
    pub async fn send(&self, producer: &Producer, sending: &mut Sending) -> Result<(), KafkaError> {
        let mut source = String::new();
        for emission in &self.list {
            source.clear();
            emission.send(&self.bytes, &mut source, producer, sending).await?;
        }
        Ok(())
    }
}

impl Emission {
    /// `source` is an empty text to write to.
    async fn send(
        &self,
        bytes: &[u8],
        source: &mut String,
        producer: &Producer,
        sending: &mut Sending,
    ) -> Result<(), KafkaError> {
        let Self { topic, partition, key, value, end, first, headers: others } = self;
        let (key, value) = (key.map(|start| &bytes[start..*value]), &bytes[*value..*end]);
        let first = first.map(|origin| {
            let _ = write!(source, "{origin}"); // a String takes everything
            (SOURCE, source.as_str())
        });
        let all: Vec<_>;
        let headers = if others.is_empty() {
            first.as_slice()
        } else {
            all = first.into_iter().chain(others.iter().map(|(name, value)| (*name, &**value))).collect();
            &all
        };
        sending.add(producer, &Outgoing { topic, partition: *partition, key, value, headers }).await
    }
}

#[cfg(test)]
mod tests {
    use apache_avro::Schema;
    use apache_avro::reader::datum::GenericDatumReader;
    use apache_avro::schema_compatibility::SchemaCompatibility;
    use tidemill_common::codec::EVENT_SCHEMA;
    use tidemill_common::event::Event;

    use super::*;
    use crate::enrich::{Country, Device, Source};

    #[derive(Debug, serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Processed {
        #[serde(flatten)]
        event: Event,
        device_type: Option<String>,
        traffic_source: Option<String>,
        country: Option<String>,
    }

    fn event() -> Event {
        Event {
            user_id: Some("u".into()),
            properties: Some("{}".into()),
            user_agent: Some("curl/8".into()),
            ..Event::new("e-1", "view", 1_700_000_000_000_000)
        }
    }

    #[test]
    fn processed_events_carry_what_was_found_out() {
        let schema = Schema::parse_str(PROCESSED_SCHEMA).expect("schemas/processed.avsc is valid Avro");
        let some = Traits {
            device: Some(Device::Bot),
            source: Some(Source::Campaign),
            country: Country::parse("NL"),
            ..Traits::default()
        };
        for (traits, names) in [(some, [Some("bot"), Some("campaign"), Some("NL")]), (Traits::default(), [None; 3])] {
            let event = event();
            let mut value = Vec::new();
            encode(&Encoder::new(7), &Decoded::Other(event.clone()), &traits, &mut value);
            let mut datum = &value[5..];
            let reader = GenericDatumReader::builder(&schema).build().expect("a reader");
            let read: Processed = reader.read_deser(&mut datum).expect("readable");
            assert!(datum.is_empty());
            assert_eq!(read.event, event);
            assert_eq!([read.device_type.as_deref(), read.traffic_source.as_deref(), read.country.as_deref()], names);
            // Readers that know only events read it as one.
            let plain: Event = reader.read_deser(&mut &value[5..]).expect("readable");
            assert_eq!(plain, event);
        }
    }

    #[test]
    fn readers_of_either_schema_read_the_other() {
        let schema = |text: &str| Schema::parse_str(text).expect("valid Avro");
        let (event, processed) = (schema(EVENT_SCHEMA), schema(PROCESSED_SCHEMA));
        SchemaCompatibility::can_read(&event, &processed).expect("backward compatible");
        SchemaCompatibility::can_read(&processed, &event).expect("forward compatible");
    }
}

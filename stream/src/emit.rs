//! What the stream sends on: strays to their home partition, first sights to the processed topic, and what
//! is no event to the dead letters. All of it may be sent again after a crash; readers tell by where it comes from.

use std::iter;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use rdkafka::error::KafkaError;
use tidemill_common::codec::processed::{self, Found, PROCESSED_SCHEMA};
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
        emissions.add(Arc::clone(topic), partition, Some(key), Vec::new(), |value| {
            processed::write(encoder, &event.datum(), found(traits), record.into(), value);
        });
        Ok(())
    }
}

fn found(traits: &Traits) -> Found<'_> {
    let country = traits.country.as_ref().map(|country| country.as_str());
    [traits.device.map(|device| device.as_str()), traits.source.map(|source| source.as_str()), country]
}

/// Adds a stray, sent to where all copies of its eventId meet. One that was sent before keeps its first origin, and one that
/// is sent through again stays so.
pub fn stray(record: &Record, (topic, partition): (String, i32), emissions: &mut Emissions) {
    let first = Origin::of_sent_on(record).unwrap_or_else(|| record.into());
    let redrive = record.header(REDRIVE_OF).map(|letter| (REDRIVE_OF, String::from_utf8_lossy(letter).into_owned()));
    let headers = iter::once((SOURCE, first.to_string())).chain(redrive).collect();
    emissions.copy(topic, partition, (record.key(), record.value()), headers);
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
        (SOURCE, first.to_string()),
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
    emissions.copy(dlq_topic(&project.id), partition, bytes, headers);
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
        headers: Vec<(&'static str, String)>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(key.unwrap_or_default());
        let value = self.bytes.len();
        write(&mut self.bytes);
        let (key, end) = (key.map(|_| start), self.bytes.len());
        self.list.push(Emission { topic, partition, key, value, end, headers });
    }

    fn copy(
        &mut self,
        topic: String,
        partition: i32,
        (key, value): (Option<&[u8]>, &[u8]),
        headers: Vec<(&'static str, String)>,
    ) {
        self.add(topic.into(), partition, key, headers, |bytes| bytes.extend_from_slice(value));
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
        for emission in &self.list {
            emission.send(&self.bytes, producer, sending).await?;
        }
        Ok(())
    }
}

impl Emission {
    async fn send(&self, bytes: &[u8], producer: &Producer, sending: &mut Sending) -> Result<(), KafkaError> {
        let Self { topic, partition, key, value, end, headers } = self;
        let (key, value) = (key.map(|start| &bytes[start..*value]), &bytes[*value..*end]);
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, &**value)).collect();
        sending.add(producer, &Outgoing { topic, partition: *partition, key, value, headers: &headers }).await
    }
}

#[cfg(test)]
mod tests {
    use tidemill_common::kafka::TopicPartition;

    use super::*;
    use crate::enrich::{Country, Device, Source};

    #[test]
    fn processed_events_carry_what_was_found_out() {
        let some = Traits {
            device: Some(Device::Bot),
            source: Some(Source::Campaign),
            country: Country::parse("NL"),
            ..Traits::default()
        };
        assert_eq!(found(&some), [Some("bot"), Some("campaign"), Some("NL")]);
        assert_eq!(found(&Traits::default()), [None; 3]);
    }

    #[test]
    fn a_stray_keeps_the_origin_that_a_worker_wrote() {
        let origin_of = |source: &str| {
            let at = TopicPartition { topic: "events.p".into(), partition: 3 };
            let headers = vec![(SOURCE.to_owned(), source.as_bytes().to_vec())];
            let mut emissions = Emissions::default();
            stray(&Record::new(at, 9, 5, (None, b""), headers), ("events.p".to_owned(), 1), &mut emissions);
            emissions.list.remove(0).headers
        };
        assert_eq!(origin_of("1:2:3"), [(SOURCE, "1:2:3".to_owned())]);
        assert_eq!(origin_of("1:2:x"), [(SOURCE, "3:9:5".to_owned())]);
    }
}

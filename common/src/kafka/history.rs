//! Reads of the past: spans of the log, outside any consumer group. Everything here blocks; call it from
//! `spawn_blocking`.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::follow::Quiet;
use super::leader_changes::leader_changes;
use super::{KafkaConfig, Record, TopicPartition};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Append times that have not come by then are not waited for.
const APPEND_TIMES: Duration = Duration::from_secs(5);
/// A leader that has moved is looked for so often, and so long after the last time.
const LEADER_TRIES: u32 = 5;
const LEADER_PAUSE: Duration = Duration::from_millis(100);
/// A span that gives nothing for this long counts as unreadable.
const STALLED: Duration = Duration::from_secs(60);

/// Offsets `from..to` of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The partition.
    pub at: TopicPartition,
    /// The first offset.
    pub from: i64,
    /// The offset behind the last.
    pub to: i64,
}

/// Where a partition ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The offset that the next record gets.
    pub offset: i64,
    /// How often it has changed its leader; none where the broker does not tell.
    pub leader_changes: Option<i32>,
}

type Reader = BaseConsumer<Quiet>;

/// A reader of the past. Cheap to clone.
#[derive(Clone)]
pub struct History {
    kafka: KafkaConfig,
    /// Asks for offsets; kept, since connecting takes a hundred times longer than asking. After an error it is given
    /// up: what the client remembers of a partition's leader outlives that leader, and it asks nobody else.
    asking: Arc<Mutex<Option<Arc<Reader>>>>,
}

impl History {
    /// A reader that connects when it is asked something.
    pub fn new(kafka: KafkaConfig) -> Self {
        Self { kafka, asking: Arc::default() }
    }

    /// Whether the brokers answer.
    pub fn ping(&self) -> KafkaResult<()> {
        self.ask(|consumer| consumer.fetch_metadata(Some("events.ping"), Duration::from_secs(2)).map(drop))
    }

    /// The first offset that the log still holds, and the one that the next record will get.
    pub fn bounds(&self, partitions: &[TopicPartition]) -> KafkaResult<HashMap<TopicPartition, (i64, i64)>> {
        let low = self.ask(|consumer| offsets(consumer, partitions.iter().map(|at| (at, Offset::Beginning))))?;
        let high = self.ask(|consumer| offsets(consumer, partitions.iter().map(|at| (at, Offset::End))))?;
        let both = |at: &TopicPartition| Some((at.clone(), (*low.get(at)?, *high.get(at)?)));
        Ok(partitions.iter().filter_map(both).collect())
    }

    /// The offset that the next record will get, and how often the leader has changed.
    pub fn ends(&self, partitions: &[TopicPartition]) -> KafkaResult<HashMap<TopicPartition, End>> {
        self.ends_within(partitions, TIMEOUT)
    }

    /// The same, for those who cannot wait as long.
    pub fn ends_within(
        &self,
        partitions: &[TopicPartition],
        timeout: Duration,
    ) -> KafkaResult<HashMap<TopicPartition, End>> {
        if partitions.is_empty() {
            return Ok(HashMap::new());
        }
        let answer = self.ask(|consumer| {
            let list = list_of(partitions.iter().map(|at| (at, Offset::End)))?;
            let answer = consumer.offsets_for_times(list, timeout)?;
            Ok((read_offsets(&answer)?, leader_changes(&answer)))
        })?;
        let (offsets, mut changes) = answer;
        let end = |(at, offset)| {
            let leader_changes = changes.remove(&at);
            (at, End { offset, leader_changes })
        };
        Ok(offsets.into_iter().map(end).collect())
    }

    /// When the record at each of these offsets was appended, or the next one there is, in milliseconds since 1970.
    /// Absent where none came within a few seconds.
    pub fn append_times(&self, positions: &[(TopicPartition, i64)]) -> KafkaResult<HashMap<TopicPartition, i64>> {
        let consumer: Reader = self
            .config()
            .set("auto.offset.reset", "earliest")
            // One record of each is enough; brokers give a batch in any case.
            .set("max.partition.fetch.bytes", "1024")
            .create_with_context(Quiet)?;
        consumer.assign(&list_of(positions.iter().map(|(at, offset)| (at, Offset::Offset(*offset))))?)?;
        let (mut found, deadline) = (HashMap::new(), Instant::now() + APPEND_TIMES);
        while found.len() < positions.len() && Instant::now() < deadline {
            let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
            let at = TopicPartition { topic: Arc::from(message.topic()), partition: message.partition() };
            found.entry(at).or_insert(message.timestamp().to_millis().unwrap_or(0));
        }
        Ok(found)
    }

    /// For each partition, the first offset appended at or after a time (milliseconds since 1970); absent
    /// when there is none.
    pub fn offsets_at(&self, times: &[(TopicPartition, i64)]) -> KafkaResult<HashMap<TopicPartition, i64>> {
        let asked = || times.iter().map(|(at, ms)| (at, Offset::Offset((*ms).max(0))));
        let found = self.ask(|consumer| offsets(consumer, asked()))?;
        Ok(found.into_iter().filter(|(_, offset)| *offset >= 0).collect())
    }

    /// Hands every record of the spans to `each`: in order within a partition, in any order between them.
    pub fn read<E: From<KafkaError>>(
        &self,
        spans: &[Span],
        cancel: &CancellationToken,
        mut each: impl FnMut(Record) -> Result<(), E>,
    ) -> Result<(), E> {
        // One topic at a time, since the client names only the partition's number when it reaches an end.
        let mut by_topic: BTreeMap<&Arc<str>, BTreeMap<i32, i64>> = BTreeMap::new();
        for span in spans.iter().filter(|span| span.from < span.to) {
            by_topic.entry(&span.at.topic).or_default().insert(span.at.partition, span.to);
        }
        for (topic, open) in by_topic {
            let list =
                spans.iter().filter(|s| &s.at.topic == topic && s.from < s.to).map(|s| (&s.at, Offset::Offset(s.from)));
            let consumer = self.consumer()?;
            consumer.assign(&list_of(list)?)?;
            read_topic(&consumer, topic, open, cancel, &mut each)?;
        }
        Ok(())
    }

    /// Asks again where a partition's leader is somebody else by now, as just after the partition was made.
    pub(super) fn ask<T>(&self, mut ask: impl FnMut(&Reader) -> KafkaResult<T>) -> KafkaResult<T> {
        let moved = |error: &KafkaError| error.rdkafka_error_code() == Some(RDKafkaErrorCode::NotLeaderForPartition);
        for _ in 0..LEADER_TRIES {
            match self.ask_once(&mut ask) {
                Err(error) if moved(&error) => std::thread::sleep(LEADER_PAUSE),
                answer => return answer,
            }
        }
        self.ask_once(ask)
    }

    fn ask_once<T>(&self, ask: impl FnOnce(&Reader) -> KafkaResult<T>) -> KafkaResult<T> {
        let consumer = {
            let mut kept = self.asking();
            match &*kept {
                Some(consumer) => Arc::clone(consumer),
                None => Arc::clone(kept.insert(Arc::new(self.consumer()?))),
            }
        };
        // It reads nothing; what comes are notes of lost connections, which must not pile up.
        while consumer.poll(Duration::ZERO).is_some() {}
        // Another may have given it up meanwhile, and a new one is there.
        ask(&consumer).inspect_err(|_| drop(self.asking().take_if(|kept| Arc::ptr_eq(kept, &consumer))))
    }

    fn asking(&self) -> MutexGuard<'_, Option<Arc<Reader>>> {
        self.asking.lock().expect("no holder panics")
    }

    fn consumer(&self) -> KafkaResult<Reader> {
        self.config().create_with_context(Quiet)
    }

    fn config(&self) -> ClientConfig {
        let mut config = self.kafka.client();
        config
            // Required by the client, but nothing is ever committed under it.
            .set("group.id", "tidemill.history")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "50");
        config
    }
}

fn read_topic<E: From<KafkaError>>(
    consumer: &Reader,
    topic: &Arc<str>,
    mut open: BTreeMap<i32, i64>,
    cancel: &CancellationToken,
    each: &mut impl FnMut(Record) -> Result<(), E>,
) -> Result<(), E> {
    let mut heard = Instant::now();
    while !open.is_empty() {
        if cancel.is_cancelled() {
            return Err(KafkaError::Canceled.into());
        }
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let record = Record::of(Arc::clone(topic), &message);
                let Some(&to) = open.get(&record.partition) else { continue };
                heard = Instant::now();
                if record.offset + 1 >= to {
                    open.remove(&record.partition);
                }
                if record.offset < to {
                    each(record)?;
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                heard = Instant::now();
                open.remove(&partition);
            }
            Some(Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure,
            )))
            | None => {
                if heard.elapsed() > STALLED {
                    return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut).into());
                }
            }
            Some(Err(error)) => return Err(error.into()),
        }
    }
    Ok(())
}

fn offsets<'a>(
    consumer: &Reader,
    asked: impl Iterator<Item = (&'a TopicPartition, Offset)>,
) -> KafkaResult<HashMap<TopicPartition, i64>> {
    read_offsets(&consumer.offsets_for_times(list_of(asked)?, TIMEOUT)?)
}

fn read_offsets(answer: &TopicPartitionList) -> KafkaResult<HashMap<TopicPartition, i64>> {
    let mut found = HashMap::new();
    for element in answer.elements() {
        // A topic that was deleted meanwhile must not keep the others waiting.
        if let Err(KafkaError::OffsetFetch(RDKafkaErrorCode::UnknownTopicOrPartition)) = element.error() {
            continue;
        }
        element.error()?;
        let at = TopicPartition { topic: Arc::from(element.topic()), partition: element.partition() };
        found.insert(at, element.offset().to_raw().unwrap_or(-1));
    }
    Ok(found)
}

fn list_of<'a>(positions: impl Iterator<Item = (&'a TopicPartition, Offset)>) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (at, offset) in positions {
        list.add_partition_offset(&at.topic, at.partition, offset)?;
    }
    Ok(list)
}

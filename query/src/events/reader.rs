//! Reads a project's processed topic into its tail, on a thread of its own, until it is told to stop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use tidemill_common::kafka::{Followed, Follower, History, KafkaConfig, Span, TopicPartition};
use tidemill_common::names::processed_topic;
use tidemill_common::projects::Project;
use tokio_util::sync::CancellationToken;

use super::rows::Row;
use super::tail::Cut;

/// Brokers' clocks may differ by this much, in milliseconds.
const MARGIN_MS: i64 = 60_000;
/// A partition's first record that is not archived is looked for among so many offsets: logs have gaps.
const GAP: i64 = 64;
/// Rows are handed over when nothing more comes at once, or when there are this many.
const BATCH: usize = 2_048;
/// … or so many bytes of them: what is not handed over is not counted.
const BATCH_BYTES: usize = 256 * 1024;
const WAIT: Duration = Duration::from_millis(100);
/// Brokers that could not be reached are asked again after a time that doubles from the first of these to the second. Nothing
/// is read while they are asked, and as long as a partition has no leader there is no answer: they have half as long for it.
const LOST: Duration = Duration::from_secs(1);
const LONG_LOST: Duration = Duration::from_secs(8);
/// When the tail begins, there is time.
const START: Duration = Duration::from_secs(10);
/// Records that wait in the client, in KiB.
const CLIENT_KB: usize = 8_192;

/// Offsets by partition.
type Offsets = BTreeMap<i32, i64>;

/// What a tail is read from, and how far it may grow.
pub struct Source {
    pub kafka: KafkaConfig,
    pub history: History,
    pub project: Project,
    /// Up to where the archive is.
    pub cut: Cut,
    /// The bytes that all tails hold.
    pub held: Arc<AtomicUsize>,
    /// How many they may hold. Then nothing is read until the archive has moved on.
    pub most: usize,
}

/// What the reader comes by.
pub enum Read {
    /// Rows, in any order.
    Rows(Vec<Row>),
    /// All that was there has been handed over.
    Whole,
    /// There is more than may be held, or the brokers cannot be reached.
    Behind,
}

impl Source {
    /// Reads until `cancel`, and hands over what it finds.
    pub fn read(&self, cancel: &CancellationToken, mut each: impl FnMut(Read)) -> Result<(), KafkaError> {
        let (starts, mut ends) = self.starts(cancel)?;
        let topic = processed_topic(&self.project.id);
        let follower = Follower::new(&self.kafka, &topic, &starts, CLIENT_KB)?;
        let mut next = starts;
        let (mut rows, mut bytes) = (Vec::new(), 0);
        // Where the topic ends by now is not known, and is to be asked for at this time.
        let (mut behind, mut pause) = (None::<Instant>, LOST);
        while !cancel.is_cancelled() {
            if self.held.load(Ordering::Relaxed) >= self.most {
                behind = Some(Instant::now());
                each(Read::Behind);
                std::thread::sleep(WAIT);
                continue;
            }
            if behind.is_some_and(|ask_at| ask_at <= Instant::now()) {
                match self.ends(pause / 2) {
                    Ok(found) => (ends, behind, pause) = (found, None, LOST),
                    Err(_) => (behind, pause) = (Some(Instant::now() + pause), LONG_LOST.min(pause * 2)),
                }
            }
            let wait = if rows.is_empty() { WAIT } else { Duration::ZERO };
            let followed = follower.next(wait)?;
            let is_record = matches!(followed, Some(Followed::Record(_)));
            match followed {
                Some(Followed::Record(record)) => {
                    let (partition, offset) = (record.partition, record.offset);
                    next.insert(partition, offset + 1);
                    bytes += record.value().len();
                    match Row::of(&record) {
                        Ok(row) => rows.push(row),
                        Err(reason) => {
                            tracing::warn!(topic, partition, offset, reason, "a record is no processed event")
                        }
                    }
                }
                Some(Followed::Lost) => {
                    // The client does not say that it has found them again.
                    behind.get_or_insert_with(|| Instant::now() + LOST);
                    each(Read::Behind);
                }
                None => {}
            }
            if rows.len() >= BATCH || bytes >= BATCH_BYTES || (!rows.is_empty() && !is_record) {
                bytes = 0;
                each(Read::Rows(std::mem::take(&mut rows)));
            }
            ends.retain(|partition, end| next.get(partition).is_some_and(|next| next < end));
            if ends.is_empty() && rows.is_empty() && behind.is_none() {
                each(Read::Whole);
            }
        }
        Ok(())
    }

    fn copies(&self) -> Vec<TopicPartition> {
        let topic: Arc<str> = processed_topic(&self.project.id).into();
        (0..self.project.partitions).map(|partition| TopicPartition { topic: Arc::clone(&topic), partition }).collect()
    }

    /// Where each partition ends. Every offset has a record: nobody writes to this topic in transactions.
    fn ends(&self, timeout: Duration) -> Result<Offsets, KafkaError> {
        Ok(self
            .history
            .ends_within(&self.copies(), timeout)?
            .into_iter()
            .map(|(at, end)| (at.partition, end.offset))
            .collect())
    }

    /// Where to begin in each partition: before the copy of the first record that is not archived. Its copy was
    /// appended after it, and so were those of all that follow it. And where each ends.
    fn starts(&self, cancel: &CancellationToken) -> Result<(Offsets, Offsets), KafkaError> {
        let copies = self.copies();
        let copy = |partition: i32| copies[partition as usize].clone();
        let events = self.project.partitions_of_events();
        // The copies' ends first: what is copied from now on comes behind them.
        let ends = self.ends(START)?;
        let logged = self.history.bounds(&events)?;
        let mut starts = ends.clone();
        let mut spans = Vec::new();
        for at in events {
            let Some(&(low, high)) = logged.get(&at) else { continue };
            let next = self.cut.get(&at.number()).map_or(low, |next| low.max(*next));
            if next < high {
                spans.push(Span { at, from: next, to: high.min(next + GAP) });
            }
        }
        let mut times: BTreeMap<TopicPartition, i64> = BTreeMap::new();
        self.history.read(&spans, cancel, |record| {
            times.entry(record.topic_partition()).or_insert(record.append_ms);
            Ok::<(), KafkaError>(())
        })?;
        let time = |at: &TopicPartition| times.get(at).map_or(0, |time| time - MARGIN_MS);
        let asked: Vec<_> = if self.project.routes.is_empty() {
            spans.iter().map(|span| (copy(span.at.partition), time(&span.at))).collect()
        } else {
            // Copies of several topics' records stand in one partition, and which that is changes when the project grows.
            let earliest = spans.iter().map(|span| time(&span.at)).min();
            earliest.into_iter().flat_map(|time| copies.iter().map(move |copy| (copy.clone(), time))).collect()
        };
        if !asked.is_empty() {
            let found = self.history.offsets_at(&asked)?;
            starts.extend(found.into_iter().map(|(at, offset)| (at.partition, offset)));
        }
        Ok((starts, ends))
    }
}

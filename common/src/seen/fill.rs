//! Completes stores, so that the records behind a position can be judged: from disk, else from a checkpoint, and
//! the rest from the log.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use rdkafka::error::KafkaError;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use super::checkpoint::{CheckpointError, Checkpoints, Manifest};
use super::{SeenError, SeenStore, SeenStores, StoreKey, fingerprint, plan};
use crate::codec::{DecodeError, Decoder};
use crate::dead_letters;
use crate::event::EventRef;
use crate::http::Health;
use crate::kafka::{History, Record, Span, TopicPartition};
use crate::verdict::{Verdict, judge};

/// Brokers' and workers' clocks may differ by this much.
const CLOCK_SLACK_MS: i64 = 3_600_000;
/// Brokers' clocks among each other: when a partition's leader changes, append times may go back.
const BROKERS_SLACK_MS: i64 = 60_000;
/// Fewer records than this are read from the log without asking for a checkpoint.
const WORTH_A_CHECKPOINT: i64 = 5_000;
/// So many checkpoints are fetched at a time.
const AT_ONCE: usize = 8;
/// How often progress is shown.
const SHOWN: Duration = Duration::from_millis(500);
/// The check that says that stores are being completed.
const CHECK: &str = "seen";

/// Why a store could not be completed; trying again may help.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The log could not be read.
    #[error("the log cannot be read: {0}")]
    Kafka(#[from] KafkaError),
    /// What was given up could not be asked for.
    #[error("postgres: {0}")]
    Postgres(#[from] sqlx::Error),
    /// A record could not be judged.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The store's own files.
    #[error(transparent)]
    Seen(#[from] SeenError),
}

/// One partition to make ready.
pub struct Fill {
    /// Whose store.
    pub key: StoreKey,
    /// The position from which records will be judged.
    pub next: i64,
    /// The first offset that is wanted back for another reason (see `again`); at most `next`.
    pub again_from: i64,
    /// The project's partition count.
    pub partitions: i32,
    /// The project's dedupe window.
    pub window_ms: i64,
    /// The store, if it is open already.
    pub seen: Option<SeenStore>,
}

/// Completes stores. Cheap to clone.
#[derive(Clone)]
pub struct Filler {
    /// The log's past.
    pub history: History,
    /// Reads it.
    pub decoder: Decoder,
    /// Knows what was given up there.
    pub pool: PgPool,
    /// The stores.
    pub stores: SeenStores,
    /// Where checkpoints are, if there are any.
    pub checkpoints: Option<Checkpoints>,
    /// Shows how far it is, in the check `seen`.
    pub health: Health,
}

/// A partition on its way.
struct Filling {
    fill: Fill,
    at: TopicPartition,
    seen: SeenStore,
    /// The first offset that may matter to records from `fill.next` on.
    oldest: i64,
    /// The log's end.
    high: i64,
    missing: Range<i64>,
}

impl Filler {
    /// Reads what the stores miss and gives them back, complete. `again` sees every valid event from
    /// `again_from` up to `next`. Blocks.
    pub fn fill(
        &self,
        fills: Vec<Fill>,
        cancel: &CancellationToken,
        mut again: impl FnMut(&Record, &EventRef<'_>),
    ) -> Result<HashMap<TopicPartition, SeenStore>, FillError> {
        let runtime = tokio::runtime::Handle::current();
        let mut fillings = self.open(fills, cancel)?;
        runtime.block_on(self.fetch(&mut fillings));
        fillings.iter_mut().for_each(|filling| filling.seen.complete(&filling.missing));
        let spans: Vec<Span> = fillings.iter().map(Filling::span).collect();
        let index: HashMap<TopicPartition, usize> =
            fillings.iter().enumerate().map(|(i, filling)| (filling.at.clone(), i)).collect();
        let dead = runtime.block_on(self.dead(&fillings))?;
        let mut progress = Progress::new(&self.health, &spans);
        self.history.read(&spans, cancel, |record| -> Result<(), FillError> {
            progress.step();
            let at = index[&record.topic_partition()];
            let Filling { fill, seen, missing, .. } = &mut fillings[at];
            if dead[at].contains(&record.offset) {
                return Ok(());
            }
            let decoded = match runtime.block_on(judge(&self.decoder, &record, fill.partitions, fill.window_ms)) {
                Ok(Verdict::Valid(decoded)) => decoded,
                // It was no sighting when it was first read either.
                Ok(_) => return Ok(()),
                // An unknown schema too: this record was judged once, so the registry has less than it had.
                Err(error) => return Err(error.into()),
            };
            let event = decoded.event();
            if record.offset >= missing.start {
                seen.note(fingerprint(event.event_id), record.offset, record.append_ms);
                seen.advance(record.offset + 1);
            }
            if record.offset >= fill.again_from {
                again(&record, &event);
            }
            Ok(())
        })?;
        fillings.iter_mut().for_each(|filling| filling.seen.advance(filling.missing.end));
        Ok(fillings.into_iter().map(|filling| (filling.at, filling.seen)).collect())
    }

    /// The stores as they are on disk, and what they lack.
    fn open(&self, fills: Vec<Fill>, cancel: &CancellationToken) -> Result<Vec<Filling>, FillError> {
        let (topics, ats) = (&mut HashMap::new(), fills.iter());
        let ats: Vec<TopicPartition> = ats.map(|fill| partition_of(&fill.key, topics)).collect();
        let bounds = self.history.bounds(&ats)?;
        let oldest = self.oldest(&fills, &ats, &bounds, cancel)?;
        let mut fillings = Vec::with_capacity(fills.len());
        for (mut fill, at) in fills.into_iter().zip(ats) {
            let (low, high) = bounds.get(&at).copied().unwrap_or((0, fill.next));
            // No record that young: nothing before the position matters.
            let oldest = oldest.get(&at).copied().unwrap_or(fill.next).clamp(low.min(fill.next), fill.next);
            let mut seen = match fill.seen.take() {
                Some(seen) => seen,
                None => self.stores.load(&fill.key, fill.window_ms)?,
            };
            if seen.covered().end > high {
                tracing::warn!(topic = %at.topic, partition = at.partition, "the log has lost its end; so has its seen store");
                seen.forget();
            }
            let missing = seen.missing(oldest, fill.next);
            fillings.push(Filling { fill, at, seen, oldest, high, missing });
        }
        Ok(fillings)
    }

    /// What of the records to be read was given up, whatever they would be judged now.
    async fn dead(&self, fillings: &[Filling]) -> Result<Vec<BTreeSet<i64>>, sqlx::Error> {
        let mut topics = BTreeMap::<(&str, &str), Vec<usize>>::new();
        for (i, Filling { fill, .. }) in fillings.iter().enumerate() {
            topics.entry((&fill.key.topic, &fill.key.incarnation)).or_default().push(i);
        }
        let mut dead = vec![BTreeSet::new(); fillings.len()];
        for ((topic, incarnation), of_topic) in topics {
            let span = |&i: &usize| {
                let Span { at, from, to } = fillings[i].span();
                (at.partition, from..to)
            };
            let spans: Vec<_> = of_topic.iter().map(span).filter(|(_, span)| !span.is_empty()).collect();
            let mut found = match spans.is_empty() {
                true => HashMap::new(),
                false => dead_letters::dead(&self.pool, topic, incarnation, &spans).await?,
            };
            for i in of_topic {
                dead[i] = found.remove(&fillings[i].at.partition).unwrap_or_default();
            }
        }
        Ok(dead)
    }

    /// Takes checkpoints where they spare much of the log.
    async fn fetch(&self, fillings: &mut [Filling]) {
        let Some(checkpoints) = &self.checkpoints else { return };
        let worth = fillings.iter_mut().filter(|filling| length(&filling.missing) > WORTH_A_CHECKPOINT);
        let fetches: Vec<_> = worth.map(|filling| self.try_checkpoint(checkpoints, filling)).collect();
        futures::stream::iter(fetches).buffer_unordered(AT_ONCE).collect::<()>().await;
    }

    async fn try_checkpoint(&self, checkpoints: &Checkpoints, filling: &mut Filling) {
        let (topic, partition) = (filling.at.topic.clone(), filling.at.partition);
        if let Err(error) = self.fetch_one(checkpoints, filling).await {
            tracing::warn!(%error, %topic, partition, "no checkpoint; reading the log instead");
        }
    }

    async fn fetch_one(&self, checkpoints: &Checkpoints, filling: &mut Filling) -> Result<(), FetchError> {
        let Filling { fill, seen, oldest, high, missing, .. } = filling;
        let Some(manifest) = checkpoints.find(&fill.key).await? else { return Ok(()) };
        let Manifest { covers, .. } = &manifest;
        let left = plan::missing(covers, *oldest, fill.next);
        if covers.end > *high || length(&left) >= length(missing) / 2 {
            return Ok(());
        }
        seen.forget();
        let fetched = checkpoints.fetch(&fill.key, &manifest, &self.stores.folder_of(&fill.key)).await;
        *seen = self.stores.load(&fill.key, fill.window_ms)?;
        *missing = seen.missing(*oldest, fill.next);
        fetched?;
        metrics::counter!("tidemill_seen_checkpoints_taken_total").increment(1);
        tracing::info!(topic = fill.key.topic, partition = fill.key.partition, ?missing, "took a checkpoint");
        Ok(())
    }

    /// The first offset that may matter in each partition; none where there is no record that young.
    fn oldest(
        &self,
        fills: &[Fill],
        ats: &[TopicPartition],
        bounds: &HashMap<TopicPartition, (i64, i64)>,
        cancel: &CancellationToken,
    ) -> Result<HashMap<TopicPartition, i64>, KafkaError> {
        let positions: Vec<(TopicPartition, i64)> =
            ats.iter().zip(fills).map(|(at, fill)| (at.clone(), fill.next)).collect();
        let next_times = append_times(&self.history, &positions, bounds, cancel)?;
        let before = |window_ms: i64| window_ms.saturating_add(BROKERS_SLACK_MS);
        let times: Vec<_> = ats
            .iter()
            .zip(fills)
            .map(|(at, fill)| (at.clone(), next_times[at].saturating_sub(before(fill.window_ms))))
            .collect();
        self.history.offsets_at(&times)
    }
}

impl Filling {
    fn span(&self) -> Span {
        let Range { start, end } = self.missing;
        let from = if start < end { start.min(self.fill.again_from) } else { self.fill.again_from };
        Span { at: self.at.clone(), from, to: self.fill.next }
    }
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Seen(#[from] SeenError),
}

/// How much has been read, for people and probes.
struct Progress<'a> {
    health: &'a Health,
    read: i64,
    all: i64,
    shown: Instant,
    counter: metrics::Counter,
}

impl<'a> Progress<'a> {
    fn new(health: &'a Health, spans: &[Span]) -> Self {
        let counter = metrics::counter!("tidemill_seen_records_read_total");
        let all = spans.iter().map(|span| (span.to - span.from).max(0)).sum();
        let progress = Self { health, read: 0, all, shown: Instant::now(), counter };
        if all > 0 {
            progress.show();
        }
        progress
    }

    fn step(&mut self) {
        self.read += 1;
        self.counter.increment(1);
        if self.read % 256 == 0 && self.shown.elapsed() > SHOWN {
            self.shown = Instant::now();
            self.show();
        }
    }

    fn show(&self) {
        let Self { read, all, .. } = self;
        let state = format!("completing what was seen before: {read} of {all} records read");
        self.health.set(CHECK, true, Err(state));
        metrics::gauge!("tidemill_seen_missing_records").set((all - read).max(0) as f64);
    }
}

impl Drop for Progress<'_> {
    /// However it ended: what is wrong then, other checks say.
    fn drop(&mut self) {
        self.health.set(CHECK, true, Ok(()));
        metrics::gauge!("tidemill_seen_missing_records").set(0);
    }
}

fn length(range: &Range<i64>) -> i64 {
    (range.end - range.start).max(0)
}

/// All partitions of a topic share its name.
fn partition_of(key: &StoreKey, topics: &mut HashMap<String, Arc<str>>) -> TopicPartition {
    let topic = topics.entry(key.topic.clone()).or_insert_with(|| Arc::from(&*key.topic));
    TopicPartition { topic: Arc::clone(topic), partition: key.partition }
}

/// A time that no record at or behind a position is older than: the append time of the record there; where
/// there is none yet, an hour ago; where a gap hides it, the beginning of time.
fn append_times(
    history: &History,
    positions: &[(TopicPartition, i64)],
    bounds: &HashMap<TopicPartition, (i64, i64)>,
    cancel: &CancellationToken,
) -> Result<HashMap<TopicPartition, i64>, KafkaError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
    let behind = |(at, next): &(TopicPartition, i64)| bounds.get(at).is_some_and(|(_, high)| next < high);
    let unread = |position| if behind(position) { 0 } else { now - CLOCK_SLACK_MS };
    let mut times: HashMap<_, _> = positions.iter().map(|position| (position.0.clone(), unread(position))).collect();
    let span = |(at, next): &(TopicPartition, i64)| Span { at: at.clone(), from: *next, to: next + 1 };
    let spans: Vec<Span> = positions.iter().filter(|position| behind(position)).map(span).collect();
    history.read(&spans, cancel, |record| -> Result<(), KafkaError> {
        times.insert(record.topic_partition(), record.append_ms);
        Ok(())
    })?;
    Ok(times)
}

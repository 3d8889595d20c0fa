//! Completes stores, so that the records behind a position can be judged: from disk, else from a checkpoint, and
//! the rest from the log.
//!
//! A partition that a project has got by growing, or with a route, was another one's before, its parent's. To its store the parent's log up
//! to the cutoff is the beginning of its own, at negative offsets: the offset there less the cutoff. So whatever is said
//! of coverage, files and checkpoints holds for what is inherited, too ([`super::heir`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use rdkafka::error::KafkaError;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use super::checkpoint::{CheckpointError, Checkpoints, Manifest};
use super::heir::{Heir, union};
use super::oldest::{Oldest, oldest};
use super::{SeenError, SeenStore, SeenStores, StoreKey, fingerprint, plan};
use crate::codec::{DecodeError, Decoded, Decoder};
use crate::dead_letters;
use crate::event::EventRef;
use crate::home::Layout;
use crate::http::Health;
use crate::kafka::{Gap, History, Reached, Record, Span, TopicPartition};
use crate::verdict::{Verdict, judge};

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
    /// The layout of the project, asked for after `next` was: it must know every era that has records before it.
    pub layout: Arc<Layout>,
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

/// Offsets that were given up.
type Dead = HashMap<TopicPartition, BTreeSet<i64>>;

/// A partition on its way.
struct Filling {
    fill: Fill,
    at: TopicPartition,
    seen: SeenStore,
    /// The first offset that may matter to records from `fill.next` on.
    oldest: i64,
    /// The log's beginning.
    low: i64,
    missing: Range<i64>,
    /// What it was before it was a partition.
    heir: Option<Heir>,
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
        if runtime.block_on(self.fetch(&mut fillings)) {
            self.compare(&mut fillings)?;
        }
        fillings.iter_mut().for_each(|filling| filling.seen.complete(&filling.missing));
        let spans: Vec<Span> = fillings.iter().map(Filling::span).collect();
        let inherited = union(fillings.iter().filter_map(|filling| filling.heir.as_ref()?.lacks(&filling.missing)));
        let mut progress = Progress::new(&self.health, spans.iter().chain(&inherited));
        self.inherit(&mut fillings, &inherited, cancel, &mut progress)?;
        let index: HashMap<TopicPartition, usize> =
            fillings.iter().enumerate().map(|(i, filling)| (filling.at.clone(), i)).collect();
        let dead = runtime.block_on(self.dead(&fillings, &spans))?;
        self.history.read(&spans, cancel, |record| -> Result<(), FillError> {
            progress.step();
            let Some(&at) = index.get(&record.topic_partition()) else { return Ok(()) };
            let Filling { fill, seen, missing, .. } = &mut fillings[at];
            let decoded = self.sighting(&record, fill, &dead)?;
            let event = decoded.as_ref().map(Decoded::event);
            if record.offset >= missing.start {
                if let Some(event) = &event {
                    seen.note(fingerprint(event.event_id), record.offset, record.append_ms);
                }
                seen.advance(Reached { next: record.offset + 1, newest_ms: record.append_ms });
            }
            if let Some(event) = event.filter(|_| record.offset >= fill.again_from) {
                again(&record, &event);
            }
            Ok(())
        })?;
        for Filling { seen, missing, .. } in &mut fillings {
            seen.advance(Reached { next: missing.end, ..seen.reached() }); // past a gap at the end
        }
        Ok(fillings.into_iter().map(|filling| (filling.at, filling.seen)).collect())
    }

    /// Notes what partitions have been left by their parents. All children of one are served by one reading.
    fn inherit(
        &self,
        fillings: &mut [Filling],
        spans: &[Span],
        cancel: &CancellationToken,
        progress: &mut Progress<'_>,
    ) -> Result<(), FillError> {
        let mut children = HashMap::<TopicPartition, Vec<usize>>::new();
        for (i, filling) in fillings.iter().enumerate() {
            let Some(heir) = &filling.heir else { continue };
            children.entry(heir.from.clone()).or_default().push(i);
        }
        let dead = tokio::runtime::Handle::current().block_on(self.dead(fillings, spans))?;
        self.history.read(spans, cancel, |record| -> Result<(), FillError> {
            progress.step();
            let Some(heirs) = children.get(&record.topic_partition()) else { return Ok(()) };
            let Some(decoded) = self.sighting(&record, &fillings[heirs[0]].fill, &dead)? else { return Ok(()) };
            let event = decoded.event();
            for &i in heirs {
                let Filling { seen, missing, heir: Some(heir), .. } = &mut fillings[i] else { continue };
                if let Some(offset) = heir.inherits(&event, record.offset).filter(|offset| missing.contains(offset)) {
                    seen.note(fingerprint(event.event_id), offset, record.append_ms);
                    seen.advance(Reached { next: offset + 1, newest_ms: record.append_ms });
                }
            }
            Ok(())
        })?;
        Ok(())
    }

    /// The event in a record, if it is a sighting.
    fn sighting<'a>(&self, record: &'a Record, fill: &Fill, dead: &Dead) -> Result<Option<Decoded<'a>>, FillError> {
        if !dead.is_empty() && dead.get(&record.topic_partition()).is_some_and(|dead| dead.contains(&record.offset)) {
            return Ok(None);
        }
        let runtime = tokio::runtime::Handle::current();
        match runtime.block_on(judge(&self.decoder, record, &fill.layout, fill.window_ms)) {
            Ok(Verdict::Valid(decoded)) => Ok(Some(decoded)),
            // It was no sighting when it was first read either.
            Ok(_) => Ok(None),
            // An unknown schema too: this record was judged once, so the registry has less than it had.
            Err(error) => Err(error.into()),
        }
    }

    /// The stores as they are on disk, and what they lack.
    fn open(&self, fills: Vec<Fill>, cancel: &CancellationToken) -> Result<Vec<Filling>, FillError> {
        let (topics, ats) = (&mut HashMap::new(), fills.iter());
        let ats: Vec<TopicPartition> = ats.map(|fill| partition_of(&fill.key, topics)).collect();
        let bounds = self.history.bounds(&ats)?;
        let mut oldest = oldest(&self.history, &fills, &ats, &bounds, cancel)?;
        let mut fillings = Vec::with_capacity(fills.len());
        for (mut fill, at) in fills.into_iter().zip(ats) {
            let low = bounds.get(&at).map_or(0, |(low, _)| *low);
            let heir = Heir::of(&fill.layout, &at);
            let Oldest { own, inherited } = oldest.remove(&at).unwrap_or_default();
            // No record that young: nothing before the position matters.
            let own = own.unwrap_or(fill.next).clamp(low.min(fill.next), fill.next);
            let oldest = inherited.unwrap_or(own);
            let seen = match fill.seen.take() {
                Some(seen) => seen,
                None => self.stores.load(&fill.key, fill.window_ms)?,
            };
            fillings.push(Filling { fill, at, seen, oldest, low, missing: 0..0, heir });
        }
        self.compare(&mut fillings)?;
        Ok(fillings)
    }

    /// Finds out what stores lack. One whose log has lost its end lacks everything: it may have what was lost, from
    /// here or from a checkpoint, whoever has gone on behind the loss and however long ago.
    fn compare(&self, fillings: &mut [Filling]) -> Result<(), KafkaError> {
        let ends: Vec<_> = fillings.iter().map(|filling| (filling.at.clone(), Some(filling.seen.reached()))).collect();
        let starts = self.history.starts(&ends)?;
        for Filling { fill, at, seen, oldest, missing, .. } in fillings {
            if let Some(Err(gap @ Gap::Cut { .. })) = starts.get(at) {
                tracing::warn!(topic = %at.topic, partition = at.partition, %gap, "its seen store forgets what it had");
                seen.forget();
            }
            *missing = seen.missing(*oldest, fill.next);
        }
        Ok(())
    }

    /// What of the records to be read was given up, whatever they would be judged now.
    async fn dead(&self, fillings: &[Filling], spans: &[Span]) -> Result<Dead, sqlx::Error> {
        let incarnations: BTreeMap<&str, &str> =
            fillings.iter().map(|Filling { fill, .. }| (&*fill.key.topic, &*fill.key.incarnation)).collect();
        let mut dead = Dead::new();
        for (topic, incarnation) in incarnations {
            let of_topic = spans.iter().filter(|span| &*span.at.topic == topic && span.from < span.to);
            let asked: Vec<_> = of_topic.clone().map(|span| (span.at.partition, span.from..span.to)).collect();
            if asked.is_empty() {
                continue;
            }
            let mut found = dead_letters::dead(&self.pool, topic, incarnation, &asked).await?;
            let some = |span: &Span| Some((span.at.clone(), found.remove(&span.at.partition)?));
            dead.extend(of_topic.filter_map(some).filter(|(_, dead)| !dead.is_empty()));
        }
        Ok(dead)
    }

    /// Takes checkpoints where they spare much of the log; says whether there were any.
    async fn fetch(&self, fillings: &mut [Filling]) -> bool {
        let Some(checkpoints) = &self.checkpoints else { return false };
        let worth = fillings.iter_mut().filter(|filling| length(&filling.missing) > WORTH_A_CHECKPOINT);
        let fetches: Vec<_> = worth.map(|filling| self.try_checkpoint(checkpoints, filling)).collect();
        let taken = futures::stream::iter(fetches).buffer_unordered(AT_ONCE);
        taken.fold(false, async |any, taken| any | taken).await
    }

    async fn try_checkpoint(&self, checkpoints: &Checkpoints, filling: &mut Filling) -> bool {
        let (topic, partition) = (filling.at.topic.clone(), filling.at.partition);
        let fetched = self.fetch_one(checkpoints, filling).await;
        fetched.unwrap_or_else(|error| {
            tracing::warn!(%error, %topic, partition, "no checkpoint; reading the log instead");
            true // parts of one, perhaps
        })
    }

    async fn fetch_one(&self, checkpoints: &Checkpoints, filling: &mut Filling) -> Result<bool, FetchError> {
        let Filling { fill, seen, oldest, missing, .. } = filling;
        let Some(manifest) = checkpoints.find(&fill.key).await? else { return Ok(false) };
        let Manifest { covers, .. } = &manifest;
        let left = plan::missing(covers, *oldest, fill.next);
        if length(&left) >= length(missing) / 2 {
            return Ok(false);
        }
        seen.forget();
        let fetched = checkpoints.fetch(&fill.key, &manifest, &self.stores.folder_of(&fill.key)).await;
        *seen = self.stores.load(&fill.key, fill.window_ms)?;
        *missing = seen.missing(*oldest, fill.next);
        fetched?;
        metrics::counter!("tidemill_seen_checkpoints_taken_total").increment(1);
        tracing::info!(topic = fill.key.topic, partition = fill.key.partition, ?missing, "took a checkpoint");
        Ok(true)
    }
}

impl Filling {
    fn span(&self) -> Span {
        let Range { start, end } = self.missing;
        // What is inherited is read elsewhere.
        let start = start.max(self.low.min(self.fill.next));
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
    fn new<'s>(health: &'a Health, spans: impl Iterator<Item = &'s Span>) -> Self {
        let counter = metrics::counter!("tidemill_seen_records_read_total");
        let all = spans.map(|span| (span.to - span.from).max(0)).sum();
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

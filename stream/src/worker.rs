//! The batch loop.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use chrono::DateTime;
use metrics::{counter, gauge, histogram};
use sqlx::PgPool;
use tidemill_common::http::Health;
use tidemill_common::kafka::{GroupConsumer, GroupEvent, Producer, Record, TopicPartition};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::emit;
use crate::ledger::{self, Advance};
use crate::live::{Live, Parked, Preparer};
use crate::project::Projector;
use crate::sort::{Sorted, Sorter, Transient};
use crate::store::{self, Batch};

/// How often the worker looks after what is not about records.
const TICK: Duration = Duration::from_secs(1);
/// How often the worker makes sure that its topics are still the same ones.
const TOPICS: Duration = Duration::from_secs(10);
/// Pause after a transient failure, doubled up to `LONGEST_PAUSE`.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A transaction without an answer for this long counts as one with an unknown outcome.
const COMMIT: Duration = Duration::from_secs(30);
/// Pause before a partition with an unknown schema is tried again.
const HELD: Duration = Duration::from_secs(1);
/// The check that says whether batches go through.
pub const BATCHES: &str = "batches";
/// The check that says whether the assigned partitions can be counted.
pub const PARTITIONS: &str = "partitions";

/// A stream worker.
pub struct Worker {
    pub(crate) config: Config,
    pub(crate) pool: PgPool,
    pub(crate) consumer: GroupConsumer,
    pub(crate) producer: Producer,
    pub(crate) preparer: Preparer,
    pub(crate) sorter: Sorter,
    pub(crate) projector: Projector,
    pub(crate) health: Health,
    pub(crate) shutdown: CancellationToken,
    pub(crate) state: State,
}

/// Which partitions are ours, and where they stand.
#[derive(Default)]
pub(crate) struct State {
    live: HashMap<TopicPartition, Live>,
    /// Ours, but not live: new, of an unknown project, or to be read from the ledger anew.
    waiting: BTreeSet<TopicPartition>,
    parked: Parked,
    /// Failures since the last batch that went through, or the last partitions made ready.
    failures: u32,
    batch_failed: bool,
    retry_at: Option<Instant>,
}

impl Worker {
    /// Works until shutdown. An error is one that only a new process gets over.
    pub async fn run(mut self) -> Result<(), Transient> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut topics = tokio::time::interval(TOPICS);
        topics.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let shutdown = self.shutdown.clone();
        let ended = loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break Ok(()),
                _ = tick.tick() => {
                    self.project().await;
                    self.state.tick();
                }
                _ = topics.tick() => self.check_topics().await,
                event = self.consumer.next() => match event {
                    Some(GroupEvent::Record(record)) => {
                        let records = self.collect(record).await;
                        self.process(records).await;
                    }
                    Some(event) => self.rebalance(event),
                    None => break Ok(()),
                },
            }
            self.go_live().await;
            if let Some(error) = self.producer.fatal_error() {
                break Err(Transient::NotReady(format!("the kafka producer has to be started anew: {error}")));
            }
            let live = self.state.live.len() as f64;
            gauge!("tidemill_stream_live_partitions", "group" => self.config.group.clone()).set(live);
        };
        self.consumer.leave().await;
        ended
    }

    /// Takes what is there until the batch is full or has waited long enough.
    async fn collect(&mut self, first: Record) -> Vec<Record> {
        let mut records = vec![first];
        let deadline = tokio::time::Instant::now() + self.config.batch_wait();
        while records.len() < self.config.batch_size {
            match tokio::time::timeout_at(deadline, self.consumer.next()).await {
                Ok(Some(GroupEvent::Record(record))) => records.push(record),
                Ok(Some(event)) => self.rebalance(event),
                Ok(None) | Err(_) => break,
            }
        }
        records
    }

    fn rebalance(&mut self, event: GroupEvent) {
        match event {
            GroupEvent::Assigned(partitions) => {
                tracing::info!(partitions = partitions.len(), "partitions assigned");
                // What went to other workers is theirs to know.
                self.state.parked.retain(|at, _| partitions.contains(at));
                self.state.waiting.extend(partitions);
                self.state.retry_at = None;
            }
            GroupEvent::Revoked(partitions) => {
                tracing::info!(partitions = partitions.len(), "partitions revoked");
                for at in &partitions {
                    self.state.waiting.remove(at);
                    self.state.park(at);
                }
            }
            GroupEvent::Failed(error) => {
                tracing::warn!(%error, "a partition cannot be read on; going back to the ledger");
                self.state.reset();
            }
            GroupEvent::Record(_) => {}
        }
    }

    /// One batch, and what its outcome means.
    async fn process(&mut self, records: Vec<Record>) {
        let started = Instant::now();
        match self.apply_batch(records).await {
            Ok(true) => {
                (self.state.failures, self.state.batch_failed) = (0, false);
                self.health.set(BATCHES, true, Ok(()));
                histogram!("analytics_processing_duration_seconds").record(started.elapsed().as_secs_f64());
            }
            Ok(false) => {
                tracing::warn!(
                    "the ledger stands elsewhere (another worker, or a restored database); reading it again"
                );
                counter!("tidemill_stream_batches_dropped_total").increment(1);
                self.state.reset();
            }
            Err(error) => {
                // Nothing is lost and nothing turns into a dead letter: it is read again.
                self.state.reset();
                self.state.batch_failed = true;
                self.pause(BATCHES, &error);
            }
        }
    }

    /// The path of a batch, top to bottom. False: the ledger did not stand where the batch starts, so nothing
    /// was counted.
    async fn apply_batch(&mut self, records: Vec<Record>) -> Result<bool, Transient> {
        let by_partition = self.state.ours(records);
        let mut sorted = Sorted::default();
        let mut steps = Vec::new();
        let mut held = Vec::new();
        for (at, records) in &by_partition {
            let Some(live) = self.state.live.get_mut(at) else { continue };
            let taken = self.sorter.sort(records, live, &mut sorted).await?;
            steps.extend(live.step(&records[..taken]));
            if taken < records.len() {
                held.push(at);
            }
        }
        emit::send(&self.producer, &sorted.emissions).await?;
        let batch = Batch { steps, events: sorted.events, dead_letters: sorted.dead_letters };
        let committed = within(COMMIT, store::commit(&self.pool, &batch)).await?;
        let Some(touched) = committed else { return Ok(false) };
        self.state.advance(&batch.steps);
        self.state.hold(&held);
        self.projector.add(touched);
        self.project().await;
        self.consumer.commit(self.state.positions(by_partition.keys()));
        counter!("analytics_events_processed_total").increment(batch.events.len() as u64);
        counter!("tidemill_stream_copies_total").increment(sorted.copies);
        counter!("tidemill_stream_strays_total").increment(sorted.strays);
        counter!("tidemill_stream_dead_letters_total").increment(batch.dead_letters.len() as u64);
        Ok(true)
    }

    /// Brings Redis level, if it can be reached, and has the ledger know.
    async fn project(&mut self) {
        if !self.projector.flush().await {
            return;
        }
        let mut marks = Vec::new();
        for live in self.state.live.values_mut().filter(|live| live.projected != live.next) {
            live.projected = live.next;
            marks.push((live.place.clone(), live.next));
        }
        if marks.is_empty() {
            return;
        }
        marks.sort();
        if let Err(error) = within(COMMIT, ledger::mark_projected(&self.pool, &marks)).await {
            // Then more is projected again than need be.
            tracing::debug!(%error, "projection marks not written");
        }
    }

    /// A topic that was deleted and made again is another log, which the client may take for the old one when
    /// it is as long.
    async fn check_topics(&mut self) {
        let topics: BTreeSet<String> = self.state.live.keys().map(|at| at.topic.to_string()).collect();
        if topics.is_empty() {
            return;
        }
        let Ok(now) = self.preparer.incarnations(topics.into_iter().collect()).await else { return };
        let changed = |live: &Live| now.get(&live.place.topic).is_some_and(|id| *id != live.place.incarnation);
        if self.state.live.values().any(changed) {
            tracing::warn!("a topic was made again; reading the ledger anew");
            self.state.reset();
        }
    }

    /// Makes waiting partitions live, when it is time to try.
    async fn go_live(&mut self) {
        let state = &mut self.state;
        if state.waiting.is_empty() || state.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let prepared = match self.preparer.prepare(&state.waiting, &mut state.parked).await {
            Ok(prepared) => prepared,
            Err(error) => return self.pause(PARTITIONS, &error),
        };
        self.projector.add(prepared.touched);
        for (at, live) in prepared.live {
            let (next, sightings) = (live.next, live.seen.len());
            tracing::info!(topic = %at.topic, partition = at.partition, next, sightings, "live");
            self.consumer.start(&at, next);
            state.waiting.remove(&at);
            state.live.insert(at, live);
        }
        // Left are those of projects that are not in Postgres (yet), and those that are stuck.
        state.retry_at = Some(Instant::now() + 2 * TICK);
        if !state.batch_failed {
            state.failures = 0;
        }
        let stuck = if prepared.stuck.is_empty() { Ok(()) } else { Err(prepared.stuck.join("; ")) };
        self.health.set(PARTITIONS, true, stuck);
    }

    /// What waits is left alone for a while; what is live goes on.
    fn pause(&mut self, check: &'static str, error: &Transient) {
        let pause = (PAUSE * 2u32.saturating_pow(self.state.failures.min(10))).min(LONGEST_PAUSE);
        tracing::warn!(%error, ?pause, "partitions wait, then go on from the ledger");
        self.health.set(check, true, Err(error.to_string()));
        counter!("tidemill_stream_failures_total").increment(1);
        self.state.failures += 1;
        self.state.retry_at = Some(Instant::now() + pause);
    }
}

/// Postgres' answer, or an error after `limit`: a connection may be gone without a word.
async fn within<T>(limit: Duration, asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Transient> {
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Transient::NotReady(format!("postgres: no answer within {} s", limit.as_secs()))),
    }
}

impl Live {
    /// From the end of the last batch to behind the last of these records.
    fn step(&self, records: &[Record]) -> Option<Advance> {
        let last = records.last()?;
        Some(Advance {
            place: self.place.clone(),
            start: self.next,
            next: last.offset + 1,
            projected: self.projected,
            as_of: DateTime::from_timestamp_millis(last.append_ms).unwrap_or_default(),
        })
    }
}

impl State {
    /// The records of live partitions, by partition in order.
    fn ours(&self, records: Vec<Record>) -> BTreeMap<TopicPartition, Vec<Record>> {
        let mut by_partition = BTreeMap::<TopicPartition, Vec<Record>>::new();
        for record in records {
            let at = record.topic_partition();
            if self.live.contains_key(&at) {
                by_partition.entry(at).or_default().push(record);
            }
        }
        by_partition
    }

    fn advance(&mut self, steps: &[Advance]) {
        let by_place: HashMap<_, _> = steps.iter().map(|step| (&step.place, step.next)).collect();
        for live in self.live.values_mut() {
            if let Some(&next) = by_place.get(&live.place) {
                live.next = next;
                live.seen.advance(next);
            }
        }
    }

    fn positions<'a>(&self, partitions: impl Iterator<Item = &'a TopicPartition>) -> Vec<(TopicPartition, i64)> {
        partitions.filter_map(|at| Some((at.clone(), self.live.get(at)?.next))).collect()
    }

    fn park(&mut self, at: &TopicPartition) {
        if let Some(live) = self.live.remove(at) {
            self.parked.insert(at.clone(), (live.place.incarnation, live.seen));
        }
    }

    /// Lets what was seen do what time brings.
    fn tick(&mut self) {
        let now = chrono::Utc::now().timestamp_millis();
        let parked = self.parked.values_mut().map(|(_, seen)| seen);
        self.live.values_mut().map(|live| &mut live.seen).chain(parked).for_each(|seen| seen.tick(now));
    }

    /// These partitions are tried again from where they stand, in a while.
    fn hold(&mut self, partitions: &[&TopicPartition]) {
        for at in partitions {
            self.park(at);
            self.waiting.insert((*at).clone());
            self.retry_at = Some(Instant::now() + HELD);
        }
    }

    /// Every live partition goes back to the ledger's position; what was fetched is dropped.
    fn reset(&mut self) {
        let live: Vec<TopicPartition> = self.live.keys().cloned().collect();
        for at in live {
            self.park(&at);
            self.waiting.insert(at);
        }
        self.retry_at = None;
    }
}

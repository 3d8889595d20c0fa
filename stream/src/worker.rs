//! The batch loop.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use chrono::DateTime;
use metrics::{counter, gauge, histogram};
use sqlx::PgPool;
use tidemill_common::http::Health;
use tidemill_common::kafka::{GroupConsumer, GroupEvent, Producer, Record, TopicPartition};
use tidemill_common::progress::Positions;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::emit;
use crate::ledger::{self, Advance, Position};
use crate::live::{Live, Parked, Preparer};
use crate::project::Projector;
use crate::sort::{Sorted, Sorter, Transient};
use crate::store::{self, Batch};
use crate::timeline::Timeline;

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
/// Pause before a partition that is mostly dead letters is tried again.
const POISONED: Duration = Duration::from_secs(5);
/// The check that says whether batches go through.
pub const BATCHES: &str = "batches";
/// The check that says whether the assigned partitions can be counted.
pub const PARTITIONS: &str = "partitions";
/// The check that says whether too much would be dead letters.
pub const POISON: &str = "poison";

/// A stream worker.
pub struct Worker {
    pub(crate) config: Config,
    pub(crate) pool: PgPool,
    pub(crate) consumer: GroupConsumer,
    pub(crate) producer: Producer,
    pub(crate) preparer: Preparer,
    pub(crate) sorter: Sorter,
    pub(crate) projector: Projector,
    /// Where the live partitions stand, for those who watch.
    pub(crate) positions: Positions,
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
    /// What is known of the ledger.
    timeline: Timeline,
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
                _ = tick.tick() => self.look_after_projection().await,
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
            self.show_positions();
        };
        self.projector.finish().await;
        self.look_after_projection().await;
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
                self.sorter.poison.retain(|at| partitions.contains(at));
                self.state.waiting.extend(partitions);
                self.state.retry_at = None;
            }
            GroupEvent::Revoked(partitions) => {
                tracing::info!(partitions = partitions.len(), "partitions revoked");
                let place = |at| self.state.live.get(at).map(|live| live.place.clone());
                self.projector.gone(partitions.iter().filter_map(place).collect());
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
        let _in_hand = self.consumer.in_hand();
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
        let epoch = self.state.timeline.epoch.unwrap_or(0);
        let ends = batch.steps.iter().map(|step| (step.place.clone(), step.next)).collect();
        self.projector.batch(epoch, touched, ends);
        self.state.advance(&batch.steps);
        let poison = self.sorter.poison.state();
        self.state.hold(&held, if poison.is_ok() { HELD } else { POISONED });
        self.health.set(POISON, true, poison);
        self.consumer.commit(self.state.positions(by_partition.keys()));
        counter!("analytics_events_processed_total").increment(batch.events.len() as u64);
        counter!("tidemill_stream_copies_total").increment(sorted.copies);
        counter!("tidemill_stream_strays_total").increment(sorted.strays);
        counter!("tidemill_stream_dead_letters_total").increment(batch.dead_letters.len() as u64);
        Ok(true)
    }

    /// Has the ledger know what Redis shows; and goes back to it when Postgres has come back older.
    async fn look_after_projection(&mut self) {
        if self.state.timeline.epoch.is_some_and(|ours| ours < self.projector.epoch()) {
            tracing::warn!("postgres has come back older; reading the ledger again");
            self.state.reset();
            return;
        }
        let mut marks = Vec::new();
        for live in self.state.live.values_mut() {
            let Some(shown) = self.projector.shown(&live.place).filter(|shown| *shown > live.projected) else {
                continue;
            };
            live.projected = shown;
            // While there are batches, they tell the ledger.
            if shown == live.next {
                marks.push((live.place.clone(), shown));
            }
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

    fn show_positions(&self) {
        let live = &self.state.live;
        gauge!("tidemill_stream_live_partitions", "group" => self.config.group.clone()).set(live.len() as f64);
        self.positions.replace(live.iter().map(|(at, live)| (at.clone(), live.next)));
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
        let before = state.timeline.epoch;
        let prepared = self.preparer.prepare(&state.waiting, &mut state.parked, &mut state.timeline).await;
        let state = &mut self.state;
        if before.is_some() && before != state.timeline.epoch && !state.live.is_empty() {
            return state.reset(); // what is live was opened in another history
        }
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return self.pause(PARTITIONS, &error),
        };
        let opened = |live: &Live| (live.place.clone(), Position { next: live.next, projected: live.projected });
        let epoch = state.timeline.epoch.unwrap_or(0);
        self.projector.live(epoch, prepared.live.values().map(opened).collect(), prepared.touched, prepared.all_of);
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
        gauge!("tidemill_stream_stuck_partitions").set(prepared.stuck.len() as f64);
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
            self.timeline.reached(&live.place, live.next);
            self.parked.insert(at.clone(), (live.place.incarnation, live.seen));
        }
    }

    /// These partitions are tried again from where they stand, in a while.
    fn hold(&mut self, partitions: &[&TopicPartition], pause: Duration) {
        for at in partitions {
            self.park(at);
            self.waiting.insert((*at).clone());
            self.retry_at = Some(Instant::now() + pause);
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

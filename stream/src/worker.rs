//! The batch loop.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use chrono::DateTime;
use metrics::{counter, gauge, histogram};
use sqlx::PgPool;
use tidemill_common::first_sight::SeenStore;
use tidemill_common::http::Health;
use tidemill_common::kafka::{GroupConsumer, GroupEvent, Producer, Record, TopicPartition};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::emit;
use crate::ledger::{self, Advance};
use crate::live::{Live, LiveError, Preparer};
use crate::project::Projector;
use crate::sort::{Sorted, Sorter, Transient};
use crate::store::{self, Batch};

/// How often the worker looks after what is not about records.
const TICK: Duration = Duration::from_secs(1);
/// Pause after a transient failure, doubled up to `LONGEST_PAUSE`.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The name of the check that says whether the worker gets on.
pub const CHECK: &str = "worker";

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
    /// Stores of partitions that are not live; they are worth keeping until those come back.
    seen: HashMap<TopicPartition, SeenStore>,
    failures: u32,
    retry_at: Option<Instant>,
}

impl Worker {
    /// Works until shutdown. An error is one that only a person can resolve.
    pub async fn run(mut self) -> Result<(), LiveError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let shutdown = self.shutdown.clone();
        let ended = loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break Ok(()),
                _ = tick.tick() => self.look_after().await,
                event = self.consumer.next() => match event {
                    Some(GroupEvent::Record(record)) => {
                        let records = self.collect(record).await;
                        self.process(records).await;
                    }
                    Some(event) => self.rebalance(event),
                    None => break Ok(()),
                },
            }
            if let Err(error) = self.go_live().await {
                break Err(error);
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
                self.state.failures = 0;
                self.health.set(CHECK, true, Ok(()));
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
                self.pause(&error);
            }
        }
    }

    /// The path of a batch, top to bottom. False: the ledger did not stand where the batch starts, so nothing
    /// was counted.
    async fn apply_batch(&mut self, records: Vec<Record>) -> Result<bool, Transient> {
        let by_partition = self.state.ours(records);
        let mut sorted = Sorted::default();
        let mut steps = Vec::new();
        for (at, records) in &by_partition {
            let Some(live) = self.state.live.get_mut(at) else { continue };
            for record in records {
                self.sorter.sort(record, &live.place, &live.project, &mut live.seen, &mut sorted).await?;
            }
            steps.extend(live.step(records));
        }
        if steps.is_empty() {
            return Ok(true);
        }
        emit::send(&self.producer, &sorted.emissions).await?;
        let batch = Batch { steps, events: sorted.events, dead_letters: sorted.dead_letters };
        let Some(touched) = store::commit(&self.pool, &batch).await? else { return Ok(false) };
        self.state.advance(&batch.steps);
        self.projector.add(touched);
        self.project().await;
        self.consumer.commit(self.state.positions(by_partition.keys()));
        counter!("analytics_events_processed_total").increment(batch.events.len() as u64);
        counter!("tidemill_stream_copies_total").increment(sorted.copies);
        counter!("tidemill_stream_strays_total").increment(sorted.strays);
        counter!("tidemill_stream_dead_letters_total").increment(batch.dead_letters.len() as u64);
        Ok(true)
    }

    /// Brings Redis level, if it can be reached.
    async fn project(&mut self) {
        if self.projector.flush().await {
            self.state.live.values_mut().for_each(|live| live.projected = live.next);
        }
    }

    /// Every second: what waits for Redis, and what the ledger should know of it.
    async fn look_after(&mut self) {
        self.project().await;
        let marks: Vec<_> = self.state.live.values().map(|live| (live.place.clone(), live.projected)).collect();
        if let Err(error) = ledger::mark_projected(&self.pool, &marks).await {
            tracing::debug!(%error, "projection marks not written");
        }
    }

    /// Makes waiting partitions live, when it is time to try.
    async fn go_live(&mut self) -> Result<(), LiveError> {
        let state = &mut self.state;
        if state.waiting.is_empty() || state.retry_at.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        let prepared = match self.preparer.prepare(&state.waiting, &mut state.seen).await {
            Ok(prepared) => prepared,
            Err(LiveError::Transient(error)) => {
                self.pause(&error);
                return Ok(());
            }
            Err(gap) => return Err(gap),
        };
        let (live, touched) = prepared;
        self.projector.add(touched);
        for (at, live) in live {
            tracing::info!(topic = %at.topic, partition = at.partition, next = live.next, sightings = live.seen.len(), "live");
            self.consumer.start(&at, live.next);
            state.waiting.remove(&at);
            state.live.insert(at, live);
        }
        // Left are those of projects that are not in Postgres (yet).
        state.retry_at = Some(Instant::now() + 2 * TICK);
        state.failures = 0;
        self.health.set(CHECK, true, Ok(()));
        Ok(())
    }

    /// What waits is left alone for a while; what is live goes on.
    fn pause(&mut self, error: &Transient) {
        let pause = (PAUSE * 2u32.saturating_pow(self.state.failures.min(10))).min(LONGEST_PAUSE);
        tracing::warn!(%error, ?pause, "partitions wait, then go on from the ledger");
        self.health.set(CHECK, true, Err(error.to_string()));
        counter!("tidemill_stream_failures_total").increment(1);
        self.state.failures += 1;
        self.state.retry_at = Some(Instant::now() + pause);
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
            self.seen.insert(at.clone(), live.seen);
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

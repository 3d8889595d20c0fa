//! The worker's loop: one batch is applied while the next is fetched and sorted.

use std::collections::BTreeSet;
use std::future::pending;
use std::time::{Duration, Instant};

use chrono::Utc;
use metrics::{counter, gauge, histogram};
use tidemill_common::failpoint::hit;
use tidemill_common::http::Health;
use tidemill_common::kafka::{GroupConsumer, GroupEvent, InHand, Record};
use tidemill_common::progress::Positions;
use tidemill_common::projects;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::apply::Applier;
use crate::config::Config;
use crate::filling::{Filled, Filling};
use crate::ledger::Position;
use crate::live::{Live, Preparer};
use crate::project::Projector;
use crate::sort::{Sorter, Transient};
use crate::state::State;
use crate::store::Touched;

/// How often the worker looks after what is not about records.
const TICK: Duration = Duration::from_secs(1);
/// How often the worker makes sure that its topics are still the same ones.
const TOPICS: Duration = Duration::from_secs(10);
/// Pause after a transient failure, doubled up to `LONGEST_PAUSE`.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
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
    pub(crate) consumer: GroupConsumer,
    pub(crate) preparer: Preparer,
    pub(crate) sorter: Sorter,
    pub(crate) health: Health,
    pub(crate) shutdown: CancellationToken,
    pub(crate) projector: Projector,
    /// Where the live partitions stand, for those who watch.
    pub(crate) positions: Positions,
    pub(crate) applier: Applier,
    pub(crate) under_way: Option<AbortOnDropHandle<Ended>>,
    pub(crate) state: State,
    pub(crate) filling: Filling,
    pub(crate) failures: Failures,
}

/// A batch that is not under way any more.
pub(crate) struct Ended {
    filled: Filled,
    outcome: Result<Option<Touched>, Transient>,
    took: Duration,
    _in_hand: InHand,
}

/// Failures since the last batch that went through, or the last partitions made ready.
#[derive(Default)]
pub(crate) struct Failures {
    count: u32,
    of_a_batch: bool,
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
            let room = !self.filling.full(&self.config);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break Ok(()),
                ended = joined(&mut self.under_way) => match ended {
                    Ok(ended) => self.settle(ended).await,
                    Err(error) => break Err(error),
                },
                () = at(self.filling.due(&self.config, Utc::now())), if self.under_way.is_none() => self.apply(),
                _ = tick.tick() => {
                    self.show_positions();
                    self.state.tick();
                    self.look_after_projection().await;
                }
                _ = topics.tick() => self.check_topics().await,
                event = self.consumer.next(), if room => match event {
                    Some(event) => self.take(event).await,
                    None => break Ok(()),
                },
            }
            if self.filling.full(&self.config) {
                self.apply();
            }
            self.go_live().await;
            if let Some(error) = self.applier.post.producer.fatal_error() {
                break Err(Transient::NotReady(format!("the kafka producer has to be started anew: {error}")));
            }
        };
        // The batch in hand goes through, or is read again by whoever comes next.
        if self.under_way.is_some()
            && let Ok(ended) = joined(&mut self.under_way).await
        {
            self.settle(ended).await;
        }
        self.projector.finish().await;
        self.look_after_projection().await;
        self.consumer.leave().await;
        ended
    }

    async fn take(&mut self, event: GroupEvent) {
        match event {
            GroupEvent::Records(records) => self.sort(records).await,
            GroupEvent::Assigned(partitions) => {
                tracing::info!(partitions = partitions.len(), "partitions assigned");
                self.sorter.poison.retain(|at| partitions.contains(at));
                self.state.assigned(partitions);
            }
            GroupEvent::Revoked(partitions) => {
                tracing::info!(partitions = partitions.len(), "partitions revoked");
                let place = |at| self.state.live.get(at).map(|live: &Live| live.place.clone());
                self.projector.gone(partitions.iter().filter_map(place).collect());
                // Whoever gets them reads them from the ledger; all are revoked together.
                self.filling = Filling::default();
                self.sorter.letters.forget();
                self.state.revoked(&partitions);
            }
            GroupEvent::Failed(error) => {
                tracing::warn!(%error, "a partition cannot be read on; going back to the ledger");
                self.reset();
            }
        }
    }

    async fn sort(&mut self, records: Vec<Record>) {
        let post = &self.applier.post;
        if let Err(error) = self.filling.add(&records, &mut self.state, &mut self.sorter, post).await {
            self.fail(&error);
        }
    }

    /// Has the batch applied, unless the one before still is.
    fn apply(&mut self) {
        if self.under_way.is_some() {
            return;
        }
        let mut filled = self.filling.close(&self.state, &self.applier.post);
        if filled.batch.steps.is_empty() {
            return self.retry(&filled);
        }
        let (applier, in_hand) = (self.applier.clone(), self.consumer.in_hand());
        self.under_way = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let started = Instant::now();
            let outcome = applier.apply(&mut filled).await;
            Ended { filled, outcome, took: started.elapsed(), _in_hand: in_hand }
        })));
    }

    /// What the outcome of a batch means.
    async fn settle(&mut self, Ended { filled, outcome, took, _in_hand }: Ended) {
        self.under_way = None;
        match outcome {
            Ok(Some(touched)) => {
                self.failures = Failures::default();
                self.health.set(BATCHES, true, Ok(()));
                let ends = filled.batch.steps.iter().map(|step| (step.place.clone(), step.next)).collect();
                let behind = filled.batch.is_behind(Utc::now());
                self.projector.batch(self.state.timeline.epoch.unwrap_or(0), touched, ends, behind);
                self.state.advance(&filled.batch.steps);
                self.retry(&filled);
                self.consumer.commit(self.state.positions());
                count(&filled, took);
                if !self.filling.redrives() {
                    self.sorter.letters.forget();
                }
                self.filling.recycle(filled.batch);
                if let Err(error) = hit("stream.done").await {
                    self.fail(&error.into());
                }
            }
            Ok(None) => {
                tracing::warn!(
                    "the ledger, a topic or a dead letter is not as it was (another worker, another generation, an operator, \
                     or a restored database); reading them again"
                );
                counter!("tidemill_stream_batches_dropped_total").increment(1);
                self.reset();
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Held partitions go on from the ledger, in a while.
    fn retry(&mut self, filled: &Filled) {
        let poison = self.sorter.poison.state();
        let pause = if poison.is_ok() { HELD } else { POISONED };
        self.state.retry(&filled.held, Instant::now() + pause);
        self.health.set(POISON, true, poison);
    }

    /// A batch that failed: nothing is lost and nothing turns into a dead letter, it is read again.
    fn fail(&mut self, error: &Transient) {
        self.reset();
        self.failures.of_a_batch = true;
        self.pause(BATCHES, error);
    }

    fn reset(&mut self) {
        self.filling = Filling::default();
        self.sorter.letters.forget();
        self.state.reset();
    }

    /// Has the ledger know what Redis shows; and goes back to it when Postgres has come back older.
    async fn look_after_projection(&mut self) {
        if self.state.timeline.epoch.is_some_and(|ours| ours < self.projector.epoch()) {
            tracing::warn!("postgres has come back older; reading the ledger again");
            return self.reset();
        }
        let mut marks = Vec::new();
        for live in self.state.live.values_mut() {
            let Some(shown) = self.projector.shown(&live.place).filter(|shown| *shown > live.projected) else {
                continue;
            };
            // While there are batches, they tell the ledger; and one under way would keep us waiting for its rows.
            if shown < live.next {
                live.projected = shown;
            } else if self.under_way.is_none() {
                live.projected = shown;
                marks.push((live.place.clone(), shown));
            }
        }
        if marks.is_empty() {
            return;
        }
        marks.sort();
        if let Err(error) = self.applier.mark_projected(&marks).await {
            // Then more is projected again than need be.
            tracing::debug!(%error, "projection marks not written");
        }
    }

    fn show_positions(&self) {
        let live = &self.state.live;
        gauge!("tidemill_stream_live_partitions", "group" => self.config.group.clone()).set(live.len() as f64);
        self.positions.replace(self.state.standing());
    }

    /// A topic that was deleted and made again is another log, which the client may take for the old one when
    /// it is as long. And a generation that is not live any more has no batches to tell a partition at rest.
    async fn check_topics(&mut self) {
        let topics: BTreeSet<String> = self.state.live.keys().map(|at| at.topic.to_string()).collect();
        if topics.is_empty() {
            return;
        }
        let Ok(now) = self.preparer.incarnations(topics.into_iter().collect()).await else { return };
        let Ok(generations) = projects::generations(&self.preparer.pool).await else { return };
        let made_again = |live: &Live| now.get(&live.place.topic).is_some_and(|id| *id != live.place.incarnation);
        let left = |live: &Live| generations.get(&live.project.id) != Some(&live.place.generation);
        if self.state.live.values().any(|live| made_again(live) || left(live)) {
            tracing::warn!(
                "a topic was made again, a project was deleted, or another generation is live; reading the ledger anew"
            );
            // It may wait for a topic that is gone, for as long as a delivery may take. Whether it has counted, the ledger tells.
            self.under_way = None;
            self.reset();
        }
    }

    /// Makes waiting partitions live, when it is time to try and no batch can move the ledger meanwhile.
    async fn go_live(&mut self) {
        let state = &mut self.state;
        let later = state.retry_at.is_some_and(|at| Instant::now() < at);
        if self.under_way.is_some() || state.waiting.is_empty() || later {
            return;
        }
        let before = state.timeline.epoch;
        let prepared = self.preparer.prepare(&state.waiting, &mut state.parked, &mut state.timeline).await;
        if before.is_some() && before != state.timeline.epoch && !state.live.is_empty() {
            return self.reset(); // what is live was opened in another history
        }
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return self.pause(PARTITIONS, &error),
        };
        if let Err(error) = hit("stream.prepared").await {
            return self.pause(PARTITIONS, &error.into());
        }
        let state = &mut self.state;
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
        if !self.failures.of_a_batch {
            self.failures.count = 0;
        }
        gauge!("tidemill_stream_stuck_partitions").set(prepared.stuck.len() as f64);
        let stuck = if prepared.stuck.is_empty() { Ok(()) } else { Err(prepared.stuck.join("; ")) };
        self.health.set(PARTITIONS, true, stuck);
    }

    /// What waits is left alone for a while; what is live goes on.
    fn pause(&mut self, check: &'static str, error: &Transient) {
        let pause = (PAUSE * 2u32.saturating_pow(self.failures.count.min(10))).min(LONGEST_PAUSE);
        tracing::warn!(%error, ?pause, "partitions wait, then go on from the ledger");
        self.health.set(check, true, Err(error.to_string()));
        counter!("tidemill_stream_failures_total").increment(1);
        self.failures.count += 1;
        self.state.retry_at = Some(Instant::now() + pause);
    }
}

/// The batch that is under way, when it has ended; never, when there is none.
async fn joined(under_way: &mut Option<AbortOnDropHandle<Ended>>) -> Result<Ended, Transient> {
    match under_way {
        Some(batch) => batch.await.map_err(|error| Transient::NotReady(format!("a batch ended abruptly: {error}"))),
        None => pending().await,
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => pending().await,
    }
}

fn count(filled: &Filled, took: Duration) {
    histogram!("analytics_processing_duration_seconds").record(took.as_secs_f64());
    counter!("analytics_events_processed_total").increment(filled.batch.events.len() as u64);
    counter!("tidemill_stream_copies_total").increment(filled.copies);
    counter!("tidemill_stream_strays_total").increment(filled.strays);
    for letter in &filled.batch.dead_letters {
        let project = letter.project.clone();
        counter!("tidemill_stream_dead_letters_total", "project" => project, "reason" => letter.reason).increment(1);
    }
    for redrive in &filled.batch.redrives {
        counter!("tidemill_stream_redrives_total", "outcome" => redrive.outcome.as_str()).increment(1);
    }
}

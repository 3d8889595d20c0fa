//! The archiver's loop: one consumer for all projects, whose archives succeed and fail on their own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_common::http::Health;
use tidemill_common::kafka::{GroupConsumer, GroupEvent, Record, Room, TopicPartition};
use tidemill_common::names::project_of;
use tidemill_common::progress::Positions;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::archive::{Archive, LAST_COMMIT, State};
use crate::error::ArchiveError;
use crate::prepare::{Prepared, Shared, prepare};
use crate::rows::Rows;

/// How often it looks at what is due.
const TICK: Duration = Duration::from_millis(50);
/// How often what was seen is looked after.
const SEEN_TICK: Duration = Duration::from_secs(1);
/// What waits before it is a row. Rows wait for long, so there is no need for much of it.
const ROOM: Room = Room { records: 4_096, bytes: 8 * 1024 * 1024, client_kib: 4_096, partition_bytes: 256 * 1024 };

type Done = (Arc<str>, u64, Result<Prepared, ArchiveError>);

/// The loop and what it works on.
pub struct Worker {
    shared: Shared,
    consumer: GroupConsumer,
    archives: HashMap<Arc<str>, Archive>,
    preparing: JoinSet<Done>,
    prepared: u64,
    /// Too many rows are in memory: nothing is read until some of them are written. Kafka's client pauses the
    /// partitions then.
    full: bool,
    /// So many bytes may come before that has to be looked at again.
    room: usize,
    positions: Positions,
    health: Health,
}

impl Worker {
    /// Joins the group. `positions` will show how far the tables are.
    pub fn new(shared: Shared, positions: Positions, health: Health) -> Result<Self, ArchiveError> {
        let config = &shared.config;
        let timeout = Duration::from_millis(config.session_timeout_ms);
        let consumer = GroupConsumer::join_with(&shared.kafka, &config.group, &config.topics, timeout, ROOM)?;
        let (archives, preparing) = (HashMap::new(), JoinSet::new());
        Ok(Self { shared, consumer, archives, preparing, prepared: 0, full: false, room: 0, positions, health })
    }

    /// Works until shutdown, then commits what it has; or until there is nothing left that could go on.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), ArchiveError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen_tick = tokio::time::interval(SEEN_TICK);
        seen_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let progress = self.shared.progress.clone();
        while !shutdown.is_cancelled() && !self.all_stopped() {
            tokio::select! {
                event = self.consumer.next(), if !self.full => match event {
                    Some(event) => self.on(event).await,
                    None => return Err(ArchiveError::ConsumerEnded),
                },
                Some(done) = self.preparing.join_next() => self.go_live(done?),
                () = progress.notified() => self.step(Instant::now()).await,
                _ = tick.tick() => self.look().await,
                _ = seen_tick.tick() => {
                    let now_ms = chrono::Utc::now().timestamp_millis();
                    self.archives.values_mut().for_each(|archive| archive.tick(now_ms));
                }
                () = shutdown.cancelled() => {}
            }
        }
        if tokio::time::timeout(LAST_COMMIT, self.finish()).await.is_err() {
            tracing::warn!("the last commit took too long; its records will be read again");
        }
        self.report();
        let stopped = self.archives.into_values().find_map(|archive| match archive.state {
            State::Stopped(error) => Some(error),
            _ => None,
        });
        self.consumer.leave().await;
        stopped.map_or(Ok(()), Err)
    }

    async fn on(&mut self, event: GroupEvent) {
        let now = Instant::now();
        match event {
            GroupEvent::Records(records) => return self.take(records, now).await,
            GroupEvent::Assigned(partitions) => self.assign(partitions),
            GroupEvent::Revoked(partitions) => self.revoke(&partitions),
            // Whichever partition it is, its archive will find out when it gets ready again.
            GroupEvent::Failed(error) => {
                for archive in self.archives.values_mut().filter(|a| matches!(a.state, State::Live(_))) {
                    archive.fail(error.clone().into());
                }
            }
        }
        self.step(now).await;
    }

    /// Takes records of one partition. The other archives are only looked at when there may be too much in memory.
    async fn take(&mut self, records: Vec<Record>, now: Instant) {
        let Some(archive) = records.first().and_then(|record| self.archives.get_mut(&record.topic)) else { return };
        let bytes: usize = records.iter().map(|record| record.value().len() + Rows::OVERHEAD).sum();
        for record in records {
            let State::Live(live) = &mut archive.state else { return };
            if let Err(error) = live.take(record, &self.shared, now).await {
                archive.fail(error);
            }
        }
        if bytes >= self.room {
            return self.step(now).await;
        }
        self.room -= bytes;
        let (topic, moved) = (archive.topic.clone(), archive.step(&self.shared, now, false).await);
        if let Some(moved) = moved {
            self.committed(topic, moved);
        }
    }

    /// Writes and commits what it is time to, and sees whether more rows can be taken.
    async fn step(&mut self, now: Instant) {
        let mut committed = Vec::new();
        for archive in self.archives.values_mut() {
            let moved = archive.step(&self.shared, now, false).await;
            committed.extend(moved.map(|moved| (archive.topic.clone(), moved)));
        }
        committed.into_iter().for_each(|(topic, moved)| self.committed(topic, moved));
        self.room = self.shared.config.max_bytes_total.saturating_sub(self.bytes());
        self.full = self.room == 0;
        if self.full && !self.archives.values().any(Archive::is_ending) {
            // Nothing would become less by waiting: the largest goes before its time.
            if let Some(largest) = self.archives.values_mut().max_by_key(|archive| archive.bytes()) {
                largest.step(&self.shared, now, true).await;
            }
        }
    }

    fn bytes(&self) -> usize {
        self.archives.values().map(Archive::bytes).sum()
    }

    /// An assignment is always whole: what is not in it is not ours.
    fn assign(&mut self, partitions: Vec<TopicPartition>) {
        let mut by_topic: BTreeMap<Arc<str>, Vec<i32>> = BTreeMap::new();
        for at in partitions {
            by_topic.entry(at.topic).or_default().push(at.partition);
        }
        self.archives.retain(|topic, _| by_topic.contains_key(topic));
        for (topic, partitions) in by_topic {
            let Some(project) = project_of(&topic) else {
                tracing::error!(%topic, "is not a topic of events; correct TIDEMILL_ARCHIVER__TOPICS");
                continue;
            };
            let new = || Archive::new(project, topic.clone());
            self.archives.entry(topic.clone()).or_insert_with(new).partitions = partitions;
            self.prepare(&topic);
        }
    }

    fn revoke(&mut self, partitions: &[TopicPartition]) {
        for at in partitions {
            self.positions.remove(at);
            if let Some(archive) = self.archives.get_mut(&at.topic) {
                archive.enter(State::Idle);
            }
        }
    }

    fn prepare(&mut self, topic: &Arc<str>) {
        let Some(archive) = self.archives.get_mut(topic) else { return };
        self.prepared += 1;
        let (number, cancel) = (self.prepared, CancellationToken::new());
        archive.enter(State::Preparing { number, _cancel: cancel.clone().drop_guard() });
        let (shared, seen) = (self.shared.clone(), std::mem::take(&mut archive.seen));
        let (project, topic, partitions) = (archive.project.clone(), topic.clone(), archive.partitions.clone());
        self.preparing.spawn(async move {
            let done = prepare(shared, project, topic.clone(), partitions, seen, cancel).await;
            (topic, number, done)
        });
    }

    fn go_live(&mut self, (topic, number, done): Done) {
        let Some(archive) = self.archives.get_mut(&topic) else { return };
        if !matches!(archive.state, State::Preparing { number: current, .. } if current == number) {
            return; // the assignment has changed meanwhile
        }
        match done {
            Ok(prepared) => {
                for (&partition, &start) in &prepared.starts {
                    let at = TopicPartition { topic: topic.clone(), partition };
                    self.consumer.start(&at, start);
                    self.positions.set(at, start);
                }
                tracing::info!(%topic, partitions = prepared.starts.len(), "archiving");
                archive.go_live(prepared);
            }
            Err(error) => archive.fail(error),
        }
    }

    /// Does what is due.
    async fn look(&mut self) {
        self.step(Instant::now()).await;
        let mut again = Vec::new();
        for archive in self.archives.values_mut() {
            for (partition, next) in archive.release(&self.shared).await {
                self.consumer.start(&TopicPartition { topic: archive.topic.clone(), partition }, next);
            }
            if matches!(archive.state, State::Waiting(until) if until <= Instant::now()) {
                again.push(archive.topic.clone());
            }
        }
        again.iter().for_each(|topic| self.prepare(topic));
        self.report();
    }

    /// Commits everything, and waits for that.
    async fn finish(&mut self) {
        let shared = &self.shared;
        let finish = |archive| async move {
            let archive: &mut Archive = archive;
            (archive.topic.clone(), archive.finish(shared).await)
        };
        let finished = futures::future::join_all(self.archives.values_mut().map(finish)).await;
        finished.into_iter().for_each(|(topic, moved)| self.committed(topic, moved));
    }

    fn committed(&self, topic: Arc<str>, moved: BTreeMap<i32, i64>) {
        let at = |(partition, next)| (TopicPartition { topic: topic.clone(), partition }, next);
        let moved: Vec<_> = moved.into_iter().map(at).collect();
        for (at, next) in &moved {
            self.positions.set(at.clone(), *next);
        }
        if !moved.is_empty() {
            self.consumer.commit(moved);
        }
    }

    fn all_stopped(&self) -> bool {
        !self.archives.is_empty() && self.archives.values().all(|a| matches!(a.state, State::Stopped(_)))
    }

    fn report(&mut self) {
        self.archives.values().for_each(Archive::show);
        // One in a look, so that the catalog is not asked for all that are idle at once.
        self.archives.values_mut().any(|archive| archive.show_table(&self.shared));
        metrics::gauge!("tidemill_archiver_buffered_bytes").set(self.bytes() as f64);
        metrics::gauge!("tidemill_archiver_paused").set(f64::from(u8::from(self.full)));
        let problems: Vec<String> = self.archives.values().filter_map(Archive::problem).collect();
        let state = if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) };
        self.health.set("archives", true, state);
    }
}

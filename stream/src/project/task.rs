//! The projection's task: what is due when, and what is done about a Redis or a Postgres that has come back older.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tidemill_common::failpoint::hit;
use tidemill_common::redis::RedisFailure;
use tokio::sync::mpsc;

use super::again::{Again, Step};
use super::compare::Suspects;
use super::guard::Guard;
use super::marks::{self, Shard};
use super::pending::{Key, Pending, Positions};
use super::writer::{ProjectError, Writer};
use super::{Intervals, Note, Progress};
use crate::ledger::{self, Place};
use crate::live_session::LiveSession;
use crate::quick_map::QuickMap;
use crate::store::Touched;
use crate::timeline::{self, Timeline};

/// Keys of a round, but for windows, that are written before looking at anything else.
const STEP: usize = 4_000;
/// After a failure Redis is left alone this long.
const PAUSE: Duration = Duration::from_secs(1);
/// How often it is made sure that neither Redis nor Postgres has come back older.
const CHECK: Duration = Duration::from_secs(2);
/// Above so many keys it is cheaper to project all that is live again than to remember what has changed.
const MOST_KEYS: usize = 300_000;
/// So many sessions are kept with what is to be shown of them, some 600 bytes each.
const MOST_LATEST: usize = 50_000;
/// What is left at the end gets this long.
const LAST: Duration = Duration::from_secs(3);

/// The task.
pub struct Projection {
    pub(super) writer: Writer,
    intervals: Intervals,
    progress: Arc<Progress>,
    pub(super) pending: Pending,
    /// What is to be shown of sessions that wait, so far as it is known; the others are read.
    latest: QuickMap<(String, String), LiveSession>,
    pub(super) guard: Guard,
    /// The nodes that have keys, as of the last look.
    shards: Vec<Arc<Shard>>,
    timeline: Timeline,
    /// Written, but not said to be.
    written: Positions,
    /// Projects to be projected again. True: what we have forgotten, so no other's work will do.
    pub(super) queue: BTreeMap<String, bool>,
    /// Projects of which we have forgotten something, and not every node has been told yet.
    untold: BTreeSet<String>,
    again: Option<Again>,
    pub(super) suspects: Suspects,
    /// The last project of the last audit.
    pub(super) audited: String,
    /// By project: the half hour and session key behind which carts are audited next.
    pub(super) audited_carts: HashMap<String, (i32, String)>,
    /// Whether the worker is.
    behind: bool,
    last_round: Instant,
    last_windows: Instant,
    check_at: Instant,
    again_at: Instant,
    audit_at: Instant,
    pub(super) second_look_at: Option<Instant>,
    retry_at: Instant,
    failing: bool,
    /// Why a part of Redis lags behind, while the rest does not.
    partly: Option<RedisFailure>,
}

impl Projection {
    /// With nothing to project.
    pub(super) fn new(writer: Writer, intervals: Intervals, progress: Arc<Progress>) -> Self {
        let now = Instant::now();
        Self {
            writer,
            intervals,
            progress,
            pending: Pending::default(),
            latest: QuickMap::default(),
            guard: Guard::default(),
            shards: Vec::new(),
            timeline: Timeline::default(),
            written: Positions::new(),
            queue: BTreeMap::new(),
            untold: BTreeSet::new(),
            again: None,
            suspects: Suspects::new(),
            audited: String::new(),
            audited_carts: HashMap::new(),
            behind: false,
            last_round: now - intervals.round,
            last_windows: now - intervals.round,
            check_at: now,
            again_at: now,
            audit_at: now + intervals.audit,
            second_look_at: None,
            retry_at: now,
            failing: false,
            partly: None,
        }
    }

    /// Runs until nobody has anything to say any more.
    pub(super) async fn run(mut self, mut notes: mpsc::UnboundedReceiver<Note>) {
        loop {
            let wake = tokio::time::Instant::from_std(self.wake());
            tokio::select! {
                biased;
                note = notes.recv() => match note {
                    Some(note) => self.take(note).await,
                    None => return,
                },
                () = tokio::time::sleep_until(wake) => {}
            }
            while let Ok(note) = notes.try_recv() {
                self.take(note).await;
            }
            self.turn().await;
        }
    }

    /// When there is something to do next, if the worker says nothing.
    fn wake(&self) -> Instant {
        let mut wake = self.check_at.min(self.audit_at);
        wake = self.second_look_at.into_iter().fold(wake, Instant::min);
        if !self.pending.is_empty() {
            wake = wake.min(self.write_at());
        }
        if self.again.is_some() || !self.queue.is_empty() {
            wake = wake.min(self.again_at);
        }
        wake.max(self.retry_at)
    }

    /// When there is something to write or to say next: at once while a round is under way.
    fn write_at(&self) -> Instant {
        let windows = self.pending.has_windows().then(|| self.last_windows + self.intervals.windows(self.behind));
        let others = self.pending.has_others().then(|| self.last_round + self.between_rounds());
        let next = if self.pending.in_round() { None } else { windows.into_iter().chain(others).min() };
        next.unwrap_or(self.last_round)
    }

    fn between_rounds(&self) -> Duration {
        self.intervals.rounds(self.behind, self.pending.len())
    }

    async fn take(&mut self, note: Note) {
        match note {
            Note::Live { epoch, partitions, touched, all_of } => {
                if self.timeline.epoch.is_none_or(|ours| ours < epoch) {
                    self.enter(epoch);
                }
                let ends = partitions.iter().map(|(place, position)| (place.clone(), position.next)).collect();
                if self.timeline.epoch == Some(epoch) {
                    for (place, position) in partitions {
                        self.timeline.reached(&place, position.next);
                        self.guard.live(place, position);
                    }
                    self.check_at = Instant::now();
                }
                self.forget(all_of);
                self.note(epoch, touched, ends);
            }
            Note::Batch { epoch, touched, ends, behind } => {
                self.behind = behind;
                self.note(epoch, touched, ends);
            }
            Note::Gone(places) => {
                for place in places {
                    self.guard.gone(&place);
                    self.progress.shown().remove(&place);
                }
            }
            Note::Finish(done) => {
                let _ = tokio::time::timeout(LAST, self.finish()).await;
                let _ = done.send(());
            }
        }
    }

    fn note(&mut self, epoch: i64, mut touched: Touched, mut ends: Vec<(Place, i64)>) {
        self.keep(std::mem::take(&mut touched.latest), &touched.sessions);
        if self.timeline.epoch == Some(epoch) {
            for (place, next) in &ends {
                self.timeline.reached(place, *next);
                self.guard.reached(place, *next);
            }
        } else {
            ends.clear(); // positions in another history
        }
        self.pending.note(Key::all(touched), ends);
        if self.pending.len() > MOST_KEYS {
            tracing::warn!("too much waits for redis; all that is live will be projected again");
            self.forget(self.guard.projects());
            self.written.extend(self.pending.clear());
            self.latest.clear();
        }
        metrics::gauge!("tidemill_stream_unprojected_keys").set(self.pending.len() as f64);
    }

    /// Has a key projected as Postgres has it, whatever is known of it.
    pub(super) fn note_again(&mut self, key: Key) {
        if let Key::Session(session) = &key {
            self.latest.remove(session);
        }
        self.pending.note(std::iter::once(key), Vec::new());
    }

    /// Anything of these projects may be missing in Redis, and only we know.
    pub(super) fn forget(&mut self, projects: impl IntoIterator<Item = String>) {
        for project in projects {
            if let Some(again) = self.again.as_mut().filter(|again| again.project == project) {
                again.stale = true;
            }
            self.untold.insert(project.clone());
            self.queue.insert(project, true);
        }
    }

    /// Goes on in another epoch: positions of the one before mean nothing any more.
    pub(super) fn enter(&mut self, epoch: i64) {
        if !self.timeline.enter(epoch) {
            return;
        }
        self.pending.forget_positions();
        self.written.clear();
        self.guard = Guard::default();
        self.again = None;
        self.progress.shown().clear();
        self.progress.epoch.store(epoch, Ordering::Relaxed);
    }

    /// Does what is due; after a failure, later.
    async fn turn(&mut self) {
        if Instant::now() < self.retry_at {
            return;
        }
        let failed = match self.work().await {
            Ok(()) => self.partly.take().map(ProjectError::Redis),
            Err(error) => {
                self.retry_at = Instant::now() + PAUSE;
                Some(error)
            }
        };
        match failed {
            Some(error) if !self.failing => {
                tracing::warn!(%error, keys = self.pending.len(), "redis lags behind; trying again until it is level");
                self.failing = true;
            }
            None if self.failing && self.pending.is_level() => {
                tracing::info!("redis is level again");
                self.failing = false;
            }
            _ => {}
        }
    }

    async fn work(&mut self) -> Result<(), ProjectError> {
        let now = Instant::now();
        // First, since what is written from here on would hide what it looks for.
        if now >= self.check_at {
            self.check().await?;
            self.check_at = Instant::now() + CHECK;
        }
        if now >= self.write_at() {
            self.flush(false).await?;
        }
        if now >= self.again_at {
            self.go_on_again().await?;
        }
        if now >= self.audit_at {
            self.audit_at = now + self.intervals.audit;
            self.audit().await?;
        }
        if self.second_look_at.is_some_and(|at| now >= at) {
            self.second_look_at = None;
            self.second_look().await?;
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), ProjectError> {
        while self.timeline.epoch.is_some() && !self.pending.is_empty() {
            self.flush(true).await?;
        }
        Ok(())
    }

    /// Takes what is due, whatever it is with `all`.
    fn due(&mut self, all: bool) -> Vec<(Key, u64)> {
        let (now, mut keys) = (Instant::now(), Vec::new());
        if all || now >= self.last_windows + self.intervals.windows(self.behind) {
            keys = self.pending.take_windows();
            if !keys.is_empty() {
                self.last_windows = now;
            }
        }
        if !self.pending.in_round() && (all || now >= self.last_round + self.between_rounds()) {
            self.pending.begin_round();
            if self.pending.in_round() {
                self.last_round = now;
            }
        }
        keys.extend(self.pending.take_step(STEP));
        keys
    }

    /// Keeps what is to be shown of sessions that have just been touched, instead of what was before.
    fn keep(&mut self, latest: Vec<LiveSession>, touched: &[(String, String)]) {
        if !self.latest.is_empty() {
            touched.iter().for_each(|key| drop(self.latest.remove(key)));
        }
        for session in latest {
            if self.latest.len() < MOST_LATEST {
                self.latest.insert(session.key.clone(), session);
            }
        }
    }

    /// Writes what is due. What a part of Redis does not take waits for it, and all that follows passes it; but up to
    /// where everything is shown is said only once it is shown everywhere.
    async fn flush(&mut self, all: bool) -> Result<(), ProjectError> {
        let Some(epoch) = self.timeline.epoch else { return Ok(()) };
        if self.shards.is_empty() {
            self.shards = marks::shards(&self.writer.redis).await?;
        }
        let keys = self.due(all);
        let (latest, rest) = known(&mut self.latest, &keys);
        let began = self.guard.to_begin();
        let writes = async {
            if !keys.is_empty() {
                marks::begin(&self.shards, epoch, &began).await?;
            }
            let (unknown, missed) = self.writer.show(latest).await?;
            Ok(missed.with(self.writer.write(rest.into_iter().chain(&unknown)).await?))
        };
        let unwritten = match writes.await {
            Ok(unwritten) => unwritten,
            Err(error) => {
                self.pending.put_back(keys);
                return Err(error);
            }
        };
        let (missed, written): (Vec<_>, Vec<_>) = keys.into_iter().partition(|(key, _)| unwritten.keys.contains(key));
        match unwritten.why {
            Some(error) if self.shards.len() == 1 || written.is_empty() => {
                self.pending.put_back(missed);
                return Err(error.into());
            }
            why => {
                self.pending.park(missed);
                self.partly = why;
            }
        }
        if !written.is_empty() {
            let _ = hit("stream.projected").await; // only to abort or pause: an error here would say nothing new
            self.guard.has_begun(began);
            metrics::counter!("tidemill_stream_projected_keys_total").increment(written.len() as u64);
        }
        self.written.extend(self.pending.written());
        match self.show(epoch).await {
            Err(error) if self.shards.len() > 1 => self.partly = Some(error),
            shown => shown?,
        }
        Ok(())
    }

    /// Says up to where everything is shown.
    async fn show(&mut self, epoch: i64) -> Result<(), RedisFailure> {
        let forgotten = self.queue.iter().filter(|(project, ours)| **ours && self.guard.is_whole(project));
        let forgotten: BTreeSet<String> = forgotten.map(|(project, _)| project).chain(&self.untold).cloned().collect();
        for project in &forgotten {
            // Said before the positions: should we end, the next one will know.
            marks::broken(&self.shards, project).await?;
            self.untold.remove(project);
        }
        marks::show(&self.shards, epoch, &self.written).await?;
        let mut shown = self.progress.shown();
        for (place, next) in self.written.drain() {
            if self.guard.show(&place, next) {
                shown.insert(place, next);
            }
        }
        Ok(())
    }

    /// Whether Redis or Postgres have come back with less than they had.
    async fn check(&mut self) -> Result<(), ProjectError> {
        let (Some(epoch), places) = (self.timeline.epoch, self.guard.places()) else { return Ok(()) };
        if places.is_empty() {
            return Ok(());
        }
        let held = match marks::shards(&self.writer.redis).await {
            Ok(shards) => {
                self.shards = shards;
                marks::read(&self.shards, &places).await
            }
            Err(error) => Err(error),
        };
        let standing = ledger::look(&self.writer.pool, &places).await?;
        // Without Redis, too: what we know ourselves says something.
        let older = self.guard.older_postgres(&self.timeline, held.as_ref().ok(), &standing);
        if let Some((above, reason)) = older {
            let raised = timeline::raise(&self.writer.pool, standing.epoch, above, &reason).await?;
            self.enter(raised);
            return Ok(()); // the worker reads the ledger anew, and says so
        }
        if standing.epoch > epoch {
            self.enter(standing.epoch);
            return Ok(());
        }
        let look = self.guard.redis(epoch, &held?);
        for project in &look.older {
            tracing::warn!(project, "redis lacks what it, or the one before it, has shown; projecting again");
            if let Err(error) = marks::broken(&self.shards, project).await {
                self.untold.insert(project.clone());
                self.partly = Some(error);
            }
        }
        let (redis, guard) = (&self.writer.redis, &self.guard);
        self.pending.unpark(|key| {
            let node = redis.node_of(key.name().as_bytes());
            node.is_none_or(|node| guard.is_there(&node))
        });
        self.written.extend(look.unsaid);
        for project in look.not_whole {
            self.queue.entry(project).or_insert(false);
        }
        // What another worker has done need not be done again.
        let guard = &self.guard;
        self.queue.retain(|project, ours| *ours || !guard.is_whole(project));
        Ok(())
    }

    /// Projects the next stretch of what has to be projected again.
    async fn go_on_again(&mut self) -> Result<(), ProjectError> {
        if self.again.is_none() {
            let (Some(project), Some(epoch)) = (self.queue.keys().next(), self.timeline.epoch) else { return Ok(()) };
            let (generation, mut whole) = self.guard.whole(project, epoch);
            let there = self.shards.iter().filter_map(|shard| Some((Arc::clone(shard), whole.remove(shard.name())?)));
            self.again = Again::begin(there.collect(), project, (epoch, generation)).await?;
            if self.again.is_none() {
                self.again_at = Instant::now() + PAUSE; // another worker is at it
                self.check_at = self.again_at;
                return Ok(());
            }
        }
        let Some(again) = &mut self.again else { return Ok(()) };
        match again.step(&self.writer).await? {
            Step::More => return Ok(()),
            Step::Done if again.stale => {}
            Step::Done => drop(self.queue.remove(&again.project)),
            Step::Lost => tracing::warn!(project = again.project, "redis has lost what was being projected again"),
        }
        self.again = None;
        self.check_at = Instant::now();
        Ok(())
    }
}

/// Splits keys into the sessions of which it is known what is to be shown, and the rest.
fn known<'k>(
    latest: &mut QuickMap<(String, String), LiveSession>,
    keys: &'k [(Key, u64)],
) -> (Vec<LiveSession>, Vec<&'k Key>) {
    let (mut known, mut rest) = (Vec::new(), Vec::new());
    for (key, _) in keys {
        match key {
            Key::Session(session) => match latest.remove(session) {
                Some(latest) => known.push(latest),
                None => rest.push(key),
            },
            _ => rest.push(key),
        }
    }
    (known, rest)
}

//! Projection into Redis: absolute values of what has changed, read from Postgres after the commit.
//!
//! Each value carries `(epoch, generation, version)` of the rows it stands for, and an older one never overwrites a
//! newer one, whoever writes last. It runs beside the worker: what cannot be written stays noted and is tried again,
//! and no batch waits for it.

mod again;
mod audit;
mod guard;
pub(crate) mod list;
mod lost;
mod marks;
mod mutant;
mod pending;
pub(crate) mod read;
mod write;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use chrono::Utc;
use sqlx::PgPool;
use tidemill_common::failpoint::hit;
use tidemill_common::names::project_of;
use tidemill_common::redis::{Redis, RedisFailure};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::fold::carts::KEPT;
use crate::fold::rollups::RollupKey;
use crate::ledger::{self, Place, Position};
use crate::metric::Definitions;
use crate::store::{Touched, carts};
use crate::timeline::{self, Timeline};
use again::{Again, Step};
use audit::{Finding, Suspects};
use guard::Guard;
use pending::{Key, Pending, Positions};

/// Keys of a round, but for windows, that are written before looking at anything else.
const STEP: usize = 4_000;
/// Between two rounds of writes while the worker is behind: what is read now is old, and the time better spent on what
/// is newer.
const ROUND_BEHIND: Duration = Duration::from_secs(2);
/// After a failure Redis is left alone this long.
const PAUSE: Duration = Duration::from_secs(1);
/// How often it is made sure that neither Redis nor Postgres has come back older.
const CHECK: Duration = Duration::from_secs(2);
/// Above so many keys it is cheaper to project all that is live again than to remember what has changed.
const MOST_KEYS: usize = 300_000;
/// Most projects in one audit; the next one goes on behind them.
const AUDITED: usize = 20;
/// What is left at the end gets this long.
const LAST: Duration = Duration::from_secs(3);

/// How often what happens.
#[derive(Debug, Clone, Copy)]
pub struct Intervals {
    /// Between two rounds of writes, so between two writes of one key, at least.
    pub round: Duration,
    /// Between two audits.
    pub audit: Duration,
}

/// The worker's end of the projection. It ends with this.
pub struct Projector {
    notes: mpsc::UnboundedSender<Note>,
    progress: Arc<Progress>,
    task: JoinHandle<()>,
}

/// What the worker asks after.
#[derive(Default)]
struct Progress {
    epoch: AtomicI64,
    shown: Mutex<Positions>,
}

impl Progress {
    fn shown(&self) -> MutexGuard<'_, Positions> {
        self.shown.lock().expect("no holder panics")
    }
}

enum Note {
    Live { epoch: i64, partitions: Vec<(Place, Position)>, touched: Touched, all_of: BTreeSet<String> },
    Batch { epoch: i64, touched: Touched, ends: Vec<(Place, i64)>, behind: bool },
    Gone(Vec<Place>),
    Finish(oneshot::Sender<()>),
}

impl Projector {
    /// Starts it, with nothing to project. Needs a tokio runtime.
    pub fn start(pool: PgPool, redis: Redis, definitions: Definitions, intervals: Intervals) -> Self {
        let (notes, received) = mpsc::unbounded_channel();
        let progress = Arc::<Progress>::default();
        let projection = Projection::new(Writer { pool, redis, definitions }, intervals, Arc::clone(&progress));
        Self { notes, progress, task: tokio::spawn(projection.run(received)) }
    }

    /// These partitions are ours, from these positions of this epoch on. `touched` has what Redis may not show of
    /// them yet; of the projects `all_of` it may miss anything.
    pub fn live(&self, epoch: i64, partitions: Vec<(Place, Position)>, touched: Touched, all_of: BTreeSet<String>) {
        self.send(Note::Live { epoch, partitions, touched, all_of });
    }

    /// A batch was committed that ends here. `behind`: what it has is old.
    pub fn batch(&self, epoch: i64, touched: Touched, ends: Vec<(Place, i64)>, behind: bool) {
        self.send(Note::Batch { epoch, touched, ends, behind });
    }

    /// These partitions are not ours any more, or not live.
    pub fn gone(&self, places: Vec<Place>) {
        self.send(Note::Gone(places));
    }

    /// The epoch; above the worker's own, Postgres has come back older, and the ledger has to be read anew.
    pub fn epoch(&self) -> i64 {
        self.progress.epoch.load(Ordering::Relaxed)
    }

    /// Up to where Redis shows everything of a partition.
    pub fn shown(&self, place: &Place) -> Option<i64> {
        self.progress.shown().get(place).copied()
    }

    /// Writes what is left, if that goes quickly.
    pub async fn finish(&self) {
        let (done, finished) = oneshot::channel();
        self.send(Note::Finish(done));
        let _ = finished.await; // or it has ended
    }

    fn send(&self, note: Note) {
        let _ = self.notes.send(note); // it lives as long as we do
    }
}

impl Drop for Projector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why Redis does not show it yet.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// Postgres cannot be read.
    #[error("postgres: {0}")]
    Postgres(#[from] sqlx::Error),
    /// Redis cannot be written.
    #[error(transparent)]
    Redis(#[from] RedisFailure),
}

/// Writes what Postgres has into Redis.
pub struct Writer {
    pool: PgPool,
    redis: Redis,
    definitions: Definitions,
}

impl Writer {
    /// Has Redis show the present state of these keys, so far as they are live.
    async fn write<'a>(&self, keys: impl IntoIterator<Item = &'a Key>) -> Result<(), ProjectError> {
        let now = Utc::now();
        let (mut sessions, mut carts, mut windows, mut users) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for key in keys {
            match key {
                Key::Session(key) => sessions.push(key),
                Key::Cart(key) => carts.push(key),
                // Only hot windows have a copy.
                Key::Window(key) if key.granularity.hot_until(key.window_start) <= now.timestamp() => {}
                Key::Window(key) => windows.push(key),
                Key::User(key) => users.push(key),
            }
        }
        write::users(&self.redis, &users).await?;
        let windows = async {
            for chunk in windows.chunks(200) {
                self.windows(chunk.to_vec()).await?;
            }
            Ok(())
        };
        let sessions = async {
            for chunk in sessions.chunks(2_000) {
                self.sessions(chunk.to_vec()).await?;
            }
            Ok(())
        };
        let carts = async {
            for chunk in carts.chunks(2_000) {
                self.carts(chunk.to_vec()).await?;
            }
            Ok(())
        };
        tokio::try_join!(windows, sessions, carts).map(drop)
    }

    /// A key that was absent may have been written newer and have expired or been evicted meanwhile, so Postgres is
    /// looked at once more after the write.
    async fn windows(&self, mut keys: Vec<&RollupKey>) -> Result<(), ProjectError> {
        for _ in 0..2 {
            let hot = mutant::incremented(&self.redis, read::windows(&self.pool, &keys).await?).await?;
            let absent = write::windows(&self.redis, &hot).await?;
            keys.retain(|key| absent.contains(key));
        }
        Ok(())
    }

    /// Carts are shown for a day.
    async fn carts(&self, mut keys: Vec<&(String, String)>) -> Result<(), ProjectError> {
        for _ in 0..2 {
            let columns: Vec<(&str, &str)> = keys.iter().map(|(project, key)| (&**project, &**key)).collect();
            let mut stored = carts::load(&self.pool, &columns).await?;
            stored.retain(|stored| stored.cart.changed_at > Utc::now().timestamp_micros() - KEPT);
            let absent: HashSet<_> = write::carts(&self.redis, &stored).await?;
            keys.retain(|key| absent.contains(*key));
        }
        Ok(())
    }

    async fn sessions(&self, mut keys: Vec<&(String, String)>) -> Result<(), ProjectError> {
        for _ in 0..2 {
            let live = read::sessions(&self.pool, &keys, Utc::now()).await?;
            let absent: HashSet<_> = write::sessions(&self.redis, &live).await?;
            keys.retain(|key| absent.contains(*key));
        }
        Ok(())
    }
}

/// The task.
struct Projection {
    writer: Writer,
    intervals: Intervals,
    progress: Arc<Progress>,
    pending: Pending,
    guard: Guard,
    timeline: Timeline,
    /// Written, but not said to be.
    written: Positions,
    /// Projects to be projected again. True: what we have forgotten, so no other's work will do.
    queue: BTreeMap<String, bool>,
    again: Option<Again>,
    suspects: Suspects,
    /// The last project of the last audit.
    audited: String,
    /// Whether the worker is.
    behind: bool,
    last_round: Instant,
    last_windows: Instant,
    check_at: Instant,
    again_at: Instant,
    audit_at: Instant,
    second_look_at: Option<Instant>,
    retry_at: Instant,
    failing: bool,
}

impl Projection {
    fn new(writer: Writer, intervals: Intervals, progress: Arc<Progress>) -> Self {
        let now = Instant::now();
        Self {
            writer,
            intervals,
            progress,
            pending: Pending::default(),
            guard: Guard::default(),
            timeline: Timeline::default(),
            written: Positions::new(),
            queue: BTreeMap::new(),
            again: None,
            suspects: Suspects::new(),
            audited: String::new(),
            behind: false,
            last_round: now - intervals.round,
            last_windows: now - intervals.round,
            check_at: now,
            again_at: now,
            audit_at: now + intervals.audit,
            second_look_at: None,
            retry_at: now,
            failing: false,
        }
    }

    async fn run(mut self, mut notes: mpsc::UnboundedReceiver<Note>) {
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
        let windows = self.pending.has_windows().then(|| self.last_windows + self.interval());
        let others = self.pending.has_others().then(|| self.last_round + self.interval());
        let next = if self.pending.in_round() { None } else { windows.into_iter().chain(others).min() };
        next.unwrap_or(self.last_round)
    }

    fn interval(&self) -> Duration {
        if self.behind { ROUND_BEHIND.max(self.intervals.round) } else { self.intervals.round }
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

    fn note(&mut self, epoch: i64, touched: Touched, mut ends: Vec<(Place, i64)>) {
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
        }
        metrics::gauge!("tidemill_stream_unprojected_keys").set(self.pending.len() as f64);
    }

    /// Anything of these projects may be missing in Redis, and only we know.
    fn forget(&mut self, projects: impl IntoIterator<Item = String>) {
        for project in projects {
            if let Some(again) = self.again.as_mut().filter(|again| again.project == project) {
                again.stale = true;
            }
            self.queue.insert(project, true);
        }
    }

    /// Goes on in another epoch: positions of the one before mean nothing any more.
    fn enter(&mut self, epoch: i64) {
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
        match self.work().await {
            Ok(()) if self.failing => tracing::info!("redis is level again"),
            Ok(()) => {}
            Err(error) => {
                if !self.failing {
                    tracing::warn!(%error, keys = self.pending.len(), "redis lags behind; trying again until it is level");
                }
                self.failing = true;
                self.retry_at = Instant::now() + PAUSE;
                return;
            }
        }
        self.failing = false;
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
        let (now, interval, mut keys) = (Instant::now(), self.interval(), Vec::new());
        if all || now >= self.last_windows + interval {
            keys = self.pending.take_windows();
            if !keys.is_empty() {
                self.last_windows = now;
            }
        }
        if !self.pending.in_round() && (all || now >= self.last_round + interval) {
            self.pending.begin_round();
            if self.pending.in_round() {
                self.last_round = now;
            }
        }
        keys.extend(self.pending.take_step(STEP));
        keys
    }

    /// Writes what is due.
    async fn flush(&mut self, all: bool) -> Result<(), ProjectError> {
        let Some(epoch) = self.timeline.epoch else { return Ok(()) };
        for (project, ours) in &self.queue {
            // Said before the positions: should we end, the next one will know.
            if *ours && self.guard.is_whole(project) {
                marks::broken(&self.writer.redis, project).await?;
            }
        }
        let keys = self.due(all);
        let began = self.guard.to_begin();
        let writes = async {
            if !keys.is_empty() {
                marks::begin(&self.writer.redis, epoch, &began).await?;
            }
            self.writer.write(keys.iter().map(|(key, _)| key)).await
        };
        if let Err(error) = writes.await {
            self.pending.put_back(keys);
            return Err(error);
        }
        if !keys.is_empty() {
            let _ = hit("stream.projected").await; // only to abort or pause: an error here would say nothing new
            self.guard.has_begun(began);
            metrics::counter!("tidemill_stream_projected_keys_total").increment(keys.len() as u64);
        }
        self.written.extend(self.pending.written());
        marks::show(&self.writer.redis, epoch, &self.written).await?;
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
        let held = marks::read(&self.writer.redis, &places).await;
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
            tracing::warn!(project, "redis has come back older than it was; projecting again");
            marks::broken(&self.writer.redis, project).await?;
        }
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
            let whole = self.guard.whole(epoch);
            self.again = Again::begin(&self.writer.redis, project, epoch, whole).await?;
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

    async fn audit(&mut self) -> Result<(), ProjectError> {
        let whole: Vec<String> = self
            .guard
            .projects()
            .into_iter()
            .filter(|p| self.guard.is_whole(p) && !self.queue.contains_key(p))
            .collect();
        let collecting = self.second_look_at.is_none(); // each suspect gets its whole time
        let behind = whole.iter().position(|project| *project > self.audited).unwrap_or(0);
        for project in whole.iter().cycle().skip(behind).take(AUDITED.min(whole.len())) {
            self.audited.clone_from(project);
            let now = Utc::now();
            let random = f64::from(now.timestamp_subsec_micros()) / 1e6;
            let sample = audit::sample(&self.writer, project, random, now).await?;
            let findings = audit::compare(&self.writer, sample).await?;
            metrics::counter!("tidemill_stream_audit_compared_total").increment(findings.compared);
            for (key, finding) in findings.odd {
                match finding {
                    Finding::Behind(held) if collecting => drop(self.suspects.insert(key, held)),
                    Finding::Behind(_) => {}
                    finding => self.differs(&key, &finding).await?,
                }
            }
        }
        if collecting && !self.suspects.is_empty() {
            self.second_look_at = Some(Instant::now() + audit::GRACE);
        }
        Ok(())
    }

    /// What was behind and has not moved since is a difference.
    async fn second_look(&mut self) -> Result<(), ProjectError> {
        let suspects = std::mem::take(&mut self.suspects);
        let findings = audit::compare(&self.writer, suspects.keys().cloned().collect()).await?;
        for (key, finding) in findings.odd {
            let moved = matches!(&finding, Finding::Behind(held) if suspects.get(&key) != Some(held));
            let known = self.queue.contains_key(key.project()) || !self.guard.is_whole(key.project());
            if suspects.contains_key(&key) && !moved && !known {
                self.differs(&key, &finding).await?;
            }
        }
        Ok(())
    }

    /// Says so, and mends it.
    async fn differs(&mut self, key: &Key, finding: &Finding) -> Result<(), ProjectError> {
        metrics::counter!("tidemill_stream_audit_differences_total").increment(1);
        tracing::error!(?key, ?finding, "redis differs from postgres; projecting it again");
        match (key, finding) {
            (_, Finding::Ahead(held, stored)) => {
                let reason = format!("redis shows {held:?} of {key:?}, and postgres {stored:?}");
                let raised = timeline::raise(&self.writer.pool, stored.epoch, held.epoch, &reason).await?;
                self.enter(raised);
            }
            // The set may be gone as a whole: nothing says how much of it is missing.
            (Key::User((project, _)), _) => self.forget([project.clone()]),
            _ => self.pending.note(std::iter::once(key.clone()), Vec::new()),
        }
        Ok(())
    }
}

/// The project of a place.
fn project(place: &Place) -> Option<String> {
    project_of(&place.topic).map(str::to_owned)
}

/// By place.
type ByPlace<T> = HashMap<Place, T>;

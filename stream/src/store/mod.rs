//! The transaction of a batch: ledger compare-and-set; keys locked, folded and written, sessions some thousands at a time.
//!
//! Locks are taken in one order everywhere (generations, ledger, dead letters, users, session keys with what hangs on
//! them, rollups; each sorted, inserts too), so workers wait for each other but never in a ring. Of the rollups a whole
//! shard is taken at once.

pub mod carts;
mod dead_letters;
mod known;
pub(crate) mod raw_events;
mod redrives;
mod rollups;
pub(crate) mod sessions;
mod shards;
mod users;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;
use tidemill_common::failpoint::{hit, mutant};
use tidemill_common::names::project_of;

pub use crate::kept::Counted;
pub use dead_letters::DeadLetter;
pub use raw_events::RawEvents;
pub use redrives::{Outcome, Redrive};
pub use shards::{SHARDS, Shards};
pub use users::live_sessions;

use self::known::Known;
use crate::fold::guard::Guard;
use crate::fold::rollups::{Changes, RollupKey};
use crate::generation;
use crate::ledger::{self, Advance, Side};
use crate::live_session::LiveSession;
use crate::metric::{self, Definitions, Snapshot};
use crate::publish::Publisher;

/// A worker whose newest records have stood in the log for longer is behind.
const BEHIND: TimeDelta = TimeDelta::seconds(5);

/// Where a worker's batches go.
#[derive(Debug)]
pub struct Store {
    pool: PgPool,
    definitions: Definitions,
    shards: Shards,
    guard: Mutex<Guard>,
    known: Mutex<Known>,
    raw_events: Option<RawEvents>,
    publisher: Option<Publisher>,
    side: Side,
}

/// What is committed together.
#[derive(Debug, Default)]
pub struct Batch {
    /// The step of each partition.
    pub steps: Vec<Advance>,
    /// What counts, in any order.
    pub events: Vec<Counted>,
    /// What does not.
    pub dead_letters: Vec<DeadLetter>,
    /// What became of records that were sent through again, in their order.
    pub redrives: Vec<Redrive>,
}

impl Batch {
    /// Whether all that is newest in its partitions has stood in the log for a while, so that its worker is behind.
    pub fn is_behind(&self, now: DateTime<Utc>) -> bool {
        is_behind(&self.steps, now)
    }
}

/// See [`Batch::is_behind`].
pub fn is_behind<'a>(steps: impl IntoIterator<Item = &'a Advance>, now: DateTime<Utc>) -> bool {
    let newest_ms = steps.into_iter().map(|step| step.newest_ms).max();
    newest_ms.is_some_and(|newest_ms| newest_ms < (now - BEHIND).timestamp_millis())
}

/// What a batch has changed, and Redis should show.
#[derive(Debug, Default)]
pub struct Touched {
    /// Project and [`crate::session_key`].
    pub sessions: Vec<(String, String)>,
    /// What is to be shown of them, so far as it is known.
    pub latest: Vec<LiveSession>,
    /// Project and session key of carts.
    pub carts: Vec<(String, String)>,
    /// Windows that have copies in Redis while they are hot.
    pub windows: Vec<RollupKey>,
    /// Project and user id of those who are new.
    pub users: Vec<(String, String)>,
}

impl Store {
    /// Writes to this database what these metrics ask for.
    pub fn new(pool: PgPool, definitions: Definitions, shards: Shards) -> Self {
        let (guard, known, side) = (Mutex::default(), Mutex::default(), Side::Live);
        Self { pool, definitions, shards, guard, known, raw_events: None, publisher: None, side }
    }

    /// Keeps every event, too.
    #[must_use]
    pub fn with_raw_events(self, raw_events: Option<RawEvents>) -> Self {
        Self { raw_events, ..self }
    }

    /// Has changed metrics published, too.
    #[must_use]
    pub fn with_publisher(self, publisher: Option<Publisher>) -> Self {
        Self { publisher, ..self }
    }

    /// Counts in generations that are not live.
    #[must_use]
    pub fn rebuilding(self) -> Self {
        Self { side: Side::Rebuild, ..self }
    }

    /// Commits a batch. `None`: some partition does not stand where the batch starts (another worker was faster,
    /// another generation is live, or Postgres came back older), or a letter that was sent through again is not what it
    /// was, so nothing was changed. After an error the outcome may be unknown: read the ledger.
    pub async fn commit(&self, batch: &Batch) -> Result<Option<Touched>, sqlx::Error> {
        let definitions = self.definitions.current().await?;
        if let Some(raw_events) = &self.raw_events {
            raw_events.prepare(&self.pool, &batch.events).await?;
        }
        let mut tx = self.pool.begin().await?;
        generation::begin(&mut tx, &self.held(batch)).await?;
        let Some(history) = ledger::advance(&mut tx, self.side, &batch.steps).await? else { return Ok(None) };
        hit("stream.advanced").await?;
        if mutant("commit-first") {
            tx.commit().await?;
            tx = self.pool.begin().await?;
        }
        if !redrives::close(&mut tx, &batch.redrives).await? {
            return Ok(None);
        }
        let mut touched = Touched::default();
        // Of what is behind, much will have changed again before it is shown.
        let show = (self.side == Side::Live && !batch.is_behind(Utc::now())).then_some(history.epoch);
        // Generations stand side by side, so each is a batch of its own to the tables below.
        for (generation, events) in by_generation(&batch.events) {
            let firsts = users::apply(&mut tx, generation, (&self.known, history), &events, &mut touched).await?;
            let mut changes = self.count(generation, &events, &definitions);
            sessions::apply(&mut tx, generation, show, &events, &firsts, &mut changes, &mut touched).await?;
            let rows = changes.settle();
            rollups::apply(&mut tx, generation, &self.shards, &rows).await?;
            touched.windows.extend(rows.into_iter().map(|(key, _)| key));
        }
        if let Some(raw_events) = &self.raw_events {
            raw_events.insert(&mut tx, &batch.events).await?;
        }
        dead_letters::insert(&mut tx, &batch.dead_letters).await?;
        hit("stream.folded").await?;
        tx.commit().await?;
        hit("stream.committed").await?;
        if let Some(publisher) = &self.publisher {
            publisher.add(touched.windows.iter().filter(|key| is_published(key, &definitions)));
        }
        touched.windows.retain(|key| key.has_copy(&definitions));
        Ok(Some(touched))
    }

    /// The projects whose generations must stay live until the batch is committed.
    fn held<'a>(&self, batch: &'a Batch) -> Vec<&'a str> {
        let of_batch = batch.steps.iter().filter_map(|step| project_of(&step.place.topic));
        let sorted: BTreeSet<&str> = of_batch.filter(|_| self.side == Side::Live).collect();
        sorted.into_iter().collect()
    }

    fn count(&self, generation: i32, events: &[&Counted], definitions: &Arc<Snapshot>) -> Changes {
        let mut changes = Changes::new(generation, Arc::clone(definitions));
        let mut guard = self.guard.lock().expect("no holder panics");
        for counted in events {
            changes.count_event(counted.project(), counted.subject(), &mut guard);
        }
        changes
    }
}

/// Whether changes of this window are published: of counts of events, and of declared metrics.
fn is_published(key: &RollupKey, definitions: &Snapshot) -> bool {
    let series = &key.series;
    *series.metric == *metric::EVENTS || definitions.project(&series.project).get(&series.metric).is_some()
}

fn by_generation(events: &[Counted]) -> std::collections::BTreeMap<i32, Vec<&Counted>> {
    let mut generations = std::collections::BTreeMap::<i32, Vec<&Counted>>::new();
    for counted in events {
        generations.entry(counted.generation()).or_default().push(counted);
    }
    generations
}

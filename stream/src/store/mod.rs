//! The transaction of a batch: ledger compare-and-set, keys locked, then folded, then written.
//!
//! Locks are taken in one order everywhere (ledger, users, session keys with what hangs on them, rollups; each sorted, inserts too),
//! so workers wait for each other but never in a ring.

pub mod carts;
mod dead_letters;
mod rollups;
mod sessions;
mod users;

use sqlx::{PgConnection, PgPool};
use tidemill_common::event::Event;
use tidemill_common::failpoint::{hit, mutant};

pub use dead_letters::DeadLetter;
pub use users::live_sessions;

use crate::enrich::Traits;
use crate::fold::rollups::{Changes, RollupKey};
use crate::ledger::{self, Advance};
use crate::properties::{LazyFields, Properties};

/// Not to wait for the disk is safe here: the ledger is lost or kept together with the data. And rows are better found
/// one by one, wherever they lie, than by reading a table as a whole, which would cost more the more there is.
const SETTINGS: &str =
    "SELECT set_config('synchronous_commit', 'off', true), set_config('random_page_cost', '1', true)";

/// A first sight, to be counted.
#[derive(Debug)]
pub struct Counted {
    /// Its project.
    pub project: String,
    /// The project's live generation.
    pub generation: i32,
    /// The event.
    pub event: Event,
    /// Where its properties' fields stand; see [`Self::properties`].
    pub fields: LazyFields,
    /// What else it says.
    pub traits: Traits,
}

impl Counted {
    /// A first sight.
    pub fn new(project: String, generation: i32, event: Event) -> Self {
        Self { project, generation, event, fields: LazyFields::default(), traits: Traits::default() }
    }

    /// The event's properties, which are read once, whoever asks.
    pub fn properties(&self) -> Properties<'_, '_> {
        self.fields.of(&self.event)
    }
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
}

/// What a batch has changed, and Redis should show.
#[derive(Debug, Default)]
pub struct Touched {
    /// Project and [`crate::session_key`].
    pub sessions: Vec<(String, String)>,
    /// Project and session key of carts.
    pub carts: Vec<(String, String)>,
    /// Windows of events.
    pub windows: Vec<RollupKey>,
    /// Project and user id of those who are new.
    pub users: Vec<(String, String)>,
}

/// Commits a batch. `None`: some partition does not stand where the batch starts (another worker was faster,
/// or Postgres came back older), so nothing was changed. After an error the outcome may be unknown: read the
/// ledger.
pub async fn commit(pool: &PgPool, batch: &Batch) -> Result<Option<Touched>, sqlx::Error> {
    let mut tx = pool.begin().await?;
    sqlx::query(SETTINGS).execute(&mut *tx).await?;
    if !ledger::advance(&mut tx, &batch.steps).await? {
        return Ok(None);
    }
    hit("stream.advanced").await?;
    if mutant("commit-first") {
        tx.commit().await?;
        tx = pool.begin().await?;
    }
    let mut touched = Touched::default();
    // Generations stand side by side, so each is a batch of its own to the tables below.
    for (generation, events) in by_generation(&batch.events) {
        apply(&mut tx, generation, &events, shard(batch), &mut touched).await?;
    }
    dead_letters::insert(&mut tx, &batch.dead_letters).await?;
    hit("stream.folded").await?;
    tx.commit().await?;
    hit("stream.committed").await?;
    Ok(Some(touched))
}

async fn apply(
    tx: &mut PgConnection,
    generation: i32,
    events: &[&Counted],
    shard: i16,
    touched: &mut Touched,
) -> Result<(), sqlx::Error> {
    let firsts = users::apply(tx, generation, events, touched).await?;
    let mut changes = Changes::default();
    for counted in events {
        changes.count_event(&counted.project, &counted.event);
    }
    sessions::apply(tx, generation, events, &firsts, &mut changes, touched).await?;
    carts::apply(tx, generation, events, touched).await?;
    changes.settle();
    rollups::apply(tx, generation, shard, &changes).await?;
    touched.windows.extend(changes.0.into_keys());
    Ok(())
}

fn by_generation(events: &[Counted]) -> std::collections::BTreeMap<i32, Vec<&Counted>> {
    let mut generations = std::collections::BTreeMap::<i32, Vec<&Counted>>::new();
    for counted in events {
        generations.entry(counted.generation).or_default().push(counted);
    }
    generations
}

/// Workers hold different partitions, so they mostly write different shards of a window.
fn shard(batch: &Batch) -> i16 {
    const SHARDS: i32 = 4;
    batch.steps.iter().map(|step| step.place.partition % SHARDS).min().unwrap_or(0) as i16
}

//! Replays: what is derived from a project's log, built again beside what is live, compared with it, and then put in
//! its place.
//!
//! A replay has a generation of its own: rows in every derived table and in the ledger, which nobody reads. Workers of
//! its own consumer group ([`rebuild`]) read the log from where the plan says up to where the live generation stands,
//! never further, so that both have the same verdicts to go by. They send nothing on and write nothing to Redis. When
//! both stand at the same offsets ([`level`]) they can be compared, and switched in one transaction.

mod archive;
mod compare;
mod level;
mod log;
mod plan;
mod positions;
mod rebuild;
mod remove;
mod starts;
pub mod watch;
mod worker;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use rdkafka::error::KafkaError;
use serde::Serialize;
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{PgPool, Postgres, Transaction};
use tidemill_common::names::{ROUTE, partition_number};

pub use archive::{Rows, Source};
pub use compare::{Difference, compare};
pub use level::{Level, level, near};
pub use plan::{From, Offer, Plan, enter, plan};
pub use positions::{Progress, progress};
pub use rebuild::{Rebuilding, Setup};
pub use remove::{drop_kept, remove_aborted};
pub use starts::Start;

use crate::ledger::Place;
use crate::sort::Transient;

/// A replay's row.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct Replay {
    /// Its number.
    pub id: i64,
    /// Whose events.
    pub project: String,
    /// What it builds.
    pub generation: i32,
    /// What was live when it was planned.
    pub replaces: i32,
    /// The topics that it reads, with Kafka's id of each.
    #[serde(skip)]
    pub topics: Json<BTreeMap<String, String>>,
    /// From where on, for people.
    pub begins: String,
    /// From which offset each partition is read, by its number.
    #[serde(skip)]
    pub starts: Json<BTreeMap<i32, i64>>,
    /// The archive's snapshot that has what is before them; none: nothing is, or it is left out.
    #[serde(skip)]
    pub archive_snapshot: Option<i64>,
    /// How many files that has.
    #[serde(skip)]
    pub archive_files: Option<i64>,
    /// Of these, only what was appended at this time or later; none: all of it.
    #[serde(skip)]
    pub archive_since: Option<DateTime<Utc>>,
    /// Records per second, over all workers; none: no limit.
    pub rate: Option<i32>,
    /// `planned`, `running`, `switched` or `aborted`.
    pub state: String,
    /// Who planned it.
    pub who: String,
    /// When.
    pub created_at: DateTime<Utc>,
    /// When a worker first took it up.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was switched or aborted.
    pub ended_at: Option<DateTime<Utc>>,
    /// How it differed from the live generation: [`Difference`]s.
    #[serde(skip)]
    pub comparison: Option<Value>,
    /// When that was.
    pub compared_at: Option<DateTime<Utc>>,
}

impl Replay {
    /// What stands in the ledger for each of these topics, and for Kafka's ids of them.
    fn columns(&self) -> (Vec<&str>, Vec<&str>) {
        self.topics.iter().map(|(topic, id)| (&**topic, &**id)).unzip()
    }

    /// The place in the ledger of the partition with this number; none: it reads no such topic.
    fn place(&self, number: i32) -> Option<Place> {
        let (topic, id) = self.topics.iter().find(|(topic, _)| partition_number(topic, 0) == number / ROUTE * ROUTE)?;
        let (partition, generation) = (number % ROUTE, self.generation);
        Some(Place { topic: topic.clone(), partition, incarnation: id.clone(), generation })
    }

    /// The consumer group of its workers.
    pub fn group(&self) -> String {
        format!("tidemill.replay.{}", self.id)
    }

    /// Whether it has not come to its end.
    pub fn is_open(&self) -> bool {
        matches!(self.state.as_str(), "planned" | "running")
    }
}

/// Why a replay does not go on.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be; the sentence says what to do.
    #[error("{0}")]
    Refused(String),
    /// Postgres.
    #[error("Postgres: {0}")]
    Postgres(#[from] sqlx::Error),
    /// Kafka.
    #[error("Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// The archive.
    #[error("the archive: {0}")]
    Archive(String),
    /// Something that may be better later.
    #[error(transparent)]
    Transient(#[from] Transient),
}

/// Refuses, with a reason.
fn refused<T>(why: impl Into<String>) -> Result<T, ReplayError> {
    Err(ReplayError::Refused(why.into()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ReplayError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| Transient::NotReady(error.to_string()))?)
}

/// All replays, the newest first; of one project, or of all.
pub async fn list(pool: &PgPool, project: Option<&str>) -> Result<Vec<Replay>, ReplayError> {
    let sql = "SELECT * FROM replays WHERE $1::text IS NULL OR project = $1 ORDER BY id DESC";
    Ok(sqlx::query_as(sql).bind(project).fetch_all(pool).await?)
}

/// The replay with this number.
pub async fn find(pool: &PgPool, id: i64) -> Result<Replay, ReplayError> {
    let found = sqlx::query_as("SELECT * FROM replays WHERE id = $1").bind(id).fetch_optional(pool).await?;
    found.ok_or_else(|| ReplayError::Refused(format!("there is no replay {id}; see 'tidemill replay status'")))
}

/// The same, refused if it has come to its end.
pub async fn find_open(pool: &PgPool, id: i64) -> Result<Replay, ReplayError> {
    let replay = find(pool, id).await?;
    if replay.is_open() {
        return Ok(replay);
    }
    match replay.state.as_str() {
        "switched" => refused(format!(
            "replay {id} is switched, so what it has built is live. What was live before cannot be switched back to, since \
             it has stood still from then on; if the new numbers are wrong, mend what made them so and plan another replay \
             ('tidemill replay drop {id}' first gives up what was before)"
        )),
        state => refused(format!("replay {id} is {state}; plan another one with 'tidemill replay plan'")),
    }
}

/// Changes the rate; its workers go by it with their next batch.
pub async fn set_rate(pool: &PgPool, id: i64, rate: Option<i32>) -> Result<(), ReplayError> {
    sqlx::query("UPDATE replays SET rate = $2 WHERE id = $1").bind(id).bind(rate).execute(pool).await?;
    Ok(())
}

/// Makes the replay's generation the live one. The one before is kept.
pub async fn switch(level: Level, replay: &Replay) -> Result<(), ReplayError> {
    let mut tx: Transaction<'_, Postgres> = level.into_transaction();
    sqlx::query("UPDATE projects SET generation = $2, kept_generation = generation WHERE id = $1")
        .bind(&replay.project)
        .bind(replay.generation)
        .execute(&mut *tx)
        .await?;
    // At the same offsets, the same is counted up to the same time, though a replay may have begun behind it.
    let times = "UPDATE ledger r SET as_of = l.as_of, newest_ms = l.newest_ms FROM ledger l
                 WHERE l.view = 'stream' AND l.generation = $1 AND l.topic = ANY ($3) AND r.view = l.view AND r.generation = $2
                   AND (r.topic, r.topic_incarnation, r.partition) = (l.topic, l.topic_incarnation, l.partition)";
    sqlx::query(times).bind(replay.replaces).bind(replay.generation).bind(replay.columns().0).execute(&mut *tx).await?;
    let ended = "UPDATE replays SET state = 'switched', ended_at = now() WHERE id = $1 AND state = 'running'";
    if sqlx::query(ended).bind(replay.id).execute(&mut *tx).await?.rows_affected() == 0 {
        return refused(format!("replay {} was aborted meanwhile", replay.id));
    }
    Ok(tx.commit().await?)
}

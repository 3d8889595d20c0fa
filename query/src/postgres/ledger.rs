//! How far the stream has counted.

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use tidemill_common::names::events_topic;
use tidemill_common::projects::Project;

/// A partition's place in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Entry {
    /// The partition.
    pub partition: i32,
    /// The first offset that is not counted.
    pub next_offset: i64,
    /// The first offset that may be missing in Redis.
    pub projected_offset: i64,
    /// When the last counted record was appended.
    pub as_of: DateTime<Utc>,
}

/// The stream's places in a project's log. A topic that was made again has new rows beside the old ones, whose
/// offsets mean nothing in it: only those of `incarnation` count. While that is not known, the row that counted
/// last is taken.
pub async fn ledger(pool: &PgPool, project: &Project, incarnation: Option<&str>) -> Result<Vec<Entry>, sqlx::Error> {
    sqlx::query_as(
        "SELECT DISTINCT ON (partition) partition, next_offset, projected_offset, as_of FROM ledger
         WHERE view = 'stream' AND generation = $1 AND topic = $2 AND ($3::text IS NULL OR topic_incarnation = $3)
         ORDER BY partition, as_of DESC",
    )
    .bind(project.generation)
    .bind(events_topic(&project.id))
    .bind(incarnation)
    .fetch_all(pool)
    .await
}

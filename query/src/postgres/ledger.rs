//! How far the stream has counted.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};
use tidemill_common::names::partition_number;
use tidemill_common::projects::Project;

/// A partition's place in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The partition's number in the project.
    pub partition: i32,
    /// The first offset that is not counted.
    pub next_offset: i64,
    /// The first offset that may be missing in Redis.
    pub projected_offset: i64,
    /// When the last counted record was appended.
    pub as_of: DateTime<Utc>,
}

/// The stream's places in a project's log. A topic that was made again has new rows beside the old ones, whose
/// offsets mean nothing in it: only those of `incarnations` count. While these are not known, the row that counted last is
/// taken.
pub async fn ledger(
    pool: &PgPool,
    project: &Project,
    incarnations: Option<&[String]>,
) -> Result<Vec<Entry>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT DISTINCT ON (topic, partition) topic, partition, next_offset, projected_offset, as_of FROM ledger
         WHERE view = 'stream' AND generation = $1 AND topic = ANY ($2) AND ($3::text[] IS NULL OR topic_incarnation = ANY ($3))
         ORDER BY topic, partition, as_of DESC",
    )
    .bind(project.generation)
    .bind(project.topics())
    .bind(incarnations)
    .fetch_all(pool)
    .await?;
    let entry = |row: &PgRow| {
        let partition = partition_number(row.try_get(0)?, row.try_get(1)?);
        let (next_offset, projected_offset, as_of) = (row.try_get(2)?, row.try_get(3)?, row.try_get(4)?);
        Ok(Entry { partition, next_offset, projected_offset, as_of })
    };
    rows.iter().map(entry).collect()
}

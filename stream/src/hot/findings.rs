//! Hot partitions in Postgres (`hot_partitions`), for `tidemill lag hot`.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{PgExecutor, PgPool};

use super::Finding;

/// Findings that nobody has confirmed for so long are over: their worker is gone.
const CONFIRMED_S: i32 = 120;
const KEPT_DAYS: i32 = 30;

/// One that is still open is gone on with, whoever opened it.
const KEEP: &str = "INSERT INTO hot_partitions (view, topic, partition, since, lag, average, explanation) \
     VALUES ($1, $2, $3, $4, $5, $6, $7) \
     ON CONFLICT (view, topic, partition) WHERE ended_at IS NULL DO UPDATE SET \
     lag = excluded.lag, average = excluded.average, explanation = excluded.explanation, updated_at = now()";
const END: &str = "UPDATE hot_partitions SET ended_at = now(), updated_at = now() \
     WHERE view = $1 AND topic = $2 AND partition = $3 AND ended_at IS NULL";
const TIDY: &str = "WITH gone AS (DELETE FROM hot_partitions WHERE updated_at < now() - make_interval(days => $2)) \
     UPDATE hot_partitions SET ended_at = updated_at \
     WHERE ended_at IS NULL AND updated_at < now() - make_interval(secs => $1) \
     AND updated_at >= now() - make_interval(days => $2)";
const FOUND: &str = "SELECT view, topic, partition, since, updated_at, \
     CASE WHEN updated_at < now() - make_interval(secs => $1) THEN coalesce(ended_at, updated_at) ELSE ended_at END \
     AS ended_at, lag, average, explanation FROM hot_partitions \
     WHERE $2 OR (ended_at IS NULL AND updated_at >= now() - make_interval(secs => $1)) ORDER BY since DESC, topic, partition";

/// A row.
#[derive(Debug, Serialize, sqlx::FromRow)]
pub struct Found {
    /// The view that is behind.
    pub view: String,
    /// The topic.
    pub topic: String,
    /// The partition's number.
    pub partition: i32,
    /// Its lag has been far above the average from then on.
    pub since: DateTime<Utc>,
    /// When a worker has last looked.
    pub updated_at: DateTime<Utc>,
    /// When it was over; none while it is hot.
    pub ended_at: Option<DateTime<Utc>>,
    /// Records that it was behind then.
    pub lag: i64,
    /// The average of all partitions of its topic.
    pub average: f64,
    /// What it consists of, and what can be done: [`super::Finding`]'s members of these names.
    pub explanation: Value,
}

/// Enters a finding, or what is new about it.
pub async fn keep(pool: &PgPool, finding: &Finding) -> Result<(), sqlx::Error> {
    let explanation = serde_json::json!({ "why": finding.why, "remedies": finding.remedies });
    let insert = sqlx::query(KEEP).bind(finding.view).bind(&*finding.topic).bind(finding.partition);
    let insert = insert.bind(finding.since).bind(finding.lag).bind(finding.average).bind(Json(explanation));
    insert.execute(pool).await.map(drop)
}

/// Enters that it is over.
pub async fn end(pool: &PgPool, finding: &Finding) -> Result<(), sqlx::Error> {
    let end = sqlx::query(END).bind(finding.view).bind(&*finding.topic).bind(finding.partition);
    end.execute(pool).await.map(drop)
}

/// Ends what nobody looks after any more, and forgets what is long over.
pub async fn tidy(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query(TIDY).bind(CONFIRMED_S).bind(KEPT_DAYS).execute(pool).await.map(drop)
}

/// The findings: those that hold now, or all of the last 30 days.
pub async fn found(db: impl PgExecutor<'_>, all: bool) -> Result<Vec<Found>, sqlx::Error> {
    sqlx::query_as(FOUND).bind(CONFIRMED_S).bind(all).fetch_all(db).await
}

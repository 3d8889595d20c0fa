//! What the archiver asks Postgres: what the stream made of a record, and which columns a project declares.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgPool;
use tidemill_common::promoted::KEYWORD;

/// What the stream made of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It has not come to it yet.
    Open,
    /// It is a dead letter.
    Dead,
    /// It was read.
    Read,
}

/// What the live generation of the stream made of a record.
pub async fn fate(
    pool: &PgPool,
    project: &str,
    topic: &str,
    incarnation: &str,
    partition: i32,
    offset: i64,
) -> Result<Fate, sqlx::Error> {
    // One statement, so that both answers are of one moment.
    let (passed, dead): (bool, bool) = sqlx::query_as(
        "SELECT EXISTS (SELECT 1 FROM ledger l JOIN projects p ON p.id = $1 AND p.generation = l.generation
                        WHERE l.view = 'stream' AND l.topic = $2 AND l.topic_incarnation = $3
                          AND l.partition = $4 AND l.next_offset > $5),
                EXISTS (SELECT 1 FROM dead_letters
                        WHERE topic = $2 AND topic_incarnation = $3 AND partition = $4 AND \"offset\" = $5)",
    )
    .bind(project)
    .bind(topic)
    .bind(incarnation)
    .bind(partition)
    .bind(offset)
    .fetch_one(pool)
    .await?;
    Ok(match (passed, dead) {
        (_, true) => Fate::Dead,
        (false, false) => Fate::Open,
        (true, false) => Fate::Read,
    })
}

/// When a project's JSON Schemas last changed; none without the project.
pub async fn schemas_changed_at(pool: &PgPool, project: &str) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    sqlx::query_scalar("SELECT schemas_changed_at FROM projects WHERE id = $1").bind(project).fetch_optional(pool).await
}

/// The newest JSON Schema of each event type that says anything of columns.
pub async fn schemas_with_columns(pool: &PgPool, project: &str) -> Result<Vec<(String, Value)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT event_type, schema FROM (
             SELECT DISTINCT ON (event_type) event_type, schema FROM event_schemas WHERE project = $1
             ORDER BY event_type, version DESC
         ) newest WHERE schema::text LIKE $2",
    )
    .bind(project)
    .bind(format!("%\"{KEYWORD}\"%"))
    .fetch_all(pool)
    .await
}

//! The SQL of this crate.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};

use crate::batches::Flush;

/// How long rows of `ingest_batches` are kept.
pub const KEPT_DAYS: i32 = 30;
/// A flush that is tried again leaves the rows of its first try as they are.
const INSERT_BATCHES: &str = "INSERT INTO ingest_batches (flush, project, key_prefix, received_at, requests, events, \
     accepted, duplicates, invalid, limited, retry, bytes, types) \
     SELECT $1, * FROM unnest($2::text[], $3::text[], $4::timestamptz[], $5::bigint[], $6::bigint[], $7::bigint[], \
     $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::jsonb[]) ON CONFLICT DO NOTHING";
const DELETE_OLD_BATCHES: &str = "DELETE FROM ingest_batches WHERE received_at < now() - make_interval(days => $1)";

const NEWEST_SCHEMAS: &str = "SELECT DISTINCT ON (event_type) event_type, schema FROM event_schemas \
     WHERE project = $1 AND event_type = ANY($2) ORDER BY event_type, version DESC";
/// With the project's last registration, in one statement, so that both are of one time.
const CHECKED_SCHEMAS: &str = "SELECT DISTINCT ON (s.event_type) s.event_type, s.schema, p.schemas_changed_at \
     FROM projects p JOIN event_schemas s ON s.project = p.id \
     WHERE p.id = $1 AND p.deleted_at IS NULL AND p.schema_mode <> 'off' ORDER BY s.event_type, s.version DESC";
/// One registration at a time in a project.
const LOCK_PROJECT: &str = "SELECT schema_mode FROM projects WHERE id = $1 AND deleted_at IS NULL FOR UPDATE";
const SCHEMA_MODE: &str = "SELECT schema_mode FROM projects WHERE id = $1 AND deleted_at IS NULL";
const SET_SCHEMA_MODE: &str = "UPDATE projects SET schema_mode = $2 WHERE id = $1 AND deleted_at IS NULL";
const COUNT_SCHEMAS: &str = "SELECT count(DISTINCT event_type), count(*) FROM event_schemas WHERE project = $1";
const INSERT_SCHEMA: &str =
    "INSERT INTO event_schemas (project, event_type, version, schema) VALUES ($1, $2, $3, $4::jsonb)";
/// Not the transaction's time, which may be older than what another registration has left.
const SCHEMAS_CHANGED: &str = "UPDATE projects SET schemas_changed_at = \
     greatest(clock_timestamp(), schemas_changed_at + interval '1 microsecond') WHERE id = $1";
const SCHEMAS: &str = "SELECT event_type, version, created_at FROM event_schemas WHERE project = $1 \
     ORDER BY event_type, version";
const SCHEMA: &str = "SELECT event_type, version, schema, created_at FROM event_schemas \
     WHERE project = $1 AND event_type = $2 AND ($3::int IS NULL OR version = $3) ORDER BY version DESC LIMIT 1";

/// A row of `event_schemas`.
#[derive(Debug, sqlx::FromRow)]
pub struct SchemaRow {
    pub event_type: String,
    pub version: i32,
    pub schema: Value,
    pub created_at: DateTime<Utc>,
}

/// Asks for an answer.
pub async fn ping(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT 1").execute(pool).await.map(drop)
}

/// Writes a flush, all of it or nothing.
pub async fn insert_batches(pool: &PgPool, flush: &Flush) -> Result<(), sqlx::Error> {
    let rows = &flush.tallies;
    let types = |types: &[(String, i64)]| {
        Json(types.iter().map(|(name, count)| (name.clone(), (*count).into())).collect::<serde_json::Map<_, _>>())
    };
    let mut insert = sqlx::query(INSERT_BATCHES)
        .bind(flush.id)
        .bind(rows.iter().map(|(_, tally)| tally.project.to_string()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(prefix, _)| prefix.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(_, tally)| tally.received_at).collect::<Vec<_>>())
        .bind(rows.iter().map(|(_, tally)| tally.requests).collect::<Vec<_>>())
        .bind(rows.iter().map(|(_, tally)| tally.events).collect::<Vec<_>>());
    for column in 0..5 {
        insert = insert.bind(rows.iter().map(|(_, tally)| tally.outcomes[column]).collect::<Vec<_>>());
    }
    let insert = insert
        .bind(rows.iter().map(|(_, tally)| tally.bytes).collect::<Vec<_>>())
        .bind(rows.iter().map(|(_, tally)| types(&tally.types)).collect::<Vec<_>>());
    insert.execute(pool).await.map(drop)
}

/// Deletes rows that are too old.
pub async fn delete_old_batches(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query(DELETE_OLD_BATCHES).bind(KEPT_DAYS).execute(pool).await.map(drop)
}

/// The newest schemas of those of these event types that have one.
pub async fn newest_schemas(
    pool: &PgPool,
    project: &str,
    event_types: &[String],
) -> Result<Vec<(String, Value)>, sqlx::Error> {
    sqlx::query_as(NEWEST_SCHEMAS).bind(project).bind(event_types).fetch_all(pool).await
}

/// The newest schemas of all of a project's event types, and when they last changed; none where nothing is checked.
pub async fn checked_schemas(pool: &PgPool, project: &str) -> Result<Vec<(String, Value, DateTime<Utc>)>, sqlx::Error> {
    sqlx::query_as(CHECKED_SCHEMAS).bind(project).fetch_all(pool).await
}

/// Whether there is such a project; it is locked until the transaction ends.
pub async fn lock_project(db: &mut PgConnection, project: &str) -> Result<bool, sqlx::Error> {
    Ok(sqlx::query(LOCK_PROJECT).bind(project).fetch_optional(db).await?.is_some())
}

/// A project's mode, if there is such a project.
pub async fn schema_mode(db: &mut PgConnection, project: &str) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(SCHEMA_MODE).bind(project).fetch_optional(db).await
}

/// Whether there is such a project.
pub async fn set_schema_mode(db: &mut PgConnection, project: &str, mode: &str) -> Result<bool, sqlx::Error> {
    Ok(sqlx::query(SET_SCHEMA_MODE).bind(project).bind(mode).execute(db).await?.rows_affected() == 1)
}

/// How many event types of a project have schemas, and how many versions there are in all.
pub async fn count_schemas(db: &mut PgConnection, project: &str) -> Result<(i64, i64), sqlx::Error> {
    sqlx::query_as(COUNT_SCHEMAS).bind(project).fetch_one(db).await
}

/// A new version.
pub async fn insert_schema(
    db: &mut PgConnection,
    project: &str,
    event_type: &str,
    version: i32,
    schema: &Value,
) -> Result<(), sqlx::Error> {
    let insert = sqlx::query(INSERT_SCHEMA).bind(project).bind(event_type).bind(version).bind(schema);
    insert.execute(&mut *db).await?;
    sqlx::query(SCHEMAS_CHANGED).bind(project).execute(db).await.map(drop)
}

/// All versions of a project's schemas, without the schemas.
pub async fn schemas(db: &mut PgConnection, project: &str) -> Result<Vec<(String, i32, DateTime<Utc>)>, sqlx::Error> {
    sqlx::query_as(SCHEMAS).bind(project).fetch_all(db).await
}

/// One version of a schema, or the newest.
pub async fn schema(
    db: &mut PgConnection,
    project: &str,
    event_type: &str,
    version: Option<i32>,
) -> Result<Option<SchemaRow>, sqlx::Error> {
    sqlx::query_as(SCHEMA).bind(project).bind(event_type).bind(version).fetch_optional(db).await
}

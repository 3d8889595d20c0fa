//! The operators' SQL: projects and API keys.

use std::str::FromStr;

use anyhow::{Context, anyhow};
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgConnectOptions;
use sqlx::types::Json;
use sqlx::{ConnectOptions, PgConnection};
use tidemill_common::auth::NewKey;
use tidemill_common::home::Route;
use tidemill_common::kafka::TopicPartition;
use tidemill_common::projects::{counts, partitions_of_events, topics};
use tidemill_topics::Partitions;

const PROJECT: &str = "SELECT id, partitions, tidemill_routes(id) AS routes, dlq_partitions, quota_per_second, \
     generation, created_at, suspended_at, deleted_at FROM projects WHERE id = $1";
const PROJECTS: &str = "SELECT id, partitions, tidemill_routes(id) AS routes, dlq_partitions, quota_per_second, \
     generation, created_at, suspended_at, deleted_at FROM projects ORDER BY id";
const INSERT_PROJECT: &str = "INSERT INTO projects (id, partitions, dlq_partitions) VALUES ($1, $2, $3) \
     ON CONFLICT (id) DO NOTHING";
const LOCK_PROJECT: &str = "SELECT 1 FROM projects WHERE id = $1 FOR UPDATE";
const SET_QUOTA: &str = "UPDATE projects SET quota_per_second = $2 WHERE id = $1 AND deleted_at IS NULL";
/// Suspending again leaves the first time as it is.
const SUSPEND: &str =
    "UPDATE projects SET suspended_at = CASE WHEN $2 THEN coalesce(suspended_at, now()) END WHERE id = $1";
/// As does deleting again.
const DELETE: &str = "UPDATE projects SET deleted_at = coalesce(deleted_at, now()) WHERE id = $1";
const ARCHIVE_DAYS: &str = "SELECT archive_days FROM projects WHERE id = $1 AND deleted_at IS NULL";
const SET_ARCHIVE_DAYS: &str = "UPDATE projects SET archive_days = $2 WHERE id = $1 AND deleted_at IS NULL";
const HAD_KEYS: &str = "SELECT EXISTS (SELECT 1 FROM api_keys WHERE project = $1)";
const INSERT_KEY: &str = "INSERT INTO api_keys (hash, prefix, project, scopes, rate_limit, expires_at) \
     SELECT $1, $2, id, $4, $5, $6 FROM projects WHERE id = $3 AND deleted_at IS NULL";
const KEYS: &str = "SELECT prefix, project, scopes, rate_limit, created_at, expires_at, revoked_at \
     FROM api_keys WHERE $1::text IS NULL OR project = $1 ORDER BY project, created_at";
/// Revoking again leaves the first time as it is.
const REVOKE_KEY: &str = "UPDATE api_keys SET revoked_at = COALESCE(revoked_at, now()) WHERE prefix = $1 \
     RETURNING prefix, project, scopes, rate_limit, created_at, expires_at, revoked_at";

const UNDEFINED_TABLE: &str = "42P01";
const UNDEFINED_COLUMN: &str = "42703";
const UNKNOWN_DATABASE: &str = "3D000";

/// A project's row.
#[derive(Debug, Serialize, sqlx::FromRow)]
pub struct Project {
    pub id: String,
    pub partitions: i32,
    /// Its routes, in their order.
    pub routes: Json<Vec<Route>>,
    pub dlq_partitions: i32,
    /// Events per second over all gateways.
    pub quota_per_second: Option<i32>,
    pub generation: i32,
    pub created_at: DateTime<Utc>,
    pub suspended_at: Option<DateTime<Utc>>,
    pub deleted_at: Option<DateTime<Utc>>,
}

impl Project {
    /// The topics of its events: its own, then those of its routes.
    pub fn topics(&self) -> Vec<String> {
        topics(&self.id, &self.routes)
    }

    /// All partitions of its events.
    pub fn events_partitions(&self) -> Vec<TopicPartition> {
        partitions_of_events(&self.id, self.partitions, &self.routes)
    }

    /// The topics of its routes, each with how many partitions it has.
    pub fn routed(&self) -> Vec<(String, i32)> {
        self.topics().into_iter().zip(counts(self.partitions, &self.routes)).skip(1).collect()
    }

    /// The counts that are kept with it.
    pub fn partitions(&self) -> Partitions {
        Partitions { events: self.partitions, dlq: self.dlq_partitions }
    }
}

/// An API key's row, without its hash.
#[derive(Debug, Serialize, sqlx::FromRow)]
pub struct Key {
    pub prefix: String,
    pub project: String,
    pub scopes: Vec<String>,
    pub rate_limit: Option<i32>,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub revoked_at: Option<DateTime<Utc>>,
}

/// Where a database is, without its password.
pub fn place(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or_else(|| options.get_username());
    format!("{}:{}/{database}", options.get_host(), options.get_port())
}

/// Reads DATABASE_URL.
pub fn parse(url: &str) -> anyhow::Result<PgConnectOptions> {
    PgConnectOptions::from_str(url).context("DATABASE_URL must look like postgres://user:password@host:port/database")
}

/// One connection, which is all that a command needs; it tells at once when nobody is there.
pub async fn connect(url: &str) -> anyhow::Result<PgConnection> {
    let options = parse(url)?;
    options.connect().await.map_err(|error| unreachable_at(&options, error))
}

/// Why a connection could not be made, and what to do.
pub fn unreachable_at(options: &PgConnectOptions, error: sqlx::Error) -> anyhow::Error {
    match &error {
        sqlx::Error::Database(_) => explain(error),
        _ => anyhow!("Postgres at {} does not answer: {error}; is DATABASE_URL right and Postgres up?", place(options)),
    }
}

pub async fn project(db: &mut PgConnection, id: &str) -> anyhow::Result<Option<Project>> {
    sqlx::query_as(PROJECT).bind(id).fetch_optional(db).await.map_err(explain)
}

pub async fn projects(db: &mut PgConnection) -> anyhow::Result<Vec<Project>> {
    sqlx::query_as(PROJECTS).fetch_all(db).await.map_err(explain)
}

/// Those that are not deleted.
pub async fn live_projects(db: &mut PgConnection) -> anyhow::Result<Vec<Project>> {
    let mut projects = projects(db).await?;
    projects.retain(|project| project.deleted_at.is_none());
    Ok(projects)
}

/// Refuses an id that nobody has or has had: a list of nothing would say that all is well.
pub async fn known(db: &mut PgConnection, id: Option<&str>) -> anyhow::Result<()> {
    match id {
        Some(id) if project(db, id).await?.is_none() => Err(no_project(id)),
        _ => Ok(()),
    }
}

/// Nobody has this id.
pub fn no_project(id: &str) -> anyhow::Error {
    anyhow!("there is no project {id:?}; see 'tidemill projects list'")
}

/// Whether the row is new.
pub async fn insert_project(db: &mut PgConnection, id: &str, partitions: Partitions) -> anyhow::Result<bool> {
    let insert = sqlx::query(INSERT_PROJECT).bind(id).bind(partitions.events).bind(partitions.dlq);
    Ok(insert.execute(db).await.map_err(explain)?.rows_affected() == 1)
}

/// Keeps others from doing so until the transaction ends.
pub async fn lock_project(db: &mut PgConnection, id: &str) -> anyhow::Result<()> {
    sqlx::query(LOCK_PROJECT).bind(id).execute(db).await.map(drop).map_err(explain)
}

/// Gives a project another quota.
pub async fn set_quota(db: &mut PgConnection, id: &str, quota: Option<i32>) -> anyhow::Result<()> {
    sqlx::query(SET_QUOTA).bind(id).bind(quota).execute(db).await.map(drop).map_err(explain)
}

/// Has a project take no events over HTTP, or take them again.
pub async fn suspend(db: &mut PgConnection, id: &str, suspended: bool) -> anyhow::Result<()> {
    sqlx::query(SUSPEND).bind(id).bind(suspended).execute(db).await.map(drop).map_err(explain)
}

/// Ends a project: its keys are useless from then on.
pub async fn delete_project(db: &mut PgConnection, id: &str) -> anyhow::Result<()> {
    sqlx::query(DELETE).bind(id).execute(db).await.map(drop).map_err(explain)
}

/// For how many days a project's events are archived, if there is such a project; none: for ever.
pub async fn archive_days(db: &mut PgConnection, id: &str) -> anyhow::Result<Option<Option<i32>>> {
    sqlx::query_scalar(ARCHIVE_DAYS).bind(id).fetch_optional(db).await.map_err(explain)
}

/// Changes that.
pub async fn set_archive_days(db: &mut PgConnection, id: &str, days: Option<i32>) -> anyhow::Result<()> {
    sqlx::query(SET_ARCHIVE_DAYS).bind(id).bind(days).execute(db).await.map(drop).map_err(explain)
}

/// Whether a project has, or has had, a key.
pub async fn had_keys(db: &mut PgConnection, project: &str) -> anyhow::Result<bool> {
    sqlx::query_scalar(HAD_KEYS).bind(project).fetch_one(db).await.map_err(explain)
}

/// False if there is no such project.
pub async fn insert_key(
    db: &mut PgConnection,
    key: &NewKey,
    project: &str,
    scopes: &[&str],
    rate_limit: Option<i32>,
    expires_at: Option<DateTime<Utc>>,
) -> anyhow::Result<bool> {
    let insert = sqlx::query(INSERT_KEY).bind(key.hash.as_slice()).bind(&key.prefix).bind(project);
    let insert = insert.bind(scopes).bind(rate_limit).bind(expires_at);
    Ok(insert.execute(db).await.map_err(explain)?.rows_affected() == 1)
}

/// The keys of a project, or of all.
pub async fn keys(db: &mut PgConnection, project: Option<&str>) -> anyhow::Result<Vec<Key>> {
    sqlx::query_as(KEYS).bind(project).fetch_all(db).await.map_err(explain)
}

/// The key with this prefix, revoked.
pub async fn revoke_key(db: &mut PgConnection, prefix: &str) -> anyhow::Result<Key> {
    sqlx::query_as(REVOKE_KEY).bind(prefix).fetch_one(db).await.map_err(explain)
}

/// What an error means for the one who typed the command.
pub fn explain(error: sqlx::Error) -> anyhow::Error {
    let Some(refusal) = error.as_database_error() else { return anyhow!("Postgres: {error}") };
    match refusal.code().as_deref() {
        Some(UNDEFINED_TABLE | UNDEFINED_COLUMN | UNKNOWN_DATABASE) => {
            anyhow!("{}; run 'tidemill migrate' first", refusal.message())
        }
        _ => anyhow!("Postgres: {}", refusal.message()),
    }
}

//! Limits of single event types and users (`event_limits`), which operators set while gateways run.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgExecutor;

const ALL: &str = "SELECT project, kind, name, per_second, set_at FROM event_limits \
     WHERE $1::text IS NULL OR project = $1 ORDER BY project, kind, name";
const SET: &str = "INSERT INTO event_limits (project, kind, name, per_second) \
     SELECT id, $2, $3, $4 FROM projects WHERE id = $1 AND deleted_at IS NULL \
     ON CONFLICT (project, kind, name) DO UPDATE SET per_second = excluded.per_second, set_at = now() \
     RETURNING project, kind, name, per_second, set_at";
const REMOVE: &str = "DELETE FROM event_limits WHERE project = $1 AND kind = $2 AND name = $3 \
     RETURNING project, kind, name, per_second, set_at";

/// What is limited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Limited {
    /// An event type.
    Type(String),
    /// A user.
    User(String),
}

impl Limited {
    /// The word for it in rows.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Type(_) => "type",
            Self::User(_) => "user",
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Type(name) | Self::User(name) => name,
        }
    }
}

/// A limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct EventLimit {
    /// The project's id.
    pub project: String,
    /// `type` or `user`.
    pub kind: String,
    /// The event type or user.
    pub name: String,
    /// Events per second over all gateways; 0: none may pass.
    pub per_second: i32,
    /// When it was set.
    pub set_at: DateTime<Utc>,
}

/// The limits of a project, or of all.
pub async fn all(db: impl PgExecutor<'_>, project: Option<&str>) -> Result<Vec<EventLimit>, sqlx::Error> {
    sqlx::query_as(ALL).bind(project).fetch_all(db).await
}

/// Sets a limit, or changes it; none if there is no such project.
pub async fn set(
    db: impl PgExecutor<'_>,
    project: &str,
    limited: &Limited,
    per_second: i32,
) -> Result<Option<EventLimit>, sqlx::Error> {
    let set = sqlx::query_as(SET).bind(project).bind(limited.kind()).bind(limited.name()).bind(per_second);
    set.fetch_optional(db).await
}

/// Takes a limit away; gives what it was.
pub async fn remove(
    db: impl PgExecutor<'_>,
    project: &str,
    limited: &Limited,
) -> Result<Option<EventLimit>, sqlx::Error> {
    sqlx::query_as(REMOVE).bind(project).bind(limited.kind()).bind(limited.name()).fetch_optional(db).await
}

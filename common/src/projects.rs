//! Projects, as Postgres has them.

use std::collections::HashMap;

use sqlx::{PgExecutor, Row};
use utoipa::ToSchema;

/// A project's settings that the log's readers and writers must agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Its id.
    pub id: String,
    /// What home partitions are computed from.
    pub partitions: i32,
    /// Partitions of its dead-letter topic.
    pub dlq_partitions: i32,
    /// Copies of an eventId at most this far apart count once, in milliseconds.
    pub dedupe_window_ms: i64,
    /// The live generation of everything derived.
    pub generation: i32,
}

/// What becomes of events that break their type's JSON Schema.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum SchemaMode {
    /// Nobody looks.
    #[default]
    Off,
    /// They are accepted and counted.
    Warn,
    /// They are invalid.
    Strict,
}

impl SchemaMode {
    /// The name in rows, over HTTP and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Warn => "warn",
            Self::Strict => "strict",
        }
    }

    /// The mode with this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Off, Self::Warn, Self::Strict].into_iter().find(|mode| mode.as_str() == name)
    }
}

/// A project that exists and is not deleted.
pub async fn load(db: impl PgExecutor<'_>, id: &str) -> Result<Option<Project>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT id, partitions, dlq_partitions, dedupe_window_ms, generation FROM projects
         WHERE id = $1 AND deleted_at IS NULL",
    )
    .bind(id)
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(Project {
            id: row.try_get(0)?,
            partitions: row.try_get(1)?,
            dlq_partitions: row.try_get(2)?,
            dedupe_window_ms: row.try_get(3)?,
            generation: row.try_get(4)?,
        })
    })
    .transpose()
}

/// The live generation of each project.
pub async fn generations(db: impl PgExecutor<'_>) -> Result<HashMap<String, i32>, sqlx::Error> {
    let rows = sqlx::query("SELECT id, generation FROM projects WHERE deleted_at IS NULL").fetch_all(db).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

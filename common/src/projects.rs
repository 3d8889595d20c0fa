//! Projects, as Postgres has them.

use std::collections::HashMap;

use serde::Deserialize;
use sqlx::types::Json;
use sqlx::{PgConnection, PgExecutor, Row};
use utoipa::ToSchema;

use crate::home::{Era, Layout};

/// Begins the numbers of the locks that hold projects as they are; it stands for "gene".
pub const LOCK: i32 = 0x6765_6e65;

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
    /// The eras of its topics that are over, the oldest first.
    pub eras: Vec<EraOf>,
}

/// An era of one incarnation of a project's topic.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct EraOf {
    /// Kafka's id of the topic. Offsets in another one are others.
    pub incarnation: String,
    /// The era.
    #[serde(flatten)]
    pub era: Era,
}

impl Project {
    /// How events are and were spread over the partitions of this incarnation of its topic.
    pub fn layout(&self, incarnation: &str) -> Layout {
        let eras = self.eras.iter().filter(|of| of.incarnation == incarnation).map(|of| of.era.clone());
        Layout::new(self.partitions, eras.collect())
    }
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
        "SELECT p.id, p.partitions, p.dlq_partitions, p.dedupe_window_ms, p.generation,
                (SELECT coalesce(json_agg(json_build_object('incarnation', e.topic_incarnation, 'partitions', e.partitions,
                                                            'cutoffs', e.cutoffs) ORDER BY e.partitions), '[]')
                 FROM eras e WHERE e.project = p.id)
         FROM projects p WHERE p.id = $1 AND p.deleted_at IS NULL",
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
            eras: row.try_get::<Json<_>, _>(5)?.0,
        })
    })
    .transpose()
}

/// The live generation of each project.
pub async fn generations(db: impl PgExecutor<'_>) -> Result<HashMap<String, i32>, sqlx::Error> {
    let rows = sqlx::query("SELECT id, generation FROM projects WHERE deleted_at IS NULL").fetch_all(db).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// How many partitions each of these projects' topics have, which are sorted, asked after any growth that is under way.
/// What was read before it was asked, and judged by that number, is judged rightly for good: where the topic grows
/// behind the answer, it does so behind those records.
pub async fn partitions_now(db: impl PgExecutor<'_>, projects: &[&str]) -> Result<HashMap<String, i32>, sqlx::Error> {
    let asked = sqlx::query("SELECT id, partitions FROM tidemill_partitions($1, $2)").bind(LOCK).bind(projects);
    asked.fetch_all(db).await?.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Holds a project as it is, alone: waits until no batch of its live generation is under way, and keeps others, and who
/// asks for its partitions, waiting until the transaction ends.
pub async fn hold(tx: &mut PgConnection, project: &str) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_advisory_xact_lock($1, hashtext($2))").bind(LOCK).bind(project).execute(tx).await.map(drop)
}

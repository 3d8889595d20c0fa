//! The end of an era: where the way in which a project's events are spread changes.
//!
//! Kafka has by now what the next era needs, where nobody has a home; the era ends in one transaction. What was read
//! before that lies below the cutoffs, since whoever publishes what came of it asks for the layout behind its last record
//! ([`tidemill_common::projects::layouts_now`]).

use std::time::Duration;

use chrono::{DateTime, Utc};
use rdkafka::error::KafkaError;
use sqlx::types::Json;
use sqlx::{Connection, PgConnection};
use tidemill_common::home::Route;
use tidemill_common::kafka::{History, KafkaConfig, TopicPartition};
use tidemill_common::projects::{self, Project};
use tokio::task::JoinError;

const TIMEOUT: Duration = Duration::from_secs(10);
/// Batches that are under way are waited for; they take no longer.
const LOCKED: &str = "30s";
/// Clocks may differ, so that a window is over a little later than it seems.
const SLACK: Duration = Duration::from_secs(2 * 3_600);

/// Why an era does not end.
#[derive(Debug, thiserror::Error)]
pub enum EraError {
    /// There is nothing to spread events over.
    #[error("Kafka has no topic {0}; make it with 'tidemill topics apply'")]
    NoTopic(String),
    /// Something is not as it was planned.
    #[error(
        "project {0} or a topic of it was changed by somebody else meanwhile, and nothing was switched; run this again"
    )]
    Changed(String),
    /// Kafka, about offsets.
    #[error("Kafka: {0}; nothing was switched, run this again")]
    Kafka(#[from] KafkaError),
    /// Postgres.
    #[error("Postgres: {0}; run this again")]
    Postgres(#[from] sqlx::Error),
    /// A question to Kafka ended by a panic.
    #[error("a task failed: {0}")]
    Task(#[from] JoinError),
}

/// How a project's events are spread from now on: over so many partitions of each topic, and over one route more.
pub(crate) struct Next<'a> {
    pub partitions: i32,
    pub route: Option<&'a Route>,
}

/// Ends the era where the logs end now.
pub(crate) async fn end_era(
    db: &mut PgConnection,
    kafka: &KafkaConfig,
    planned: &Project,
    next: &Next<'_>,
) -> Result<(), EraError> {
    let routes: Vec<Route> = planned.routes.iter().chain(next.route).cloned().collect();
    let partitions = projects::partitions_of_events(&planned.id, next.partitions, &routes);
    let history = History::new(kafka.clone());
    // Once before, so that nobody waits for a connection.
    let before = look(&history, &partitions).await?;
    let mut tx = db.begin().await?;
    sqlx::query("SELECT set_config('lock_timeout', $1, true)").bind(LOCKED).execute(&mut *tx).await?;
    projects::hold(&mut tx, &planned.id).await?;
    let held = "SELECT layout FROM projects WHERE id = $1 AND deleted_at IS NULL FOR UPDATE";
    let held: Option<i32> = sqlx::query_scalar(held).bind(&planned.id).fetch_optional(&mut *tx).await?;
    // Behind the lock: what was published before it was read before it.
    let now = look(&history, &partitions).await?;
    let is_same = |(now, before): (&End, &End)| now.incarnation == before.incarnation;
    if held != Some(planned.layout) || !now.iter().zip(&before).all(is_same) {
        return Err(EraError::Changed(planned.id.clone()));
    }
    for (number, End { incarnation, cutoffs }) in (0..).zip(now) {
        sqlx::query(
            "INSERT INTO eras (project, version, topic, topic_incarnation, partitions, routes, cutoffs)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&planned.id)
        .bind(planned.layout)
        .bind(number)
        .bind(incarnation)
        .bind(planned.partitions)
        .bind(planned.routes.len() as i32)
        .bind(cutoffs)
        .execute(&mut *tx)
        .await?;
    }
    if let Some(Route { name, event_types, times, key }) = next.route {
        sqlx::query(
            "INSERT INTO routes (project, number, name, event_types, times, key) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&planned.id)
        .bind(routes.len() as i32)
        .bind(name)
        .bind(event_types)
        .bind(times)
        .bind(Json(key))
        .execute(&mut *tx)
        .await?;
    }
    sqlx::query("UPDATE projects SET partitions = $2, layout = layout + 1 WHERE id = $1")
        .bind(&planned.id)
        .bind(next.partitions)
        .execute(&mut *tx)
        .await?;
    Ok(tx.commit().await?)
}

/// Where a topic ends.
struct End {
    /// Kafka's id of it.
    incarnation: String,
    /// By partition.
    cutoffs: Vec<i64>,
}

/// Where the topics of these partitions end, in their order.
async fn look(history: &History, partitions: &[TopicPartition]) -> Result<Vec<End>, EraError> {
    let (history, asked) = (history.clone(), partitions.to_vec());
    let ask = move || {
        let incarnations = history.incarnations(asked.iter().map(|at| &at.topic), TIMEOUT)?;
        Ok::<_, KafkaError>((incarnations, history.ends(&asked)?))
    };
    let (mut incarnations, ends) = tokio::task::spawn_blocking(ask).await??;
    let end = |of_topic: &[TopicPartition]| {
        let cutoffs = of_topic.iter().map(|at| Some(ends.get(at)?.offset)).collect::<Option<_>>();
        let topic = &*of_topic[0].topic; // a chunk has an element
        let found = incarnations.remove(topic).zip(cutoffs);
        let (incarnation, cutoffs) = found.ok_or_else(|| EraError::NoTopic(topic.to_owned()))?;
        Ok(End { incarnation, cutoffs })
    };
    partitions.chunk_by(|a, b| a.topic == b.topic).map(end).collect()
}

/// When it is long enough ago that events moved between partitions, of `eras` of this project (a condition on `e`): what
/// is inherited must not be inherited once more. None: it is.
pub(crate) async fn too_soon(
    db: &mut PgConnection,
    project: &Project,
    eras: &'static str,
) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    let sql = format!(
        "SELECT until FROM (
             SELECT max(e.ended_at) + make_interval(secs => $2) AS until FROM eras e WHERE e.project = $1 AND {eras}) l
         WHERE until > now()"
    );
    let seconds = project.dedupe_window_ms as f64 / 1e3 + SLACK.as_secs_f64();
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(&project.id).bind(seconds).fetch_optional(db).await
}

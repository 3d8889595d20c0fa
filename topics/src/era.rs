//! The end of an era: where the way in which a project's events are spread changes.
//!
//! Kafka has by now what the next era needs, where nobody has a home; the era ends in one transaction. What was read
//! before that lies below the cutoffs, since whoever publishes what came of it asks for the layout behind its last record
//! ([`tidemill_common::projects::layouts_now`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use sqlx::types::Json;
use sqlx::{Connection, PgConnection};
use tidemill_common::home::Route;
use tidemill_common::kafka::{History, KafkaConfig, TopicPartition, topic_incarnations};
use tidemill_common::projects::{self, Project};
use tokio::task::JoinError;

const TIMEOUT: Duration = Duration::from_secs(10);
/// Batches that are under way are waited for; they take no longer.
const LOCKED: &str = "30s";
/// Clocks may differ, so that a window is over a little later than it seems.
pub(crate) const SLACK: Duration = Duration::from_secs(2 * 3_600);

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
    let topics = projects::topics(&planned.id, &routes);
    let counts: Vec<i32> = projects::counts(next.partitions, &routes).collect();
    let history = History::new(kafka.clone());
    // Once before, so that nobody waits for a connection.
    let (incarnations, _) = look(kafka, &history, &topics, &counts).await?;
    let mut tx = db.begin().await?;
    sqlx::query("SELECT set_config('lock_timeout', $1, true)").bind(LOCKED).execute(&mut *tx).await?;
    projects::hold(&mut tx, &planned.id).await?;
    let held = "SELECT layout FROM projects WHERE id = $1 AND deleted_at IS NULL FOR UPDATE";
    let held: Option<i32> = sqlx::query_scalar(held).bind(&planned.id).fetch_optional(&mut *tx).await?;
    // Behind the lock: what was published before it was read before it.
    let (same, cutoffs) = look(kafka, &history, &topics, &counts).await?;
    if held != Some(planned.layout) || same != incarnations {
        return Err(EraError::Changed(planned.id.clone()));
    }
    for ((number, topic), cutoffs) in (0..).zip(&topics).zip(cutoffs) {
        sqlx::query(
            "INSERT INTO eras (project, version, topic, topic_incarnation, partitions, routes, cutoffs)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&planned.id)
        .bind(planned.layout)
        .bind(number)
        .bind(&incarnations[topic])
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

/// Kafka's ids of the topics, and for each of them the ends of all partitions that there will be.
async fn look(
    kafka: &KafkaConfig,
    history: &History,
    topics: &[String],
    counts: &[i32],
) -> Result<(HashMap<String, String>, Vec<Vec<i64>>), EraError> {
    let (kafka, history) = (kafka.clone(), history.clone());
    let asked: Vec<(String, i32)> = topics.iter().cloned().zip(counts.iter().copied()).collect();
    let ask = move || {
        let names: Vec<&str> = asked.iter().map(|(topic, _)| topic.as_str()).collect();
        let incarnations = topic_incarnations(&kafka, &names, TIMEOUT)?;
        let of = |(topic, count): &(String, i32)| {
            let topic: Arc<str> = topic.as_str().into();
            (0..*count).map(move |partition| TopicPartition { topic: Arc::clone(&topic), partition })
        };
        let ends = history.ends(&asked.iter().flat_map(of).collect::<Vec<_>>())?;
        let of = |topic| of(topic).map(|at| Some(ends.get(&at)?.offset)).collect::<Option<Vec<i64>>>();
        Ok::<_, KafkaError>((incarnations, asked.iter().map(of).collect::<Vec<_>>()))
    };
    let (incarnations, ends) = tokio::task::spawn_blocking(ask).await??;
    let mut all = Vec::with_capacity(topics.len());
    for (topic, ends) in topics.iter().zip(ends) {
        let there = incarnations.contains_key(topic);
        all.push(ends.filter(|_| there).ok_or_else(|| EraError::NoTopic(topic.clone()))?);
    }
    Ok((incarnations, all))
}

//! More partitions for a project's events.
//!
//! Every event has its home by how many partitions there are, so an era ends when there are more: with the offset in each
//! partition from which on the new number holds ([`tidemill_common::home`]). The partitions come first, where nobody has
//! a home; the era ends in one transaction. What was read before that lies below the cutoffs, since whoever publishes what
//! came of it asks for the number behind its last record ([`tidemill_common::projects::partitions_now`]). Every step may
//! be done again.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use rdkafka::error::KafkaError;
use serde::Serialize;
use sqlx::{Connection, PgConnection, Row};
use tidemill_common::kafka::{History, KafkaConfig, TopicPartition, topic_incarnations};
use tidemill_common::names::{events_topic, processed_topic};
use tidemill_common::projects;
use tokio::task::JoinError;

use crate::{Change, Cluster, ClusterError};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Batches that are under way are waited for; they take no longer.
const LOCKED: &str = "30s";
/// Clocks may differ, so that a window is over a little later than it seems.
const SLACK: Duration = Duration::from_secs(2 * 3_600);

/// How a project's events are going to be spread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Growth {
    /// Whose.
    pub project: String,
    /// How many partitions there are.
    pub from: i32,
    /// How many there will be.
    pub to: i32,
}

impl Growth {
    /// The topics that grow.
    pub fn topics(&self) -> [String; 2] {
        [events_topic(&self.project), processed_topic(&self.project)]
    }
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Kafka gets the partitions.
    Creating,
    /// Clients get to know them.
    Settling,
    /// The era ends.
    Ending,
}

/// Why a project does not get its partitions.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// Nobody has this id.
    #[error("there is no project {0:?}; see 'tidemill projects list'")]
    NoProject(String),
    /// There would be fewer of them.
    #[error(
        "project {project} has {from} partitions, and Kafka cannot take partitions away; choose a multiple of {from}"
    )]
    Fewer {
        /// Whose.
        project: String,
        /// How many it has.
        from: i32,
    },
    /// Partitions would have several parents.
    #[error(
        "project {project} has {from} partitions, and {to} is no multiple of it; choose {} or {}, so that every new \
         partition takes over from one alone",
        to - to % from, to - to % from + from
    )]
    NotMultiple {
        /// Whose.
        project: String,
        /// How many it has.
        from: i32,
        /// How many were asked for.
        to: i32,
    },
    /// What new partitions inherit would be inherited already.
    #[error(
        "project {project} got its {from} partitions less than a dedupe window and two hours ago; it may grow again from {} on",
        until.to_rfc3339_opts(SecondsFormat::Secs, true)
    )]
    TooSoon {
        /// Whose.
        project: String,
        /// How many it has.
        from: i32,
        /// When it may.
        until: DateTime<Utc>,
    },
    /// Somebody else made partitions.
    #[error("topic {topic} has {has} partitions already; choose a number from {has} on")]
    MoreThere {
        /// Its name.
        topic: String,
        /// How many it has.
        has: i32,
    },
    /// There is nothing to grow.
    #[error("Kafka has no topic {0}; make it with 'tidemill topics apply'")]
    NoTopic(String),
    /// Something is not as it was planned.
    #[error(
        "project {0} or its topic was changed by somebody else meanwhile, and nothing was switched; run this again"
    )]
    Changed(String),
    /// Kafka, about topics.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
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

const KNOWN: &str = "
    SELECT p.partitions, (SELECT max(e.ended_at) FROM eras e WHERE e.project = p.id)
                         + make_interval(secs => p.dedupe_window_ms / 1000.0 + $2) AS until, now()
    FROM projects p WHERE p.id = $1 AND p.deleted_at IS NULL";

/// What it would be for a project to have so many partitions; none: it has. Changes nothing.
pub async fn plan_growth(db: &mut PgConnection, project: &str, to: i32) -> Result<Option<Growth>, GrowError> {
    let known = sqlx::query(KNOWN).bind(project).bind(SLACK.as_secs_f64()).fetch_optional(db).await?;
    let row = known.ok_or_else(|| GrowError::NoProject(project.to_owned()))?;
    let (from, until, now): (i32, Option<DateTime<Utc>>, DateTime<Utc>) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let project = project.to_owned();
    match until.filter(|until| *until > now) {
        _ if to == from => Ok(None),
        _ if to < from => Err(GrowError::Fewer { project, from }),
        _ if to % from != 0 => Err(GrowError::NotMultiple { project, from, to }),
        Some(until) => Err(GrowError::TooSoon { project, from, until }),
        None => Ok(Some(Growth { project, from, to })),
    }
}

/// Does it. Clients get `settle` to learn of the new partitions before anything belongs there: until they have, they
/// cannot write to them.
pub async fn grow(
    db: &mut PgConnection,
    kafka: &KafkaConfig,
    growth: &Growth,
    settle: Duration,
    mut step: impl FnMut(Step),
) -> Result<(), GrowError> {
    step(Step::Creating);
    create(&Cluster::new(kafka)?, growth).await?;
    step(Step::Settling);
    tokio::time::sleep(settle).await;
    step(Step::Ending);
    end_era(db, kafka, growth).await
}

/// Makes the partitions that are missing, and waits until they have leaders.
async fn create(cluster: &Cluster, growth: &Growth) -> Result<(), GrowError> {
    let topics = growth.topics();
    let existing = cluster.partitions(&topics).await?;
    let mut changes = Vec::new();
    for topic in topics {
        let has = *existing.get(&topic).ok_or_else(|| GrowError::NoTopic(topic.clone()))?;
        if has > growth.to {
            return Err(GrowError::MoreThere { topic, has });
        }
        if has < growth.to {
            changes.push(Change::Grow { topic, from: has, to: growth.to });
        }
    }
    Ok(cluster.apply(&changes).await?)
}

/// Ends the era where the log ends now.
async fn end_era(db: &mut PgConnection, kafka: &KafkaConfig, growth: &Growth) -> Result<(), GrowError> {
    let Growth { project, from, to } = growth;
    let history = History::new(kafka.clone());
    // Once before, so that nobody waits for a connection.
    let (incarnation, _) = look(kafka, &history, growth).await?;
    let mut tx = db.begin().await?;
    sqlx::query("SELECT set_config('lock_timeout', $1, true)").bind(LOCKED).execute(&mut *tx).await?;
    projects::hold(&mut tx, project).await?;
    let held = "SELECT partitions FROM projects WHERE id = $1 AND deleted_at IS NULL FOR UPDATE";
    let held: Option<i32> = sqlx::query_scalar(held).bind(project).fetch_optional(&mut *tx).await?;
    // Behind the lock: what was published before it was read before it.
    let (same, cutoffs) = look(kafka, &history, growth).await?;
    if held != Some(*from) || same != incarnation {
        return Err(GrowError::Changed(project.clone()));
    }
    sqlx::query("INSERT INTO eras (project, topic_incarnation, partitions, cutoffs) VALUES ($1, $2, $3, $4)")
        .bind(project)
        .bind(incarnation)
        .bind(from)
        .bind(cutoffs)
        .execute(&mut *tx)
        .await?;
    sqlx::query("UPDATE projects SET partitions = $2 WHERE id = $1").bind(project).bind(to).execute(&mut *tx).await?;
    Ok(tx.commit().await?)
}

/// Kafka's id of the topic, and the ends of all partitions that there will be.
async fn look(kafka: &KafkaConfig, history: &History, growth: &Growth) -> Result<(String, Vec<i64>), GrowError> {
    let topic = events_topic(&growth.project);
    let (kafka, history, to) = (kafka.clone(), history.clone(), growth.to);
    let (asked, name): (String, Arc<str>) = (topic.clone(), Arc::from(&*topic));
    let ask = move || {
        let at = |partition| TopicPartition { topic: Arc::clone(&name), partition };
        let partitions: Vec<TopicPartition> = (0..to).map(at).collect();
        let incarnation = topic_incarnations(&kafka, &[&asked], TIMEOUT)?.remove(&asked);
        let ends = history.ends(&partitions)?;
        let ends: Option<Vec<i64>> = partitions.iter().map(|at| Some(ends.get(at)?.offset)).collect();
        Ok::<_, KafkaError>((incarnation, ends))
    };
    let (incarnation, ends) = tokio::task::spawn_blocking(ask).await??;
    let incarnation = incarnation.ok_or(GrowError::NoTopic(topic))?;
    Ok((incarnation, ends.ok_or_else(|| GrowError::Changed(growth.project.clone()))?))
}

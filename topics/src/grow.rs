//! More partitions for a project's events: for all topics of them alike.
//!
//! Every event has its home by how many partitions there are, so an era ends when there are more: with the offset in each
//! partition from which on the new number holds ([`tidemill_common::home`]). The partitions come first, where nobody has
//! a home, then the era ends ([`crate::era`]). Every step may be done again.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use tidemill_common::kafka::KafkaConfig;
use tidemill_common::names::{ROUTE, processed_topic};
use tidemill_common::projects::{self, Project};

use crate::era::{EraError, Next, end_era, too_soon};
use crate::{Change, Cluster, ClusterError};

/// How a project's events are going to be spread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Growth {
    /// Whose.
    pub project: String,
    /// How many partitions there are.
    pub from: i32,
    /// How many there will be.
    pub to: i32,
    /// The topics that grow, each with how many partitions it will have.
    pub topics: Vec<(String, i32)>,
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
    /// They could not be numbered.
    #[error("a topic of project {project} would have {most} partitions; {ROUTE} are the most that there can be")]
    TooMany {
        /// Whose.
        project: String,
        /// How many it would have.
        most: i32,
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
        "project {project} got its {from} partitions or a route less than a dedupe window and two hours ago; it may grow \
         again from {} on",
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
    /// Kafka, about topics.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The era does not end.
    #[error(transparent)]
    Era(#[from] EraError),
}

impl From<sqlx::Error> for GrowError {
    fn from(error: sqlx::Error) -> Self {
        EraError::Postgres(error).into()
    }
}

/// What it would be for a project to have so many partitions; none: it has. Changes nothing.
pub async fn plan_growth(db: &mut PgConnection, project: &str, to: i32) -> Result<Option<Growth>, GrowError> {
    let planned = projects::load(&mut *db, project).await?.ok_or_else(|| GrowError::NoProject(project.to_owned()))?;
    let until = too_soon(db, &planned, "true").await?;
    let (project, from) = (project.to_owned(), planned.partitions);
    let most = projects::counts(to, &planned.routes).max().unwrap_or(to);
    match until {
        _ if to == from => Ok(None),
        _ if most > ROUTE => Err(GrowError::TooMany { project, most }),
        _ if to < from => Err(GrowError::Fewer { project, from }),
        _ if to % from != 0 => Err(GrowError::NotMultiple { project, from, to }),
        Some(until) => Err(GrowError::TooSoon { project, from, until }),
        None => Ok(Some(Growth { from, to, topics: topics(&planned, to), project })),
    }
}

fn topics(project: &Project, to: i32) -> Vec<(String, i32)> {
    let mut topics: Vec<_> = project.topics().into_iter().zip(projects::counts(to, &project.routes)).collect();
    topics.push((processed_topic(&project.id), to));
    topics
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
    let planned = projects::load(&mut *db, &growth.project).await?;
    let planned = planned.filter(|now| now.partitions == growth.from && topics(now, growth.to) == growth.topics);
    let planned = planned.ok_or_else(|| EraError::Changed(growth.project.clone()))?;
    step(Step::Creating);
    create(&Cluster::new(kafka)?, growth).await?;
    step(Step::Settling);
    tokio::time::sleep(settle).await;
    step(Step::Ending);
    Ok(end_era(db, kafka, &planned, &Next { partitions: growth.to, route: None }).await?)
}

/// Makes the partitions that are missing, and waits until they have leaders.
async fn create(cluster: &Cluster, growth: &Growth) -> Result<(), GrowError> {
    let names: Vec<String> = growth.topics.iter().map(|(topic, _)| topic.clone()).collect();
    let existing = cluster.partitions(&names).await?;
    let mut changes = Vec::new();
    for (topic, to) in growth.topics.iter().cloned() {
        let has = *existing.get(&topic).ok_or_else(|| EraError::NoTopic(topic.clone()))?;
        if has > to {
            return Err(GrowError::MoreThere { topic, has });
        }
        if has < to {
            changes.push(Change::Grow { topic, from: has, to });
        }
    }
    Ok(cluster.apply(&changes).await?)
}

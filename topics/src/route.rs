//! A topic of their own for events of some types: a route.
//!
//! The topic comes first, where nobody has a home, then the era ends ([`crate::era`]). From the cutoffs on these events
//! belong in it, and in the others they are strays. It has a multiple of the partitions that the project's own topic has, so
//! that each of them takes over from one alone. A route is never changed or taken back: what has come to it would have to be
//! looked for in two places by whoever comes after. Every step may be done again.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use tidemill_common::home;
use tidemill_common::kafka::KafkaConfig;
use tidemill_common::names::{ROUTE, events_topic, route_topic};
use tidemill_common::projects::{self, Project};

use crate::era::{EraError, Next, end_era, too_soon};
use crate::{Change, Cluster, ClusterError, Step, Topic};

/// Longest name of a route, in characters.
const LONGEST: usize = 40;
/// Longest name of an event type, in characters.
const LONGEST_TYPE: usize = 100;
/// Most routes of a project.
const MOST: usize = 50;

/// A route that is to begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// Whose.
    pub project: String,
    /// Its name.
    pub name: String,
    /// The types of its events.
    pub event_types: Vec<String>,
    /// Its topic.
    pub topic: String,
    /// How many partitions that has.
    pub partitions: i32,
    /// What homes there are computed from.
    pub key: home::Key,
}

/// What a route is to be like.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its name.
    pub name: &'a str,
    /// The types of its events.
    pub event_types: &'a [String],
    /// How many partitions its topic is to have; none: as many as the project's own.
    pub partitions: Option<i32>,
    /// Whether users decide, too, where events belong.
    pub by_user: bool,
}

/// Why a route does not begin.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// Nobody has this id.
    #[error("there is no project {0:?}; see 'tidemill projects list'")]
    NoProject(String),
    /// A name that breaks the rules.
    #[error("a route's name has 1 to {LONGEST} characters of a-z, 0-9 and '-', and {0:?} does not")]
    BadName(String),
    /// No types, or one that no event can have.
    #[error("a route takes one event type or several, of 1 to {LONGEST_TYPE} characters; {0:?} is none")]
    BadType(String),
    /// There is one of this name.
    #[error("project {project} has a route {name} already, for {types}; a route never changes, so choose another name")]
    Exists {
        /// Whose.
        project: String,
        /// Its name.
        name: String,
        /// What it takes.
        types: String,
    },
    /// A type can be in one topic only.
    #[error("events of type {event_type:?} go to the route {name} already, and stay there")]
    Taken {
        /// The type.
        event_type: String,
        /// Whose it is.
        name: String,
    },
    /// Partitions would have several parents, or none.
    #[error("{wanted} partitions are no multiple of the {own} of project {project}, up to {ROUTE}; choose one")]
    BadCount {
        /// Whose.
        project: String,
        /// How many its own topic has.
        own: i32,
        /// How many were asked for.
        wanted: i32,
    },
    /// There are enough.
    #[error("project {0} has {MOST} routes, and may not have more; give several types one route")]
    TooMany(String),
    /// What the route would inherit is inherited already.
    #[error(
        "project {project} got its partitions less than a dedupe window and two hours ago; it may get a route from {} on",
        until.to_rfc3339_opts(SecondsFormat::Secs, true)
    )]
    TooSoon {
        /// Whose.
        project: String,
        /// When it may.
        until: DateTime<Utc>,
    },
    /// It would be rebuilt without what goes to the route.
    #[error(
        "replay {0} of project {1} is not over; switch it or abort it first, since it reads the topics that there were"
    )]
    Replaying(i64, String),
    /// Somebody else made the topic.
    #[error("topic {topic} is there with {has} partitions, and {wanted} are wanted; delete it or choose another name")]
    OtherTopic {
        /// Its name.
        topic: String,
        /// How many it has.
        has: i32,
        /// How many it should have.
        wanted: i32,
    },
    /// Kafka, about topics.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The era does not end.
    #[error(transparent)]
    Era(#[from] EraError),
}

impl From<sqlx::Error> for RouteError {
    fn from(error: sqlx::Error) -> Self {
        EraError::Postgres(error).into()
    }
}

/// Eras that ended with more partitions: the project's own topic inherits nothing when a route begins.
const GREW: &str = "e.partitions < (SELECT p.partitions FROM projects p WHERE p.id = $1)";
const OPEN: &str = "SELECT id FROM replays WHERE project = $1 AND state IN ('planned', 'running')";

/// What it would be for a project to have this route. Changes nothing.
pub async fn plan_route(db: &mut PgConnection, project: &str, wanted: Wanted<'_>) -> Result<Route, RouteError> {
    let Wanted { name, event_types, partitions, by_user } = wanted;
    let planned = projects::load(&mut *db, project).await?.ok_or_else(|| RouteError::NoProject(project.to_owned()))?;
    may_be(&planned, name, event_types)?;
    let own = planned.partitions;
    let partitions = partitions.unwrap_or(own);
    if partitions % own != 0 || !(own..=ROUTE).contains(&partitions) {
        return Err(RouteError::BadCount { project: planned.id, own, wanted: partitions });
    }
    if let Some(until) = too_soon(&mut *db, &planned, GREW).await? {
        return Err(RouteError::TooSoon { project: planned.id, until });
    }
    if let Some(replay) = sqlx::query_scalar(OPEN).bind(project).fetch_optional(db).await? {
        return Err(RouteError::Replaying(replay, planned.id));
    }
    Ok(Route {
        topic: route_topic(&planned.id, planned.routes.len() + 1, name),
        partitions,
        key: if by_user { home::Key::EventAndUserId { from: own } } else { home::Key::EventId },
        name: name.to_owned(),
        event_types: event_types.to_vec(),
        project: planned.id,
    })
}

fn may_be(project: &Project, name: &str, event_types: &[String]) -> Result<(), RouteError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !name.bytes().all(plain) || !(1..=LONGEST).contains(&name.len()) {
        return Err(RouteError::BadName(name.to_owned()));
    }
    if event_types.is_empty() {
        return Err(RouteError::BadType(String::new()));
    }
    for event_type in event_types {
        if !(1..=LONGEST_TYPE).contains(&event_type.chars().count()) {
            return Err(RouteError::BadType(event_type.clone()));
        }
        if let Some(other) = project.routes.iter().find(|route| route.event_types.contains(event_type)) {
            return Err(match other.name == name {
                true => exists(project, other),
                false => RouteError::Taken { event_type: event_type.clone(), name: other.name.clone() },
            });
        }
    }
    match project.routes.iter().find(|route| route.name == name) {
        Some(other) => Err(exists(project, other)),
        None if project.routes.len() >= MOST => Err(RouteError::TooMany(project.id.clone())),
        None => Ok(()),
    }
}

fn exists(project: &Project, route: &home::Route) -> RouteError {
    let (project, name) = (project.id.clone(), route.name.clone());
    RouteError::Exists { project, name, types: route.event_types.join(", ") }
}

/// Does it. `declared` is how the project's topics are to be; the route's is as the project's own. Clients get `settle` to
/// learn of it before anything belongs there.
pub async fn begin_route(
    db: &mut PgConnection,
    kafka: &KafkaConfig,
    route: &Route,
    declared: &[Topic],
    settle: Duration,
    mut step: impl FnMut(Step),
) -> Result<(), RouteError> {
    let planned = projects::load(&mut *db, &route.project).await?;
    let is_planned = |now: &Project| {
        route.partitions % now.partitions == 0 && route_topic(&now.id, now.routes.len() + 1, &route.name) == route.topic
    };
    let planned = planned.filter(is_planned).ok_or_else(|| EraError::Changed(route.project.clone()))?;
    may_be(&planned, &route.name, &route.event_types)?;
    step(Step::Creating);
    create(&Cluster::new(kafka)?, route, declared).await?;
    step(Step::Settling);
    tokio::time::sleep(settle).await;
    step(Step::Ending);
    let Route { name, event_types, key, .. } = route.clone();
    let begun = home::Route { name, event_types, times: route.partitions / planned.partitions, key };
    let next = Next { partitions: planned.partitions, route: Some(&begun) };
    Ok(end_era(db, kafka, &planned, &next).await?)
}

/// Makes the topic, unless it is there, and waits until it has leaders.
async fn create(cluster: &Cluster, route: &Route, declared: &[Topic]) -> Result<(), RouteError> {
    let Route { topic, partitions, .. } = route;
    let existing = cluster.partitions(std::slice::from_ref(topic)).await?;
    match existing.get(topic) {
        Some(has) if has == partitions => Ok(()),
        Some(&has) => Err(RouteError::OtherTopic { topic: topic.clone(), has, wanted: *partitions }),
        None => {
            let own = events_topic(&route.project);
            let like = declared.iter().find(|declared| declared.name == own).ok_or(EraError::NoTopic(own))?;
            let created = Topic { name: topic.clone(), partitions: *partitions, ..like.clone() };
            Ok(cluster.apply(&[Change::Create(created)]).await?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project() -> Project {
        let (name, event_types) = ("clicks".to_owned(), vec!["click".to_owned(), "tap".to_owned()]);
        let clicks = home::Route { name, event_types, times: 1, key: home::Key::EventId };
        Project {
            id: "shop".to_owned(),
            partitions: 4,
            dlq_partitions: 1,
            dedupe_window_ms: 1,
            generation: 0,
            layout: 1,
            routes: vec![clicks],
            eras: Vec::new(),
        }
    }

    #[test]
    fn every_type_has_one_topic_and_no_route_changes() {
        let may_be = |name: &str, types: &[&str]| {
            may_be(&project(), name, &types.iter().map(|&event_type| event_type.to_owned()).collect::<Vec<_>>())
        };
        assert!(may_be("views", &["page_view", "screen"]).is_ok());
        assert!(matches!(may_be("Views", &["page_view"]), Err(RouteError::BadName(_))));
        assert!(matches!(may_be("", &["page_view"]), Err(RouteError::BadName(_))));
        assert!(matches!(may_be("views", &[]), Err(RouteError::BadType(_))));
        assert!(matches!(may_be("views", &["page_view", ""]), Err(RouteError::BadType(_))));
        assert!(matches!(may_be("views", &["page_view", "tap"]), Err(RouteError::Taken { .. })));
        assert!(matches!(may_be("clicks", &["page_view"]), Err(RouteError::Exists { .. })));
        assert!(matches!(may_be("clicks", &["click", "tap"]), Err(RouteError::Exists { .. })));
    }
}

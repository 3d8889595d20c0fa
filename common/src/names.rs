//! Names that other parts and users rely on: topics, consumer groups, project ids.

use std::fmt;

/// Consumer group of the stream workers.
pub const STREAM_GROUP: &str = "tidemill.stream";
/// Consumer group of the archivers.
pub const ARCHIVER_GROUP: &str = "tidemill.archiver";
/// What a consumer of every project's events subscribes to: their own topics and those of their routes. It would match
/// [`NO_EVENT_TOPICS`], too.
pub const EVENT_TOPICS: &str = r"^events\.[a-z0-9-]{1,48}(\.[a-z0-9-]{1,52})?$";
/// What is never subscribed to: processed topics and dead letters.
pub const NO_EVENT_TOPICS: &str = r"^events\.processed\.,^events\.dlq\.";
/// A project's partitions are numbered through: those of its own topic from 0 on, those of its first route from this, of
/// its second from twice this, and so on. So one number says where in a project's log a record is.
pub const ROUTE: i32 = 10_000;

/// All topics of events begin so.
const EVENTS: &str = "events.";

/// A valid project id: `[a-z0-9-]{1,48}`, never `processed` or `dlq`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProjectId(String);

/// A project id that breaks the rules.
#[derive(Debug, thiserror::Error)]
#[error("project id {0:?} must have 1 to 48 characters of a-z, 0-9 and '-', and be neither 'processed' nor 'dlq'")]
pub struct BadProjectId(String);

impl ProjectId {
    /// Checks the rules.
    pub fn parse(id: &str) -> Result<Self, BadProjectId> {
        let characters = id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if characters && (1..=48).contains(&id.len()) && id != "processed" && id != "dlq" {
            Ok(Self(id.to_owned()))
        } else {
            Err(BadProjectId(id.to_owned()))
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The topic that holds a project's events: the truth.
pub fn events_topic(project: &str) -> String {
    format!("events.{project}")
}

/// The topic of a project's route: its number, from 1 on, and its name.
pub fn route_topic(project: &str, number: usize, name: &str) -> String {
    format!("events.{project}.{number}-{name}")
}

/// The number that a partition of such a topic has in its project. Asked for every record.
pub fn partition_number(topic: &str, partition: i32) -> i32 {
    let route = topic.get(EVENTS.len()..).and_then(|name| name.split_once('.')?.1.split_once('-')?.0.parse().ok());
    route.unwrap_or(0) * ROUTE + partition
}

/// The topic of first sights, enriched.
pub fn processed_topic(project: &str) -> String {
    format!("events.processed.{project}")
}

/// The topic of dead letters.
pub fn dlq_topic(project: &str) -> String {
    format!("events.dlq.{project}")
}

/// The topic of a metric's updates: of a declared one, or of `events`.
pub fn metrics_topic(metric: &str) -> String {
    format!("metrics.{metric}")
}

/// The project's own topic, for any topic of its events.
pub fn own_topic(topic: &str) -> String {
    project_of(topic).map_or_else(|| topic.to_owned(), events_topic)
}

/// The project whose events a topic holds, if it is such a topic: the project's own, or a route's.
pub fn project_of(topic: &str) -> Option<&str> {
    let name = topic.strip_prefix(EVENTS)?;
    let project = name.split_once('.').map_or(name, |(project, _)| project);
    ProjectId::parse(project).ok().map(|_| project)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_event_topics_have_a_project() {
        assert_eq!(project_of("events.shop-1"), Some("shop-1"));
        assert_eq!(project_of(&route_topic("shop-1", 2, "page-views")), Some("shop-1"));
        assert_eq!(project_of("events.processed.shop"), None);
        assert_eq!(project_of("events.dlq"), None);
        assert_eq!(project_of("metrics.events"), None);
    }

    #[test]
    fn a_projects_partitions_are_numbered_through() {
        assert_eq!(partition_number("events.shop", 7), 7);
        assert_eq!(partition_number(&route_topic("shop", 1, "clicks"), 7), 10_007);
        assert_eq!(partition_number(&route_topic("shop", 12, "3-clicks"), 0), 120_000);
    }
}

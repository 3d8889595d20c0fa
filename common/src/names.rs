//! Names that other parts and users rely on: topics, consumer groups, project ids.

use std::fmt;

/// Consumer group of the stream workers.
pub const STREAM_GROUP: &str = "tidemill.stream";
/// Consumer group of the archivers.
pub const ARCHIVER_GROUP: &str = "tidemill.archiver";
/// What a consumer of every project's events subscribes to; it matches neither the processed topics nor
/// the dead letters, whose names have one more dot.
pub const EVENT_TOPICS: &str = r"^events\.[a-z0-9-]{1,48}$";

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

/// The project whose events a topic holds, if it is such a topic.
pub fn project_of(topic: &str) -> Option<&str> {
    let project = topic.strip_prefix("events.")?;
    ProjectId::parse(project).ok().map(|_| project)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_event_topics_have_a_project() {
        assert_eq!(project_of("events.shop-1"), Some("shop-1"));
        assert_eq!(project_of("events.processed.shop"), None);
        assert_eq!(project_of("events.dlq"), None);
        assert_eq!(project_of("metrics.events"), None);
    }
}

//! What is to be done so that Kafka has what is declared. Pure.

use std::collections::BTreeMap;
use std::fmt;

use crate::Topic;

/// A topic as Kafka has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Existing {
    /// How many partitions it has.
    pub partitions: i32,
    /// How many replicas its first partition has.
    pub replication: i32,
    /// Its settings by Kafka's names, defaults included.
    pub config: BTreeMap<String, String>,
}

/// A difference between the declarations and Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The topic is missing: create it.
    Create(Topic),
    /// The topic is there but otherwise than declared. This is only reported: changing partitions moves
    /// events' homes, and changing settings may delete data.
    Drift {
        /// The topic's name.
        topic: String,
        /// What differs: `partitions`, `replication` or a setting of Kafka's.
        setting: String,
        /// What is declared.
        declared: String,
        /// What Kafka has.
        found: String,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(topic) => {
                write!(f, "create {} ({} partitions, replication {})", topic.name, topic.partitions, topic.replication)
            }
            Self::Drift { topic, setting, declared, found } => {
                write!(f, "drift of {topic}: {setting} is {found}, declared is {declared}; left as it is")
            }
        }
    }
}

/// Compares declared topics with existing ones, in the order of declaration. Topics that nobody declared are
/// none of our business.
pub fn plan(declared: &[Topic], existing: &BTreeMap<String, Existing>) -> Vec<Change> {
    let mut changes = Vec::new();
    for topic in declared {
        match existing.get(&topic.name) {
            None => changes.push(Change::Create(topic.clone())),
            Some(found) => changes.extend(drift(topic, found)),
        }
    }
    changes
}

/// The replication to use where it is not what is declared: what was asked for, else 1 on a single broker,
/// where nothing else is possible. Otherwise too few brokers are an error, not a reason to keep fewer copies.
pub fn replication(asked: Option<i32>, brokers: usize) -> Option<i32> {
    asked.or((brokers == 1).then_some(1))
}

fn drift<'a>(topic: &'a Topic, found: &'a Existing) -> impl Iterator<Item = Change> + 'a {
    let numbers = [
        ("partitions", topic.partitions.to_string(), Some(found.partitions.to_string())),
        ("replication", topic.replication.to_string(), Some(found.replication.to_string())),
    ];
    let config = topic.config.iter().map(|(key, value)| (key.as_str(), value.clone(), found.config.get(key).cloned()));
    numbers.into_iter().chain(config).filter(|(_, declared, found)| found.as_ref() != Some(declared)).map(
        |(setting, declared, found)| Change::Drift {
            topic: topic.name.clone(),
            setting: setting.to_owned(),
            declared,
            found: found.unwrap_or_else(|| "unknown to this Kafka".to_owned()),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> Topic {
        let config = BTreeMap::from([("retention.ms".to_owned(), "1000".to_owned())]);
        Topic { name: name.to_owned(), partitions: 6, replication: 1, config }
    }

    fn as_declared(topic: &Topic) -> Existing {
        let mut config = topic.config.clone();
        config.insert("segment.bytes".to_owned(), "1073741824".to_owned()); // not declared, so of no interest
        Existing { partitions: topic.partitions, replication: topic.replication, config }
    }

    #[test]
    fn missing_topics_are_created_in_their_order() {
        let declared = [topic("b"), topic("a")];
        assert_eq!(plan(&declared, &BTreeMap::new()), declared.map(Change::Create));
    }

    #[test]
    fn what_is_as_declared_or_not_declared_needs_nothing() {
        let existing = BTreeMap::from([
            ("a".to_owned(), as_declared(&topic("a"))),
            ("someone-elses".to_owned(), as_declared(&topic("someone-elses"))),
        ]);
        assert_eq!(plan(&[topic("a")], &existing), []);
    }

    #[test]
    fn only_a_single_broker_lowers_replication_by_itself() {
        assert_eq!(replication(None, 1), Some(1));
        assert_eq!(replication(None, 2), None);
        assert_eq!(replication(Some(2), 3), Some(2));
    }

    #[test]
    fn every_difference_is_reported_and_none_is_mended() {
        let mut found = as_declared(&topic("a"));
        found.partitions = 12;
        found.config.insert("retention.ms".to_owned(), "5".to_owned());
        let changes = plan(&[topic("a")], &BTreeMap::from([("a".to_owned(), found)]));
        let lines: Vec<String> = changes.iter().map(Change::to_string).collect();
        assert_eq!(
            lines,
            [
                "drift of a: partitions is 12, declared is 6; left as it is",
                "drift of a: retention.ms is 5, declared is 1000; left as it is",
            ]
        );
    }
}

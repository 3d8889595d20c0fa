//! What is to be done so that Kafka has what is declared. Pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use crate::Topic;

const HOMES: &str = "an event's partition follows from how many there are";
const NEVER_FEWER: &str = "Kafka cannot take partitions away";
const NOBODYS: &str = "nothing belongs in the others; 'tidemill projects grow' makes use of them";
const REASSIGN: &str = "copies are moved by kafka-reassign-partitions";
const DELETES: &str = "Kafka deletes what is above the new limit";
const UNKNOWN: &str = "correct its name, or update Kafka";

/// A topic as Kafka has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Existing {
    /// How many partitions it has.
    pub partitions: i32,
    /// How many replicas its first partition has.
    pub replication: i32,
    /// Whether all of its partitions have a leader.
    pub led: bool,
    /// Its settings by Kafka's names, defaults included.
    pub config: BTreeMap<String, String>,
}

/// A difference between the declarations and Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The topic is missing: create it.
    Create(Topic),
    /// A setting has another value: give it the declared one.
    Set {
        /// The topic's name.
        topic: String,
        /// The setting, by Kafka's name.
        setting: String,
        /// What Kafka has.
        from: String,
        /// What is declared.
        to: String,
    },
    /// The topic has too few partitions, and may get more: none of its records has a home.
    Grow {
        /// The topic's name.
        topic: String,
        /// How many it has.
        from: i32,
        /// How many are declared.
        to: i32,
    },
    /// The topic is otherwise than declared, and is left so.
    Drift {
        /// The topic's name.
        topic: String,
        /// What differs: `partitions`, `replication` or a setting of Kafka's.
        setting: String,
        /// What Kafka has.
        found: String,
        /// What is declared.
        declared: String,
        /// Why it is left, and what can be done.
        why: &'static str,
    },
}

impl Change {
    /// Whether there is something to do, and not only to know.
    pub fn is_to_do(&self) -> bool {
        self.topic().is_some()
    }

    /// The name of the topic that it is about.
    pub fn of(&self) -> &str {
        match self {
            Self::Create(topic) => &topic.name,
            Self::Set { topic, .. } | Self::Grow { topic, .. } | Self::Drift { topic, .. } => topic,
        }
    }

    /// The topic to be changed, if one is.
    pub fn topic(&self) -> Option<&str> {
        (!matches!(self, Self::Drift { .. })).then(|| self.of())
    }

    /// Whether its topic is as it was to become.
    pub fn shows(&self, found: &Existing) -> bool {
        match self {
            Self::Create(_) | Self::Drift { .. } => found.led,
            Self::Set { setting, to, .. } => found.config.get(setting) == Some(to),
            Self::Grow { to, .. } => found.led && found.partitions >= *to,
        }
    }

    /// What one should know of it: what it deletes, or why it is left.
    pub fn note(&self) -> Option<&'static str> {
        match self {
            Self::Set { setting, from, to, .. } => deletes(setting, from, to).then_some(DELETES),
            Self::Drift { why, .. } => Some(why),
            Self::Create(_) | Self::Grow { .. } => None,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(topic) => {
                write!(f, "create {} ({} partitions, replication {})", topic.name, topic.partitions, topic.replication)
            }
            Self::Set { topic, setting, from, to } => write!(f, "set {setting} of {topic} from {from} to {to}"),
            Self::Grow { topic, from, to } => write!(f, "grow {topic} from {from} to {to} partitions"),
            Self::Drift { topic, setting, found, declared, .. } => {
                write!(f, "leave {setting} of {topic} at {found} where {declared} is declared")
            }
        }?;
        self.note().map_or(Ok(()), |note| write!(f, ": {note}"))
    }
}

/// Whether a setting's new value has Kafka delete records that it would have kept. Negative is unlimited.
fn deletes(setting: &str, from: &str, to: &str) -> bool {
    let limit = |text: &str| text.parse::<i64>().ok().map(|limit| if limit < 0 { i64::MAX } else { limit });
    match setting {
        "retention.ms" | "retention.bytes" => limit(to) < limit(from),
        "cleanup.policy" => to.contains("delete") && !from.contains("delete"),
        _ => false,
    }
}

/// Compares declared topics with existing ones, in the order of declaration. Topics that nobody declared are
/// none of our business.
pub fn plan(declared: &[Topic], existing: &BTreeMap<String, Existing>) -> Vec<Change> {
    let mut changes = Vec::new();
    for topic in declared {
        match existing.get(&topic.name) {
            None => changes.push(Change::Create(topic.clone())),
            Some(found) => changes.extend(differences(topic, found)),
        }
    }
    changes
}

/// The replication to use where it is not what is declared: what was asked for, else 1 on a single broker,
/// where nothing else is possible. Otherwise too few brokers are an error, not a reason to keep fewer copies.
pub fn replication(asked: Option<i32>, brokers: usize) -> Option<i32> {
    asked.or((brokers == 1).then_some(1))
}

fn differences<'a>(topic: &'a Topic, found: &'a Existing) -> impl Iterator<Item = Change> + 'a {
    let drift = |setting: &str, found: &str, declared: &str, why| {
        let (topic, setting) = (topic.name.clone(), setting.to_owned());
        Change::Drift { topic, setting, found: found.to_owned(), declared: declared.to_owned(), why }
    };
    let (has, wants) = (found.partitions, topic.partitions);
    let partitions = match has.cmp(&wants) {
        Ordering::Equal => None,
        Ordering::Less if !topic.homes => Some(Change::Grow { topic: topic.name.clone(), from: has, to: wants }),
        Ordering::Less => Some(drift("partitions", &has.to_string(), &wants.to_string(), HOMES)),
        Ordering::Greater if topic.homes => Some(drift("partitions", &has.to_string(), &wants.to_string(), NOBODYS)),
        Ordering::Greater => Some(drift("partitions", &has.to_string(), &wants.to_string(), NEVER_FEWER)),
    };
    let replication = (found.replication != topic.replication)
        .then(|| drift("replication", &found.replication.to_string(), &topic.replication.to_string(), REASSIGN));
    let settings = topic.config.iter().filter_map(move |(setting, to)| match found.config.get(setting) {
        Some(from) if from == to => None,
        Some(from) => {
            let (topic, setting) = (topic.name.clone(), setting.clone());
            Some(Change::Set { topic, setting, from: from.clone(), to: to.clone() })
        }
        None => Some(drift(setting, "unknown to this Kafka", to, UNKNOWN)),
    });
    partitions.into_iter().chain(replication).chain(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> Topic {
        let config = BTreeMap::from([("retention.ms".to_owned(), "1000".to_owned())]);
        Topic { name: name.to_owned(), partitions: 6, replication: 1, homes: true, config }
    }

    fn as_declared(topic: &Topic) -> Existing {
        let mut config = topic.config.clone();
        config.insert("segment.bytes".to_owned(), "1073741824".to_owned()); // not declared, so of no interest
        Existing { partitions: topic.partitions, replication: topic.replication, led: true, config }
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

    fn lines(declared: Topic, found: Existing) -> Vec<String> {
        plan(&[declared], &BTreeMap::from([("a".to_owned(), found)])).iter().map(Change::to_string).collect()
    }

    #[test]
    fn settings_are_set_and_what_that_deletes_is_said() {
        let mut found = as_declared(&topic("a"));
        for (from, said) in [
            ("5", ""),
            ("5000", ": Kafka deletes what is above the new limit"),
            ("-1", ": Kafka deletes what is above the new limit"),
        ] {
            found.config.insert("retention.ms".to_owned(), from.to_owned());
            assert_eq!(lines(topic("a"), found.clone()), [format!("set retention.ms of a from {from} to 1000{said}")]);
        }
    }

    #[test]
    fn only_topics_without_homes_grow() {
        let with = |partitions| Existing { partitions, ..as_declared(&topic("a")) };
        let homeless = Topic { homes: false, ..topic("a") };
        assert_eq!(lines(homeless.clone(), with(3)), ["grow a from 3 to 6 partitions"]);
        for (declared, found) in [(topic("a"), 3), (topic("a"), 12), (homeless, 12)] {
            let lines = lines(declared, with(found));
            assert!(
                lines[0].starts_with(&format!("leave partitions of a at {found} where 6 is declared: ")),
                "{lines:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_mended_is_told() {
        let mut found = Existing { replication: 3, ..as_declared(&topic("a")) };
        found.config.remove("retention.ms");
        let changes = plan(&[topic("a")], &BTreeMap::from([("a".to_owned(), found)]));
        assert!(changes.len() == 2 && !changes.iter().any(Change::is_to_do), "{changes:?}");
    }
}

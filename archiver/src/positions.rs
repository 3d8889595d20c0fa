//! How far a table has got, as its properties say it. Pure.
//!
//! Every partition has a property of its own, so that archivers of different partitions of one table never
//! write over each other's.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use tidemill_common::kafka::Reached;
use tidemill_common::names::{events_topic, partition_number};

/// A partition's position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Kafka's id of the topic that `next` is an offset of.
    pub incarnation: String,
    /// The first offset that the table does not hold.
    pub next: i64,
    /// The newest append time before that, in milliseconds since 1970; 0 where it is not known.
    #[serde(default)]
    pub newest_ms: i64,
}

impl Position {
    /// That, as the log is asked about it.
    pub fn reached(&self) -> Reached {
        Reached { next: self.next, newest_ms: self.newest_ms }
    }
}

/// A property that should be a position and is not.
#[derive(Debug, thiserror::Error)]
#[error(
    "the table property {key} = {value:?} is no position; it must be like {{\"incarnation\":\"…\",\"next\":123,\"newest_ms\":1700000000000}}"
)]
pub struct BadPosition {
    key: String,
    value: String,
}

/// Positions by partition: of one topic by its own numbers, of all of a project's by their numbers there.
pub type Positions = BTreeMap<i32, Position>;

fn prefix(topic: &str) -> String {
    format!("kafka.offsets.{topic}.")
}

/// The properties that hold these positions.
pub fn write(topic: &str, positions: &Positions) -> Vec<(String, String)> {
    let text = |position| serde_json::to_string(position).expect("a string and a number are JSON");
    positions.iter().map(|(partition, position)| (format!("{}{partition}", prefix(topic)), text(position))).collect()
}

/// The positions in a table's properties.
pub fn read(properties: &HashMap<String, String>, topic: &str) -> Result<Positions, BadPosition> {
    let prefix = prefix(topic);
    let mut positions = Positions::new();
    for (key, value) in properties {
        let Some(partition) = key.strip_prefix(&prefix).and_then(|rest| rest.parse().ok()) else { continue };
        let bad = |_| BadPosition { key: key.clone(), value: value.clone() };
        positions.insert(partition, serde_json::from_str(value).map_err(bad)?);
    }
    Ok(positions)
}

/// The positions of all topics of a project's events in a table's properties.
pub fn read_all(properties: &HashMap<String, String>, project: &str) -> Result<Positions, BadPosition> {
    let own = events_topic(project);
    let prefix = prefix(&own);
    let routes =
        properties.keys().filter_map(|key| key.strip_prefix(&prefix)?.rsplit_once('.').map(|(route, _)| route));
    let routes: BTreeSet<String> = routes.map(|route| format!("{own}.{route}")).collect();
    let mut all = read(properties, &own)?;
    for topic in routes {
        let of_route = read(properties, &topic)?.into_iter();
        all.extend(of_route.map(|(partition, at)| (partition_number(&topic, partition), at)));
    }
    Ok(all)
}

/// Where a table stands between the positions that a commit starts from and those that it makes.
#[derive(Debug, PartialEq, Eq)]
pub enum Standing {
    /// At the start: the commit has not happened.
    Start,
    /// At the end: it has.
    Done,
    /// Somewhere else: another archiver of these partitions was faster.
    Passed,
}

/// Compares the table's positions `now` with the `start` and the `end` of a commit, in the partitions of `end`.
pub fn standing(start: &Positions, end: &Positions, now: &Positions) -> Standing {
    let at = |there: &Positions| end.keys().all(|partition| now.get(partition) == there.get(partition));
    if at(end) {
        Standing::Done
    } else if at(start) {
        Standing::Start
    } else {
        Standing::Passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(next: i64) -> Position {
        Position { incarnation: "now".to_owned(), next, newest_ms: 0 }
    }

    #[test]
    fn a_commit_is_judged_by_its_own_partitions() {
        let positions = |list: &[(i32, i64)]| list.iter().map(|&(p, next)| (p, at(next))).collect::<Positions>();
        let (start, end) = (positions(&[(0, 5), (2, 1)]), positions(&[(0, 9), (1, 3)]));
        assert_eq!(standing(&start, &end, &start), Standing::Start);
        assert_eq!(standing(&start, &end, &positions(&[(0, 9), (1, 3), (2, 8)])), Standing::Done);
        assert_eq!(standing(&start, &end, &positions(&[(0, 5), (2, 8)])), Standing::Start, "others move on");
        assert_eq!(standing(&start, &end, &positions(&[(0, 9)])), Standing::Passed);
        assert_eq!(standing(&start, &end, &positions(&[(0, 5), (1, 1)])), Standing::Passed);
        assert_eq!(standing(&start, &end, &positions(&[])), Standing::Passed);
    }

    #[test]
    fn a_broken_position_is_an_error_not_a_start_from_nothing() {
        let broken = HashMap::from([("kafka.offsets.events.shop.3".to_owned(), "12".to_owned())]);
        assert!(read(&broken, "events.shop").is_err());
        assert!(read(&broken, "events.shop-2").is_ok_and(|positions| positions.is_empty()));
    }

    #[test]
    fn a_projects_positions_are_those_of_all_its_topics() {
        let mut properties = HashMap::new();
        for (topic, next) in
            [("events.shop", 5), ("events.shop.1-clicks", 6), ("events.shop.2-taps", 7), ("events.shop-2", 8)]
        {
            properties.extend(write(topic, &Positions::from([(3, at(next))])));
        }
        let all = read_all(&properties, "shop").expect("positions");
        assert_eq!(all, Positions::from([(3, at(5)), (10_003, at(6)), (20_003, at(7))]));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            list in prop::collection::btree_map(0i32..200, ("[A-Za-z0-9_-]{22}", 0i64.., 0i64..), 0..20),
            others in prop::collection::hash_map("[a-z.]{1,20}", "[a-z]{0,5}", 0..5),
        ) {
            let position = |(incarnation, next, newest_ms)| Position { incarnation, next, newest_ms };
            let positions: Positions = list.into_iter().map(|(p, about)| (p, position(about))).collect();
            let mut properties = others;
            properties.extend(write("events.shop-1", &positions));
            properties.extend(write("events.shop", &Positions::from([(1, at(77))])));
            prop_assert_eq!(read(&properties, "events.shop-1").expect("positions"), positions);
        }
    }
}

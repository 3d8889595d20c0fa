//! How far a view is behind, by partition.

use std::collections::HashMap;
use std::fmt::Write;

use serde::Serialize;

use super::track::Track;
use crate::kafka::{End, TopicPartition};

/// Most partitions that `/metrics` tells of: of more, those that are most behind.
const MOST_SHOWN: usize = 1_000;

/// A partition, as a view stands in it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartitionLag {
    /// `stream` or `archiver`.
    pub view: &'static str,
    /// The topic.
    pub topic: std::sync::Arc<str>,
    /// The partition's number.
    pub partition: i32,
    /// The first offset that the view has not passed.
    pub offset: i64,
    /// The offset that the next record gets.
    pub end: i64,
    /// Records between the two.
    pub lag: i64,
    /// For how many seconds the first of them has stood in the log; none while that is not known.
    pub seconds: Option<f64>,
    /// Records a second that the view takes; none before the second look.
    pub rate: Option<f64>,
    /// Records a second that come.
    pub arriving: Option<f64>,
    /// How often the partition has changed its leader since the topic was made.
    pub leader_changes: Option<i32>,
}

impl PartitionLag {
    /// Where that is.
    pub fn at(&self) -> TopicPartition {
        TopicPartition { topic: self.topic.clone(), partition: self.partition }
    }
}

/// What is known of a view's partitions.
#[derive(Default)]
pub struct Lags(HashMap<TopicPartition, (Track, Option<i32>)>);

impl Lags {
    /// Notes where the view and the log stand at a time (milliseconds since 1970). Partitions that are not among the
    /// positions are forgotten.
    pub fn look(&mut self, now_ms: i64, positions: &HashMap<TopicPartition, i64>, ends: &HashMap<TopicPartition, End>) {
        self.0.retain(|at, _| positions.contains_key(at));
        for (at, &next) in positions {
            let Some(end) = ends.get(at) else { continue };
            let (track, leader_changes) = self.0.entry(at.clone()).or_default();
            track.look(now_ms, next, end.offset);
            *leader_changes = end.leader_changes;
        }
    }

    /// The positions whose append times the log has to tell ([`crate::kafka::History::append_times`]). Asking for them
    /// counts as done.
    pub fn questions(&mut self) -> Vec<(TopicPartition, i64)> {
        self.0.iter_mut().filter_map(|(at, (track, _))| Some((at.clone(), track.question()?))).collect()
    }

    /// What the log has told of positions.
    pub fn told(&mut self, asked: &[(TopicPartition, i64)], append_times: &HashMap<TopicPartition, i64>) {
        for (at, offset) in asked {
            if let (Some((track, _)), Some(ms)) = (self.0.get_mut(at), append_times.get(at)) {
                track.appended(*offset, *ms);
            }
        }
    }

    /// How all partitions stand, by name and number.
    pub fn rows(&self, view: &'static str) -> Vec<PartitionLag> {
        let row = |(at, (track, leader_changes)): (&TopicPartition, &(Track, Option<i32>))| {
            let (offset, end) = track.stands()?;
            let (rate, arriving) = track.rates().unzip();
            Some(PartitionLag {
                view,
                topic: at.topic.clone(),
                partition: at.partition,
                offset,
                end,
                lag: (end - offset).max(0),
                seconds: track.behind_ms().map(|ms| ms as f64 / 1_000.0),
                rate,
                arriving,
                leader_changes: *leader_changes,
            })
        };
        let mut rows: Vec<PartitionLag> = self.0.iter().filter_map(row).collect();
        rows.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        rows
    }
}

type Value = fn(&PartitionLag) -> Option<f64>;

/// A metric's name, its type and what it is, and its value.
const METRICS: [(&str, &str, Value); 7] = [
    ("offset", "gauge", |row| Some(row.offset as f64)),
    ("end_offset", "gauge", |row| Some(row.end as f64)),
    ("lag_records", "gauge", |row| Some(row.lag as f64)),
    ("lag_seconds", "gauge", |row| row.seconds),
    ("rate", "gauge", |row| row.rate),
    ("arriving", "gauge", |row| row.arriving),
    ("leader_changes_total", "counter", |row| row.leader_changes.map(f64::from)),
];

/// `tidemill_partition_*{view,topic,partition}` in Prometheus' text format. Written here and not recorded, since the
/// series go with their partitions.
pub fn exposition(rows: &[PartitionLag]) -> String {
    let mut rows: Vec<&PartitionLag> = rows.iter().collect();
    if rows.len() > MOST_SHOWN {
        rows.sort_by_key(|row| std::cmp::Reverse(row.lag));
        rows.truncate(MOST_SHOWN);
    }
    let mut text = String::new();
    if rows.is_empty() {
        return text;
    }
    for (name, kind, value) in METRICS {
        writeln!(text, "# TYPE tidemill_partition_{name} {kind}").expect("a String grows");
        for row in &rows {
            let Some(value) = value(row) else { continue };
            let PartitionLag { view, topic, partition, .. } = row;
            let labels = format!("view=\"{view}\",topic=\"{topic}\",partition=\"{partition}\"");
            writeln!(text, "tidemill_partition_{name}{{{labels}}} {value}").expect("a String grows");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(partition: i32) -> TopicPartition {
        TopicPartition { topic: "events.shop".into(), partition }
    }

    #[test]
    fn rows_come_and_go_with_their_partitions() {
        let mut lags = Lags::default();
        let end = |offset| End { offset, leader_changes: Some(2) };
        let ends = HashMap::from([(at(0), end(10)), (at(1), end(7))]);
        lags.look(0, &HashMap::from([(at(1), 7), (at(0), 4)]), &ends);
        let rows = lags.rows("stream");
        assert_eq!(rows.iter().map(|row| (row.partition, row.lag)).collect::<Vec<_>>(), [(0, 6), (1, 0)]);
        assert_eq!((rows[0].seconds, rows[1].seconds, rows[0].rate), (None, Some(0.0), None));
        let asked = lags.questions();
        assert_eq!(asked, [(at(0), 4)]);
        lags.told(&asked, &HashMap::from([(at(0), -30_000)]));
        assert_eq!(lags.rows("stream")[0].seconds, Some(30.0));
        lags.look(1_000, &HashMap::from([(at(0), 6)]), &ends);
        let rows = lags.rows("stream");
        assert_eq!((rows.len(), rows[0].rate, rows[0].arriving), (1, Some(2.0), Some(0.0)));
        let text = exposition(&rows);
        for line in ["offset{view=\"stream\",topic=\"events.shop\",partition=\"0\"} 6", "leader_changes_total{"] {
            assert!(text.contains(&format!("\ntidemill_partition_{line}")), "{text}");
        }
    }

    #[test]
    fn of_very_many_partitions_the_worst_are_shown() {
        let mut lags = Lags::default();
        let positions = (0..1_500).map(|partition| (at(partition), 0)).collect();
        let ends = (0..1_500).map(|p| (at(p), End { offset: i64::from(p), leader_changes: None })).collect();
        lags.look(0, &positions, &ends);
        let text = exposition(&lags.rows("stream"));
        assert_eq!(text.lines().filter(|line| line.starts_with("tidemill_partition_offset")).count(), MOST_SHOWN);
        assert!(text.contains("partition=\"1499\"") && !text.contains("partition=\"1\""));
    }
}

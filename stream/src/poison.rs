//! A bad deployment must not drain the log into the dead letters: when too large a share of what came lately in a
//! topic is refused, the worker is more likely to be wrong than all of the producers. Then the partitions with such
//! records stand still, nothing of them is counted or sent on, and health says so. They are judged again every few
//! seconds, so they go on by themselves once the records can be read.
//!
//! Per topic, since what one tenant sends must not stop another's. Pure.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use tidemill_common::kafka::TopicPartition;

/// Above which share of refused records a topic's partitions stop.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// From 0 to 1; 1 stops nothing.
    pub share: f64,
    /// Of at least so many records; fewer say nothing.
    pub records: usize,
}

/// How many records there were, and how many of them were refused.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    records: usize,
    refused: usize,
}

/// What came lately, topic by topic, and which partitions stand still.
pub struct Poison {
    limit: Limit,
    recent: HashMap<Arc<str>, VecDeque<Counts>>,
    stopped: BTreeMap<TopicPartition, String>,
}

impl Poison {
    /// Nothing has come yet.
    pub fn new(limit: Limit) -> Self {
        Self { limit, recent: HashMap::new(), stopped: BTreeMap::new() }
    }

    /// Whether so many refused among so many records of a partition may pass; then they count towards what came
    /// lately. `reason` is one of the refused, for people.
    pub fn admits(&mut self, at: &TopicPartition, records: usize, refused: usize, reason: &str) -> bool {
        let recent = self.recent.entry(Arc::clone(&at.topic)).or_default();
        let new = Counts { records, refused };
        let lately = lately(recent, new, self.limit.records);
        let share = lately.refused as f64 / lately.records.max(1) as f64;
        if refused > 0 && lately.records >= self.limit.records && share > self.limit.share {
            self.stopped.insert(at.clone(), self.problem(at, lately, reason));
            return false;
        }
        self.stopped.remove(at);
        recent.push_back(new);
        let mut kept: usize = recent.iter().map(|counts| counts.records).sum();
        while let Some(oldest) = recent.front().filter(|oldest| kept - oldest.records >= self.limit.records) {
            kept -= oldest.records;
            recent.pop_front();
        }
        true
    }

    /// What stands still, and what to do.
    pub fn state(&self) -> Result<(), String> {
        gauge_stopped(self.stopped.len());
        if self.stopped.is_empty() {
            return Ok(());
        }
        Err(self.stopped.values().cloned().collect::<Vec<_>>().join("; "))
    }

    /// Forgets what stands still in partitions that are not ours any more.
    pub fn retain(&mut self, ours: impl Fn(&TopicPartition) -> bool) {
        self.stopped.retain(|at, _| ours(at));
    }

    fn problem(&self, at: &TopicPartition, lately: Counts, reason: &str) -> String {
        format!(
            "{}/{}: {} of the last {} records would be dead letters (e.g. {reason}), more than the share of {} that \
             TIDEMILL_STREAM__POISON_SHARE allows. Nothing is lost and the partition waits. If this worker or the \
             registry is wrong, correct it; if the records are, start it with TIDEMILL_STREAM__POISON_SHARE=1 until \
             they have passed",
            at.topic, at.partition, lately.refused, lately.records, self.limit.share
        )
    }
}

/// The newest records, as many as say something, if there are so many.
fn lately(recent: &VecDeque<Counts>, new: Counts, least: usize) -> Counts {
    let mut sum = new;
    for counts in recent.iter().rev() {
        if sum.records >= least {
            break;
        }
        sum.records += counts.records;
        sum.refused += counts.refused;
    }
    sum
}

fn gauge_stopped(partitions: usize) {
    metrics::gauge!("tidemill_stream_poisoned_partitions").set(partitions as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(topic: &str, partition: i32) -> TopicPartition {
        TopicPartition { topic: topic.into(), partition }
    }

    fn poison() -> Poison {
        Poison::new(Limit { share: 0.5, records: 1_000 })
    }

    #[test]
    fn a_few_bad_records_say_nothing() {
        let mut poison = poison();
        assert!(poison.admits(&at("a", 0), 999, 999, "bad"));
        assert!(!poison.admits(&at("a", 0), 1, 1, "bad"), "but a thousand do");
    }

    #[test]
    fn what_is_mostly_bad_stops_its_partitions_and_no_others() {
        let mut poison = poison();
        assert!(poison.admits(&at("a", 0), 5_000, 0, ""));
        assert!(poison.admits(&at("a", 0), 5_000, 2_500, "bad"), "half of it is not more than half");
        assert!(!poison.admits(&at("a", 0), 1_000, 501, "bad"));
        assert!(poison.admits(&at("a", 1), 1_000, 0, ""), "a good partition goes on");
        assert!(poison.admits(&at("b", 0), 1_000, 10, "bad"), "so does another topic");
        let problem = poison.state().expect_err("a/0 stands");
        assert!(problem.starts_with("a/0: 501 of the last 1000 records"), "{problem}");
        assert!(poison.admits(&at("a", 0), 1_000, 3, "bad"), "it can be read now");
        assert!(poison.state().is_ok());
    }

    #[test]
    fn small_batches_add_up_and_old_ones_are_forgotten() {
        let mut poison = poison();
        assert!(poison.admits(&at("a", 0), 1_000, 0, ""));
        let admitted = (0..100).take_while(|_| poison.admits(&at("a", 0), 20, 20, "bad")).count();
        assert_eq!(admitted, 49, "the 50th batch would take the share above a half");
        poison.retain(|_| false);
        assert!(poison.state().is_ok(), "another worker's problem");
    }

    #[test]
    fn a_share_of_one_stops_nothing() {
        let mut poison = Poison::new(Limit { share: 1.0, records: 10 });
        assert!((0..10).all(|_| poison.admits(&at("a", 0), 100, 100, "bad")));
    }
}

//! Which partitions are ours, and where they stand.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use tidemill_common::kafka::{Reached, TopicPartition};

use crate::ledger::{Advance, Place};
use crate::live::{Live, Parked};
use crate::timeline::Timeline;

/// The partitions that Kafka gave to this worker.
#[derive(Default)]
pub struct State {
    /// Those that are counted.
    pub live: HashMap<TopicPartition, Live>,
    /// Ours, but not live: new, of an unknown project, or to be read from the ledger anew.
    pub waiting: BTreeSet<TopicPartition>,
    /// Where those stood that were live before, by the ledger.
    stood: HashMap<TopicPartition, i64>,
    /// The seen stores of partitions that are not live.
    pub parked: Parked,
    /// What is known of the ledger.
    pub timeline: Timeline,
    /// When it is time to make waiting partitions live; none: now.
    pub retry_at: Option<Instant>,
}

impl State {
    /// These steps are in the ledger now.
    pub fn advance(&mut self, steps: &[Advance]) {
        let by_place: HashMap<&Place, Reached> = steps.iter().map(|step| (&step.place, step.reached())).collect();
        for live in self.live.values_mut() {
            if let Some(&reached) = by_place.get(&live.place) {
                live.next = reached.next;
                live.seen.advance(reached);
            }
        }
    }

    /// Lets what was seen do what time brings.
    pub fn tick(&mut self) {
        let now = chrono::Utc::now().timestamp_millis();
        let parked = self.parked.values_mut().map(|(_, seen)| seen);
        self.live.values_mut().map(|live| &mut live.seen).chain(parked).for_each(|seen| seen.tick(now));
    }

    /// The ends of what is counted.
    pub fn positions(&self) -> Vec<(TopicPartition, i64)> {
        self.live.iter().map(|(at, live)| (at.clone(), live.next)).collect()
    }

    /// Where partitions stand, or stood when they were last counted: one that waits is as far behind as it was.
    pub fn standing(&self) -> impl Iterator<Item = (TopicPartition, i64)> {
        let waiting = self.stood.iter().filter(|(at, _)| self.waiting.contains(*at));
        let live = self.live.iter().map(|(at, live)| (at, &live.next));
        waiting.chain(live).map(|(at, next)| (at.clone(), *next))
    }

    /// New partitions; what went to other workers is theirs to know.
    pub fn assigned(&mut self, partitions: Vec<TopicPartition>) {
        self.parked.retain(|at, _| partitions.contains(at));
        self.stood.retain(|at, _| partitions.contains(at));
        self.waiting.extend(partitions);
        self.retry_at = None;
    }

    /// Partitions that are ours no more.
    pub fn revoked(&mut self, partitions: &[TopicPartition]) {
        for at in partitions {
            self.waiting.remove(at);
            self.park(at);
        }
    }

    /// These partitions go on from the ledger, at `retry_at`.
    pub fn retry(&mut self, partitions: &[TopicPartition], retry_at: Instant) {
        for at in partitions {
            if self.park(at) {
                self.waiting.insert(at.clone());
                self.retry_at = Some(retry_at);
            }
        }
    }

    /// Every live partition goes on from the ledger, at once; what was fetched is dropped.
    pub fn reset(&mut self) {
        let live: Vec<TopicPartition> = self.live.keys().cloned().collect();
        for at in live {
            self.park(&at);
            self.waiting.insert(at);
        }
        self.retry_at = None;
    }

    /// Keeps the store of a partition; says whether it was live.
    fn park(&mut self, at: &TopicPartition) -> bool {
        let Some(live) = self.live.remove(at) else { return false };
        self.timeline.reached(&live.place, live.next);
        self.stood.insert(at.clone(), live.next);
        self.parked.insert(at.clone(), (live.place.incarnation, live.seen));
        true
    }
}

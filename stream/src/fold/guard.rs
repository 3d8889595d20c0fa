//! The guard against runaway dimensions: a property with a new value in every event must not fill the database.
//!
//! Of the values that a dimension has on a day, those with the lowest hashes are kept, as many as declared; the
//! others are counted under `__other__`. A worker knows only the values it has met itself, so the ones it keeps
//! are all that belong to the lowest of the whole day and maybe some more. What it turns away cannot be among
//! them: it knows enough lower ones. So every worker, in any order of arrival and after any restart, counts the
//! same values completely; readers work out which these are from what is stored, and add what is stored of the
//! rest to `__other__`. Workers need not agree on anything, and forgetting is always safe.

use std::collections::{BTreeSet, HashMap};

/// Hashes that are remembered, over all dimensions and days.
const REMEMBERED: usize = 2_000_000;

/// Which values of the dimensions are kept.
#[derive(Debug, Default)]
pub struct Guard {
    kept: HashMap<Scope, Lowest>,
    remembered: usize,
}

/// A dimension of a metric on a day.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scope {
    /// The generation that is counted.
    pub generation: i32,
    /// The project.
    pub project: String,
    /// The metric.
    pub metric: String,
    /// Its dimension.
    pub dimension: String,
    /// The day's start, in seconds since 1970.
    pub day: i64,
}

#[derive(Debug, Default)]
struct Lowest {
    hashes: BTreeSet<u64>,
    warned: bool,
}

impl Guard {
    /// Whether a value is kept, when `most` are.
    pub fn admits(&mut self, scope: Scope, value: &str, most: usize) -> bool {
        if self.remembered >= REMEMBERED {
            (self.kept, self.remembered) = Default::default();
        }
        let kept = self.kept.entry(scope.clone()).or_default();
        let (hash, before) = (hash(value), kept.hashes.len());
        let admitted = kept.admit(hash, most);
        self.remembered += kept.hashes.len() - before;
        if !admitted && !std::mem::replace(&mut kept.warned, true) {
            let Scope { project, metric, dimension, .. } = &scope;
            tracing::warn!(
                project,
                metric,
                dimension,
                most,
                day = scope.day,
                "a dimension has more values than are told apart in a day; the rest counts under __other__. Is its \
                 property meant to have a value of its own in every event? Then count them with aggregation unique, \
                 and take it out of the dimensions"
            );
        }
        if !admitted {
            metrics::counter!("tidemill_stream_dimension_values_over_limit_total", "project" => scope.project)
                .increment(1);
        }
        admitted
    }
}

impl Lowest {
    fn admit(&mut self, hash: u64, most: usize) -> bool {
        if self.hashes.contains(&hash) {
            return true;
        }
        if self.hashes.len() < most {
            return self.hashes.insert(hash);
        }
        if self.hashes.last().is_none_or(|highest| hash > *highest) {
            return false;
        }
        self.hashes.pop_last();
        self.hashes.insert(hash)
    }
}

/// Of the values stored for a day, the highest hash of those that are complete; none when all of them are.
pub fn limit<'a>(values: impl Iterator<Item = &'a str>, most: usize) -> Option<u64> {
    let mut lowest = Lowest::default();
    let all = values.fold(true, |all, value| {
        let full = lowest.hashes.len() == most;
        lowest.admit(hash(value), most) && !full && all
    });
    if all { None } else { lowest.hashes.last().copied() }
}

/// Whether a value is complete under a [`limit`].
pub fn is_complete(value: &str, limit: Option<u64>) -> bool {
    limit.is_none_or(|limit| hash(value) <= limit)
}

/// FNV-1a, with the bits mixed once more. Stored state depends on it: it must never change.
fn hash(value: &str) -> u64 {
    let fnv = value
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3_u64));
    let mixed = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn scope() -> Scope {
        Scope { generation: 0, project: "p".into(), metric: "m".into(), dimension: "d".into(), day: 0 }
    }

    /// What is stored of each value after these events, each counted by one of some workers.
    fn stored(events: &[(u16, usize)], most: usize) -> BTreeMap<Option<String>, i64> {
        let mut workers: Vec<Guard> = (0..4).map(|_| Guard::default()).collect();
        let mut counts = BTreeMap::new();
        for (value, worker) in events {
            let value = value.to_string();
            let admitted = workers[*worker].admits(scope(), &value, most);
            *counts.entry(admitted.then_some(value)).or_default() += 1;
        }
        counts
    }

    /// What a reader makes of it.
    fn read(stored: BTreeMap<Option<String>, i64>, most: usize) -> BTreeMap<Option<String>, i64> {
        let limit = limit(stored.keys().flatten().map(String::as_str), most);
        let mut counts = BTreeMap::new();
        for (value, count) in stored {
            let value = value.filter(|value| is_complete(value, limit));
            *counts.entry(value).or_default() += count;
        }
        counts
    }

    #[test]
    fn below_the_limit_all_are_kept() {
        let mut guard = Guard::default();
        assert!((0..100).all(|i| guard.admits(scope(), &i.to_string(), 100)));
        assert!((100..10_000).filter(|i| guard.admits(scope(), &i.to_string(), 100)).count() < 1_000);
        assert_eq!(guard.kept[&scope()].hashes.len(), 100);
        assert!(guard.admits(Scope { day: 86_400, ..scope() }, "101", 100), "a new day");
    }

    proptest! {
        /// Whatever worker counts what, in whatever order: a reader finds the same, the values that are told apart
        /// are complete, and nothing is lost.
        #[test]
        fn the_order_and_the_workers_do_not_matter(
            events in prop::collection::vec((0u16..60, 0usize..4), 1..200),
            most in 1usize..20,
        ) {
            let found = read(stored(&events, most), most);
            let mut otherwise = events.clone();
            otherwise.reverse();
            otherwise.iter_mut().for_each(|(_, worker)| *worker = 0);
            prop_assert_eq!(&read(stored(&otherwise, most), most), &found);
            prop_assert_eq!(found.values().sum::<i64>(), events.len() as i64);
            for (value, count) in found.iter().filter_map(|(value, count)| Some((value.as_ref()?, count))) {
                let exact = events.iter().filter(|(event, _)| event.to_string() == *value).count();
                prop_assert_eq!(*count, exact as i64, "{} is complete", value);
            }
            let different = events.iter().map(|(value, _)| value).collect::<std::collections::HashSet<_>>().len();
            prop_assert_eq!(found.keys().flatten().count(), different.min(most));
        }
    }
}

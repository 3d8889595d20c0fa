//! Which partitions are hot: far more behind than the others of their topic, for long. Pure: time is handed in.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tidemill_common::kafka::TopicPartition;

/// What counts as hot.
#[derive(Debug, Clone, Copy)]
pub struct Threshold {
    /// More behind than so many times the average of the topic,
    pub factor: f64,
    /// by at least so many records,
    pub records: i64,
    /// for this long. It is over when it was less for a fifth of that.
    pub after: Duration,
}

/// How a partition stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// Records that it is behind.
    pub lag: i64,
    /// The average of all partitions of its topic.
    pub average: f64,
}

/// A partition that is hot.
#[derive(Debug, Clone, PartialEq)]
pub struct Hot {
    /// Which.
    pub at: TopicPartition,
    /// From when on it has been so far behind.
    pub since: Instant,
    /// How it stands.
    pub standing: Standing,
}

/// What has changed since the last look.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// These are hot now.
    pub began: Vec<Hot>,
    /// These are not any more.
    pub ended: Vec<Hot>,
}

/// What was seen of partitions that are far behind.
pub struct Detector {
    threshold: Threshold,
    suspects: HashMap<TopicPartition, Suspect>,
}

struct Suspect {
    since: Instant,
    standing: Standing,
    /// From when on it has been less, if it is.
    calm: Option<Instant>,
    hot: bool,
}

impl Threshold {
    /// Whether a partition is far behind.
    pub fn exceeded(&self, standing: Standing) -> bool {
        standing.lag >= self.records && standing.lag as f64 > self.factor * standing.average
    }

    fn calm(&self) -> Duration {
        self.after / 5
    }
}

impl Detector {
    /// A detector that has seen nothing.
    pub fn new(threshold: Threshold) -> Self {
        Self { threshold, suspects: HashMap::new() }
    }

    /// Looks at partitions. Those that are not among them are somebody else's by now, and forgotten.
    pub fn look(&mut self, partitions: &HashMap<TopicPartition, Standing>, now: Instant) -> Changes {
        let mut changes = Changes::default();
        self.suspects.retain(|at, _| partitions.contains_key(at));
        for (at, &standing) in partitions {
            self.note(at, standing, now);
            let Some(suspect) = self.suspects.get_mut(at) else { continue };
            let calm_for = suspect.calm.map(|calm| now.saturating_duration_since(calm));
            if suspect.hot && calm_for.is_some_and(|calm| calm >= self.threshold.calm()) {
                changes.ended.push(Hot { at: at.clone(), since: suspect.since, standing });
                self.suspects.remove(at);
            } else if !suspect.hot && now.saturating_duration_since(suspect.since) >= self.threshold.after {
                suspect.hot = true;
                changes.began.push(Hot { at: at.clone(), since: suspect.since, standing });
            }
        }
        changes
    }

    /// The partitions that are hot.
    pub fn hot(&self) -> impl Iterator<Item = Hot> {
        let hot = self.suspects.iter().filter(|(_, suspect)| suspect.hot);
        hot.map(|(at, suspect)| Hot { at: at.clone(), since: suspect.since, standing: suspect.standing })
    }

    /// Whether somebody has an eye on this partition.
    pub fn suspects(&self, at: &TopicPartition) -> bool {
        self.suspects.contains_key(at)
    }

    /// Before a partition is hot, one look at which it is not far behind clears it.
    fn note(&mut self, at: &TopicPartition, standing: Standing, now: Instant) {
        let exceeded = self.threshold.exceeded(standing);
        match self.suspects.get_mut(at) {
            Some(suspect) if suspect.hot || exceeded => {
                suspect.standing = standing;
                suspect.calm = if exceeded { None } else { suspect.calm.or(Some(now)) };
            }
            Some(_) => drop(self.suspects.remove(at)),
            None if exceeded => {
                self.suspects.insert(at.clone(), Suspect { since: now, standing, calm: None, hot: false });
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const THRESHOLD: Threshold = Threshold { factor: 2.0, records: 100, after: Duration::from_secs(300) };

    fn at(partition: i32) -> TopicPartition {
        TopicPartition { topic: "events.shop".into(), partition }
    }

    /// Each partition with the average of all.
    fn standings(lags: &[i64]) -> HashMap<TopicPartition, Standing> {
        let average = lags.iter().sum::<i64>() as f64 / lags.len() as f64;
        (0..).zip(lags).map(|(partition, &lag)| (at(partition), Standing { lag, average })).collect()
    }

    struct Watched(Detector, Instant);

    impl Watched {
        fn new() -> Self {
            Self(Detector::new(THRESHOLD), Instant::now())
        }

        /// Partitions that began and ended to be hot.
        fn look(&mut self, second: u64, lags: &[i64]) -> (Vec<i32>, Vec<i32>) {
            let changes = self.0.look(&standings(lags), self.1 + Duration::from_secs(second));
            let numbers = |hot: Vec<Hot>| hot.iter().map(|hot| hot.at.partition).collect();
            (numbers(changes.began), numbers(changes.ended))
        }
    }

    const NOTHING: (Vec<i32>, Vec<i32>) = (vec![], vec![]);

    #[test]
    fn a_partition_that_stays_far_behind_is_hot_once() {
        let mut watched = Watched::new();
        let (hot, fine) = ([10, 900, 20, 30], [10, 20, 20, 30]);
        assert_eq!(watched.look(0, &hot), NOTHING);
        assert_eq!(watched.look(299, &hot), NOTHING);
        assert_eq!(watched.look(300, &hot), (vec![1], vec![]));
        assert_eq!(watched.look(305, &hot), NOTHING);
        assert_eq!(watched.0.hot().map(|hot| hot.since).collect::<Vec<_>>(), [watched.1]);
        assert_eq!(watched.look(400, &fine), NOTHING, "it may come back");
        assert_eq!(watched.look(459, &fine), NOTHING);
        assert_eq!(watched.look(460, &fine), (vec![], vec![1]));
        assert_eq!(watched.0.hot().count(), 0);
    }

    #[test]
    fn a_dip_begins_the_time_anew_and_ends_nothing() {
        let mut watched = Watched::new();
        let (hot, fine) = ([10, 900, 20, 30], [10, 20, 20, 30]);
        watched.look(0, &hot);
        watched.look(200, &fine);
        watched.look(205, &hot);
        assert_eq!(watched.look(504, &hot), NOTHING);
        assert_eq!(watched.look(505, &hot), (vec![1], vec![]));
        watched.look(510, &fine);
        watched.look(560, &hot);
        assert_eq!(watched.look(600, &fine), NOTHING, "the calm begins anew, too");
    }

    #[test]
    fn small_lags_and_lags_of_all_are_not_hot() {
        let mut watched = Watched::new();
        for second in (0..1_000).step_by(5) {
            assert_eq!(watched.look(second, &[0, 99, 0, 0]), NOTHING, "a few records are nothing");
        }
        for second in (1_000..2_000).step_by(5) {
            assert_eq!(watched.look(second, &[50_000, 60_000, 40_000, 55_000]), NOTHING, "all are behind");
        }
    }

    #[test]
    fn a_partition_that_went_elsewhere_is_forgotten() {
        let mut watched = Watched::new();
        watched.look(0, &[10, 900, 20, 30]);
        watched.look(100, &[10]);
        assert_eq!(watched.look(300, &[10, 900, 20, 30]), NOTHING);
    }

    proptest! {
        /// A look each minute: six in a row far behind make a partition hot, two that are not end it.
        #[test]
        fn only_what_lasts_begins_and_ends(spells in prop::collection::vec((any::<bool>(), 1usize..9), 1..40)) {
            let (mut watched, mut hot, mut far, mut calm) = (Watched::new(), false, 0, 0);
            let looks = spells.iter().flat_map(|&(loud, looks)| std::iter::repeat_n(loud, looks));
            for (minute, loud) in (0u64..).zip(looks) {
                let changes = watched.look(minute * 60, if loud { &[10, 900, 20, 30] } else { &[10, 20, 20, 30] });
                (far, calm) = if loud { (far + 1, 0) } else { (0, calm + 1) };
                let expected = match hot {
                    false if far == 6 => (vec![1], vec![]),
                    true if calm == 2 => (vec![], vec![1]),
                    _ => NOTHING,
                };
                hot = if expected == NOTHING { hot } else { !hot };
                prop_assert_eq!(changes, expected, "in minute {}", minute);
            }
        }
    }
}

//! Where a view's position and the log do not meet: what a person has to decide about.

use std::collections::HashMap;
use std::fmt;

use rdkafka::error::KafkaResult;

use super::{History, TopicPartition};

/// How far a view has got in a partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reached {
    /// The first offset that it has not read.
    pub next: i64,
    /// The newest append time before that, in milliseconds since 1970; 0 where it is not known.
    pub newest_ms: i64,
}

/// Where the log and a position in it do not meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// Records `from..to` were deleted before they were read.
    Deleted {
        /// Where the view is.
        from: i64,
        /// Where the log begins.
        to: i64,
    },
    /// Records `from..to` were read, but the log does not have them any more, or others in their place.
    Cut {
        /// Where the log ends, or what came after its end was lost begins.
        from: i64,
        /// Where the view is.
        to: i64,
    },
}

impl Gap {
    /// Between what was read and a log that has `low..high`. `later` is its first record that was appended after all
    /// that was read: behind the position, as long as the log is the one that was read. So a log that has lost its end is
    /// known even when it has grown past the position since.
    fn between(reached: Reached, (low, high): (i64, i64), later: Option<i64>) -> Option<Self> {
        let to = reached.next;
        if to < low {
            return Some(Self::Deleted { from: to, to: low });
        }
        let end = later.unwrap_or(high).min(high);
        (end < to).then_some(Self::Cut { from: end, to })
    }

    /// Where a view goes on that leaves it at that.
    pub fn behind(self) -> i64 {
        match self {
            Self::Deleted { to, .. } => to,
            Self::Cut { from, .. } => from,
        }
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let records = |from: i64, to: i64| format!("offsets {from} to {} ({} records)", to - 1, to - from);
        match *self {
            Self::Deleted { from, to } => {
                let which = records(from, to);
                write!(
                    f,
                    "the log begins at offset {to}: {which} were deleted before they were read. Raise the topic's retention"
                )
            }
            Self::Cut { from, to } => {
                let which = records(from, to);
                write!(
                    f,
                    "the log has lost its end: {which} were read and are gone. They stay in what was made of them, but \
                     what is written at their offsets would be taken for read, too. Restore the topic if that can be"
                )
            }
        }
    }
}

impl History {
    /// Where to read each partition from: where the view is, or at the log's beginning where it has not been. Absent
    /// where there is no such partition.
    pub fn starts(
        &self,
        partitions: &[(TopicPartition, Option<Reached>)],
    ) -> KafkaResult<HashMap<TopicPartition, Result<i64, Gap>>> {
        let ats: Vec<TopicPartition> = partitions.iter().map(|(at, _)| at.clone()).collect();
        let bounds = self.bounds(&ats)?;
        let time = |(at, reached): &(TopicPartition, Option<Reached>)| {
            let newest_ms = reached.map(|reached| reached.newest_ms).filter(|ms| *ms > 0)?;
            bounds.contains_key(at).then(|| (at.clone(), newest_ms + 1))
        };
        let times: Vec<_> = partitions.iter().filter_map(time).collect();
        let later = if times.is_empty() { HashMap::new() } else { self.offsets_at(&times)? };
        let start = |(at, reached): &(TopicPartition, Option<Reached>)| {
            let bounds = *bounds.get(at)?;
            let gap = reached.and_then(|reached| Gap::between(reached, bounds, later.get(at).copied()));
            let start = gap.map_or_else(|| Ok(reached.map_or(bounds.0, |reached| reached.next)), Err);
            Some((at.clone(), start))
        };
        Ok(partitions.iter().filter_map(start).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_where_the_log_and_what_was_read_do_not_meet() {
        let between = |next, bounds, later| Gap::between(Reached { next, newest_ms: 1 }, bounds, later);
        assert_eq!(between(5, (0, 10), None), None);
        assert_eq!(between(5, (0, 10), Some(5)), None);
        assert_eq!(between(5, (0, 10), Some(7)), None, "others of the same millisecond come first");
        assert_eq!(between(5, (5, 5), None), None, "all is read and deleted");
        assert_eq!(between(0, (0, 0), None), None);
        let deleted = between(5, (8, 10), Some(8)).expect("a gap");
        assert_eq!((deleted, deleted.behind()), (Gap::Deleted { from: 5, to: 8 }, 8));
        assert!(deleted.to_string().contains("offsets 5 to 7 (3 records) were deleted"), "{deleted}");
        let cut = between(12, (8, 10), None).expect("a gap");
        assert_eq!((cut, cut.behind()), (Gap::Cut { from: 10, to: 12 }, 10));
        assert!(cut.to_string().contains("lost its end: offsets 10 to 11 (2 records)"), "{cut}");
        assert_eq!(between(12, (8, 11), Some(10)), Some(Gap::Cut { from: 10, to: 12 }), "it grows again");
        assert_eq!(between(12, (8, 40), Some(10)), Some(Gap::Cut { from: 10, to: 12 }), "it is longer than it was");
    }
}

//! What waits for the next commit of a table. Pure: time is handed in.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tidemill_common::event::EventRef;
use tidemill_common::kafka::Reached;
use tidemill_common::names::ROUTE;
use tidemill_common::origin::Origin;

use crate::rows::Rows;

/// When a table is to be committed to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// This long after its first record,
    pub interval: Duration,
    /// with this many rows since the last commit,
    pub rows: usize,
    /// or with rows of this many days: each is a file to write, and senders choose their days.
    pub days: usize,
}

/// The day that an event occurred on, since 1970; `timestamp` is in microseconds.
pub fn day_of(timestamp: i64) -> i64 {
    timestamp.div_euclid(86_400_000_000)
}

/// Rows of one topic by day, and how far they bring each of its partitions. Records that leave no row bring it on too, so
/// that a stretch of copies is not read again for ever.
#[derive(Debug, Default)]
pub struct Buffer {
    days: BTreeMap<i64, Rows>,
    bytes: usize,
    /// Since the last commit, with those that were taken out since.
    rows: usize,
    moved: BTreeMap<i32, Reached>,
    since: Option<Instant>,
}

impl Buffer {
    /// Adds a row; `datum` is the event's bytes in the envelope's layout.
    pub fn add(&mut self, event: &EventRef<'_>, datum: &[u8], at: Origin, now: Instant) {
        self.pass(at, now);
        let rows = self.days.entry(day_of(event.timestamp)).or_default();
        let before = rows.bytes();
        rows.add(event, datum, at);
        self.bytes += rows.bytes() - before;
        self.rows += 1;
    }

    /// Goes past a record that leaves no row.
    pub fn pass(&mut self, at: Origin, now: Instant) {
        let reached = self.moved.entry(at.partition % ROUTE).or_default();
        reached.next = at.offset + 1;
        // Clocks of brokers differ, so the last one need not be the newest.
        reached.newest_ms = reached.newest_ms.max(at.append_ms);
        self.since.get_or_insert(now);
    }

    /// Whether it is time to commit.
    pub fn due(&self, limits: &Limits, now: Instant) -> bool {
        let old = self.since.is_some_and(|since| now.duration_since(since) >= limits.interval);
        old || self.rows >= limits.rows || self.days.len() >= limits.days
    }

    /// The day with the most bytes, and how many.
    pub fn largest(&self) -> Option<(i64, usize)> {
        self.days.iter().map(|(&day, rows)| (day, rows.bytes())).max_by_key(|(_, bytes)| *bytes)
    }

    /// Takes a day's rows out. They are part of the next commit all the same.
    pub fn take_day(&mut self, day: i64) -> Rows {
        let rows = self.days.remove(&day).unwrap_or_default();
        self.bytes -= rows.bytes();
        rows
    }

    /// Takes everything out: what is left of the rows, and how far each partition has got that has moved. What
    /// comes now is part of the commit after that.
    pub fn take(&mut self) -> (BTreeMap<i64, Rows>, BTreeMap<i32, Reached>) {
        let taken = std::mem::take(self);
        (taken.days, taken.moved)
    }

    /// How far each partition has got that has moved since the last commit.
    pub fn moved(&self) -> &BTreeMap<i32, Reached> {
        &self.moved
    }

    /// How many bytes its rows take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many rows there are since the last commit.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Whether nothing has moved.
    pub fn is_empty(&self) -> bool {
        self.moved.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tidemill_common::codec::datum;
    use tidemill_common::event::Event;

    const LIMITS: Limits = Limits { interval: Duration::from_secs(60), rows: 3, days: 2 };
    const SECOND: i64 = 1_000_000;

    fn at(partition: i32, offset: i64) -> Origin {
        Origin { partition, offset, append_ms: 1_000 - offset }
    }

    fn add(buffer: &mut Buffer, partition: i32, offset: i64, timestamp: i64, now: Instant) {
        let event = Event::new(format!("{partition}-{offset}"), "t", timestamp);
        let mut bytes = Vec::new();
        datum::write(&event.as_ref(), &mut bytes);
        buffer.add(&event.as_ref(), &bytes, at(partition, offset), now);
    }

    #[test]
    fn the_first_record_sets_the_clock_even_when_it_leaves_no_row() {
        let (mut buffer, start) = (Buffer::default(), Instant::now());
        assert!(!buffer.due(&LIMITS, start + Duration::from_secs(9_999)), "nothing moved, nothing to commit");
        buffer.pass(at(0, 4), start);
        add(&mut buffer, 1, 7, 0, start + Duration::from_secs(59));
        assert!(!buffer.due(&LIMITS, start + Duration::from_secs(59)));
        assert!(buffer.due(&LIMITS, start + Duration::from_secs(60)));
        let (days, moved) = buffer.take();
        let reached = |next, newest_ms| Reached { next, newest_ms };
        assert_eq!((days.len(), moved), (1, BTreeMap::from([(0, reached(5, 996)), (1, reached(8, 993))])));
        assert!(buffer.is_empty() && !buffer.due(&LIMITS, start + Duration::from_secs(9_999)));
    }

    #[test]
    fn rows_and_days_have_limits() {
        let (mut rows, now) = (Buffer::default(), Instant::now());
        (0..2).for_each(|offset| add(&mut rows, 0, offset, 0, now));
        assert_eq!(rows.take_day(0).len(), 2);
        assert!(rows.bytes() == 0 && !rows.due(&LIMITS, now));
        add(&mut rows, 0, 2, 0, now);
        assert!(rows.due(&LIMITS, now), "rows that were taken out count");
        let mut days = Buffer::default();
        for (offset, second, due) in [(0, 0, false), (1, 86_399, false), (2, -1, true)] {
            add(&mut days, 0, offset, second * SECOND, now);
            assert_eq!(days.due(&Limits { rows: 9, ..LIMITS }, now), due);
        }
        assert_eq!(days.largest().map(|(day, _)| day), Some(0));
    }

    proptest! {
        /// A commit's positions are exactly behind what its rows and the passed records cover.
        #[test]
        fn positions_are_behind_the_last_record(
            records in prop::collection::vec((0i32..4, any::<bool>(), 0i64..3, any::<bool>()), 0..60),
        ) {
            let (mut buffer, now, mut next, mut taken) = (Buffer::default(), Instant::now(), [0i64; 4], 0);
            for (partition, first, day, take) in &records {
                let offset = next[*partition as usize];
                next[*partition as usize] += 1;
                if *first {
                    add(&mut buffer, *partition, offset, day * 86_400 * SECOND, now);
                } else {
                    buffer.pass(at(*partition, offset), now);
                }
                if *take {
                    taken += buffer.take_day(*day).len();
                }
            }
            prop_assert_eq!(buffer.rows(), records.iter().filter(|(_, first, ..)| *first).count());
            prop_assert_eq!(buffer.is_empty(), records.is_empty());
            let bytes = buffer.bytes();
            let (days, moved) = buffer.take();
            prop_assert_eq!(bytes, days.values().map(Rows::bytes).sum::<usize>());
            prop_assert_eq!(taken + days.values().map(Rows::len).sum::<usize>(), records.iter().filter(|r| r.1).count());
            let reached = |next| Reached { next, newest_ms: 1_000 };
            let moving = (0..4).zip(next).filter(|(_, next)| *next > 0);
            let expected: BTreeMap<i32, Reached> = moving.map(|(partition, next)| (partition, reached(next))).collect();
            prop_assert_eq!(moved, expected);
        }
    }
}

//! What waits for the next commit of a table. Pure: time is handed in.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use tidemill_common::event::Event;

/// A first sight: a row of the table.
#[derive(Debug, Clone)]
pub struct Row {
    /// The event.
    pub event: Event,
    /// The partition that its record stands in.
    pub partition: i32,
    /// The record's offset.
    pub offset: i64,
    /// When the broker appended it, in milliseconds since 1970.
    pub append_ms: i64,
}

impl Row {
    /// The day that the event occurred on, since 1970.
    pub fn day(&self) -> i64 {
        self.event.timestamp.div_euclid(86_400_000_000)
    }
}

/// When a buffer is to be committed.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// This long after its first record,
    pub interval: Duration,
    /// with this many rows,
    pub rows: usize,
    /// with this many bytes,
    pub bytes: usize,
    /// or with rows of this many days: each is a file to write, and senders choose their days.
    pub days: usize,
}

/// Rows, and how far they bring each partition. Records that leave no row bring it on too, so that a stretch
/// of copies is not read again for ever.
#[derive(Debug, Default)]
pub struct Buffer {
    rows: Vec<Row>,
    bytes: usize,
    days: HashSet<i64>,
    moved: BTreeMap<i32, i64>,
    since: Option<Instant>,
}

impl Buffer {
    /// Adds a row whose record has `bytes` bytes.
    pub fn add(&mut self, row: Row, bytes: usize, now: Instant) {
        self.pass(row.partition, row.offset, now);
        self.bytes += bytes;
        self.days.insert(row.day());
        self.rows.push(row);
    }

    /// Goes past a record that leaves no row.
    pub fn pass(&mut self, partition: i32, offset: i64, now: Instant) {
        self.moved.insert(partition, offset + 1);
        self.since.get_or_insert(now);
    }

    /// Whether it is time to commit.
    pub fn due(&self, limits: &Limits, now: Instant) -> bool {
        self.full(limits) || self.since.is_some_and(|since| now.duration_since(since) >= limits.interval)
    }

    /// Whether no more should be added.
    pub fn full(&self, limits: &Limits) -> bool {
        self.rows.len() >= limits.rows || self.bytes >= limits.bytes || self.days.len() >= limits.days
    }

    /// How many bytes its rows' records have.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The rows, by offset within a partition.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The next offset of each partition that has moved.
    pub fn moved(&self) -> &BTreeMap<i32, i64> {
        &self.moved
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

    const LIMITS: Limits = Limits { interval: Duration::from_secs(60), rows: 3, bytes: 100, days: 2 };

    fn row(partition: i32, offset: i64) -> Row {
        let event = Event::new(format!("{partition}-{offset}"), "t", 0);
        Row { event, partition, offset, append_ms: 0 }
    }

    #[test]
    fn the_first_record_sets_the_clock_even_when_it_leaves_no_row() {
        let (mut buffer, start) = (Buffer::default(), Instant::now());
        assert!(!buffer.due(&LIMITS, start + Duration::from_secs(9_999)), "nothing moved, nothing to commit");
        buffer.pass(0, 4, start);
        buffer.add(row(1, 7), 10, start + Duration::from_secs(59));
        assert!(!buffer.due(&LIMITS, start + Duration::from_secs(59)));
        assert!(buffer.due(&LIMITS, start + Duration::from_secs(60)));
        assert_eq!(buffer.moved(), &BTreeMap::from([(0, 5), (1, 8)]));
        assert_eq!(buffer.rows().len(), 1);
    }

    #[test]
    fn rows_bytes_and_days_have_limits() {
        let (mut rows, mut bytes, now) = (Buffer::default(), Buffer::default(), Instant::now());
        (0..3).for_each(|offset| rows.add(row(0, offset), 1, now));
        assert!(rows.due(&LIMITS, now));
        bytes.add(row(0, 0), 99, now);
        assert!(!bytes.due(&LIMITS, now));
        bytes.add(row(0, 1), 1, now);
        assert!(bytes.due(&LIMITS, now));
        let mut days = Buffer::default();
        for (offset, second, due) in [(0, 0, false), (1, 86_399, false), (2, -1, true)] {
            let mut row = row(0, offset);
            row.event.timestamp = second * 1_000_000;
            days.add(row, 1, now);
            assert_eq!(days.due(&Limits { rows: 9, ..LIMITS }, now), due);
        }
    }

    proptest! {
        /// A commit's positions are exactly behind what its rows and the passed records cover.
        #[test]
        fn positions_are_behind_the_last_record(records in prop::collection::vec((0i32..4, any::<bool>()), 0..60)) {
            let (mut buffer, now, mut next) = (Buffer::default(), Instant::now(), [0i64; 4]);
            for (partition, first) in &records {
                let offset = next[*partition as usize];
                next[*partition as usize] += 1;
                if *first {
                    buffer.add(row(*partition, offset), 1, now);
                } else {
                    buffer.pass(*partition, offset, now);
                }
            }
            let moved: BTreeMap<i32, i64> = (0..4).zip(next).filter(|(_, next)| *next > 0).collect();
            prop_assert_eq!(buffer.moved(), &moved);
            prop_assert_eq!(buffer.rows().len(), records.iter().filter(|(_, first)| *first).count());
            prop_assert_eq!(buffer.is_empty(), records.is_empty());
        }
    }
}

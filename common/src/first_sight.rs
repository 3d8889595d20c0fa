//! First sight: whether an eventId has been seen before in its partition.
//!
//! Every sighting, copies too, is an entry. A record is a copy if and only if an entry at a lower offset of
//! the same partition is at most one window older, by append time. So the same offset seen again (a
//! redelivery) is never a copy, and the answer depends on the log alone: not on when, how often or in which
//! process it is asked. That is why stream, archiver and replays agree without talking to each other.
//!
//! This store lives in memory and is rebuilt from the log ([`SeenStore::missing`] says from where).

use std::collections::BTreeMap;
use std::ops::Range;

use sha2::{Digest, Sha256};

/// A 128-bit fingerprint of an eventId.
pub type Fingerprint = u128;

/// The fingerprint of an eventId: the first 16 bytes of its SHA-256, which nobody can collide on purpose.
pub fn fingerprint(event_id: &str) -> Fingerprint {
    let digest = Sha256::digest(event_id.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    u128::from_be_bytes(bytes)
}

/// The sightings of one partition.
#[derive(Debug)]
pub struct SeenStore {
    window_ms: i64,
    /// Ordered by fingerprint, then offset: the entry just below a record is the youngest earlier sighting.
    entries: BTreeMap<(Fingerprint, i64), i64>,
    /// The offsets whose sightings are all here.
    covered: Range<i64>,
    newest_ms: i64,
    swept_ms: i64,
}

impl SeenStore {
    /// An empty store that covers nothing.
    pub fn new(window_ms: i64) -> Self {
        Self { window_ms, entries: BTreeMap::new(), covered: 0..0, newest_ms: i64::MIN, swept_ms: i64::MIN }
    }

    /// Adds a sighting and says whether it is the first within the window.
    pub fn sight(&mut self, fingerprint: Fingerprint, offset: i64, append_ms: i64) -> bool {
        let earlier = self.entries.range((fingerprint, i64::MIN)..(fingerprint, offset)).next_back();
        let copy = earlier.is_some_and(|(_, &at)| append_ms - at <= self.window_ms);
        self.entries.insert((fingerprint, offset), append_ms);
        self.newest_ms = self.newest_ms.max(append_ms);
        !copy
    }

    /// The offsets that must still be read so that records from `next` on can be judged, when sightings from
    /// `oldest` (one window before `next`) on may matter. Empty when the store covers them already.
    pub fn missing(&self, oldest: i64, next: i64) -> Range<i64> {
        if self.covered.is_empty() || oldest < self.covered.start {
            oldest..next
        } else {
            self.covered.end.min(next)..next
        }
    }

    /// Says that all sightings of `range` have been added.
    pub fn cover(&mut self, range: Range<i64>) {
        let touching = range.start <= self.covered.end && self.covered.start <= range.end;
        self.covered = if touching && !self.covered.is_empty() {
            self.covered.start.min(range.start)..self.covered.end.max(range.end)
        } else {
            range
        };
    }

    /// Says that the log has been read up to `next`, its gaps included.
    pub fn advance(&mut self, next: i64) {
        self.covered.end = self.covered.end.max(next);
        self.sweep();
    }

    /// Drops what is older than two windows. The second window is kept for positions that go back, when
    /// Postgres is restored from an older backup; beyond it the log is read again.
    fn sweep(&mut self) {
        let horizon = self.newest_ms.saturating_sub(2 * self.window_ms);
        if horizon.saturating_sub(self.swept_ms) < self.window_ms / 24 {
            return;
        }
        let mut dropped_up_to = self.covered.start;
        self.entries.retain(|&(_, offset), &mut at| {
            let keep = at >= horizon;
            if !keep {
                dropped_up_to = dropped_up_to.max(offset + 1);
            }
            keep
        });
        self.covered.start = dropped_up_to.min(self.covered.end);
        self.swept_ms = horizon;
    }

    /// How many sightings are kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: i64 = 1_000;

    #[test]
    fn a_copy_is_within_the_window_and_at_a_higher_offset() {
        let mut seen = SeenStore::new(WINDOW);
        assert!(seen.sight(1, 10, 0));
        assert!(seen.sight(1, 10, 0), "a redelivery is not a copy");
        assert!(!seen.sight(1, 11, WINDOW), "exactly one window is within");
        assert!(seen.sight(1, 12, 2 * WINDOW + 1));
        assert!(seen.sight(2, 13, 2 * WINDOW + 1));
    }

    #[test]
    fn copies_count_as_sightings() {
        let mut seen = SeenStore::new(WINDOW);
        assert!(seen.sight(1, 0, 0));
        assert!(!seen.sight(1, 1, 900));
        assert!(!seen.sight(1, 2, 1_800), "one window after the copy, not after the first");
    }

    #[test]
    fn missing_is_what_is_not_covered() {
        let mut seen = SeenStore::new(WINDOW);
        assert_eq!(seen.missing(5, 20), 5..20);
        seen.cover(5..20);
        assert!(seen.missing(5, 20).is_empty());
        assert_eq!(seen.missing(8, 25), 20..25);
        assert_eq!(seen.missing(2, 10), 2..10);
        assert!(seen.missing(5, 12).is_empty(), "a position that went back is still covered");
    }

    proptest! {
        /// Against the definition, with redeliveries from random positions and with sweeping.
        #[test]
        fn agrees_with_the_definition(
            log in prop::collection::vec((0u128..6, 0i64..700), 1..80),
            restarts in prop::collection::vec(0usize..80, 0..4),
        ) {
            let mut time = 0;
            let log: Vec<_> = log.into_iter().map(|(id, step)| { time += step; (id, time) }).collect();
            let first = |o: usize| !log[..o].iter().any(|&(id, at)| id == log[o].0 && log[o].1 - at <= WINDOW);
            let mut seen = SeenStore::new(WINDOW);
            let mut starts = vec![0];
            starts.extend(restarts.into_iter().map(|r| r % log.len()));
            for start in starts {
                // A position can go back further than what is kept; then the missing part is read again.
                let oldest = log.iter().position(|&(_, at)| at >= log[start].1 - WINDOW).expect("start itself");
                let missing = seen.missing(oldest as i64, start as i64);
                for o in missing.start..missing.end {
                    seen.sight(log[o as usize].0, o, log[o as usize].1);
                }
                seen.cover(missing);
                for (o, &(id, at)) in log.iter().enumerate().skip(start) {
                    prop_assert_eq!(seen.sight(id, o as i64, at), first(o), "offset {}", o);
                    seen.advance(o as i64 + 1);
                }
            }
        }
    }
}

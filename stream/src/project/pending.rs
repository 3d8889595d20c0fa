//! What Redis does not show yet. Pure: time is handed in.
//!
//! A key that is touched again and again is written at most once per interval, and at once otherwise. A batch's
//! positions come out only when all that it touched has been written.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::fold::rollups::RollupKey;
use crate::ledger::Place;
use crate::store::Touched;

/// Something that has a copy in Redis.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// Project and [`crate::session_key`].
    Session((String, String)),
    /// The cart of a session, by its key.
    Cart((String, String)),
    /// A window of a metric.
    Window(RollupKey),
    /// Project and user id.
    User((String, String)),
}

impl Key {
    /// What a batch has touched.
    pub fn all(touched: Touched) -> impl Iterator<Item = Self> {
        let sessions = touched.sessions.into_iter().map(Self::Session);
        let carts = touched.carts.into_iter().map(Self::Cart);
        let users = touched.users.into_iter().map(Self::User);
        sessions.chain(carts).chain(touched.windows.into_iter().map(Self::Window)).chain(users)
    }

    /// Whose it is.
    pub fn project(&self) -> &str {
        match self {
            Self::Session((project, _)) | Self::Cart((project, _)) | Self::User((project, _)) => project,
            Self::Window(key) => &key.series.project,
        }
    }
}

/// Positions up to which everything is written.
pub type Positions = HashMap<Place, i64>;

/// Keys that wait to be written, and the batches that wait for them.
pub struct Pending {
    interval: Duration,
    slots: HashMap<Key, Slot>,
    /// Batches that are not all written, oldest first: the number of each, and where it ended.
    batches: VecDeque<(u64, Vec<(Place, i64)>)>,
    next: u64,
}

#[derive(Default)]
struct Slot {
    /// The first batch that has touched it since it was written.
    waits: Option<u64>,
    written: Option<Instant>,
}

impl Pending {
    /// Nothing waits yet. Keys are written at most once per `interval`.
    pub fn new(interval: Duration) -> Self {
        Self { interval, slots: HashMap::new(), batches: VecDeque::new(), next: 0 }
    }

    /// Notes what a batch has touched, and where it ended.
    pub fn note(&mut self, touched: impl Iterator<Item = Key>, positions: Vec<(Place, i64)>) {
        let number = self.next;
        for key in touched {
            self.slots.entry(key).or_default().waits.get_or_insert(number);
        }
        self.batches.push_back((number, positions));
        self.next += 1;
    }

    /// Takes the keys that may be written now: all but those that were written a moment ago. With `all`, those too.
    /// They have to come back, by [`Self::written`] or [`Self::put_back`].
    pub fn take(&mut self, now: Instant, all: bool) -> Vec<(Key, u64)> {
        let interval = self.interval;
        let hot = |slot: &Slot| slot.written.is_some_and(|at| now < at + interval);
        // What was written longer ago than that is of no interest any more.
        self.slots.retain(|_, slot| slot.waits.is_some() || hot(slot));
        let due = self.slots.extract_if(|_, slot| slot.waits.is_some() && (all || !hot(slot)));
        due.filter_map(|(key, slot)| Some((key, slot.waits?))).collect()
    }

    /// When the next key that was held back may be written.
    pub fn next_due(&self) -> Option<Instant> {
        let waiting = self.slots.values().filter(|slot| slot.waits.is_some());
        waiting.filter_map(|slot| slot.written).min().map(|written| written + self.interval)
    }

    /// Says that these keys have been written. Gives the positions up to which everything is, where they have moved.
    pub fn written(&mut self, keys: Vec<(Key, u64)>, now: Instant) -> Positions {
        for (key, _) in keys {
            self.slots.entry(key).or_default().written = Some(now);
        }
        let oldest = self.slots.values().filter_map(|slot| slot.waits).min().unwrap_or(self.next);
        let mut positions = Positions::new();
        while self.batches.front().is_some_and(|(number, _)| *number < oldest) {
            positions.extend(self.batches.pop_front().into_iter().flat_map(|(_, ends)| ends));
        }
        positions
    }

    /// Says that these keys have not been written.
    pub fn put_back(&mut self, keys: Vec<(Key, u64)>) {
        for (key, number) in keys {
            self.slots.entry(key).or_default().waits = Some(number);
        }
    }

    /// Forgets where batches ended, since their positions mean nothing any more.
    pub fn forget_positions(&mut self) {
        self.batches.iter_mut().for_each(|(_, ends)| ends.clear());
    }

    /// Forgets all keys. Their batches count as written: it is the caller's to see that they are.
    pub fn clear(&mut self) -> Positions {
        self.slots.clear();
        self.written(Vec::new(), Instant::now())
    }

    /// How many keys are kept, waiting or not.
    pub fn len(&self) -> usize {
        self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn key(id: &str) -> Key {
        Key::Session(("p".to_owned(), id.to_owned()))
    }

    fn place() -> Place {
        Place { topic: "events.p".to_owned(), partition: 0, incarnation: "i".to_owned(), generation: 0 }
    }

    fn note(pending: &mut Pending, ids: &[&str], end: i64) {
        pending.note(ids.iter().map(|id| key(id)), vec![(place(), end)]);
    }

    fn ids(keys: &[(Key, u64)]) -> Vec<String> {
        let id = |(key, _): &(Key, u64)| if let Key::Session((_, id)) = key { id.clone() } else { String::new() };
        let mut ids: Vec<String> = keys.iter().map(id).collect();
        ids.sort();
        ids
    }

    #[test]
    fn a_key_is_written_once_per_interval_and_at_once_otherwise() {
        let (mut pending, start) = (Pending::new(SECOND), Instant::now());
        note(&mut pending, &["a"], 10);
        let taken = pending.take(start, false);
        assert_eq!(ids(&taken), ["a"], "at once");
        assert_eq!(pending.written(taken, start)[&place()], 10);
        note(&mut pending, &["a", "b"], 20);
        let taken = pending.take(start + SECOND / 2, false);
        assert_eq!(ids(&taken), ["b"], "a was written half a second ago");
        assert_eq!(pending.written(taken, start + SECOND / 2), Positions::new(), "not all of the batch is written");
        assert_eq!(pending.next_due(), Some(start + SECOND));
        note(&mut pending, &["a"], 30);
        let taken = pending.take(start + SECOND, false);
        assert_eq!(ids(&taken), ["a"]);
        assert_eq!(pending.written(taken, start + SECOND)[&place()], 30, "both batches");
        assert!(pending.batches.is_empty());
        assert!(pending.take(start + 3 * SECOND, false).is_empty());
        assert_eq!(pending.len(), 0, "nothing is remembered for longer");
    }

    #[test]
    fn what_cannot_be_written_holds_its_batch_back() {
        let (mut pending, now) = (Pending::new(SECOND), Instant::now());
        note(&mut pending, &["a"], 10);
        let failed = pending.take(now, false);
        pending.put_back(failed);
        note(&mut pending, &["b"], 20);
        let taken = pending.take(now, false);
        assert_eq!(ids(&taken), ["a", "b"]);
        assert_eq!(pending.written(taken, now)[&place()], 20);
    }

    #[test]
    fn batches_that_touch_nothing_pass_with_those_before_them() {
        let (mut pending, now) = (Pending::new(SECOND), Instant::now());
        note(&mut pending, &[], 10);
        assert_eq!(pending.written(Vec::new(), now)[&place()], 10);
        note(&mut pending, &["a"], 20);
        note(&mut pending, &[], 30);
        assert_eq!(pending.written(Vec::new(), now), Positions::new());
        let taken = pending.take(now, true);
        assert_eq!(pending.written(taken, now)[&place()], 30);
    }

    #[test]
    fn positions_of_another_history_do_not_come_out() {
        let (mut pending, now) = (Pending::new(SECOND), Instant::now());
        note(&mut pending, &["a"], 10);
        pending.forget_positions();
        let taken = pending.take(now, false);
        assert_eq!(ids(&taken), ["a"], "but the key is written");
        assert_eq!(pending.written(taken, now), Positions::new());
    }
}

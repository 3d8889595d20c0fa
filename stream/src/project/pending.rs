//! What Redis does not show yet. Pure: no I/O, no clock.
//!
//! However often a key is touched, it waits once. A batch's positions come out only when all that it touched has been
//! written.

use std::collections::{HashMap, VecDeque};

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
#[derive(Default)]
pub struct Pending {
    /// Each key with the first batch that has touched it since it was written.
    keys: HashMap<Key, u64>,
    /// Batches that are not all written, oldest first: the number of each, and where it ended.
    batches: VecDeque<(u64, Vec<(Place, i64)>)>,
    next: u64,
}

impl Pending {
    /// Notes what a batch has touched, and where it ended.
    pub fn note(&mut self, touched: impl Iterator<Item = Key>, positions: Vec<(Place, i64)>) {
        let number = self.next;
        for key in touched {
            self.keys.entry(key).or_insert(number);
        }
        self.batches.push_back((number, positions));
        self.next += 1;
    }

    /// Takes all keys. They have to come back, by [`Self::written`] or [`Self::put_back`].
    pub fn take(&mut self) -> Vec<(Key, u64)> {
        self.keys.drain().collect()
    }

    /// Says that all keys that were taken have been written. Gives the positions up to which everything is, where they
    /// have moved.
    pub fn written(&mut self) -> Positions {
        let oldest = self.keys.values().copied().min().unwrap_or(self.next);
        let mut positions = Positions::new();
        while self.batches.front().is_some_and(|(number, _)| *number < oldest) {
            positions.extend(self.batches.pop_front().into_iter().flat_map(|(_, ends)| ends));
        }
        positions
    }

    /// Says that these keys have not been written.
    pub fn put_back(&mut self, keys: Vec<(Key, u64)>) {
        self.keys.extend(keys); // what was touched meanwhile has waited since then, too
    }

    /// Forgets where batches ended, since their positions mean nothing any more.
    pub fn forget_positions(&mut self) {
        self.batches.iter_mut().for_each(|(_, ends)| ends.clear());
    }

    /// Forgets all keys. Their batches count as written: it is the caller's to see that they are.
    pub fn clear(&mut self) -> Positions {
        self.keys.clear();
        self.written()
    }

    /// How many keys wait.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether nothing is left to write or to say.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.batches.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_key_waits_once_and_its_first_batch_waits_for_it() {
        let mut pending = Pending::default();
        note(&mut pending, &["a"], 10);
        note(&mut pending, &["a", "b"], 20);
        let taken = pending.take();
        assert_eq!(ids(&taken), ["a", "b"]);
        note(&mut pending, &["a"], 30);
        assert_eq!(pending.written()[&place()], 20, "the third batch is not written");
        assert_eq!(ids(&pending.take()), ["a"]);
        assert_eq!(pending.written()[&place()], 30);
        assert!(pending.is_empty());
    }

    #[test]
    fn what_cannot_be_written_holds_its_batch_back() {
        let mut pending = Pending::default();
        note(&mut pending, &["a"], 10);
        let failed = pending.take();
        note(&mut pending, &["a", "b"], 20);
        pending.put_back(failed);
        assert_eq!(pending.written(), Positions::new());
        let taken = pending.take();
        assert_eq!(ids(&taken), ["a", "b"]);
        assert_eq!(taken.iter().map(|(_, number)| number).min(), Some(&0), "it still waits for the first batch");
        assert_eq!(pending.written()[&place()], 20);
    }

    #[test]
    fn batches_that_touch_nothing_pass_with_those_before_them() {
        let mut pending = Pending::default();
        note(&mut pending, &[], 10);
        assert_eq!(pending.written()[&place()], 10);
        note(&mut pending, &["a"], 20);
        note(&mut pending, &[], 30);
        assert_eq!(pending.written(), Positions::new());
        pending.take();
        assert_eq!(pending.written()[&place()], 30);
    }

    #[test]
    fn positions_of_another_history_do_not_come_out() {
        let mut pending = Pending::default();
        note(&mut pending, &["a"], 10);
        pending.forget_positions();
        assert_eq!(ids(&pending.take()), ["a"], "but the key is written");
        assert_eq!(pending.written(), Positions::new());
    }
}

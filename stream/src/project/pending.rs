//! What Redis does not show yet. Pure: no I/O, no clock.
//!
//! However often a key is touched, it waits once. A batch's positions come out only when all that it touched has been
//! written.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};

use crate::fold::rollups::RollupKey;
use crate::keys;
use crate::ledger::Place;
use crate::quick_map::QuickMap;
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

    /// Where its copy stands.
    pub fn name(&self) -> String {
        match self {
            Self::Session((project, key)) => keys::session(project, key),
            Self::Cart((project, key)) => keys::cart(project, key),
            Self::Window(key) => keys::metric(&key.series.project, key.shown_name(), key.granularity, key.window_start),
            Self::User((project, _)) => keys::seen_users(project),
        }
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

/// Keys that wait to be written, and the batches that wait for them. Windows are few, and many look at them; the others
/// may be many, so they are taken in rounds of several steps.
#[derive(Default)]
pub struct Pending {
    /// Each with the first batch that has touched it since it was taken.
    windows: QuickMap<Key, u64>,
    others: QuickMap<Key, u64>,
    /// What is left of a round; the oldest at the end.
    round: Vec<(Key, u64)>,
    /// What cannot be written for now, since its part of Redis is away. Others pass it.
    parked: QuickMap<Key, u64>,
    /// Batches that are not all written, oldest first: the number of each, and where it ended.
    batches: VecDeque<(u64, Vec<(Place, i64)>)>,
    next: u64,
}

impl Pending {
    /// Notes what a batch has touched, and where it ended.
    pub fn note(&mut self, touched: impl Iterator<Item = Key>, positions: Vec<(Place, i64)>) {
        let number = self.next;
        for key in touched {
            self.waiting(&key).entry(key).or_insert(number);
        }
        self.batches.push_back((number, positions));
        self.next += 1;
    }

    fn waiting(&mut self, key: &Key) -> &mut QuickMap<Key, u64> {
        if matches!(key, Key::Window(_)) { &mut self.windows } else { &mut self.others }
    }

    /// Takes the windows. They have to come back, by [`Self::written`] or [`Self::put_back`].
    pub fn take_windows(&mut self) -> Vec<(Key, u64)> {
        self.windows.drain().collect()
    }

    /// Begins a round with all other keys, unless one is under way.
    pub fn begin_round(&mut self) {
        if self.round.is_empty() {
            self.round.extend(self.others.drain());
            self.round.sort_unstable_by_key(|(_, number)| Reverse(*number));
        }
    }

    /// Takes the oldest keys of the round, `most` of them. They have to come back as windows do. What has touched them
    /// since the round began is written along with them.
    pub fn take_step(&mut self, most: usize) -> Vec<(Key, u64)> {
        let mut step = self.round.split_off(self.round.len().saturating_sub(most));
        for (key, number) in &mut step {
            // What was parked has waited for longer than the round.
            *number = self.others.remove(key).map_or(*number, |other| other.min(*number));
        }
        step
    }

    /// Whether windows wait.
    pub fn has_windows(&self) -> bool {
        !self.windows.is_empty()
    }

    /// Whether other keys wait for the next round.
    pub fn has_others(&self) -> bool {
        !self.others.is_empty()
    }

    /// Whether a round is under way.
    pub fn in_round(&self) -> bool {
        !self.round.is_empty()
    }

    /// Says that all keys that were taken have been written. Gives the positions up to which everything is, where they
    /// have moved.
    pub fn written(&mut self) -> Positions {
        let waiting = self.windows.values().chain(self.others.values()).chain(self.parked.values());
        let oldest = waiting.chain(self.round.last().map(|(_, n)| n)).copied().min().unwrap_or(self.next);
        let mut positions = Positions::new();
        while self.batches.front().is_some_and(|(number, _)| *number < oldest) {
            positions.extend(self.batches.pop_front().into_iter().flat_map(|(_, ends)| ends));
        }
        positions
    }

    /// Says that these keys have not been written.
    pub fn put_back(&mut self, keys: Vec<(Key, u64)>) {
        for (key, number) in keys {
            self.waiting(&key).insert(key, number); // what was touched meanwhile has waited since then, too
        }
    }

    /// Sets these keys aside until their part of Redis is there again.
    pub fn park(&mut self, keys: Vec<(Key, u64)>) {
        for (key, number) in keys {
            let parked = self.parked.entry(key).or_insert(number);
            *parked = number.min(*parked);
        }
    }

    /// Puts back the parked keys that can be written again.
    pub fn unpark(&mut self, mut can_be_written: impl FnMut(&Key) -> bool) {
        let back: Vec<(Key, u64)> = self.parked.extract_if(|key, _| can_be_written(key)).collect();
        self.put_back(back);
    }

    /// Forgets where batches ended, since their positions mean nothing any more.
    pub fn forget_positions(&mut self) {
        self.batches.iter_mut().for_each(|(_, ends)| ends.clear());
    }

    /// Forgets all keys. Their batches count as written: it is the caller's to see that they are.
    pub fn clear(&mut self) -> Positions {
        self.windows.clear();
        self.others.clear();
        self.round.clear();
        self.parked.clear();
        self.written()
    }

    /// How many keys wait.
    pub fn len(&self) -> usize {
        self.windows.len() + self.others.len() + self.round.len() + self.parked.len()
    }

    /// Whether nothing is left to write because it could not be.
    pub fn is_level(&self) -> bool {
        self.parked.is_empty()
    }

    /// Whether nothing is left to write or to say, for now.
    pub fn is_empty(&self) -> bool {
        self.len() == self.parked.len() && (self.batches.is_empty() || !self.parked.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fold::rollups::Series;
    use crate::metric::Aggregation;
    use crate::window::Granularity;

    fn key(id: &str) -> Key {
        Key::Session(("p".to_owned(), id.to_owned()))
    }

    fn window(minute: i64) -> Key {
        let series = Series {
            project: "p".into(),
            metric: "m".into(),
            dimension: "".into(),
            value: "".into(),
            aggregation: Aggregation::Count,
        };
        Key::Window(RollupKey { series: series.into(), granularity: Granularity::Minute, window_start: minute * 60 })
    }

    fn take(pending: &mut Pending) -> Vec<(Key, u64)> {
        pending.begin_round();
        pending.take_step(usize::MAX)
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
        let taken = take(&mut pending);
        assert_eq!(ids(&taken), ["a", "b"]);
        note(&mut pending, &["a"], 30);
        assert_eq!(pending.written()[&place()], 20, "the third batch is not written");
        assert_eq!(ids(&take(&mut pending)), ["a"]);
        assert_eq!(pending.written()[&place()], 30);
        assert!(pending.is_empty());
    }

    #[test]
    fn what_cannot_be_written_holds_its_batch_back() {
        let mut pending = Pending::default();
        note(&mut pending, &["a"], 10);
        let failed = take(&mut pending);
        note(&mut pending, &["a", "b"], 20);
        pending.put_back(failed);
        assert_eq!(pending.written(), Positions::new());
        let taken = take(&mut pending);
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
        take(&mut pending);
        assert_eq!(pending.written()[&place()], 30);
    }

    #[test]
    fn positions_of_another_history_do_not_come_out() {
        let mut pending = Pending::default();
        note(&mut pending, &["a"], 10);
        pending.forget_positions();
        assert_eq!(ids(&take(&mut pending)), ["a"], "but the key is written");
        assert_eq!(pending.written(), Positions::new());
    }

    #[test]
    fn a_round_goes_step_by_step_from_the_oldest_and_windows_pass_it() {
        let mut pending = Pending::default();
        note(&mut pending, &["a"], 10);
        note(&mut pending, &["b"], 20);
        pending.begin_round();
        assert_eq!(ids(&pending.take_step(1)), ["a"]);
        note(&mut pending, &["a"], 30);
        pending.begin_round();
        assert!(pending.in_round(), "the first is not over");
        pending.note(std::iter::once(window(1)), vec![(place(), 40)]);
        assert_eq!(pending.take_windows().len(), 1);
        assert_eq!(pending.written()[&place()], 10);
        assert_eq!(ids(&pending.take_step(5)), ["b"]);
        assert_eq!(pending.written()[&place()], 20, "a was touched again");
        assert!(!pending.in_round());
        assert_eq!(ids(&take(&mut pending)), ["a"]);
        assert_eq!(pending.written()[&place()], 40);
    }

    #[test]
    fn what_waits_in_a_round_is_written_once_however_often_it_is_touched() {
        let mut pending = Pending::default();
        note(&mut pending, &["a"], 10);
        pending.begin_round();
        note(&mut pending, &["a", "b"], 20);
        assert_eq!(ids(&pending.take_step(5)), ["a"]);
        assert_eq!(pending.written()[&place()], 10, "b waits");
        assert_eq!(ids(&take(&mut pending)), ["b"]);
        assert_eq!(pending.written()[&place()], 20);
        assert!(pending.is_empty());
    }

    #[test]
    fn what_comes_back_during_a_round_still_waits_for_its_first_batch() {
        let mut pending = Pending::default();
        note(&mut pending, &["a"], 10);
        let away = take(&mut pending);
        pending.park(away);
        note(&mut pending, &["a"], 20);
        pending.begin_round();
        pending.unpark(|_| true);
        let step = pending.take_step(5);
        assert_eq!(step.len(), 1);
        pending.park(step);
        assert_eq!(pending.written(), Positions::new());
    }

    #[test]
    fn what_is_parked_holds_its_batch_back_and_nobody_else() {
        let mut pending = Pending::default();
        note(&mut pending, &["a"], 10);
        let away = take(&mut pending);
        pending.park(away);
        assert!(pending.is_empty(), "nothing can be done about it");
        assert_eq!(pending.len(), 1);
        note(&mut pending, &["a", "b"], 20);
        assert_eq!(ids(&take(&mut pending)), ["a", "b"]);
        assert_eq!(pending.written(), Positions::new(), "the first a was not written");
        pending.unpark(|_| false);
        assert!(!pending.has_others());
        pending.unpark(|_| true);
        assert_eq!(ids(&take(&mut pending)), ["a"]);
        assert_eq!(pending.written()[&place()], 20);
    }
}

//! Users of whom it is known that they were seen before: what Postgres has said once need not be asked again.

use std::hash::{BuildHasher, RandomState};

use crate::ledger::History;
use crate::quick_map::QuickMap;

/// Users that are kept at least, if so many have been seen; at most twice as many, some 40 bytes each.
const MOST: usize = 100_000;

/// What is known. Users are told apart by 128 bits that nobody can foresee.
#[derive(Debug, Default)]
pub struct Known {
    /// That in which it was learnt.
    history: History,
    hashers: [RandomState; 2],
    /// By user, a time in microseconds before which he was first seen.
    young: QuickMap<u128, i64>,
    /// What was known when the young ones became too many.
    old: QuickMap<u128, i64>,
}

impl Known {
    /// What is known in this history: nothing, if it is another one. Asked for each time, since transactions of two
    /// histories may use it in turn.
    pub fn of(&mut self, history: History) -> &mut Self {
        if self.history != history {
            *self = Self { history, ..Self::default() };
        }
        self
    }

    /// Keeps the users who are not known to have been seen before their time.
    pub fn retain_unknown(&mut self, generation: i32, users: &mut Vec<((&str, &str), i64)>) {
        users.retain(|(user, at)| !self.was_seen_before(generation, *user, *at));
    }

    fn was_seen_before(&mut self, generation: i32, (project, user_id): (&str, &str), at: i64) -> bool {
        let user = self.user(generation, project, user_id);
        if let Some(before) = self.young.get(&user) {
            return *before <= at;
        }
        let Some(before) = self.old.remove(&user) else { return false };
        self.keep(user, before);
        before <= at
    }

    /// Notes that a user was first seen before that time.
    pub fn note(&mut self, generation: i32, (project, user_id): (&str, &str), before: i64) {
        let user = self.user(generation, project, user_id);
        let known = self.young.get(&user).copied().unwrap_or(i64::MAX);
        self.keep(user, before.min(known));
    }

    fn user(&self, generation: i32, project: &str, user_id: &str) -> u128 {
        let [high, low] = self.hashers.each_ref().map(|hasher| hasher.hash_one((generation, project, user_id)));
        u128::from(high) << 64 | u128::from(low)
    }

    fn keep(&mut self, user: u128, before: i64) {
        if self.young.len() >= MOST {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(user, before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: (&str, &str) = ("p", "ann");

    #[test]
    fn who_was_seen_is_known_from_then_on() {
        let mut known = Known::default();
        assert!(!known.was_seen_before(0, ANN, 10));
        known.note(0, ANN, 10);
        assert!(known.was_seen_before(0, ANN, 10) && known.was_seen_before(0, ANN, 11));
        assert!(!known.was_seen_before(0, ANN, 9), "that may be the first time");
        known.note(0, ANN, 20);
        assert!(known.was_seen_before(0, ANN, 10), "what was known before holds");
        known.note(0, ANN, 5);
        assert!(known.was_seen_before(0, ANN, 9));
        let others = [(1, ANN), (0, ("q", "ann")), (0, ("pa", "nn"))];
        assert!(others.iter().all(|(generation, other)| !known.was_seen_before(*generation, *other, 10)));
    }

    #[test]
    fn another_history_knows_nothing() {
        let mut known = Known::default();
        let histories = [(3, 0), (4, 0), (4, 1)].map(|(epoch, forgotten)| History { epoch, forgotten });
        for (history, other) in histories.into_iter().zip(histories.into_iter().skip(1)) {
            known.of(history).note(0, ANN, 10);
            assert!(known.of(history).was_seen_before(0, ANN, 10));
            assert!(!known.of(other).was_seen_before(0, ANN, 10), "{other:?}");
            // One that began before notes what it has learnt.
            known.of(history).note(0, ANN, 10);
            assert!(!known.of(other).was_seen_before(0, ANN, 10), "{other:?}");
        }
    }

    #[test]
    fn who_comes_again_is_kept_and_the_others_go() {
        let mut known = Known::default();
        let note = |known: &mut Known, from: usize| {
            for number in from..from + MOST {
                known.note(0, ("p", &number.to_string()), 0);
                assert!(known.was_seen_before(0, ("p", "0"), 0));
            }
        };
        known.note(0, ("p", "0"), 0);
        note(&mut known, 0);
        note(&mut known, MOST);
        note(&mut known, 2 * MOST);
        assert!(!known.was_seen_before(0, ("p", "1"), 0));
        assert!(known.young.len() + known.old.len() <= 2 * MOST);
    }
}

//! Users of whom it is known that they were seen before: what Postgres has said once need not be asked again.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// Users that are kept at least, if so many have been seen; at most twice as many, some 40 bytes each.
const MOST: usize = 100_000;

/// What is known. Users are told apart by 128 bits that nobody can foresee.
#[derive(Debug, Default)]
pub struct Known {
    /// The timeline's epoch and how often a user was forgotten: in another history others are known.
    history: (i64, i64),
    hashers: [RandomState; 2],
    /// By user, a time in microseconds before which he was first seen.
    young: HashMap<u128, i64>,
    /// What was known when the young ones became too many.
    old: HashMap<u128, i64>,
}

impl Known {
    /// Forgets all, unless this is the history that it is of.
    pub fn enter(&mut self, history: (i64, i64)) {
        if self.history != history {
            *self = Self { history, ..Self::default() };
        }
    }

    /// Whether a user is known to have been seen before that time.
    pub fn was_seen_before(&mut self, generation: i32, (project, user_id): (&str, &str), at: i64) -> bool {
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
        known.enter((3, 0));
        for other in [(4, 0), (4, 1)] {
            known.note(0, ANN, 10);
            known.enter(known.history);
            assert!(known.was_seen_before(0, ANN, 10));
            known.enter(other);
            assert!(!known.was_seen_before(0, ANN, 10), "{other:?}");
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

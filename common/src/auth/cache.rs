//! What is known of keys, and when Postgres is to be asked. Pure: time is handed in.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// An answer younger than this is used as it is.
pub const FRESH: Duration = Duration::from_secs(2);
/// While one caller asks again, the others may use an answer up to this old: so long can a revoked key work.
pub const CONFIRMED: Duration = Duration::from_secs(5);
/// A caller who asks is done by then.
const ASKING: Duration = Duration::from_secs(1);
/// After a failure, one caller at a time tries again, this often.
const RETRY: Duration = Duration::from_secs(1);
/// Most keys remembered.
const MAX_KNOWN: usize = 10_000;
/// Most prefixes remembered that nobody has, so that trying them again costs nothing. Made-up keys can fill
/// this; they can never push out a good key.
const MAX_UNKNOWN: usize = 10_000;

/// Answers by prefix.
pub(super) struct Cache<K> {
    known: HashMap<String, Known<K>>,
    unknown: HashMap<String, Instant>,
    /// Postgres failed; the next try is due then.
    down_until: Option<Instant>,
}

struct Known<K> {
    key: K,
    confirmed: Instant,
    asked: Instant,
}

/// What to do about a prefix.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<K> {
    /// This is the answer; `None`: nobody has it.
    Use(Option<K>),
    /// Ask Postgres; if it cannot be asked, this is what was known last.
    Ask(Option<K>),
    /// Postgres cannot be asked just now, and nothing is known.
    Down,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self { known: HashMap::new(), unknown: HashMap::new(), down_until: None }
    }
}

impl<K: Clone> Cache<K> {
    /// The answer, where nobody needs to ask. Changes nothing, so many can look at once.
    pub(super) fn peek(&self, prefix: &str, now: Instant) -> Option<Option<K>> {
        if let Some(known) = self.known.get(prefix) {
            let asked_by_another = now < known.asked + ASKING && now < known.confirmed + CONFIRMED;
            if now < known.confirmed + FRESH || asked_by_another {
                return Some(Some(known.key.clone()));
            }
        }
        self.unknown.get(prefix).is_some_and(|at| now < *at + FRESH).then_some(None)
    }

    /// The answer, or what to do for it.
    pub(super) fn find(&mut self, prefix: &str, now: Instant) -> Found<K> {
        if let Some(answer) = self.peek(prefix, now) {
            return Found::Use(answer);
        }
        let trial = self.may_ask(now);
        match self.known.get_mut(prefix) {
            Some(known) if trial => {
                known.asked = now;
                Found::Ask(Some(known.key.clone()))
            }
            Some(known) => Found::Use(Some(known.key.clone())),
            None if trial => Found::Ask(None),
            None => Found::Down,
        }
    }

    /// Whether to ask Postgres; after a failure only now and then, and then the caller is the one trial.
    fn may_ask(&mut self, now: Instant) -> bool {
        match self.down_until {
            Some(until) if now < until => false,
            Some(_) => {
                self.down_until = Some(now + RETRY);
                true
            }
            None => true,
        }
    }

    /// Postgres has answered what it was asked then: the answer may be as old as the question.
    pub(super) fn confirm(&mut self, prefix: &str, key: Option<K>, asked: Instant) {
        self.down_until = None;
        match key {
            Some(key) => {
                self.unknown.remove(prefix);
                if self.known.len() >= MAX_KNOWN && !self.known.contains_key(prefix) {
                    self.forget_oldest();
                }
                self.known.insert(prefix.to_owned(), Known { key, confirmed: asked, asked });
            }
            None => {
                self.known.remove(prefix);
                if self.unknown.len() >= MAX_UNKNOWN {
                    self.unknown.clear();
                }
                self.unknown.insert(prefix.to_owned(), asked);
            }
        }
    }

    fn forget_oldest(&mut self) {
        let oldest = self.known.iter().min_by_key(|(_, known)| known.confirmed).map(|(prefix, _)| prefix.clone());
        if let Some(prefix) = oldest {
            self.known.remove(&prefix);
        }
    }

    /// Postgres could not be asked.
    pub(super) fn failed(&mut self, now: Instant) {
        self.down_until = Some(now + RETRY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn an_answer_is_used_while_fresh_and_asked_again_by_one() {
        let (mut cache, t) = (Cache::default(), Instant::now());
        assert_eq!(cache.find("a", t), Found::Ask(None));
        cache.confirm("a", Some(1), t);
        assert_eq!(cache.find("a", t + FRESH - MS), Found::Use(Some(1)));
        assert_eq!(cache.find("a", t + FRESH), Found::Ask(Some(1)));
        assert_eq!(cache.find("a", t + FRESH), Found::Use(Some(1)), "another is asking");
        assert_eq!(cache.find("a", t + FRESH + ASKING), Found::Ask(Some(1)), "that one never came back");
    }

    #[test]
    fn an_old_answer_is_never_used_while_postgres_can_be_asked() {
        let (mut cache, t) = (Cache::default(), Instant::now());
        cache.confirm("a", Some(1), t);
        assert_eq!(cache.find("a", t + CONFIRMED), Found::Ask(Some(1)));
        assert_eq!(cache.find("a", t + CONFIRMED), Found::Ask(Some(1)));
    }

    #[test]
    fn while_postgres_is_down_known_keys_work_and_one_caller_tries() {
        let (mut cache, t) = (Cache::default(), Instant::now());
        cache.confirm("a", Some(1), t);
        let later = t + Duration::from_secs(3_600);
        assert_eq!(cache.find("a", later), Found::Ask(Some(1)));
        cache.failed(later);
        assert_eq!(cache.find("a", later), Found::Use(Some(1)));
        assert_eq!(cache.find("b", later), Found::Down);
        assert_eq!(cache.find("a", later + RETRY), Found::Ask(Some(1)));
        assert_eq!(cache.find("b", later + RETRY), Found::Down, "one trial at a time");
        cache.confirm("a", Some(2), later + RETRY);
        assert_eq!(cache.find("b", later + RETRY), Found::Ask(None));
    }

    #[test]
    fn made_up_keys_fill_only_their_own_bounded_part() {
        let (mut cache, t) = (Cache::default(), Instant::now());
        cache.confirm("good", Some(1), t);
        for i in 0..3 * MAX_UNKNOWN {
            cache.confirm(&i.to_string(), None, t);
            assert!(cache.unknown.len() <= MAX_UNKNOWN);
        }
        assert_eq!(cache.find("good", t), Found::Use(Some(1)));
        let last = (3 * MAX_UNKNOWN - 1).to_string();
        assert_eq!(cache.find(&last, t), Found::Use(None));
        assert_eq!(cache.find(&last, t + FRESH), Found::Ask(None));
        cache.confirm("good", None, t);
        assert_eq!(cache.find("good", t), Found::Use(None), "a deleted key is unknown at once");
    }
    #[test]
    fn known_keys_are_bounded() {
        let (mut cache, t) = (Cache::default(), Instant::now());
        for i in 0..MAX_KNOWN + 5 {
            cache.confirm(&i.to_string(), Some(i), t + i as u32 * MS);
        }
        assert_eq!(cache.known.len(), MAX_KNOWN);
        assert!(!cache.known.contains_key("0"), "the oldest is forgotten");
    }
}

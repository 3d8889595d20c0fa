//! What is remembered of API keys. A known key stays usable while Postgres cannot be asked; that it was
//! revoked is noticed within [`FRESH`] + [`ASKING`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::auth::Caller;

/// An answer is taken for true this long.
const FRESH: Duration = Duration::from_secs(3);
/// While one request asks Postgres again, others go on with what is known.
pub const ASKING: Duration = Duration::from_secs(1);
/// Most entries of each kind. Keys that nobody issued are in a map of their own, so that a flood of them
/// cannot push out those that exist.
const MOST: usize = 10_000;

/// Answers of Postgres, by key prefix.
#[derive(Default)]
pub struct KeyCache {
    known: HashMap<String, Known>,
    unknown: HashMap<String, Instant>,
}

struct Known {
    caller: Arc<Caller>,
    fresh_until: Instant,
}

/// What the cache says.
pub enum Remembered {
    /// The key with this prefix.
    Key(Arc<Caller>),
    /// There is no such key.
    NoKey,
    /// Postgres must be asked; if it cannot be, an older answer stands.
    Ask(Option<Arc<Caller>>),
}

impl KeyCache {
    /// Looks a prefix up.
    pub fn get(&mut self, prefix: &str, now: Instant) -> Remembered {
        if let Some(known) = self.known.get_mut(prefix) {
            if now < known.fresh_until {
                return Remembered::Key(Arc::clone(&known.caller));
            }
            known.fresh_until = now + ASKING;
            return Remembered::Ask(Some(Arc::clone(&known.caller)));
        }
        match self.unknown.get(prefix) {
            Some(fresh_until) if now < *fresh_until => Remembered::NoKey,
            _ => Remembered::Ask(None),
        }
    }

    /// Remembers an answer to a question asked at `asked`.
    pub fn put(&mut self, prefix: &str, answer: Option<Arc<Caller>>, asked: Instant) {
        let fresh_until = asked + FRESH;
        match answer {
            Some(caller) => {
                self.unknown.remove(prefix);
                if self.known.len() >= MOST && !self.known.contains_key(prefix) {
                    self.forget_oldest();
                }
                self.known.insert(prefix.to_owned(), Known { caller, fresh_until });
            }
            None => {
                self.known.remove(prefix);
                if self.unknown.len() >= MOST {
                    self.unknown.clear();
                }
                self.unknown.insert(prefix.to_owned(), fresh_until);
            }
        }
    }

    fn forget_oldest(&mut self) {
        let oldest = self.known.iter().min_by_key(|(_, known)| known.fresh_until).map(|(prefix, _)| prefix.clone());
        if let Some(prefix) = oldest {
            self.known.remove(&prefix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_key_is_asked_for_again_by_one_request() {
        let (mut cache, start) = (KeyCache::default(), Instant::now());
        assert!(matches!(cache.get("tm_a", start), Remembered::Ask(None)));
        cache.put("tm_a", Some(Arc::new(Caller::test())), start);
        assert!(matches!(cache.get("tm_a", start), Remembered::Key(_)));
        let later = start + FRESH;
        assert!(matches!(cache.get("tm_a", later), Remembered::Ask(Some(_))));
        assert!(matches!(cache.get("tm_a", later), Remembered::Key(_)), "the first one asks already");
        assert!(matches!(cache.get("tm_a", later + ASKING), Remembered::Ask(Some(_))), "it got no answer");
        cache.put("tm_a", None, later);
        assert!(matches!(cache.get("tm_a", later), Remembered::NoKey));
    }

    #[test]
    fn floods_of_unknown_keys_push_out_no_known_one() {
        let (mut cache, now) = (KeyCache::default(), Instant::now());
        cache.put("tm_a", Some(Arc::new(Caller::test())), now);
        for i in 0..3 * MOST {
            cache.put(&format!("tm_{i}"), None, now);
        }
        assert!(cache.unknown.len() <= MOST);
        assert!(matches!(cache.get("tm_a", now), Remembered::Key(_)));
    }

    #[test]
    fn known_keys_are_bounded() {
        let (mut cache, now) = (KeyCache::default(), Instant::now());
        let caller = Arc::new(Caller::test());
        for i in 0..MOST + 5 {
            cache.put(&format!("tm_{i}"), Some(Arc::clone(&caller)), now + Duration::from_millis(i as u64));
        }
        assert_eq!(cache.known.len(), MOST);
        assert!(!cache.known.contains_key("tm_0"));
    }
}

//! The schemas that are known, compiled, and whether they are still the newest. Pure: time is handed in.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most types kept per project. A project has fewer schemas than that, but producers make up types without one.
const MOST_TYPES: usize = 2_000;
/// Keys of one project are confirmed at different times, so one may still tell of an older state than the last one
/// did. It does so only for seconds: after that, Postgres must have been restored from a backup.
const DISAGREEMENT: Duration = Duration::from_secs(10);

/// What is known of an event type: its newest schema, or that it has none.
pub type Known<S> = Option<Arc<S>>;

/// What to do about an event type.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<S> {
    /// This is the newest.
    Use(Known<S>),
    /// Ask for it; if nobody answers, this was the newest before.
    Ask(Option<Known<S>>),
}

/// Schemas by project and event type.
pub struct Cache<S> {
    projects: HashMap<Arc<str>, HashMap<String, Entry<S>>>,
}

struct Entry<S> {
    known: Known<S>,
    changed: i64,
    at: Instant,
}

impl<S> Default for Cache<S> {
    fn default() -> Self {
        Self { projects: HashMap::new() }
    }
}

impl<S> Cache<S> {
    /// What is known of a type of a project whose schemas last changed then.
    pub fn find(&self, project: &str, event_type: &str, changed: i64, now: Instant) -> Found<S> {
        let Some(entry) = self.projects.get(project).and_then(|types| types.get(event_type)) else {
            return Found::Ask(None);
        };
        if entry.changed == changed || (entry.changed > changed && now < entry.at + DISAGREEMENT) {
            Found::Use(entry.known.clone())
        } else {
            Found::Ask(Some(entry.known.clone()))
        }
    }

    /// Keeps what was found.
    pub fn insert(&mut self, project: &Arc<str>, event_type: &str, known: Known<S>, changed: i64, now: Instant) {
        let types = self.projects.entry(Arc::clone(project)).or_default();
        if types.len() >= MOST_TYPES && !types.contains_key(event_type) {
            types.retain(|_, entry| entry.known.is_some());
        }
        if types.len() < MOST_TYPES || types.contains_key(event_type) {
            types.insert(event_type.to_owned(), Entry { known, changed, at: now });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_makes_what_is_known_old() {
        let (mut cache, shop, t) = (Cache::default(), Arc::from("shop"), Instant::now());
        assert_eq!(cache.find("shop", "a", 5, t), Found::Ask(None));
        cache.insert(&shop, "a", Some(Arc::new(1)), 5, t);
        assert_eq!(cache.find("shop", "a", 5, t), Found::Use(Some(Arc::new(1))));
        assert_eq!(cache.find("other", "a", 5, t), Found::Ask(None));
        assert_eq!(cache.find("shop", "a", 6, t), Found::Ask(Some(Some(Arc::new(1)))));
        assert_eq!(cache.find("shop", "a", 4, t), Found::Use(Some(Arc::new(1))), "another key is behind");
        assert_eq!(cache.find("shop", "a", 4, t + DISAGREEMENT), Found::Ask(Some(Some(Arc::new(1)))), "a restore");
        cache.insert(&shop, "a", None, 6, t);
        assert_eq!(cache.find("shop", "a", 6, t), Found::Use(None));
    }

    #[test]
    fn made_up_types_never_push_out_a_schema() {
        let (mut cache, shop, t) = (Cache::default(), Arc::from("shop"), Instant::now());
        cache.insert(&shop, "real", Some(Arc::new(1)), 5, t);
        for i in 0..3 * MOST_TYPES {
            cache.insert(&shop, &format!("made-up-{i}"), None, 5, t);
        }
        assert_eq!(cache.find("shop", "real", 5, t), Found::Use(Some(Arc::new(1))));
        assert!(cache.projects["shop"].len() <= MOST_TYPES);
    }
}

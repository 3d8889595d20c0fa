//! Which projects' events Kafka does not take just now, so that they go into the spool at once instead of waiting
//! for a delivery to fail.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

/// After this time one request tries Kafka again, should the spool not have found out before that it is back.
const TRIAL: Duration = Duration::from_secs(10);

/// Projects that wait for Kafka.
#[derive(Default)]
pub struct Outages {
    any: AtomicBool,
    next_trial: RwLock<HashMap<Arc<str>, Instant>>,
}

impl Outages {
    /// A delivery failed.
    pub fn failed(&self, project: &Arc<str>, now: Instant) {
        let mut next_trial = self.next_trial.write().expect("no holder panics");
        next_trial.insert(Arc::clone(project), now + TRIAL);
        self.any.store(true, Ordering::Release);
    }

    /// A delivery came through.
    pub fn over(&self, project: &str) {
        if self.any.load(Ordering::Acquire) {
            let mut next_trial = self.next_trial.write().expect("no holder panics");
            next_trial.remove(project);
            self.any.store(!next_trial.is_empty(), Ordering::Release);
        }
    }

    /// Whether a project's events should not even be tried. Now and then one caller is told to try all the same.
    pub fn lasts(&self, project: &Arc<str>, now: Instant) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let next_trial = self.next_trial.read().expect("no holder panics").get(project).copied();
        match next_trial {
            None => false,
            Some(at) if now < at => true,
            Some(_) => {
                self.failed(project, now); // the others wait for this one's outcome
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_tries_again_now_and_then() {
        let (outages, project, other, t) = (Outages::default(), "a".into(), "b".into(), Instant::now());
        assert!(!outages.lasts(&project, t));
        outages.failed(&project, t);
        assert!(outages.lasts(&project, t + TRIAL / 2));
        assert!(!outages.lasts(&other, t), "projects have outages of their own");
        assert!(!outages.lasts(&project, t + TRIAL), "this one tries");
        assert!(outages.lasts(&project, t + TRIAL));
        outages.over("a");
        assert!(!outages.lasts(&project, t + TRIAL));
    }
}

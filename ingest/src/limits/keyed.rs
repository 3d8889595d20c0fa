//! Limits by names that strangers choose: event types and users. The memory for them is bounded.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::Mutex;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::{Quota, RateLimiter};

/// So that callers seldom wait for each other.
const SHARDS: usize = 16;
/// Most names counted at once, about 2 MB.
const MOST: usize = 64 * 1024;
/// Names that come while there are that many share one limit per shard.
const SHARED: u64 = 0;

/// One limit per project and name, all with one rate and a burst of one second.
pub struct Keyed {
    limiter: RateLimiter<u64, Bounded, DefaultClock>,
    /// Seeded, so that nobody can choose a name that counts as another's.
    hasher: RandomState,
}

impl Keyed {
    /// Limits of so many events per second; `None` for 0, which is no limit.
    pub fn per_second(rate: u32) -> Option<Self> {
        let quota = Quota::per_second(NonZeroU32::new(rate)?);
        let limiter = RateLimiter::new(quota, Bounded::default(), DefaultClock::default());
        Some(Self { limiter, hasher: RandomState::new() })
    }

    /// Takes one event; else says when one could pass.
    pub fn check(&self, project: &str, name: &str) -> Result<(), Duration> {
        let key = self.hasher.hash_one((project, name));
        let wait = |not_until: governor::NotUntil<_>| not_until.wait_time_from(DefaultClock::default().now());
        self.limiter.check_key(&key).map_err(wait)
    }

    /// Forgets names whose limit is full again, as a new one is.
    pub fn forget_full(&self) {
        self.limiter.retain_recent();
    }
}

#[derive(Default)]
struct Bounded {
    shards: [Mutex<HashMap<u64, Nanos>>; SHARDS],
}

impl StateStore for Bounded {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, key: &u64, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut shard = self.shards[*key as usize % SHARDS].lock().expect("no holder panics");
        let full = shard.len() >= MOST / SHARDS && !shard.contains_key(key);
        let key = if full { SHARED } else { *key };
        let (answer, state) = decide(shard.get(&key).copied())?;
        shard.insert(key, state);
        Ok(answer)
    }
}

impl ShrinkableKeyedStateStore<u64> for Bounded {
    fn retain_recent(&self, drop_below: Nanos) {
        for shard in &self.shards {
            shard.lock().expect("no holder panics").retain(|_, state| *state >= drop_below);
        }
    }

    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().expect("no holder panics").len()).sum()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_of_each_project_has_a_limit_of_its_own() {
        let users = Keyed::per_second(2).expect("a limit");
        assert!(users.check("shop", "ann").is_ok() && users.check("shop", "ann").is_ok());
        let wait = users.check("shop", "ann").expect_err("used up");
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(1), "{wait:?}");
        assert!(users.check("shop", "bob").is_ok() && users.check("blog", "ann").is_ok());
        assert!(Keyed::per_second(0).is_none());
    }

    #[test]
    fn made_up_names_share_a_limit_once_there_are_too_many() {
        let users = Keyed::per_second(1).expect("a limit");
        let refused = (0..3 * MOST).filter(|i| users.check("shop", &i.to_string()).is_err()).count();
        assert!(users.limiter.len() <= MOST + SHARDS, "{}", users.limiter.len());
        assert!(refused > MOST, "{refused}");
        users.forget_full();
        assert!(!users.limiter.is_empty(), "what is used up is not forgotten");
    }
}

//! The limits of API keys, in events per second, with a burst of one second.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use super::{Granted, Standing};

/// A limit that was not used for this long is full again, as a new one is.
const REFILL: Duration = Duration::from_secs(1);
/// From so many limits on, full ones are forgotten.
const MANY: usize = 10_000;

type Limiter = RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>;

/// The limits of this gateway's keys, by prefix: one whose rate does not change keeps its count.
pub struct PerKey {
    limits: RwLock<HashMap<String, Arc<Limit>>>,
    start: Instant,
}

struct Limit {
    rate: NonZeroU32,
    limiter: Limiter,
    /// What could still have passed at the last look.
    left: AtomicU32,
    /// Milliseconds since the start.
    used: AtomicU64,
}

impl PerKey {
    /// No limits yet.
    pub fn new() -> Self {
        Self { limits: RwLock::default(), start: Instant::now() }
    }

    /// Takes as many of `wanted` events as the key's limit allows now.
    pub fn take(&self, prefix: &str, rate: NonZeroU32, wanted: usize) -> Granted {
        self.limit(prefix, rate, Instant::now()).take(wanted)
    }

    /// How the key stands since its last request.
    pub fn standing(&self, prefix: &str, rate: NonZeroU32) -> Standing {
        let limits = self.limits.read().expect("no holder panics");
        let left = limits.get(prefix).map_or(rate.get(), |limit| limit.left.load(Ordering::Relaxed));
        Standing { rate, left }
    }

    fn limit(&self, prefix: &str, rate: NonZeroU32, now: Instant) -> Arc<Limit> {
        let at = now.saturating_duration_since(self.start).as_millis() as u64;
        if let Some(limit) = self.limits.read().expect("no holder panics").get(prefix)
            && limit.rate == rate
        {
            limit.used.store(at, Ordering::Relaxed);
            return Arc::clone(limit);
        }
        let mut limits = self.limits.write().expect("no holder panics");
        if limits.len() >= MANY {
            let in_use = at.saturating_sub(REFILL.as_millis() as u64);
            limits.retain(|_, limit| at < REFILL.as_millis() as u64 || limit.used.load(Ordering::Relaxed) > in_use);
        }
        let limit = limits.entry(prefix.to_owned()).or_insert_with(|| Arc::new(Limit::new(rate, at)));
        if limit.rate != rate {
            *limit = Arc::new(Limit::new(rate, at));
        }
        Arc::clone(limit)
    }
}

impl Limit {
    fn new(rate: NonZeroU32, at: u64) -> Self {
        let limiter = RateLimiter::direct(Quota::per_second(rate)).with_middleware();
        Self { rate, limiter, left: AtomicU32::new(rate.get()), used: AtomicU64::new(at) }
    }

    /// All of them in one step where there is room; else in halving steps, which find all that fit.
    fn take(&self, wanted: usize) -> Granted {
        let mut taken = 0;
        let mut step = u32::try_from(wanted).unwrap_or(u32::MAX).min(self.rate.get());
        let mut retry_after = Duration::ZERO;
        while let Some(n) = NonZeroU32::new(step) {
            match self.limiter.check_n(n) {
                Ok(Ok(state)) => {
                    taken += n.get() as usize;
                    self.left.store(state.remaining_burst_capacity(), Ordering::Relaxed);
                }
                Ok(Err(not_until)) => {
                    retry_after = not_until.wait_time_from(DefaultClock::default().now());
                    step /= 2;
                }
                Err(_) => step /= 2,
            }
            step = step.min(u32::try_from(wanted - taken).unwrap_or(u32::MAX));
        }
        if taken == wanted {
            return Granted { events: wanted, retry_after: Duration::ZERO };
        }
        self.left.store(0, Ordering::Relaxed);
        Granted { events: taken, retry_after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(rate: u32) -> NonZeroU32 {
        NonZeroU32::new(rate).expect("not 0")
    }

    #[test]
    fn the_first_events_of_a_request_pass() {
        let limits = PerKey::new();
        assert_eq!(limits.take("tm_a", rate(5), 3), Granted { events: 3, retry_after: Duration::ZERO });
        assert_eq!(limits.standing("tm_a", rate(5)), Standing { rate: rate(5), left: 2 });
        let granted = limits.take("tm_a", rate(5), 4);
        assert_eq!(granted.events, 2);
        assert!(granted.retry_after > Duration::ZERO && granted.retry_after <= Duration::from_secs(1));
        assert_eq!(limits.standing("tm_a", rate(5)).left, 0);
        assert_eq!(limits.take("tm_b", rate(5), 4).events, 4, "each key has its own");
    }

    #[test]
    fn a_request_larger_than_the_limit_gets_all_that_fits() {
        for (rate_, wanted) in [(1, 10_000), (7, 8), (7, 1_000), (1_000, 10_000)] {
            let granted = PerKey::new().take("tm_a", rate(rate_), wanted).events;
            // It refills while we look.
            assert!(granted >= rate_ as usize && granted < 2 * rate_ as usize, "{granted} of {rate_}");
        }
    }

    #[test]
    fn an_unchanged_limit_keeps_its_count() {
        let limits = PerKey::new();
        assert_eq!(limits.take("tm_a", rate(5), 5).events, 5);
        assert_eq!(limits.take("tm_a", rate(5), 5).events, 0);
        assert_eq!(limits.take("tm_a", rate(6), 6).events, 6);
    }

    #[test]
    fn limits_are_forgotten_only_once_they_are_full() {
        let (limits, start) = (PerKey::new(), Instant::now());
        for i in 0..MANY {
            limits.limit(&i.to_string(), NonZeroU32::MIN, start);
        }
        let counting = limits.limit("0", NonZeroU32::MIN, start + REFILL / 2);
        limits.limit("new", NonZeroU32::MIN, start + REFILL + Duration::from_millis(5));
        assert_eq!(limits.limits.read().expect("no holder panics").len(), 2);
        assert!(Arc::ptr_eq(&counting, &limits.limit("0", NonZeroU32::MIN, start + REFILL)));
    }
}

//! The limits of API keys, in events per second, with a burst of one second.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// A limit that was not used for this long is full again, as a new one is.
const REFILL: Duration = Duration::from_secs(1);
/// From so many limits on, full ones are forgotten.
const MANY: usize = 10_000;

/// How many of a request's events may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// The first so many.
    pub events: usize,
    /// When the next one could pass.
    pub retry_after: Duration,
}

/// The limits of this gateway's keys, by prefix and rate: one that does not change keeps its count.
#[derive(Default)]
pub struct Limits {
    limits: Mutex<HashMap<(String, NonZeroU32), Limit>>,
}

struct Limit {
    limiter: Arc<DefaultDirectRateLimiter>,
    used: Instant,
}

impl Limits {
    /// Takes as many of `wanted` events as the key's limit allows now.
    pub fn take(&self, prefix: &str, rate: Option<NonZeroU32>, wanted: usize) -> Granted {
        let Some(rate) = rate else { return Granted { events: wanted, retry_after: Duration::ZERO } };
        let limiter = self.limiter(prefix, rate, Instant::now());
        for events in 0..wanted {
            if let Err(not_until) = limiter.check() {
                return Granted { events, retry_after: not_until.wait_time_from(DefaultClock::default().now()) };
            }
        }
        Granted { events: wanted, retry_after: Duration::ZERO }
    }

    fn limiter(&self, prefix: &str, rate: NonZeroU32, now: Instant) -> Arc<DefaultDirectRateLimiter> {
        let mut limits = self.limits.lock().expect("no holder panics");
        let key = (prefix.to_owned(), rate);
        if limits.len() >= MANY && !limits.contains_key(&key) {
            limits.retain(|_, limit| now < limit.used + REFILL);
        }
        let limit = limits.entry(key).or_insert_with(|| {
            let limiter = Arc::new(RateLimiter::direct(Quota::per_second(rate)));
            Limit { limiter, used: now }
        });
        limit.used = now;
        Arc::clone(&limit.limiter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_events_of_a_request_pass() {
        let (limits, rate) = (Limits::default(), NonZeroU32::new(5));
        assert_eq!(limits.take("tm_a", rate, 3), Granted { events: 3, retry_after: Duration::ZERO });
        let granted = limits.take("tm_a", rate, 4);
        assert_eq!(granted.events, 2);
        assert!(granted.retry_after > Duration::ZERO && granted.retry_after <= Duration::from_secs(1));
        assert_eq!(limits.take("tm_b", rate, 4).events, 4, "each key has its own");
    }

    #[test]
    fn an_unchanged_limit_keeps_its_count() {
        let (limits, rate) = (Limits::default(), NonZeroU32::new);
        assert_eq!(limits.take("tm_a", rate(5), 5).events, 5);
        assert_eq!(limits.take("tm_a", rate(5), 5).events, 0);
        assert_eq!(limits.take("tm_a", rate(6), 6).events, 6);
    }

    #[test]
    fn a_key_without_a_limit_costs_nothing() {
        let limits = Limits::default();
        assert_eq!(limits.take("tm_a", None, 10_000), Granted { events: 10_000, retry_after: Duration::ZERO });
        assert!(limits.limits.lock().expect("no holder panics").is_empty());
    }

    #[test]
    fn limits_are_forgotten_only_once_they_are_full() {
        let (limits, rate, start) = (Limits::default(), NonZeroU32::MIN, Instant::now());
        for i in 0..MANY {
            limits.limiter(&i.to_string(), rate, start);
        }
        let counting = limits.limiter("0", rate, start + REFILL / 2);
        limits.limiter("new", rate, start + REFILL);
        assert_eq!(limits.limits.lock().expect("no holder panics").len(), 2);
        assert!(Arc::ptr_eq(&counting, &limits.limiter("0", rate, start + REFILL)));
    }
}

//! The limit of an API key, in events per second, with a burst of one second.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// A limit. It is shared by all requests of a key on this gateway.
pub struct Limit {
    rate: NonZeroU32,
    limiter: DefaultDirectRateLimiter,
}

/// How many of a request's events may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// The first so many.
    pub events: usize,
    /// When the next one could pass.
    pub retry_after: Duration,
}

impl Limit {
    /// A limit of `rate` events per second.
    pub fn new(rate: NonZeroU32) -> Self {
        Self { rate, limiter: RateLimiter::direct(Quota::per_second(rate)) }
    }

    /// Events per second.
    pub fn rate(&self) -> NonZeroU32 {
        self.rate
    }

    /// Takes as many of `wanted` events as the limit allows now.
    pub fn take(&self, wanted: usize) -> Granted {
        for events in 0..wanted {
            if let Err(not_until) = self.limiter.check() {
                return Granted { events, retry_after: not_until.wait_time_from(DefaultClock::default().now()) };
            }
        }
        Granted { events: wanted, retry_after: Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_events_of_a_request_pass() {
        let limit = Limit::new(NonZeroU32::new(5).expect("not zero"));
        assert_eq!(limit.take(3), Granted { events: 3, retry_after: Duration::ZERO });
        let granted = limit.take(4);
        assert_eq!(granted.events, 2);
        assert!(granted.retry_after > Duration::ZERO && granted.retry_after <= Duration::from_secs(1));
    }
}

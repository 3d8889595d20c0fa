//! What is sent when: fresh events at a steady rate, and copies of answered ones among them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use tokio::time::Instant;

use super::generator::Generator;
use super::sender::Delivery;

/// A copy waits this long, so that it meets an event that is long settled.
const COPY_DELAY: Duration = Duration::from_secs(2);

/// Makes batches.
pub struct Pacer {
    generator: Generator,
    rate: f64,
    batch: usize,
    fresh_left: u64,
    started: Instant,
    ends: Option<Instant>,
    due: Instant,
    stopped: bool,
    copies: VecDeque<(Instant, Delivery)>,
}

impl Pacer {
    /// A rate of 0 is no limit. The limits are those of fresh events and of time.
    pub fn new(generator: Generator, rate: f64, batch: usize, limits: (Option<u64>, Option<Duration>)) -> Self {
        let started = Instant::now();
        Self {
            generator,
            rate,
            batch,
            fresh_left: limits.0.unwrap_or(u64::MAX),
            started,
            ends: limits.1.map(|duration| started + duration),
            due: started,
            stopped: false,
            copies: VecDeque::new(),
        }
    }

    /// Whether anything is left to send.
    pub fn has_more(&self) -> bool {
        self.has_fresh() || !self.copies.is_empty()
    }

    /// When the next batch is to be sent. Behind schedule, that is in the past.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// The next batch: copies whose time has come, then fresh events. Empty if the time is over.
    pub fn next_batch(&mut self) -> Vec<Delivery> {
        let mut batch = self.take_copies();
        let room = if self.has_fresh() { self.batch.saturating_sub(batch.len()) as u64 } else { 0 };
        let fresh = room.min(self.fresh_left);
        self.fresh_left -= fresh;
        let now = Utc::now();
        for i in 0..fresh {
            // As if each had just happened, evenly since the last batch.
            let age = if self.rate > 0.0 { (fresh - 1 - i) as f64 / self.rate } else { 0.0 };
            let planned = self.generator.next(now - TimeDelta::microseconds((age * 1e6) as i64));
            batch.push(Delivery::new(Arc::new(planned.event), planned.again));
        }
        if self.rate > 0.0 {
            self.due += Duration::from_secs_f64(batch.len() as f64 / self.rate);
        }
        batch
    }

    /// Sends an answered event a second time, a little later.
    pub fn send_again(&mut self, delivery: Delivery) {
        self.copies.push_back((Instant::now() + COPY_DELAY, delivery.copy()));
    }

    /// Makes nothing fresh any more.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether it was told to stop.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn has_fresh(&self) -> bool {
        !self.stopped && self.fresh_left > 0 && self.ends.is_none_or(|ends| Instant::now() < ends)
    }

    /// At most half a batch while there is anything fresh; in the end nobody waits for a copy's time.
    fn take_copies(&mut self) -> Vec<Delivery> {
        let (now, has_fresh) = (Instant::now(), self.has_fresh());
        let most = if has_fresh { self.batch.div_ceil(2) } else { self.batch };
        let mut batch = Vec::with_capacity(self.batch);
        while batch.len() < most && self.copies.front().is_some_and(|(due, _)| *due <= now || !has_fresh) {
            batch.extend(self.copies.pop_front().map(|(_, copy)| copy));
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::super::generator::Shape;
    use super::*;

    fn pacer(rate: f64, events: Option<u64>) -> Pacer {
        let shape = Shape { seed: 1, run: "r".to_owned(), users: 10, types: 10, rate: 100.0, duplicates: 0.0 };
        Pacer::new(Generator::new(shape), rate, 10, (events, None))
    }

    #[tokio::test]
    async fn batches_come_at_the_rate_until_all_are_sent() {
        let mut pacer = pacer(100.0, Some(25));
        let started = pacer.due();
        let sizes: Vec<usize> = std::iter::from_fn(|| pacer.has_more().then(|| pacer.next_batch().len())).collect();
        assert_eq!(sizes, [10, 10, 5]);
        assert_eq!(pacer.due() - started, Duration::from_millis(250));
        assert!(pacer.next_batch().is_empty());
    }

    #[tokio::test]
    async fn a_copy_is_the_same_event_some_time_later() {
        let mut pacer = pacer(0.0, Some(20));
        let first = pacer.next_batch();
        pacer.send_again(first[3].clone());
        pacer.copies[0].0 = Instant::now(); // as if the delay were over
        let second = pacer.next_batch();
        assert_eq!((second.len(), &second[0].event), (10, &first[3].event));
        assert!(second[0].first.is_some() && second[1].first.is_none());
        assert_eq!(pacer.next_batch().len(), 1, "of 20 fresh ones, 19 were sent");
        assert!(!pacer.has_more());
    }

    #[tokio::test]
    async fn in_the_end_copies_do_not_wait() {
        let mut pacer = pacer(0.0, None);
        let first = pacer.next_batch();
        pacer.send_again(first[0].clone());
        assert!(pacer.next_batch().iter().all(|delivery| delivery.first.is_none()));
        pacer.stop();
        assert!(pacer.has_more());
        assert_eq!(pacer.next_batch().len(), 1);
        assert!(!pacer.has_more());
    }
}

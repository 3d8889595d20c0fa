//! What a load has got back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use hdrhistogram::Histogram;

use crate::http::Response;

/// Latencies are kept to one microsecond up to one minute, with three digits.
const LONGEST_US: u64 = 60_000_000;

/// Counts and latencies since the last reset.
pub struct Tally {
    accepted: AtomicU64,
    unavailable: AtomicU64,
    silent: AtomicU64,
    refused: AtomicU64,
    broken: AtomicU64,
    latencies: Mutex<Histogram<u64>>,
    refusals: Mutex<Histogram<u64>>,
}

/// A copy of the counts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Events accepted.
    pub accepted: u64,
    /// Requests answered 503.
    pub unavailable: u64,
    /// Of those, the ones without `Retry-After`.
    pub silent: u64,
    /// Requests refused otherwise.
    pub refused: u64,
    /// Connections lost.
    pub broken: u64,
}

impl Tally {
    /// An empty one.
    pub fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            accepted: zero(),
            unavailable: zero(),
            silent: zero(),
            refused: zero(),
            broken: zero(),
            latencies: Mutex::new(histogram()),
            refusals: Mutex::new(histogram()),
        }
    }

    /// Counts an answer: accepted events by the time since they were due, a 503 by the time since it was asked for.
    pub fn answered(&self, accepted: usize, response: &Response<'_>, due: Instant, sent: Instant) {
        if accepted > 0 {
            self.accepted.fetch_add(accepted as u64, Ordering::Relaxed);
            record(&self.latencies, due);
        } else if response.status == 503 {
            self.unavailable.fetch_add(1, Ordering::Relaxed);
            self.silent.fetch_add(u64::from(!response.says_when()), Ordering::Relaxed);
            record(&self.refusals, sent);
        } else {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a lost connection.
    pub fn broken(&self) {
        self.broken.fetch_add(1, Ordering::Relaxed);
    }

    /// What has been counted so far.
    pub fn counts(&self) -> Counts {
        Counts {
            accepted: self.accepted.load(Ordering::Relaxed),
            unavailable: self.unavailable.load(Ordering::Relaxed),
            silent: self.silent.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            broken: self.broken.load(Ordering::Relaxed),
        }
    }

    /// Forgets the latencies so far: they belong to the warm-up.
    pub fn forget_latencies(&self) {
        lock(&self.latencies).reset();
        lock(&self.refusals).reset();
    }

    /// A quantile of the accepted requests' latencies, in milliseconds.
    pub fn latency_ms(&self, quantile: f64) -> f64 {
        lock(&self.latencies).value_at_quantile(quantile) as f64 / 1e3
    }

    /// A quantile of the times to a 503, in milliseconds.
    pub fn refusal_ms(&self, quantile: f64) -> f64 {
        lock(&self.refusals).value_at_quantile(quantile) as f64 / 1e3
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(LONGEST_US, 3).expect("the bounds are fixed and valid")
}

fn record(histogram: &Mutex<Histogram<u64>>, since: Instant) {
    lock(histogram).saturating_record(since.elapsed().as_micros() as u64);
}

/// Nothing is done under the lock that could leave it half done.
fn lock(histogram: &Mutex<Histogram<u64>>) -> MutexGuard<'_, Histogram<u64>> {
    histogram.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

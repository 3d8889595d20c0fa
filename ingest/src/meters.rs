//! What is measured of every request, looked up once: the recorder's own look-up costs more than the counting.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use crate::outcome::Outcome;

/// The gateway's meters.
pub struct Meters {
    batch_size: Histogram,
    /// Events that are on their way to Kafka.
    pub queue_depth: Gauge,
    queued: Counter,
    reused: Counter,
}

impl Meters {
    /// Looks them up.
    pub fn new() -> Self {
        Self {
            batch_size: metrics::histogram!("analytics_batch_size_histogram"),
            queue_depth: metrics::gauge!("analytics_queue_depth"),
            queued: metrics::counter!("analytics_events_queued_total"),
            reused: metrics::counter!("tidemill_event_ids_reused_total"),
        }
    }

    /// Counts a request's events.
    pub fn batch(&self, events: usize) {
        self.batch_size.record(events as f64);
    }

    /// Counts what became of them.
    pub fn outcomes(&self, outcomes: &[Outcome]) {
        let of = |wanted: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| wanted(outcome)).count() as u64;
        self.queued.increment(of(|outcome| matches!(outcome, Outcome::Accepted(_))));
        self.reused.increment(of(|outcome| matches!(outcome, Outcome::Reused)));
    }
}

/// The requests of one endpoint.
pub struct EndpointMeters {
    endpoint: &'static str,
    latency: OnceLock<Histogram>,
    by_status: [OnceLock<Counter>; STATUSES],
}

/// HTTP's statuses are below.
const STATUSES: usize = 600;

impl EndpointMeters {
    /// Meters that are looked up when they are first used.
    pub const fn new(endpoint: &'static str) -> Self {
        Self { endpoint, latency: OnceLock::new(), by_status: [const { OnceLock::new() }; STATUSES] }
    }

    /// Counts an answer.
    pub fn answered(&self, status: u16, after: Duration) {
        let endpoint = self.endpoint;
        let latency = || metrics::histogram!("analytics_api_latency_seconds", "endpoint" => endpoint);
        self.latency.get_or_init(latency).record(after);
        let counter = || {
            let status = status.to_string();
            metrics::counter!("analytics_api_requests_total", "endpoint" => endpoint, "status" => status)
        };
        if let Some(by_status) = self.by_status.get(usize::from(status)) {
            by_status.get_or_init(counter).increment(1);
        }
    }
}

//! What is said of events that break their schema: every one is counted, one a second is logged.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tidemill_common::projects::SchemaMode;

use super::schema::Violation;

/// Says it.
pub struct Reports {
    started: Instant,
    /// The first second in which a report may be logged again.
    next: AtomicU64,
}

impl Reports {
    /// None yet.
    pub fn new() -> Self {
        Self { started: Instant::now(), next: AtomicU64::new(0) }
    }

    /// Counts a violation and perhaps logs it.
    pub fn violation(&self, mode: SchemaMode, project: &str, event_type: &str, violation: &Violation) {
        metrics::counter!("tidemill_schema_violations_total", "mode" => mode.as_str()).increment(1);
        if !self.may_log(self.started.elapsed().as_secs()) {
            return metrics::counter!("tidemill_dropped_total", "what" => "schema_reports").increment(1);
        }
        let Violation { field, problem } = violation;
        tracing::info!(project, event_type, field, problem, mode = mode.as_str(), "an event breaks its schema");
    }

    /// Counts an event that was accepted although its schema could not be looked up.
    pub fn unchecked(&self) {
        metrics::counter!("tidemill_schema_unchecked_total").increment(1);
    }

    fn may_log(&self, second: u64) -> bool {
        let next = self.next.load(Ordering::Relaxed);
        second >= next && self.next.compare_exchange(next, second + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_report_a_second_is_logged() {
        let reports = Reports::new();
        let logged = [0, 0, 1, 1, 1, 5, 5, 6].map(|second| reports.may_log(second));
        assert_eq!(logged, [true, false, true, false, false, true, false, true]);
    }
}

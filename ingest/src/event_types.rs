//! Counts events by type, for at most [`MOST`] types: every one is a time series for Prometheus to keep, and
//! producers choose their names.

use std::collections::HashMap;
use std::sync::RwLock;

use metrics::Counter;

const MOST: usize = 200;
const OTHER: &str = "__other__";

/// Counters by event type.
#[derive(Default)]
pub struct EventTypes {
    counters: RwLock<HashMap<String, Counter>>,
}

impl EventTypes {
    /// Counts an event.
    pub fn count(&self, event_type: &str) {
        if let Some(counter) = self.counters.read().expect("no holder panics").get(event_type) {
            return counter.increment(1);
        }
        let mut counters = self.counters.write().expect("no holder panics");
        let name = if counters.len() < MOST { event_type } else { OTHER };
        counters.entry(name.to_owned()).or_insert_with(|| counter(name)).increment(1);
    }
}

fn counter(name: &str) -> Counter {
    metrics::counter!("analytics_events_received_total", "type" => name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_types_is_bounded() {
        let types = EventTypes::default();
        for i in 0..3 * MOST {
            types.count(&format!("type-{i}"));
        }
        let counters = types.counters.read().expect("no holder panics");
        assert_eq!(counters.len(), MOST + 1);
        assert!(counters.contains_key("type-0") && counters.contains_key(OTHER));
    }
}

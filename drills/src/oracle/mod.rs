//! What every view must hold, computed from the log by the plainest means: everything at once, by definition. It
//! shares no code with the stream but the event and its home partition.

mod carts;
mod metrics;
mod sessions;
mod traits;

use std::collections::BTreeMap;

use tidemill_common::event::Event;
use tidemill_common::home::Layout;

pub use carts::{Cart, Change};
pub use metrics::{Aggregation, DECLARED, EVENTS, Reading, WindowKey, aggregation};
pub use sessions::{Session, SessionKey, id};
pub use traits::{ADDRESSES, AGENTS, COUNTRIES, ORIGINS, amount, cents, country, device, source};

use crate::log::Line;

const HOUR_MS: i64 = 3_600_000;
const YEAR_2000: i64 = 946_684_800_000_000;

/// What the views must hold.
#[derive(Debug, Default)]
pub struct Expected {
    /// The events that count, by partition and offset.
    pub first_sights: BTreeMap<(i32, i64), Event>,
    /// What is no event, with the reason.
    pub dead: BTreeMap<(i32, i64), String>,
    /// Events in a partition that is not their home, with where they stood first.
    pub strays: BTreeMap<(i32, i64), (i32, i64)>,
    /// All sessions.
    pub sessions: BTreeMap<SessionKey, Session>,
    /// By session key.
    pub carts: BTreeMap<String, Cart>,
    /// Each user's first event, in microseconds.
    pub users: BTreeMap<String, i64>,
    /// All windows of all metrics.
    pub windows: BTreeMap<WindowKey, Reading>,
}

impl Expected {
    /// From the whole log, in order of partitions and of offsets within each. So what an event's home had before comes
    /// before what a new home has: a new partition has a higher number than the one that it takes over from.
    pub fn of(log: &[Line], layout: &Layout, dedupe_window_ms: i64) -> Self {
        let mut expected = Self::default();
        let mut sightings = BTreeMap::<&str, Vec<i64>>::new();
        for line in log {
            let event = match judge(line) {
                Ok(event) => event,
                Err(reason) => {
                    expected.dead.insert(line.at, reason.to_owned());
                    continue;
                }
            };
            let (partition, offset) = line.at;
            if !layout.is_home(&event.as_ref(), partition, offset) {
                // Of several that are sent through again for one letter, only those that come in time go home.
                if !line.redriven {
                    expected.strays.insert(line.at, line.origin.map_or(line.at, |origin| origin.at));
                }
                continue;
            }
            let earlier = sightings.entry(&event.event_id).or_default();
            if !earlier.iter().any(|at| line.append_ms - at <= dedupe_window_ms) {
                expected.first_sights.insert(line.at, event.clone());
            }
            earlier.push(line.append_ms);
        }
        expected.count();
        expected
    }

    fn count(&mut self) {
        for event in self.first_sights.values() {
            let Some(user) = event.user_id.clone() else { continue };
            let first = self.users.entry(user).or_insert(event.timestamp);
            *first = event.timestamp.min(*first);
        }
        self.sessions = sessions::sessions(self.first_sights.values(), &self.users);
        self.carts = carts::carts(self.first_sights.values());
        self.windows = metrics::windows(self.first_sights.values(), &self.sessions);
    }
}

fn judge(line: &Line) -> Result<&Event, &'static str> {
    let event = line.content.as_ref().map_err(|reason| *reason)?;
    if event.timestamp < YEAR_2000 || event.timestamp > (line.append_ms + 25 * HOUR_MS) * 1_000 {
        return Err("invalid");
    }
    match line.origin {
        Some(origin) if line.append_ms - origin.append_ms > 24 * HOUR_MS => Err("late-stray"),
        _ => Ok(event),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_common::home::{Era, Spread, home_partition};
    use tidemill_testkit::event;

    const T: i64 = 1_800_000_000;

    fn line(offset: i64, append_ms: i64, event: Event) -> Line {
        let partition = home_partition(event.event_id.as_bytes(), 4);
        Line {
            at: (partition, offset),
            append_ms,
            key: String::new(),
            origin: None,
            redriven: false,
            content: Ok(event),
        }
    }

    fn four() -> Layout {
        Layout::new(4, Vec::new(), Vec::new())
    }

    #[test]
    fn a_new_partition_goes_on_where_another_has_stopped() {
        let mut ids = (0..).map(|i| format!("e-{i}"));
        let moved = ids.find(|id| home_partition(id.as_bytes(), 4) == 3).expect("an id");
        let era = Era { spread: Spread { partitions: 2, routes: 0 }, cutoffs: vec![vec![0, 5, 0, 2]] };
        let layout = Layout::new(4, Vec::new(), vec![era]);
        let at = |partition, offset| Line { at: (partition, offset), ..line(0, T * 1_000, event(&moved, "click", T)) };
        let expected = Expected::of(&[at(1, 4), at(1, 5), at(3, 1), at(3, 2)], &layout, 1_000);
        assert_eq!(expected.first_sights.keys().collect::<Vec<_>>(), [&(1, 4)]);
        assert_eq!(expected.strays.keys().collect::<Vec<_>>(), [&(1, 5), &(3, 1)]);
    }

    #[test]
    fn copies_count_again_once_the_window_has_passed_since_the_latest_of_them() {
        let at = |offset, ms| line(offset, T * 1_000 + ms, event("a", "click", T));
        let expected = Expected::of(&[at(0, 0), at(1, 900), at(2, 1_800), at(3, 2_801)], &four(), 1_000);
        let offsets: Vec<i64> = expected.first_sights.keys().map(|(_, offset)| *offset).collect();
        assert_eq!(offsets, [0, 3]);
        let days = expected.windows.iter().filter(|(key, _)| key.granularity == "1d" && key.value == "click");
        assert_eq!(days.map(|(_, reading)| reading.count).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn strays_and_what_is_no_event_count_nothing() {
        let mut stray = line(0, T * 1_000, event("a", "click", T));
        stray.at.0 = (stray.at.0 + 1) % 4;
        let ancient = line(1, T * 1_000, event("b", "click", 5));
        let mut broken = line(2, T * 1_000, event("c", "click", T));
        broken.content = Err("not-avro");
        let expected = Expected::of(&[stray, ancient, broken], &four(), 1_000);
        assert_eq!(expected.strays.len(), 1);
        let reasons: std::collections::BTreeSet<&str> = expected.dead.values().map(String::as_str).collect();
        assert_eq!(reasons, std::collections::BTreeSet::from(["invalid", "not-avro"]));
        assert!(expected.first_sights.is_empty() && expected.windows.is_empty());
    }
}

//! Metric changes per window.

use std::collections::BTreeMap;

use tidemill_common::event::Event;

use crate::decimal::Decimal;
use crate::metric;
use crate::sketch::UserSketch;
use crate::window::Granularity;

/// One row of the rollups, but for its shard. Its order is the order in which rows are locked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RollupKey {
    /// The project.
    pub project: String,
    /// [`metric::EVENTS`], or what sessions count for.
    pub metric: &'static str,
    /// The event type, where it is a count of one type.
    pub event_type: Option<String>,
    /// How long the window is.
    pub granularity: Granularity,
    /// Its start, in seconds since 1970.
    pub window_start: i64,
}

/// What a batch changes in a row.
#[derive(Debug, Default)]
pub struct Change {
    /// Added to the count; negative when sessions merge.
    pub count: i64,
    /// Added to the sum.
    pub sum: Decimal,
    /// Users to add.
    pub users: Option<UserSketch>,
}

/// All changes of a batch, in the order of their locks.
#[derive(Debug, Default)]
pub struct Changes(pub BTreeMap<RollupKey, Change>);

impl Changes {
    /// Counts an event: in all windows around it, for its type and for all types.
    pub fn count_event(&mut self, project: &str, event: &Event) {
        for granularity in Granularity::ALL {
            for event_type in [None, Some(event.event_type.clone())] {
                let change = self.at(project, metric::EVENTS, event_type, granularity, event.timestamp);
                change.count += 1;
                if let Some(user_id) = &event.user_id {
                    change.users.get_or_insert_default().add(user_id);
                }
            }
        }
    }

    /// Adds a signed difference to a metric, in the windows around a time in microseconds: what the fold of sessions
    /// finds.
    pub fn add(&mut self, project: &str, metric: &'static str, at: i64, count: i64, sum: Decimal) {
        for granularity in Granularity::ALL {
            let change = self.at(project, metric, None, granularity, at);
            change.count += count;
            change.sum += sum;
        }
    }

    /// Drops what cancels out.
    pub fn settle(&mut self) {
        self.0.retain(|_, change| change.count != 0 || change.sum != Decimal::ZERO);
    }

    fn at(
        &mut self,
        project: &str,
        metric: &'static str,
        event_type: Option<String>,
        granularity: Granularity,
        micros: i64,
    ) -> &mut Change {
        let window_start = granularity.window(micros);
        let key = RollupKey { project: project.to_owned(), metric, event_type, granularity, window_start };
        self.0.entry(key).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seconds: i64, event_type: &str, user: Option<&str>) -> Event {
        Event {
            event_id: String::new(),
            event_type: event_type.to_owned(),
            timestamp: seconds * 1_000_000,
            received_at: None,
            user_id: user.map(str::to_owned),
            session_id: None,
            event_action: None,
            properties: None,
            client_address: None,
            user_agent: None,
        }
    }

    #[test]
    fn events_count_in_every_window_for_their_type_and_for_all() {
        let mut changes = Changes::default();
        changes.count_event("p", &event(30, "a", Some("u1")));
        changes.count_event("p", &event(59, "b", Some("u1")));
        changes.count_event("p", &event(60, "a", None));
        let get = |event_type: Option<&str>, granularity, window_start| {
            let event_type = event_type.map(str::to_owned);
            let key = RollupKey { project: "p".into(), metric: metric::EVENTS, event_type, granularity, window_start };
            let change = &changes.0[&key];
            (change.count, change.users.as_ref().map_or(0, UserSketch::count))
        };
        assert_eq!(get(None, Granularity::Minute, 0), (2, 1));
        assert_eq!(get(None, Granularity::Minute, 60), (1, 0));
        assert_eq!(get(Some("a"), Granularity::Hour, 0), (2, 1));
        assert_eq!(get(Some("b"), Granularity::Day, 0), (1, 1));
    }

    #[test]
    fn differences_cancel_out() {
        let mut changes = Changes::default();
        let price = Decimal::from(3);
        changes.add("p", metric::REVENUE, 0, 1, price);
        changes.add("p", metric::REVENUE, 40 * 60 * 1_000_000, -1, -price);
        changes.settle();
        let counts: Vec<_> = changes.0.iter().map(|(k, c)| (k.granularity, k.window_start, c.count, c.sum)).collect();
        assert_eq!(
            counts,
            [(Granularity::Minute, 0, 1, price), (Granularity::Minute, 40 * 60, -1, -price)],
            "in the hour and the day nothing has changed"
        );
    }
}

//! What every view must hold, computed from the log by the plainest means: everything at once, by definition. It
//! shares no code with the stream but the event and its home partition.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tidemill_common::event::Event;
use tidemill_common::home::home_partition;

use crate::log::Line;

const GAP: i64 = 30 * 60 * 1_000_000;
const HOUR_MS: i64 = 3_600_000;
const YEAR_2000: i64 = 946_684_800_000_000;
/// The granularities and their lengths in seconds.
pub const GRANULARITIES: [(&str, i64); 3] = [("1m", 60), ("1h", 3_600), ("1d", 86_400)];
/// The name under which all events are counted, whatever their type.
pub const ALL: &str = "";

/// A window of an event type (or of [`ALL`]): type, granularity, start in seconds since 1970.
pub type WindowKey = (String, String, i64);

/// What the views must hold.
#[derive(Debug, Default)]
pub struct Expected {
    /// The events that count, by partition and offset.
    pub first_sights: BTreeMap<(i32, i64), Event>,
    /// What is no event, with the reason.
    pub dead: BTreeMap<(i32, i64), String>,
    /// Events in a partition that is not their home, with their home.
    pub strays: BTreeMap<(i32, i64), i32>,
    /// By session key (its id, or the user's mark and id) and time of the first event, in microseconds.
    pub sessions: BTreeMap<(String, i64), Session>,
    /// Each user's first event, in microseconds.
    pub users: BTreeMap<String, i64>,
    /// Events by window.
    pub windows: BTreeMap<WindowKey, Window>,
    /// Sessions by the window of their start; the type is empty.
    pub session_windows: BTreeMap<WindowKey, i64>,
}

/// One session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// When its last event happened, in microseconds.
    pub last: i64,
    /// How many events it has.
    pub events: i64,
    /// How many show a page.
    pub page_views: i64,
    /// How many are conversions.
    pub conversions: i64,
    /// The user named first.
    pub user: Option<String>,
    /// The page named last.
    pub page: Option<String>,
    /// Whether its user, where first named in it, had never been seen.
    pub is_new: bool,
}

/// What counts in a window.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Window {
    /// Events.
    pub count: i64,
    /// Different users.
    pub users: BTreeSet<String>,
}

impl Expected {
    /// From the whole log, in order of offsets within each partition.
    pub fn of(log: &[Line], partitions: i32, dedupe_window_ms: i64) -> Self {
        let mut expected = Self::default();
        let mut sightings = BTreeMap::<(i32, &str), Vec<i64>>::new();
        for line in log {
            let event = match judge(line) {
                Ok(event) => event,
                Err(reason) => {
                    expected.dead.insert(line.at, reason.to_owned());
                    continue;
                }
            };
            let home = home_partition(event.event_id.as_bytes(), partitions);
            if home != line.at.0 {
                expected.strays.insert(line.at, home);
                continue;
            }
            let earlier = sightings.entry((home, &event.event_id)).or_default();
            if !earlier.iter().any(|at| line.append_ms - at <= dedupe_window_ms) {
                expected.first_sights.insert(line.at, event.clone());
            }
            earlier.push(line.append_ms);
        }
        expected.count();
        expected
    }

    fn count(&mut self) {
        let mut by_session = BTreeMap::<String, Vec<&Event>>::new();
        for event in self.first_sights.values() {
            let by_user = || event.user_id.as_ref().map(|user| format!("\u{1}u{user}"));
            if let Some(key) = event.session_id.clone().or_else(by_user) {
                by_session.entry(key).or_default().push(event);
            }
            if let Some(user) = &event.user_id {
                let first = self.users.entry(user.clone()).or_insert(event.timestamp);
                *first = event.timestamp.min(*first);
            }
            for event_type in [ALL, &event.event_type] {
                for (granularity, start) in windows(event.timestamp) {
                    let key = (event_type.to_owned(), granularity.to_owned(), start);
                    let window = self.windows.entry(key).or_default();
                    window.count += 1;
                    window.users.extend(event.user_id.clone());
                }
            }
        }
        for (session_id, mut events) in by_session {
            events.sort_by_key(|event| event.timestamp);
            for run in events.chunk_by(|a, b| b.timestamp - a.timestamp <= GAP) {
                let first = run[0].timestamp;
                self.sessions.insert((session_id.clone(), first), session(run, &self.users));
                for (granularity, start) in windows(first) {
                    *self.session_windows.entry((String::new(), granularity.to_owned(), start)).or_default() += 1;
                }
            }
        }
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

fn windows(micros: i64) -> impl Iterator<Item = (&'static str, i64)> {
    let seconds = micros.div_euclid(1_000_000);
    GRANULARITIES.into_iter().map(move |(name, length)| (name, seconds.div_euclid(length) * length))
}

fn session(run: &[&Event], seen: &BTreeMap<String, i64>) -> Session {
    let pages: Vec<_> = run.iter().filter_map(|event| Some((event.timestamp, page(event)?))).collect();
    let users = run.iter().filter_map(|event| Some((event.timestamp, event.user_id.as_ref()?)));
    let user = users.min();
    let conversions = ["purchase", "order_completed", "conversion"];
    Session {
        last: run[run.len() - 1].timestamp,
        events: run.len() as i64,
        page_views: pages.len() as i64,
        conversions: run.iter().filter(|event| conversions.contains(&&*event.event_type)).count() as i64,
        user: user.map(|(_, user)| user.clone()),
        is_new: user.is_some_and(|(at, user)| seen.get(user) == Some(&at)),
        page: pages.into_iter().filter_map(|(at, page)| Some((at, page?))).max().map(|(_, page)| page),
    }
}

/// The page that an event shows, and its name if it has one.
fn page(event: &Event) -> Option<Option<String>> {
    let properties: Value =
        event.properties.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let name = |key: &str| properties[key].as_str().map(str::to_owned);
    let viewed = ["page", "page_view", "pageview", "screen"].contains(&&*event.event_type);
    (name("page").is_some() || viewed).then(|| name("page").or(name("path")).or(name("url")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_testkit::event;

    const T: i64 = 1_800_000_000;

    fn line(offset: i64, append_ms: i64, event: Event) -> Line {
        let partition = home_partition(event.event_id.as_bytes(), 4);
        Line { at: (partition, offset), append_ms, key: String::new(), origin: None, content: Ok(event) }
    }

    fn in_session(id: &str, seconds: i64) -> Event {
        Event { session_id: Some("s".into()), user_id: Some("u".into()), ..event(id, "click", seconds) }
    }

    #[test]
    fn copies_count_again_once_the_window_has_passed_since_the_latest_of_them() {
        let at = |offset, ms| line(offset, T * 1_000 + ms, event("a", "click", T));
        let expected = Expected::of(&[at(0, 0), at(1, 900), at(2, 1_800), at(3, 2_801)], 4, 1_000);
        let offsets: Vec<i64> = expected.first_sights.keys().map(|(_, offset)| *offset).collect();
        assert_eq!(offsets, [0, 3]);
        assert_eq!(expected.windows[&("click".to_owned(), "1d".to_owned(), T - T % 86_400)].count, 2);
    }

    #[test]
    fn sessions_are_cut_at_gaps_of_more_than_thirty_minutes() {
        let events = [("a", 0), ("b", 1_800), ("c", 3_601)].map(|(id, s)| line(s, T * 1_000, in_session(id, T + s)));
        let expected = Expected::of(&events, 4, 1_000);
        let found: Vec<_> = expected.sessions.iter().map(|((_, first), s)| (first / 1_000_000 - T, s.events)).collect();
        assert_eq!(found, [(0, 2), (3_601, 1)]);
        let new: Vec<bool> = expected.sessions.values().map(|session| session.is_new).collect();
        assert_eq!(new, [true, false]);
    }

    #[test]
    fn strays_and_what_is_no_event_count_nothing() {
        let mut stray = line(0, T * 1_000, event("a", "click", T));
        stray.at.0 = (stray.at.0 + 1) % 4;
        let ancient = line(1, T * 1_000, event("b", "click", 5));
        let mut broken = line(2, T * 1_000, event("c", "click", T));
        broken.content = Err("not-avro");
        let expected = Expected::of(&[stray, ancient, broken], 4, 1_000);
        assert_eq!(expected.strays.len(), 1);
        let reasons: BTreeSet<&str> = expected.dead.values().map(String::as_str).collect();
        assert_eq!(reasons, BTreeSet::from(["invalid", "not-avro"]));
        assert!(expected.first_sights.is_empty() && expected.windows.is_empty());
    }
}

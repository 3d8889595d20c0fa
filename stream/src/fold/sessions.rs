//! Sessions as a merging of intervals of event time.
//!
//! A session is a run of events of one session id in which no two neighbours are more than [`GAP`] apart.
//! Every field is a merge that is commutative and associative: sums, earliest and latest values, with ties
//! in time settled by the value. So the sessions of a set of events are the same in any order of arrival.

use serde_json::Value;
use tidemill_common::event::Event;

/// The longest pause within a session, in microseconds. Exactly this long still belongs together.
pub const GAP: i64 = 30 * 60 * 1_000_000;

/// Longest name of a page that is kept, in characters.
const MAX_PAGE: usize = 1_024;

/// A value and the time of the event it comes from, in microseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At {
    /// When.
    pub at: i64,
    /// What.
    pub value: String,
}

/// One session, or a part of one: an interval of event time and what happened in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its first event, in microseconds since 1970.
    pub first_event_at: i64,
    /// Its last event.
    pub last_event_at: i64,
    /// How many events it has.
    pub total_events: i64,
    /// How many of them are page views.
    pub page_views: i64,
    /// How many of them are conversions.
    pub conversions: i64,
    /// The earliest user named.
    pub user: Option<At>,
    /// The latest page named.
    pub page: Option<At>,
}

impl Session {
    /// The session of a single event.
    pub fn of(event: &Event) -> Self {
        let page = page(event);
        let at = |value: &str| At { at: event.timestamp, value: value.to_owned() };
        Self {
            first_event_at: event.timestamp,
            last_event_at: event.timestamp,
            total_events: 1,
            page_views: i64::from(page.is_some()),
            conversions: i64::from(is_conversion(&event.event_type)),
            user: event.user_id.as_deref().map(at),
            page: page.flatten().as_deref().map(at),
        }
    }

    fn reaches(&self, later: &Self) -> bool {
        later.first_event_at - self.last_event_at <= GAP
    }

    fn absorb(&mut self, other: Self) {
        self.first_event_at = self.first_event_at.min(other.first_event_at);
        self.last_event_at = self.last_event_at.max(other.last_event_at);
        self.total_events += other.total_events;
        self.page_views += other.page_views;
        self.conversions += other.conversions;
        self.user = pick(self.user.take(), other.user, |a, b| (a.at, &a.value) <= (b.at, &b.value));
        self.page = pick(self.page.take(), other.page, |a, b| (a.at, &a.value) >= (b.at, &b.value));
    }
}

fn pick(a: Option<At>, b: Option<At>, keeps: impl Fn(&At, &At) -> bool) -> Option<At> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if keeps(&a, &b) { a } else { b }),
        (a, b) => a.or(b),
    }
}

/// Merges the parts of one session id into its sessions, in order of time. Parts must be all that lie
/// within reach of each other.
pub fn merge(mut parts: Vec<Session>) -> Vec<Session> {
    parts.sort_by_key(|part| (part.first_event_at, part.last_event_at));
    let mut sessions: Vec<Session> = Vec::with_capacity(parts.len());
    for part in parts {
        match sessions.last_mut() {
            Some(last) if last.reaches(&part) => last.absorb(part),
            _ => sessions.push(part),
        }
    }
    sessions
}

/// The name of the page that an event shows: none, or one without a name (`Some(None)`).
fn page(event: &Event) -> Option<Option<String>> {
    let properties: Option<Value> = event.properties.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let text = |name: &str| properties.as_ref()?.get(name)?.as_str().map(storable);
    let named = text("page");
    let viewed = matches!(event.event_type.as_str(), "page" | "page_view" | "pageview" | "screen");
    (named.is_some() || viewed).then(|| named.or_else(|| text("path")).or_else(|| text("url")))
}

/// What a producer writes into its properties may be of any length, and may hold U+0000, which Postgres cannot
/// store; neither may keep everybody's batch from going through.
fn storable(text: &str) -> String {
    text.chars().take(MAX_PAGE).map(|c| if c == '\0' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn is_conversion(event_type: &str) -> bool {
    matches!(event_type, "purchase" | "order_completed" | "conversion")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: i64 = 60 * 1_000_000;

    fn event(at: i64, event_type: &str, user: Option<&str>, page: Option<&str>) -> Event {
        Event {
            event_id: String::new(),
            event_type: event_type.to_owned(),
            timestamp: at,
            received_at: None,
            user_id: user.map(str::to_owned),
            session_id: None,
            event_action: None,
            properties: page.map(|page| format!("{{\"page\":{page:?}}}")),
            client_address: None,
            user_agent: None,
        }
    }

    fn sessions(events: &[Event]) -> Vec<Session> {
        merge(events.iter().map(Session::of).collect())
    }

    #[test]
    fn a_gap_of_exactly_thirty_minutes_joins() {
        let at = |minutes: i64, more: i64| event(minutes * MINUTE + more, "click", None, None);
        assert_eq!(sessions(&[at(0, 0), at(30, 0)]).len(), 1);
        assert_eq!(sessions(&[at(0, 0), at(30, 1)]).len(), 2);
    }

    #[test]
    fn a_late_event_bridges_two_sessions() {
        let apart =
            [event(0, "click", Some("b"), Some("home")), event(50 * MINUTE, "purchase", Some("a"), Some("cart"))];
        let mut stored = sessions(&apart);
        assert_eq!(stored.len(), 2);
        stored.push(Session::of(&event(25 * MINUTE, "click", None, None)));
        let joined = merge(stored);
        assert_eq!(joined.len(), 1);
        assert_eq!(joined[0].total_events, 3);
        assert_eq!((joined[0].page_views, joined[0].conversions), (2, 1));
        assert_eq!(joined[0].user.as_ref().map(|user| user.value.as_str()), Some("b"), "the earliest user");
        assert_eq!(joined[0].page.as_ref().map(|page| page.value.as_str()), Some("cart"), "the latest page");
    }

    #[test]
    fn page_views_are_events_that_show_a_page() {
        assert_eq!(Session::of(&event(0, "page_view", None, None)).page_views, 1);
        assert_eq!(Session::of(&event(0, "click", None, Some("home"))).page_views, 1);
        assert_eq!(Session::of(&event(0, "click", None, None)).page_views, 0);
    }

    #[test]
    fn names_of_pages_can_be_stored() {
        let mut hostile = event(0, "page", None, None);
        hostile.properties = Some(format!("{{\"page\":\"a\\u0000{}\"}}", "b".repeat(5_000)));
        let page = Session::of(&hostile).page.expect("a page").value;
        assert!(page.starts_with("a\u{fffd}b"));
        assert_eq!(page.chars().count(), MAX_PAGE);
    }

    /// First and last event, number of events, user and page.
    type Summary = (i64, i64, i64, Option<String>, Option<String>);

    /// From the definition: sort by time, cut where the pause is too long.
    fn oracle(events: &[Event]) -> Vec<Summary> {
        let mut sorted = events.to_vec();
        sorted.sort_by_key(|event| event.timestamp);
        sorted
            .chunk_by(|a, b| b.timestamp - a.timestamp <= GAP)
            .map(|run| {
                let user = run.iter().filter_map(|e| Some((e.timestamp, e.user_id.clone()?))).min().map(|u| u.1);
                let page = run.iter().filter_map(|e| Some((e.timestamp, page(e)??))).max().map(|p| p.1);
                (run[0].timestamp, run[run.len() - 1].timestamp, run.len() as i64, user, page)
            })
            .collect()
    }

    fn summary(sessions: &[Session]) -> Vec<Summary> {
        let value = |at: &Option<At>| at.as_ref().map(|at| at.value.clone());
        sessions
            .iter()
            .map(|s| (s.first_event_at, s.last_event_at, s.total_events, value(&s.user), value(&s.page)))
            .collect()
    }

    proptest! {
        /// Any order and any split into batches, the stored sessions being merged with each batch.
        #[test]
        fn the_order_of_arrival_does_not_matter(
            drawn in prop::collection::vec((0i64..20, 0usize..4, 0usize..4), 1..40),
            batch in 1usize..8,
        ) {
            const NAMES: [Option<&str>; 4] = [None, Some("a"), Some("b"), Some("c")];
            // Steps of ten minutes, so that gaps of exactly 30 minutes are common.
            let events: Vec<Event> = drawn
                .iter()
                .map(|&(at, user, page)| event(at * 10 * MINUTE, "click", NAMES[user], NAMES[page]))
                .collect();
            let mut stored = Vec::new();
            for batch in events.chunks(batch) {
                stored.extend(batch.iter().map(Session::of));
                stored = merge(stored);
            }
            prop_assert_eq!(summary(&stored), oracle(&events));
        }
    }
}

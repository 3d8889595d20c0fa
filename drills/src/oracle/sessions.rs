//! Sessions: the events of a key, sorted by time and cut where the pause is too long.

use std::collections::BTreeMap;

use tidemill_common::event::Event;

use super::traits::{country, device, is_conversion, page, revenue, source};

const GAP: i64 = 30 * 60 * 1_000_000;
/// What the keys of users begin with, so that no session id can be taken for one.
const MARK: char = '\u{1}';

/// Session key and time of the first event, in microseconds.
pub type SessionKey = (String, i64);

/// One session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Session {
    /// When its last event happened, in microseconds.
    pub last: i64,
    /// How many events it has.
    pub events: i64,
    /// How many show a page.
    pub page_views: i64,
    /// How many are conversions.
    pub conversions: i64,
    /// What they brought in, in cents; none if none of them says.
    pub revenue: Option<i64>,
    /// The user named first.
    pub user: Option<String>,
    /// Whether that user, where first named in it, had never been seen.
    pub is_new: bool,
    /// The page named first.
    pub entry: Option<String>,
    /// The page named last.
    pub page: Option<String>,
    /// The traffic source named first.
    pub source: Option<String>,
    /// The device known first.
    pub device: Option<String>,
    /// The country known first.
    pub country: Option<String>,
}

/// The key under which an event's session stands: its id's or, without one, its user's.
pub fn key(event: &Event) -> Option<String> {
    match (&event.session_id, &event.user_id) {
        (Some(id), _) if id.starts_with(MARK) => Some(format!("{MARK}{id}")),
        (Some(id), _) => Some(id.clone()),
        (None, user) => user.as_ref().map(|user| format!("{MARK}u{user}")),
    }
}

/// The session id of a key; none of a user's.
pub fn id(key: &str) -> Option<&str> {
    match key.strip_prefix(MARK) {
        None => Some(key),
        Some(rest) => rest.starts_with(MARK).then_some(rest),
    }
}

/// The sessions of these events. `seen` has each user's first event of all.
pub fn sessions<'a>(
    events: impl Iterator<Item = &'a Event>,
    seen: &BTreeMap<String, i64>,
) -> BTreeMap<SessionKey, Session> {
    let mut by_key = BTreeMap::<String, Vec<&Event>>::new();
    for event in events {
        if let Some(key) = key(event) {
            by_key.entry(key).or_default().push(event);
        }
    }
    let mut sessions = BTreeMap::new();
    for (key, mut events) in by_key {
        events.sort_by_key(|event| event.timestamp);
        for run in events.chunk_by(|a, b| b.timestamp - a.timestamp <= GAP) {
            sessions.insert((key.clone(), run[0].timestamp), session(run, seen));
        }
    }
    sessions
}

fn session(run: &[&Event], seen: &BTreeMap<String, i64>) -> Session {
    // Of several at one time the least is the earliest, and the greatest the latest.
    let named = |of: fn(&Event) -> Option<String>| -> Vec<(i64, String)> {
        run.iter().filter_map(|event| Some((event.timestamp, of(event)?))).collect()
    };
    let first = |of: fn(&Event) -> Option<String>| named(of).into_iter().min();
    let name = |found: Option<(i64, String)>| found.map(|(_, name)| name);
    let user = first(|event| event.user_id.clone());
    let revenues: Vec<i64> = run.iter().filter_map(|event| revenue(event)).collect();
    Session {
        last: run[run.len() - 1].timestamp,
        events: run.len() as i64,
        page_views: run.iter().filter(|event| page(event).is_some()).count() as i64,
        conversions: run.iter().filter(|event| is_conversion(event)).count() as i64,
        revenue: (!revenues.is_empty()).then(|| revenues.iter().sum()),
        is_new: user.as_ref().is_some_and(|(at, user)| seen.get(user) == Some(at)),
        user: name(user),
        entry: name(first(|event| page(event).flatten())),
        page: name(named(|event| page(event).flatten()).into_iter().max()),
        source: name(first(|event| source(event).map(str::to_owned))),
        device: name(first(|event| device(event).map(str::to_owned))),
        country: name(first(|event| country(event).map(str::to_owned))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_testkit::event;

    const T: i64 = 1_800_000_000;

    fn all(events: &[Event]) -> BTreeMap<SessionKey, Session> {
        sessions(events.iter(), &BTreeMap::from([("u".to_owned(), T * 1_000_000)]))
    }

    fn in_session(id: &str, seconds: i64) -> Event {
        Event { session_id: Some("s".into()), user_id: Some("u".into()), ..event(id, "click", T + seconds) }
    }

    #[test]
    fn sessions_are_cut_at_gaps_of_more_than_thirty_minutes() {
        let sessions = all(&[in_session("a", 0), in_session("b", 1_800), in_session("c", 3_601)]);
        let found: Vec<_> =
            sessions.iter().map(|((_, first), s)| (first / 1_000_000 - T, s.events, s.is_new)).collect();
        assert_eq!(found, [(0, 2, true), (3_601, 1, false)]);
    }

    #[test]
    fn what_is_first_named_counts_and_of_pages_the_last_too() {
        let with =
            |seconds, properties: &str| Event { properties: Some(properties.to_owned()), ..in_session("e", seconds) };
        let mut bought = with(2, r#"{"total":"2.50","page":"/c"}"#);
        bought.event_type = "purchase".into();
        let events = [bought, with(0, r#"{"page":"/a","utm_medium":"cpc"}"#), with(1, r#"{"utm_source":"flyer"}"#)];
        let found = all(&events).into_values().next().expect("a session");
        assert_eq!((found.page_views, found.conversions, found.revenue), (2, 1, Some(250)));
        assert_eq!((found.entry.as_deref(), found.page.as_deref()), (Some("/a"), Some("/c")));
        assert_eq!(found.source.as_deref(), Some("paid"));
    }

    #[test]
    fn keys_tell_ids_from_users() {
        let of = |session: Option<&str>| {
            let named = Event { session_id: session.map(str::to_owned), ..in_session("e", 0) };
            key(&named).expect("a key")
        };
        let keys = [of(Some("s")), of(None), of(Some("\u{1}uu"))];
        assert_eq!(keys, ["s", "\u{1}uu", "\u{1}\u{1}uu"]);
        assert_eq!(keys.each_ref().map(|key| id(key)), [Some("s"), None, Some("\u{1}uu")]);
    }
}

//! The comparison: what was sent against the log, and what the log says against what each view holds. Pure; every
//! difference is a line that names the view, the key, and both sides.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;

use serde_json::Value;
use tidemill_common::event::Event;

use crate::journal::{Answer, Entry};
use crate::log::Line;
use crate::oracle::{ALL, Expected};
use crate::views::{Counted, Ledger, Sent, Shown};

/// Hot copies and live sessions this near to their end may be there or not, in seconds.
const MARGIN: i64 = 15;
const GAP_SECONDS: i64 = 1_800;
/// Up to so many users a sketch is exact; above, it may be off by this share.
const EXACT_UNIQUES: u64 = 600;
const SKETCH_ERROR: f64 = 0.03;

/// Compares two maps key by key.
pub fn compare<K: Ord + Debug, V: Debug>(
    what: &str,
    expected: &BTreeMap<K, V>,
    found: &BTreeMap<K, V>,
    same: impl Fn(&V, &V) -> bool,
) -> Vec<String> {
    let keys: BTreeSet<&K> = expected.keys().chain(found.keys()).collect();
    let differs = |key: &&K| match (expected.get(key), found.get(key)) {
        (Some(expected), Some(found)) => !same(expected, found),
        _ => true,
    };
    let side = |side: Option<&V>| side.map_or("nothing".to_owned(), |value| format!("{value:?}"));
    keys.into_iter()
        .filter(differs)
        .map(|key| format!("{what} {key:?}: expected {}, found {}", side(expected.get(key)), side(found.get(key))))
        .collect()
}

/// What was answered must be true, and the log holds nothing that nobody sent.
pub fn journal(entries: &[Entry], log: &[Line]) -> Vec<String> {
    let by_position: HashMap<(i32, i64), &Line> = log.iter().map(|line| (line.at, line)).collect();
    let in_log: BTreeSet<&str> = log.iter().map(name).collect();
    let sent: HashMap<&str, Option<&Event>> =
        entries.iter().map(|entry| (&*entry.event_id, entry.event.as_ref())).collect();
    let mut differences = Vec::new();
    for entry in entries {
        let id = &entry.event_id;
        match (entry.answer, entry.position) {
            (Answer::Accepted | Answer::Duplicate, Some(at)) => match by_position.get(&at).map(|line| name(line)) {
                Some(found) if found == id => {}
                found => differences.push(format!("journal {id}: answered {at:?}, where the log has {found:?}")),
            },
            (Answer::Accepted | Answer::Duplicate, None) if !in_log.contains(&**id) => {
                differences.push(format!("journal {id}: answered {:?}, but it is not in the log", entry.answer));
            }
            (Answer::Invalid, _) => differences.push(format!("journal {id}: a good event was called invalid")),
            _ => {}
        }
    }
    for line in log {
        match (sent.get(name(line)), &line.content) {
            (None, _) => differences.push(format!("log {:?}: nobody sent {}", line.at, name(line))),
            (Some(Some(event)), Ok(found)) if !same_event(event, found) => {
                differences.push(format!("log {:?}: sent {event:?}, found {found:?}", line.at));
            }
            (Some(Some(_)), Err(reason)) => differences.push(format!("log {:?}: an event became {reason}", line.at)),
            _ => {}
        }
    }
    differences
}

/// Strays must have been sent home.
pub fn strays(expected: &Expected, log: &[Line]) -> Vec<String> {
    let sent_home: BTreeSet<((i32, i64), i32)> =
        log.iter().filter_map(|line| Some((line.origin?.at, line.at.0))).collect();
    let lost = expected.strays.iter().filter(|(at, home)| !sent_home.contains(&(**at, **home)));
    lost.map(|(at, home)| format!("stray {at:?}: not sent home to partition {home}")).collect()
}

/// The ledger must stand at the log's end.
pub fn ledger(ends: &BTreeMap<i32, i64>, ledger: &Ledger) -> Vec<String> {
    let nexts: BTreeMap<i32, i64> = ledger.iter().map(|(partition, (next, _))| (*partition, *next)).collect();
    compare("ledger of partition", ends, &nexts, i64::eq)
}

/// Postgres against the log.
pub fn postgres(expected: &Expected, counted: &Counted) -> Vec<String> {
    let counts = expected.windows.iter().map(|(key, window)| (key.clone(), window.count)).collect();
    let uniques = expected.windows.iter().map(|(key, window)| (key.clone(), window.users.len() as u64)).collect();
    [
        compare("postgres session", &expected.sessions, &counted.sessions, PartialEq::eq),
        compare("postgres user", &expected.users, &counted.users, PartialEq::eq),
        compare("postgres events", &counts, &counted.events, PartialEq::eq),
        compare("postgres unique users", &uniques, &counted.uniques, within_sketch_error),
        compare("postgres sessions of", &expected.session_windows, &counted.session_windows, PartialEq::eq),
        compare("postgres dead letter", &expected.dead, &counted.dead, PartialEq::eq),
    ]
    .concat()
}

/// Redis against the log, at `now` in seconds since 1970.
pub fn redis(expected: &Expected, shown: &Shown, now: i64) -> Vec<String> {
    let mut sessions = BTreeMap::new();
    let mut about_to_end = BTreeSet::new();
    // In order of time, so that the latest session of an id is what stays.
    for ((id, first), session) in &expected.sessions {
        let ends = session.last / 1_000_000 + GAP_SECONDS;
        sessions.remove(id);
        about_to_end.remove(id);
        if (ends - now).abs() <= MARGIN {
            about_to_end.insert(id);
        } else if ends > now {
            sessions.insert(id.clone(), fields(expected, id, *first));
        }
    }
    let found = shown.sessions.iter().filter(|(id, _)| !about_to_end.contains(id));
    let found = found.map(|(id, fields)| (id.clone(), fields.clone())).collect();
    let mut differences = compare("redis session", &sessions, &found, PartialEq::eq);

    let hot_for = |granularity: &str, start: i64| {
        let kept = match granularity {
            "1m" => 3_600,
            "1h" => 2 * 3_600,
            _ => 2 * 86_400,
        };
        start + kept - now
    };
    let settled = |key: &&(String, String, i64)| hot_for(&key.1, key.2).abs() > MARGIN;
    let hot = |key: &&(String, String, i64)| settled(key) && hot_for(&key.1, key.2) > 0;
    let windows = expected.windows.iter().filter(|(key, _)| hot(key));
    let windows = windows.map(|(key, window)| (key.clone(), (window.count, window.users.len() as u64))).collect();
    // Other metrics have keys of the same form; what concerns us are those of types that occur.
    let types: BTreeSet<&str> = expected.windows.keys().map(|key| &*key.0).chain([ALL]).collect();
    let found = shown.windows.iter().filter(|(key, _)| types.contains(&*key.0) && settled(key));
    let found = found.map(|(key, numbers)| (key.clone(), *numbers)).collect();
    let same = |a: &(i64, u64), b: &(i64, u64)| a.0 == b.0 && within_sketch_error(&a.1, &b.1);
    differences.extend(compare("redis window", &windows, &found, same));

    let seen = |users: &mut dyn Iterator<Item = &String>| users.map(|user| (user.clone(), ())).collect();
    let (users, found) = (seen(&mut expected.users.keys()), seen(&mut shown.users.iter()));
    differences.extend(compare("redis seen user", &users, &found, PartialEq::eq));
    differences
}

/// The topics that the stream writes against the log.
pub fn topics(expected: &Expected, sent: &Sent) -> Vec<String> {
    let processed = expected.first_sights.iter().map(|(at, event)| (*at, event.event_id.clone())).collect();
    [
        compare("processed topic", &processed, &sent.processed, PartialEq::eq),
        compare("dead-letter topic", &expected.dead, &sent.dead, PartialEq::eq),
        sent.odd.clone(),
    ]
    .concat()
}

/// The archive against the log: each first sight once.
pub fn archive(expected: &Expected, rows: &[(i32, i64, String)]) -> Vec<String> {
    let mut found = BTreeMap::<(i32, i64), Vec<&str>>::new();
    for (partition, offset, id) in rows {
        found.entry((*partition, *offset)).or_default().push(id);
    }
    let once = expected.first_sights.iter().map(|(at, event)| (*at, vec![&*event.event_id])).collect();
    compare("archive row", &once, &found, PartialEq::eq)
}

fn fields(expected: &Expected, id: &str, first: i64) -> BTreeMap<String, String> {
    let session = &expected.sessions[&(id.to_owned(), first)];
    let mut fields = BTreeMap::from([
        ("firstEventAt", first.to_string()),
        ("lastEventAt", session.last.to_string()),
        ("pageViews", session.page_views.to_string()),
        ("totalEvents", session.events.to_string()),
        ("hasConversion", (session.conversions > 0).to_string()),
        ("isNew", session.is_new.to_string()),
    ]);
    // What stands under a user's mark has no id.
    fields.extend((!id.starts_with('\u{1}')).then(|| ("sessionId", id.to_owned())));
    fields.extend(session.user.clone().map(|user| ("userId", user)));
    fields.extend(session.page.clone().map(|page| ("currentPage", page)));
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A record's name in the journal.
fn name(line: &Line) -> &str {
    line.content.as_ref().map_or(&line.key, |event| &event.event_id)
}

/// The producer's own fields; the gateway adds others.
fn same_event(a: &Event, b: &Event) -> bool {
    let json = |event: &Event| -> Value {
        event.properties.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    };
    let fields = |e: &Event| (e.event_type.clone(), e.timestamp, e.user_id.clone(), e.session_id.clone());
    fields(a) == fields(b) && json(a) == json(b)
}

fn within_sketch_error(expected: &u64, found: &u64) -> bool {
    let allowed = if *expected <= EXACT_UNIQUES { 0.0 } else { *expected as f64 * SKETCH_ERROR };
    expected.abs_diff(*found) as f64 <= allowed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Via;
    use crate::oracle::{Session, Window};
    use tidemill_testkit::event;

    const NOW: i64 = 1_800_000_000;

    fn entry(id: &str, answer: Answer, position: Option<(i32, i64)>) -> Entry {
        let event = Some(event(id, "click", NOW));
        Entry { event_id: id.into(), via: Via::Native, answer, position, event }
    }

    fn line(id: &str, offset: i64) -> Line {
        let content = Ok(event(id, "click", NOW));
        Line { at: (0, offset), append_ms: NOW * 1_000, key: id.into(), origin: None, content }
    }

    #[test]
    fn answers_are_held_against_the_log() {
        let log = [line("a", 0), line("b", 1)];
        let sent = |answer, id, at| journal(&[entry("a", Answer::Unknown, None), entry(id, answer, at)], &log).len();
        assert_eq!(sent(Answer::Accepted, "b", Some((0, 1))), 0);
        assert_eq!(sent(Answer::Accepted, "b", Some((0, 0))), 1, "something else stands there");
        assert_eq!(sent(Answer::Duplicate, "b", None), 0);
        assert_eq!(sent(Answer::Unknown, "b", None), 0);
        assert_eq!(sent(Answer::Accepted, "c", None), 2, "c is not in the log, and nobody sent b");
    }

    #[test]
    fn a_changed_event_is_a_difference() {
        let mut log = [line("a", 0)];
        log[0].content.as_mut().expect("an event").user_id = Some("u".into());
        assert_eq!(journal(&[entry("a", Answer::Accepted, Some((0, 0)))], &log).len(), 1);
    }

    fn expected() -> Expected {
        let mut expected = Expected::default();
        let session = Session {
            last: NOW * 1_000_000,
            events: 2,
            page_views: 1,
            conversions: 0,
            user: Some("u".into()),
            page: Some("/".into()),
            is_new: true,
        };
        expected.sessions.insert(("s".into(), (NOW - 60) * 1_000_000), session);
        expected.users.insert("u".into(), (NOW - 60) * 1_000_000);
        let window = Window { count: 2, users: BTreeSet::from(["u".into()]) };
        expected.windows.insert((ALL.into(), "1m".into(), NOW - NOW % 60), window);
        expected
    }

    fn shown(expected: &Expected) -> Shown {
        let ((id, first), _) = expected.sessions.first_key_value().expect("a session");
        Shown {
            sessions: BTreeMap::from([(id.clone(), fields(expected, id, *first))]),
            windows: expected.windows.iter().map(|(key, w)| (key.clone(), (w.count, w.users.len() as u64))).collect(),
            users: expected.users.keys().cloned().collect(),
        }
    }

    #[test]
    fn redis_shows_what_is_live_and_nothing_else() {
        let expected = expected();
        assert_eq!(redis(&expected, &shown(&expected), NOW), Vec::<String>::new());
        let empty = redis(&expected, &Shown::default(), NOW);
        assert_eq!(empty.len(), 3, "session, window and user are missing: {empty:?}");
        let later = redis(&expected, &shown(&expected), NOW + 2 * 3_600);
        assert_eq!(later.len(), 2, "session and window should be gone: {later:?}");
        let mut wrong = shown(&expected);
        wrong.windows.values_mut().for_each(|window| window.0 = 4);
        wrong.sessions.values_mut().for_each(|fields| drop(fields.insert("totalEvents".into(), "3".into())));
        assert_eq!(redis(&expected, &wrong, NOW).len(), 2);
    }

    #[test]
    fn an_archive_holds_each_event_once() {
        let mut expected = Expected::default();
        expected.first_sights.insert((0, 1), event("a", "click", NOW));
        let row = (0, 1, "a".to_owned());
        assert!(archive(&expected, std::slice::from_ref(&row)).is_empty());
        assert_eq!(archive(&expected, &[row.clone(), row]).len(), 1);
        assert_eq!(archive(&expected, &[]).len(), 1);
    }

    #[test]
    fn sketches_may_be_off_by_their_error() {
        assert!(within_sketch_error(&600, &600) && !within_sketch_error(&600, &601));
        assert!(within_sketch_error(&10_000, &10_200) && !within_sketch_error(&10_000, &10_400));
    }
}

//! Redis against the log: what is live or hot must be there as the log says it, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use super::{compare, compare_by, same_reading};
use crate::oracle::{Cart, Expected, Session, amount, id};
use crate::views::Shown;

/// What is this near to its end may be there or not, in seconds.
const MARGIN: i64 = 15;
const GAP_SECONDS: i64 = 1_800;
const CART_SECONDS: i64 = 86_400;
/// What stands in Redis for a session that nothing brought.
const DIRECT: &str = "direct";

/// The fields of a hash.
type Fields = BTreeMap<String, String>;

/// All differences at `now`, in seconds since 1970.
pub fn redis(expected: &Expected, shown: &Shown, now: i64) -> Vec<String> {
    let hashes = |what: &str, expected: BTreeMap<&str, (i64, Fields)>, found: &BTreeMap<String, Fields>| {
        let lasts = |until: i64| (until - now).abs() > MARGIN;
        let unsettled: BTreeSet<&str> = expected.iter().filter(|(_, e)| !lasts(e.0)).map(|(key, _)| *key).collect();
        let live = expected.into_iter().filter(|(_, (until, _))| lasts(*until) && *until > now);
        let live = live.map(|(key, (_, fields))| (key.to_owned(), fields)).collect();
        let found = found.iter().filter(|(key, _)| !unsettled.contains(&***key));
        compare(what, &live, &found.map(|(key, fields)| (key.clone(), fields.clone())).collect())
    };
    let seen = |users: &mut dyn Iterator<Item = &String>| users.map(|user| (user.clone(), ())).collect();
    [
        hashes("redis session", sessions(expected), &shown.sessions),
        hashes("redis cart", carts(expected), &shown.carts),
        windows(expected, shown, now),
        compare("redis seen user", &seen(&mut expected.users.keys()), &seen(&mut shown.users.iter())),
    ]
    .concat()
}

/// The latest session of each key, and the second at which it ends.
fn sessions(expected: &Expected) -> BTreeMap<&str, (i64, Fields)> {
    // In order of time, so that the latest is what stays.
    let shown = |((key, first), session): (&'_ (String, i64), _)| (session_fields(key, *first, session), session.last);
    let ends = |(fields, last): (Fields, i64)| (last / 1_000_000 + GAP_SECONDS, fields);
    expected.sessions.iter().map(|(key, session)| (&*key.0, ends(shown((key, session))))).collect()
}

/// The carts, and the second at which each is forgotten.
fn carts(expected: &Expected) -> BTreeMap<&str, (i64, Fields)> {
    let ends = |cart: &Cart| cart.changed / 1_000_000 + CART_SECONDS;
    expected.carts.iter().map(|(key, cart)| (&**key, (ends(cart), cart_fields(cart)))).collect()
}

/// For how long a window is hot yet, in seconds.
pub(super) fn hot_for(granularity: &str, start: i64, now: i64) -> i64 {
    let kept = match granularity {
        "1m" => 3_600,
        "1h" => 2 * 3_600,
        _ => 2 * 86_400,
    };
    start + kept - now
}

fn windows(expected: &Expected, shown: &Shown, now: i64) -> Vec<String> {
    // Values of dimensions have no copies, but for event types.
    let copied = expected.windows.iter().filter(|(key, _)| ["", "event_type"].contains(&&*key.dimension));
    let hot = copied.filter(|(key, _)| hot_for(&key.granularity, key.start, now) > MARGIN);
    let hot = hot.map(|(key, reading)| (key.clone(), reading.clone())).collect();
    let found = shown.windows.iter().filter(|(key, _)| hot_for(&key.granularity, key.start, now).abs() > MARGIN);
    let found = found.map(|(key, reading)| (key.clone(), reading.clone())).collect();
    compare_by("redis window", &hot, &found, same_reading)
}

fn session_fields(key: &str, first: i64, session: &Session) -> Fields {
    let mut fields = BTreeMap::from([
        ("firstEventAt", first.to_string()),
        ("lastEventAt", session.last.to_string()),
        ("pageViews", session.page_views.to_string()),
        ("totalEvents", session.events.to_string()),
        ("conversions", session.conversions.to_string()),
        ("hasConversion", (session.conversions > 0).to_string()),
        ("isNew", session.is_new.to_string()),
        ("trafficSource", session.source.as_deref().unwrap_or(DIRECT).to_owned()),
    ]);
    for (field, value) in [
        ("sessionId", id(key).map(str::to_owned)),
        ("userId", session.user.clone()),
        ("currentPage", session.page.clone()),
        ("entryPage", session.entry.clone()),
        ("deviceType", session.device.clone()),
        ("country", session.country.clone()),
        ("revenue", session.revenue.map(amount)),
    ] {
        fields.extend(value.map(|value| (field, value)));
    }
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn cart_fields(cart: &Cart) -> Fields {
    let items: i64 = cart.lines.values().map(|(quantity, _)| quantity).sum();
    let value: i64 = cart.lines.values().map(|(quantity, price)| quantity * price.unwrap_or_default()).sum();
    let line = |(item, (quantity, price)): (&String, &(i64, Option<i64>))| {
        let price = price.map(|price| format!(" {}", amount(price))).unwrap_or_default();
        (format!("item:{item}"), format!("{quantity}{price}"))
    };
    let totals =
        [("total_items", items.to_string()), ("total_value", amount(value)), ("changed_at", cart.changed.to_string())];
    cart.lines.iter().map(line).chain(totals.map(|(name, value)| (name.to_owned(), value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{EVENTS, Reading, WindowKey};

    const NOW: i64 = 1_800_000_000;

    fn expected() -> Expected {
        let mut expected = Expected::default();
        let session = Session { last: NOW * 1_000_000, events: 2, revenue: Some(250), ..Session::default() };
        expected.sessions.insert(("s".into(), (NOW - 60) * 1_000_000), session);
        let lines = BTreeMap::from([("a".to_owned(), (2, Some(150)))]);
        expected.carts.insert("s".into(), Cart { changed: NOW * 1_000_000, lines, ..Cart::default() });
        expected.users.insert("u".into(), (NOW - 60) * 1_000_000);
        let (metric, granularity) = (EVENTS.to_owned(), "1m".to_owned());
        let (dimension, value) = Default::default();
        let key = WindowKey { metric, dimension, value, granularity, start: NOW - NOW % 60 };
        expected.windows.insert(key, Reading { count: 2, value: Some(1.0) });
        expected
    }

    fn shown(expected: &Expected) -> Shown {
        let owned = |hashes: BTreeMap<&str, (i64, Fields)>| {
            hashes.into_iter().map(|(key, (_, fields))| (key.to_owned(), fields)).collect()
        };
        Shown {
            sessions: owned(sessions(expected)),
            carts: owned(carts(expected)),
            windows: expected.windows.clone(),
            users: expected.users.keys().cloned().collect(),
        }
    }

    #[test]
    fn redis_shows_what_is_live_and_nothing_else() {
        let expected = expected();
        let right = shown(&expected);
        assert_eq!(redis(&expected, &right, NOW), Vec::<String>::new());
        assert_eq!(right.carts["s"]["total_value"], "3");
        let empty = redis(&expected, &Shown::default(), NOW);
        assert_eq!(empty.len(), 4, "session, cart, window and user are missing: {empty:?}");
        let later = redis(&expected, &right, NOW + 25 * 3_600);
        assert_eq!(later.len(), 3, "session, cart and window should be gone: {later:?}");
        let mut wrong = right;
        wrong.windows.values_mut().for_each(|window| window.count = 4);
        for (hashes, field) in [(&mut wrong.sessions, "revenue"), (&mut wrong.carts, "item:a")] {
            hashes.values_mut().for_each(|fields| drop(fields.remove(field)));
        }
        assert_eq!(redis(&expected, &wrong, NOW).len(), 3);
    }
}

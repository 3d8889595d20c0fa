//! The comparison: what was sent against the log, and what the log says against what each view holds. Pure; every
//! difference is a line that names the view, the key, and both sides.

mod journal;
mod published;
mod redis;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

pub use journal::journal;
pub use published::published;
pub use redis::redis;

use crate::log::Line;
use crate::oracle::{Aggregation, Expected, Reading, WindowKey, aggregation, country, device, source};
use crate::views::{Counted, Ledger, Processed, Sent};

/// Up to so many different values a sketch is exact; above, it may be off by this share.
const EXACT_UNIQUES: f64 = 600.0;
const SKETCH_ERROR: f64 = 0.03;
/// By how much a percentile may be off: 1 %, and a little for rounding.
const PERCENTILE_ERROR: f64 = 0.010_001;
/// What a mean is rounded to, and floats cannot tell.
const ROUNDING: f64 = 1e-6;

/// Compares two maps key by key.
pub fn compare<K: Ord + Debug, V: Debug + PartialEq>(
    what: &str,
    expected: &BTreeMap<K, V>,
    found: &BTreeMap<K, V>,
) -> Vec<String> {
    compare_by(what, expected, found, |_, a, b| a == b)
}

/// The same with an equality of one's own.
pub fn compare_by<K: Ord + Debug, V: Debug>(
    what: &str,
    expected: &BTreeMap<K, V>,
    found: &BTreeMap<K, V>,
    same: impl Fn(&K, &V, &V) -> bool,
) -> Vec<String> {
    let keys: BTreeSet<&K> = expected.keys().chain(found.keys()).collect();
    let differs = |key: &&K| match (expected.get(key), found.get(key)) {
        (Some(expected), Some(found)) => !same(key, expected, found),
        _ => true,
    };
    let side = |side: Option<&V>| side.map_or("nothing".to_owned(), |value| format!("{value:?}"));
    keys.into_iter()
        .filter(differs)
        .map(|key| format!("{what} {key:?}: expected {}, found {}", side(expected.get(key)), side(found.get(key))))
        .collect()
}

/// Strays must have been sent home.
pub fn strays(expected: &Expected, log: &[Line]) -> Vec<String> {
    let at_home = log.iter().filter(|line| !expected.strays.contains_key(&line.at));
    let sent_home: BTreeSet<(i32, i64)> = at_home.filter_map(|line| Some(line.origin?.at)).collect();
    let lost = expected.strays.iter().filter(|(_, first)| !sent_home.contains(first));
    lost.map(|(at, _)| format!("stray {at:?}: not sent home")).collect()
}

/// The ledger must stand at the log's end.
pub fn ledger(ends: &BTreeMap<i32, i64>, ledger: &Ledger) -> Vec<String> {
    let nexts: BTreeMap<i32, i64> = ledger.iter().map(|(partition, (next, _))| (*partition, *next)).collect();
    compare("ledger of partition", ends, &nexts)
}

/// Postgres against the log.
pub fn postgres(expected: &Expected, counted: &Counted) -> Vec<String> {
    let carts = expected.carts.iter();
    let carts = carts.flat_map(|(key, cart)| {
        let of_cart = |((at, id), change): (&(i64, String), _)| ((key.clone(), *at, id.clone()), Clone::clone(change));
        cart.events.iter().map(of_cart).collect::<Vec<_>>()
    });
    [
        compare("postgres session", &expected.sessions, &counted.sessions),
        compare("postgres cart event", &carts.collect(), &counted.cart_events),
        compare("postgres user", &expected.users, &counted.users),
        compare_by("postgres window", &expected.windows, &counted.windows, same_reading),
        compare("postgres dead letter", &expected.dead, &counted.dead),
    ]
    .concat()
}

/// The topics that the stream writes against the log.
pub fn topics(expected: &Expected, sent: &Sent) -> Vec<String> {
    let processed = expected.first_sights.iter().map(|(at, event)| {
        let name = |found: Option<&str>| found.map(str::to_owned);
        let processed = Processed {
            event_id: event.event_id.clone(),
            device_type: name(device(event)),
            traffic_source: name(source(event)),
            country: name(country(event)),
            source_partition: at.0,
            source_offset: at.1,
        };
        (*at, processed)
    });
    [
        compare("processed topic", &processed.collect(), &sent.processed),
        compare("dead-letter topic", &expected.dead, &sent.dead),
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
    compare("archive row", &once, &found)
}

fn same_reading(key: &WindowKey, expected: &Reading, found: &Reading) -> bool {
    let near = |expected: f64, found: f64| {
        let allowed = match aggregation(&key.metric) {
            Aggregation::Unique if expected > EXACT_UNIQUES => expected * SKETCH_ERROR,
            Aggregation::P95 => expected * PERCENTILE_ERROR,
            _ => ROUNDING,
        };
        (expected - found).abs() <= allowed
    };
    let same = match (expected.value, found.value) {
        (Some(expected), Some(found)) => near(expected, found),
        (expected, found) => expected == found,
    };
    same && expected.count == found.count
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_testkit::event;

    #[test]
    fn an_archive_holds_each_event_once() {
        let mut expected = Expected::default();
        expected.first_sights.insert((0, 1), event("a", "click", 1_800_000_000));
        let row = (0, 1, "a".to_owned());
        assert!(archive(&expected, std::slice::from_ref(&row)).is_empty());
        assert_eq!(archive(&expected, &[row.clone(), row]).len(), 1);
        assert_eq!(archive(&expected, &[]).len(), 1);
    }

    #[test]
    fn sketches_may_be_off_by_their_error() {
        let same = |metric: &str, expected: f64, found: f64| {
            let metric = metric.to_owned();
            let key = WindowKey {
                metric,
                dimension: String::new(),
                value: String::new(),
                granularity: String::new(),
                start: 0,
            };
            let reading = |value| Reading { count: 1, value: Some(value) };
            same_reading(&key, &reading(expected), &reading(found))
        };
        assert!(same("events", 600.0, 600.0) && !same("events", 600.0, 601.0));
        assert!(same("events", 10_000.0, 10_200.0) && !same("events", 10_000.0, 10_400.0));
        assert!(same("scroll_depth", 100.0, 101.0) && !same("scroll_depth", 100.0, 102.0));
        assert!(same("order_total", 0.3, 0.1 + 0.2) && !same("order_total", 0.3, 0.31));
    }
}

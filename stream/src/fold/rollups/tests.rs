use std::collections::HashMap;

use super::*;
use crate::metric::Declaration;
use crate::properties::Fields;
use proptest::prelude::*;
use serde_json::json;
use tidemill_common::event::Event;

fn event(seconds: i64, event_type: &str, user: Option<&str>) -> Event {
    Event { user_id: user.map(str::to_owned), ..Event::new("", event_type, seconds * 1_000_000) }
}

/// Metric, dimension, value, granularity and start.
type Key = (String, String, String, Granularity, i64);

fn fold(definitions: &Arc<Snapshot>, guard: &mut Guard, events: &[Event]) -> HashMap<Key, Change> {
    let mut changes = Changes::new(0, Arc::clone(definitions));
    for event in events {
        let properties = event.properties.as_deref().unwrap_or_default();
        let fields = Fields::read(properties);
        changes.count_event("p", Subject::new(event.as_ref(), fields.of(properties)), guard);
    }
    rows(changes)
}

fn rows(changes: Changes) -> HashMap<Key, Change> {
    let rows = changes.settle();
    assert!(rows.is_sorted_by(|(a, _), (b, _)| a < b), "sorted, and each row once");
    let key = |key: RollupKey| {
        let Series { metric, dimension, value, .. } = &*key.series;
        (metric.to_string(), dimension.to_string(), value.to_string(), key.granularity, key.window_start)
    };
    rows.into_iter().map(|(row, change)| (key(row), change)).collect()
}

fn key(metric: &str, dimension: &str, value: &str, granularity: Granularity, start: i64) -> Key {
    (metric.to_owned(), dimension.to_owned(), value.to_owned(), granularity, start)
}

fn declared(definitions: &[serde_json::Value]) -> Arc<Snapshot> {
    let parse = |json: &serde_json::Value| Declaration::from_json(json.clone()).expect("a declaration");
    Arc::new(Snapshot::of(&definitions.iter().map(parse).collect::<Vec<_>>(), HashMap::new()))
}

#[test]
fn events_count_in_every_window_for_their_type_and_for_all() {
    let events = [event(30, "a", Some("u1")), event(59, "b", Some("u1")), event(60, "a", None)];
    let rows = fold(&Arc::default(), &mut Guard::default(), &events);
    let get = |event_type: &str, granularity, start| {
        let dimension = if event_type.is_empty() { "" } else { metric::EVENT_TYPE };
        let change = &rows[&key(metric::EVENTS, dimension, event_type, granularity, start)];
        (change.count, change.unique.len())
    };
    assert_eq!(get("", Granularity::Minute, 0), (2, 1));
    assert_eq!(get("", Granularity::Minute, 60), (1, 0));
    assert_eq!(get("a", Granularity::Hour, 0), (2, 1));
    assert_eq!(get("b", Granularity::Day, 0), (1, 1));
    assert_eq!(get("", Granularity::Day, 0), (3, 1));
}

#[test]
fn differences_that_cancel_out_change_nothing() {
    let mut changes = Changes::new(0, Arc::default());
    let price = Decimal::parse("19.99").expect("a decimal");
    changes.add("p", metric::REVENUE, 0, 1, price);
    changes.add("p", metric::REVENUE, 59_000_000, -1, -price);
    changes.add("p", metric::REVENUE, 3_600_000_000, 0, price);
    let rows = rows(changes);
    assert_eq!(rows[&key(metric::REVENUE, "", "", Granularity::Minute, 3_600)].sum, Some(price));
    assert!(!rows.contains_key(&key(metric::REVENUE, "", "", Granularity::Minute, 0)));
    assert_eq!(rows[&key(metric::REVENUE, "", "", Granularity::Day, 0)].count, 0);
}

#[test]
fn pages_are_viewed_by_type_or_by_name() {
    let mut named = event(0, "click", None);
    named.properties = Some(r#"{"page":"home"}"#.to_owned());
    let mut numbered = event(0, "click", None);
    numbered.properties = Some(r#"{"page":7}"#.to_owned());
    let rows = fold(&Arc::default(), &mut Guard::default(), &[named, numbered, event(0, "page_view", None)]);
    assert_eq!(rows[&key(metric::PAGE_VIEWS, "", "", Granularity::Day, 0)].count, 2);
}

#[test]
fn declared_metrics_count_in_total_and_by_dimension() {
    let definitions = declared(&[json!({
        "name": "sales", "eventTypes": ["buy"], "aggregation": "sum", "field": "amount",
        "dimensions": ["country"], "granularities": ["1h", "1d"],
    })]);
    let buy = |amount: &str, country: &str| {
        let properties = format!(r#"{{"amount":{amount},"country":{country}}}"#);
        Event { properties: Some(properties), ..event(10, "buy", None) }
    };
    let events = [buy("10.10", "\"DE\""), buy("0.20", "\"FR\""), buy("1", "null"), buy("\"none\"", "\"DE\"")];
    let rows = fold(&definitions, &mut Guard::default(), &events);
    let sum = |dimension: &str, value: &str, granularity| {
        let change = rows.get(&key("sales", dimension, value, granularity, 0))?;
        Some((change.count, change.sum?.to_string()))
    };
    assert_eq!(sum("", "", Granularity::Hour), Some((3, "11.3".to_owned())), "exactly");
    assert_eq!(sum("country", "DE", Granularity::Day), Some((1, "10.1".to_owned())));
    assert_eq!(sum("country", "", Granularity::Day), Some((1, "1".to_owned())), "those without a country");
    assert_eq!(sum("", "", Granularity::Minute), None, "not kept");
}

#[test]
fn a_runaway_dimension_counts_under_other_and_its_total_stays_exact() {
    let definitions = declared(&[json!({"name": "clicks", "dimensions": ["x"], "maxValues": 5})]);
    let with = |x: usize| Event { properties: Some(format!(r#"{{"x":{x}}}"#)), ..event(0, "click", None) };
    let events: Vec<Event> = (0..1_000).map(with).collect();
    let mut guard = Guard::default();
    fold(&definitions, &mut guard, &events);
    let rows = fold(&definitions, &mut guard, &events);
    let day = |dimension: &str, value: &str| rows.get(&key("clicks", dimension, value, Granularity::Day, 0));
    assert_eq!(day("", "").map(|change| change.count), Some(1_000));
    assert_eq!(day("x", metric::OTHER).map(|change| change.count), Some(995));
    assert_eq!(rows.keys().filter(|key| key.1 == "x" && key.3 == Granularity::Day).count(), 6);
}

/// The guard is that of any dimension: a combination's values are pairs.
#[test]
fn a_runaway_combination_counts_under_other() {
    let definitions = declared(&[json!({"name": "clicks", "dimensions": [["x", "y"]], "maxValues": 5})]);
    let with = |i: usize| Event {
        properties: Some(format!(r#"{{"x":{},"y":{}}}"#, i % 10, i / 10)),
        ..event(0, "click", None)
    };
    let events: Vec<Event> = (0..100).map(with).collect();
    let mut guard = Guard::default();
    fold(&definitions, &mut guard, &events);
    let rows = fold(&definitions, &mut guard, &events);
    let day = |value: &str| rows.get(&key("clicks", "x,y", value, Granularity::Day, 0)).map(|change| change.count);
    assert_eq!(day(metric::OTHER), Some(95));
    let told_apart = rows.keys().filter(|key| key.1 == "x,y" && key.3 == Granularity::Day && key.2 != metric::OTHER);
    assert!(told_apart.clone().count() == 5 && told_apart.clone().all(|key| day(&key.2) == Some(1)));
}

proptest! {
    /// What a combination counts is what is counted of the events that have all its values; and what stands together
    /// adds up to each of its dimensions alone.
    #[test]
    fn combinations_are_what_they_say(
        drawn in prop::collection::vec((0i64..100_000, 0usize..3, 0usize..3, -500i64..500), 1..60),
        size in 1usize..20,
    ) {
        let definitions = declared(&[json!({
            "name": "sales", "aggregation": "sum", "field": "x",
            "dimensions": ["plan", "eventType", ["plan", "eventType"]],
        })]);
        let plans = ["", "a,b", "[\"a\"]"];
        let make = |&(at, kind, plan, x): &(i64, usize, usize, i64)| Event {
            properties: Some(json!({"x": x, "plan": if plan == 0 { json!(null) } else { json!(plans[plan]) }}).to_string()),
            ..event(at, ["a", "b", "c"][kind], None)
        };
        let events: Vec<Event> = drawn.iter().map(make).collect();
        let mut counted = HashMap::<Key, Change>::new();
        let mut guard = Guard::default();
        for batch in events.chunks(size) {
            for (key, change) in fold(&definitions, &mut guard, batch) {
                counted.entry(key).or_default().merge(&change);
            }
        }
        let mut oracle = HashMap::<Key, (i64, i64)>::new();
        for ((at, kind, plan, x), granularity) in
            drawn.iter().flat_map(|drawn| Granularity::ALL.map(|granularity| (drawn, granularity)))
        {
            let (kind, plan) = (["a", "b", "c"][*kind], plans[*plan]);
            let both = serde_json::to_string(&[plan, kind]).expect("texts");
            let start = granularity.window(at * 1_000_000);
            for (dimension, value) in [("", ""), ("plan", plan), ("eventType", kind), ("plan,eventType", &both)] {
                let (count, sum) = oracle.entry(key("sales", dimension, value, granularity, start)).or_default();
                (*count, *sum) = (*count + 1, *sum + x);
            }
        }
        let sales = |(key, _): &(Key, Change)| key.0 == "sales";
        let found: HashMap<Key, (i64, i64)> = counted
            .into_iter()
            .filter(sales)
            .map(|(key, change)| (key, (change.count, change.sum.unwrap_or_default().to_f64() as i64)))
            .collect();
        prop_assert_eq!(found, oracle);
    }

    /// Any split into batches adds up to the same, whatever the order.
    #[test]
    fn batches_add_up(
        drawn in prop::collection::vec((0i64..200_000, 0usize..3, 0usize..4, -500i64..500), 1..60),
        size in 1usize..20,
    ) {
        let definitions = declared(&[
            json!({"name": "low", "aggregation": "min", "field": "x", "dimensions": ["eventType"]}),
            json!({"name": "spread", "aggregation": "p95", "field": "x"}),
            json!({"name": "different", "aggregation": "unique", "field": "x", "where": [{"property": "x", "gt": 0}]}),
        ]);
        let events: Vec<Event> = drawn
            .iter()
            .map(|&(at, kind, user, x)| Event {
                properties: Some(format!(r#"{{"x":{x}}}"#)),
                ..event(at, ["a", "b", "c"][kind], [None, Some("u"), Some("v"), Some("w")][user])
            })
            .collect();
        let whole = fold(&definitions, &mut Guard::default(), &events);
        let mut reversed = events;
        reversed.reverse();
        let mut added = HashMap::<Key, Change>::new();
        let mut guard = Guard::default();
        for batch in reversed.chunks(size) {
            for (key, change) in fold(&definitions, &mut guard, batch) {
                added.entry(key).or_default().merge(&change);
            }
        }
        added.values_mut().for_each(Change::settle);
        prop_assert_eq!(added, whole);
    }
}

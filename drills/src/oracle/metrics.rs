//! Metrics: what counts in each window, collected, and then the number that it makes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tidemill_common::event::Event;

use super::sessions::{self, Session, SessionKey};
use super::traits::{country, device, is_conversion, number, page, properties, revenue, source};

/// The granularities and their lengths in seconds.
pub const GRANULARITIES: [(&str, i64); 3] = [("1m", 60), ("1h", 3_600), ("1d", 86_400)];
/// The metric of all events, which counts them and their users; its dimension is the type.
pub const EVENTS: &str = "events";

/// A window of a metric, or of one value of its dimension.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WindowKey {
    /// The metric.
    pub metric: String,
    /// The dimension; empty for all events of the metric.
    pub dimension: String,
    /// Its value; empty for events without one.
    pub value: String,
    /// How long the window is, by its name.
    pub granularity: String,
    /// Its start, in seconds since 1970.
    pub start: i64,
}

/// What a metric says of a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Events, or sessions.
    pub count: i64,
    /// What the metric computes; of events, how many users.
    pub value: Option<f64>,
}

/// What a metric computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregation {
    /// How many.
    Count,
    /// Their sum.
    Sum,
    /// Their mean.
    Avg,
    /// How many different ones.
    Unique,
    /// What 95 % of them do not exceed.
    P95,
}

/// A declared metric.
#[derive(Debug)]
pub struct Declared {
    /// Its name.
    pub name: &'static str,
    event_types: &'static [&'static str],
    aggregation: Aggregation,
    field: &'static str,
    /// Those of a combination with commas between them.
    dimensions: &'static [&'static str],
    /// Whether it comes with every project.
    built_in: bool,
}

const fn declared(
    name: &'static str,
    aggregation: Aggregation,
    field: &'static str,
    event_types: &'static [&'static str],
    dimensions: &'static [&'static str],
) -> Declared {
    Declared { name, event_types, aggregation, field, dimensions, built_in: false }
}

const ORDERS: &[&str] = &["purchase", "order_completed", "Order Completed"];
/// A count takes orders from this total on, in cents.
const LARGE: i64 = 10_000;

/// The declared metrics of a row's project: those that every project has, and some of its own.
pub const DECLARED: [Declared; 6] = [
    Declared { built_in: true, ..declared("buyers", Aggregation::Unique, "userId", ORDERS, &["country"]) },
    Declared { built_in: true, ..declared("order_value", Aggregation::Avg, "total", ORDERS, &["currency"]) },
    declared("large_orders", Aggregation::Count, "", ORDERS, &["deviceType", "trafficSource", "country,deviceType"]),
    declared("order_total", Aggregation::Sum, "total", ORDERS, &["currency"]),
    declared("products", Aggregation::Unique, "product", &["product_view"], &["trafficSource", "eventType"]),
    declared("scroll_depth", Aggregation::P95, "depth", &["scroll"], &["deviceType"]),
];

impl Declared {
    /// What a project has to declare, unless the metric comes with it.
    pub fn definition(&self) -> Option<Value> {
        let aggregation = format!("{:?}", self.aggregation).to_lowercase();
        let mut definition = json!({
            "name": self.name, "eventTypes": self.event_types, "aggregation": aggregation,
            "dimensions": self.dimensions.iter().map(|name| match name.split_once(',') {
                Some(pair) => json!(pair),
                None => json!(name),
            }).collect::<Vec<_>>(),
        });
        if self.aggregation == Aggregation::Count {
            definition["where"] = json!([{ "property": "total", "gte": LARGE / 100 }]);
        } else {
            definition["field"] = json!(self.field);
        }
        (!self.built_in).then_some(definition)
    }

    fn observe(&self, event: &Event, totals: &mut Totals) {
        let property = &properties(event)[self.field];
        match self.aggregation {
            Aggregation::Unique => totals.texts.extend(text(event, self.field)),
            Aggregation::Sum | Aggregation::Avg | Aggregation::P95 => totals.numbers.extend(number(property)),
            Aggregation::Count => {}
        }
        totals.count += 1;
    }

    fn takes(&self, event: &Event) -> bool {
        let field = match self.aggregation {
            Aggregation::Count => number(&properties(event)["total"]).is_some_and(|total| total >= LARGE),
            Aggregation::Unique => text(event, self.field).is_some(),
            _ => number(&properties(event)[self.field]).is_some(),
        };
        field && self.event_types.contains(&&*event.event_type)
    }
}

/// What a metric computes, by its name.
pub fn aggregation(metric: &str) -> Aggregation {
    match metric {
        EVENTS => Aggregation::Unique,
        "revenue" => Aggregation::Sum,
        _ => DECLARED.iter().find(|d| d.name == metric).map_or(Aggregation::Count, |declared| declared.aggregation),
    }
}

/// A field or dimension of an event, as text.
fn text(event: &Event, name: &str) -> Option<String> {
    match name {
        "userId" => event.user_id.clone(),
        "eventType" => Some(event.event_type.clone()),
        "deviceType" => device(event).map(str::to_owned),
        "trafficSource" => source(event).map(str::to_owned),
        "country" => country(event).map(str::to_owned),
        property => match &properties(event)[property] {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        },
    }
}

/// The value of a dimension, or the values of a combination as the JSON that stands in Postgres.
fn dimension_value(event: &Event, dimension: &str) -> String {
    let value = |name| text(event, name).unwrap_or_default();
    match dimension.split_once(',') {
        Some((one, other)) => json!([value(one), value(other)]).to_string(),
        None => value(dimension),
    }
}

/// What was collected of a window. Numbers are in hundredths.
#[derive(Default)]
struct Totals {
    count: i64,
    numbers: Vec<i64>,
    texts: BTreeSet<String>,
}

#[derive(Default)]
struct Windows(BTreeMap<WindowKey, Totals>);

impl Windows {
    /// Adds to all windows around a time, in microseconds.
    fn add(&mut self, metric: &str, (dimension, value): (&str, &str), at: i64, add: impl Fn(&mut Totals)) {
        let seconds = at.div_euclid(1_000_000);
        for (granularity, length) in GRANULARITIES {
            let key = WindowKey {
                metric: metric.to_owned(),
                dimension: dimension.to_owned(),
                value: value.to_owned(),
                granularity: granularity.to_owned(),
                start: seconds.div_euclid(length) * length,
            };
            add(self.0.entry(key).or_default());
        }
    }

    fn add_event(&mut self, event: &Event) {
        let at = event.timestamp;
        for series in [("", ""), ("event_type", &*event.event_type)] {
            self.add(EVENTS, series, at, |totals| {
                totals.count += 1;
                totals.texts.extend(event.user_id.clone());
            });
        }
        if page(event).is_some() {
            self.add("page_views", ("", ""), at, |totals| totals.count += 1);
        }
        for declared in DECLARED.iter().filter(|declared| declared.takes(event)) {
            self.add(declared.name, ("", ""), at, |totals| declared.observe(event, totals));
            for dimension in declared.dimensions {
                let value = dimension_value(event, dimension);
                self.add(declared.name, (dimension, &value), at, |totals| declared.observe(event, totals));
            }
        }
        // Conversions count at the start of their session, if they have one.
        if sessions::key(event).is_none() && is_conversion(event) {
            self.add_conversions(at, 1, revenue(event));
        }
    }

    fn add_session(&mut self, first: i64, session: &Session) {
        let counts = [("sessions", true), ("bounces", session.events == 1), ("new_users", session.is_new)];
        for (metric, _) in counts.into_iter().filter(|(_, counts)| *counts) {
            self.add(metric, ("", ""), first, |totals| totals.count += 1);
        }
        if session.conversions > 0 {
            self.add_conversions(first, session.conversions, session.revenue);
        }
    }

    fn add_conversions(&mut self, at: i64, count: i64, revenue: Option<i64>) {
        self.add("conversions", ("", ""), at, |totals| totals.count += count);
        self.add("revenue", ("", ""), at, |totals| {
            totals.count += count;
            totals.numbers.extend(revenue);
        });
    }
}

impl Totals {
    fn reading(mut self, metric: &str) -> Reading {
        let sum = self.numbers.iter().sum::<i64>() as f64 / 100.0;
        let value = match aggregation(metric) {
            Aggregation::Count => Some(self.count as f64),
            Aggregation::Sum => Some(sum),
            Aggregation::Avg => Some(sum / self.count as f64),
            Aggregation::Unique => Some(self.texts.len() as f64),
            Aggregation::P95 => {
                self.numbers.sort_unstable();
                let rank = (self.numbers.len() as f64 * 0.95).ceil() as usize;
                self.numbers.get(rank.saturating_sub(1)).map(|hundredths| *hundredths as f64 / 100.0)
            }
        };
        Reading { count: self.count, value }
    }
}

/// All windows of these events and sessions.
pub fn windows<'a>(
    events: impl Iterator<Item = &'a Event>,
    sessions: &BTreeMap<SessionKey, Session>,
) -> BTreeMap<WindowKey, Reading> {
    let mut windows = Windows::default();
    events.for_each(|event| windows.add_event(event));
    sessions.iter().for_each(|((_, first), session)| windows.add_session(*first, session));
    let reading = |(key, totals): (WindowKey, Totals)| {
        let reading = totals.reading(&key.metric);
        (key, reading)
    };
    windows.0.into_iter().map(reading).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(events: &[Event], metric: &str, series: (&str, &str)) -> Option<Reading> {
        let sessions = sessions::sessions(events.iter(), &BTreeMap::new());
        let of = |key: &WindowKey| {
            key.metric == metric && key.granularity == "1d" && (&*key.dimension, &*key.value) == series
        };
        windows(events.iter(), &sessions).into_iter().find(|(key, _)| of(key)).map(|(_, reading)| reading)
    }

    fn event(id: &str, event_type: &str, properties: &str) -> Event {
        let event = tidemill_testkit::event(id, event_type, 1_800_000_000);
        Event { user_id: Some(format!("u-{id}")), properties: Some(properties.to_owned()), ..event }
    }

    #[test]
    fn each_aggregation_by_its_definition() {
        let mut events = vec![
            event("a", "purchase", r#"{"total":120.5,"currency":"EUR"}"#),
            event("b", "order_completed", r#"{"total":"80"}"#),
            event("c", "purchase", "{}"),
        ];
        events.extend((1..=20).map(|n| event("s", "scroll", &format!(r#"{{"depth":{n}}}"#))));
        let is = |metric: &str, series: (&str, &str), count: i64, value: f64| {
            assert_eq!(
                read(&events, metric, series),
                Some(Reading { count, value: Some(value) }),
                "{metric} {series:?}"
            );
        };
        is(EVENTS, ("", ""), 23, 4.0);
        is(EVENTS, ("event_type", "purchase"), 2, 2.0);
        is("order_total", ("", ""), 2, 200.5);
        is("order_total", ("currency", "EUR"), 1, 120.5);
        is("order_value", ("currency", ""), 1, 80.0);
        is("large_orders", ("deviceType", ""), 1, 1.0);
        is("large_orders", ("country,deviceType", r#"["",""]"#), 1, 1.0);
        is("buyers", ("", ""), 3, 3.0);
        is("scroll_depth", ("", ""), 20, 19.0);
        is("revenue", ("", ""), 3, 200.5);
        is("bounces", ("", ""), 3, 3.0);
        assert_eq!(read(&events, "order_total", ("currency", "USD")), None);
    }

    #[test]
    fn definitions_are_good_ones() {
        for definition in DECLARED.iter().filter_map(Declared::definition) {
            let declared = tidemill_stream::metric::Declaration::from_json(definition.clone());
            assert!(declared.is_ok(), "{definition}: {declared:?}");
        }
    }
}

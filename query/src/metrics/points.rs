//! The data points of an answer, put together from rows that come in order of time.

use std::collections::{BTreeMap, HashMap};

use chrono::DateTime;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use tidemill_common::problem::Problem;
use tidemill_stream::decimal::Decimal;
use tidemill_stream::metric::Totals;

use super::groups::Groups;
use super::request::{Request, Windows};
use super::source::{Source, bad};
use super::span::MAX_WINDOWS;
use crate::hot::HotWindow;
use crate::metrics::rfc3339;
use crate::postgres::Rollup;

/// Data points in one answer; only groups can give more than there are windows.
const MAX_POINTS: usize = 10 * MAX_WINDOWS as usize;

/// A window that has data, or one of its groups.
#[derive(Debug)]
pub struct Point {
    start: i64,
    /// Names and values of dimensions; no value: events that have none.
    group: Vec<(String, Option<String>)>,
    value: Option<Decimal>,
    count: i64,
    /// `None` where users are not counted.
    unique_users: Option<u64>,
}

/// Points in the making.
pub struct Points<'a> {
    request: &'a Request,
    groups: Groups,
    points: Vec<Point>,
    /// The window whose rows are coming in.
    open: Option<i64>,
    /// By group: what is known of the metric, and of the one it is divided by.
    totals: BTreeMap<String, (Totals, Totals)>,
    too_many: bool,
}

impl<'a> Points<'a> {
    /// No points yet.
    pub fn new(request: &'a Request, groups: Groups) -> Self {
        Self { request, groups, points: Vec::new(), open: None, totals: BTreeMap::new(), too_many: false }
    }

    /// Adds a row. Rows of one window come one after the other.
    pub fn add(&mut self, row: Rollup) {
        let start = match self.request.windows {
            Windows::Each(_) => row.start,
            Windows::All => self.request.span.start,
        };
        if self.open != Some(start) {
            self.close();
            self.open = Some(start);
        }
        let place = self.groups.place(&row.value);
        if !self.totals.contains_key(place) {
            self.totals.insert(place.to_owned(), Default::default());
        }
        let Some((own, over)) = self.totals.get_mut(place) else { return }; // it was just put there
        let is_divisor = self.request.source.over == Some(row.metric.as_str());
        if is_divisor { over } else { own }.merge(row.totals);
    }

    /// All points, with those of hot windows, in order of time.
    pub fn finish(mut self, hot: HashMap<i64, HotWindow>) -> Result<Vec<Point>, Problem> {
        self.close();
        if self.too_many {
            let detail =
                "the answer has too many data points; ask for less time, a coarser granularity or fewer groups";
            return Err(bad("groupBy", detail));
        }
        self.points.extend(hot.into_iter().map(|(start, window)| Point {
            start,
            group: Vec::new(),
            value: window.value(self.request.source.aggregation),
            count: window.count,
            unique_users: window.unique_users,
        }));
        self.points.sort_by_key(|point| point.start);
        Ok(self.points)
    }

    fn close(&mut self) {
        let (Some(start), totals) = (self.open.take(), std::mem::take(&mut self.totals)) else { return };
        self.too_many |= self.points.len() + totals.len() > MAX_POINTS;
        if self.too_many {
            return;
        }
        let source = &self.request.source;
        let grouped = self.request.is_grouped();
        for (value, (own, over)) in totals {
            let count = if source.over.is_some() { over.count } else { own.count };
            self.points.push(Point {
                start,
                group: if grouped { group(source, value) } else { Vec::new() },
                value: match source.over {
                    Some(_) => Decimal::from(own.count).divided_by(over.count),
                    None => own.value(source.aggregation),
                },
                count,
                unique_users: source.has_users().then(|| own.unique()),
            });
        }
    }
}

/// What a group's points say of it.
fn group(source: &Source, value: String) -> Vec<(String, Option<String>)> {
    let values = match &source.parts {
        Some(parts) => parts.fields(&value),
        None => vec![Some(value).filter(|value| !value.is_empty())],
    };
    source.shown.iter().cloned().zip(values).collect()
}

impl Serialize for Point {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("timestamp", &DateTime::from_timestamp(self.start, 0).map(rfc3339))?;
        for (name, value) in &self.group {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("value", &self.value.map(number))?;
        map.serialize_entry("count", &self.count)?;
        map.serialize_entry("unique_users", &self.unique_users)?;
        map.end()
    }
}

/// A number with all its digits: a float could not hold them.
fn number(decimal: Decimal) -> Option<Box<RawValue>> {
    RawValue::from_string(decimal.to_string()).ok()
}

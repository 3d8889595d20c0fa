//! What is asked of a metric, checked.

use std::collections::HashMap;
use std::ops::Range;

use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use tidemill_common::problem::Problem;
use tidemill_stream::metric::{EVENT_TYPE, EVENTS, SESSIONS, is_reserved};
use tidemill_stream::window::Granularity;

/// Windows that one request may ask for.
pub const MAX_WINDOWS: i64 = 10_000;
/// Windows that are given when no start is named.
const DEFAULT_WINDOWS: i64 = 60;
/// Event types that are told apart in one answer.
pub const MAX_GROUPS: usize = 100;
/// The built-in metrics that exist.
pub const BUILT_IN: [&str; 4] = [EVENTS, "active_users", "daily_active_users", SESSIONS];

/// Which rows a metric is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// All events.
    Events,
    /// The events of one type.
    EventType(String),
    /// The events of each type.
    EachEventType,
    /// Sessions, by their start.
    Sessions,
}

impl Source {
    /// The rollups' `metric_name`.
    pub fn metric(&self) -> &'static str {
        if *self == Self::Sessions { SESSIONS } else { EVENTS }
    }

    /// The rollups' `dimension_key`.
    pub fn dimension(&self) -> &'static str {
        match self {
            Self::EventType(_) | Self::EachEventType => EVENT_TYPE,
            Self::Events | Self::Sessions => "",
        }
    }

    /// The metric's name in the hot windows' keys, if it has any.
    pub fn hot_name(&self) -> Option<&str> {
        match self {
            Self::Events => Some(EVENTS),
            Self::EventType(event_type) => Some(event_type),
            Self::EachEventType | Self::Sessions => None,
        }
    }
}

/// What the metric is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    Count,
    UniqueUsers,
}

/// A request for a metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub name: String,
    pub source: Source,
    pub value: Value,
    pub granularity: Granularity,
    /// Starts of windows, in seconds since 1970.
    pub span: Range<i64>,
}

impl Request {
    /// Reads a request from its name and parameters.
    pub fn parse(name: &str, params: &HashMap<String, String>, now: DateTime<Utc>) -> Result<Self, Problem> {
        known_parameters(params)?;
        let get = |key: &str| params.get(key).map(String::as_str).filter(|value| !value.is_empty());
        let (source, value) = metric(name, get("groupBy"))?;
        let granularity = granularity(name, get("granularity"))?;
        let end = get("endTime").map(|text| time("endTime", text)).transpose()?.unwrap_or(now);
        let start = get("startTime").map(|text| time("startTime", text)).transpose()?;
        Ok(Self { name: name.to_owned(), source, value, granularity, span: span(granularity, start, end)? })
    }

    /// How many windows are asked for.
    #[cfg(test)]
    fn windows(&self) -> i64 {
        (self.span.end - self.span.start + self.granularity.seconds() - 1) / self.granularity.seconds()
    }
}

fn known_parameters(params: &HashMap<String, String>) -> Result<(), Problem> {
    for name in params.keys() {
        match name.as_str() {
            "startTime" | "endTime" | "granularity" | "groupBy" => {}
            "filter" => return Err(bad("filter", "filters are not supported yet; use an event type's own metric")),
            other => {
                let detail = "unknown parameter; there are startTime, endTime, granularity and groupBy";
                return Err(bad(other, detail));
            }
        }
    }
    Ok(())
}

fn metric(name: &str, group_by: Option<&str>) -> Result<(Source, Value), Problem> {
    let (source, value) = match name {
        EVENTS => (Source::Events, Value::Count),
        "active_users" | "daily_active_users" => (Source::Events, Value::UniqueUsers),
        SESSIONS => (Source::Sessions, Value::Count),
        reserved if is_reserved(reserved) => return Err(not_built(reserved)),
        event_type if event_type.contains('\0') => return Err(bad("name", "must not contain the character U+0000")),
        event_type => (Source::EventType(event_type.to_owned()), Value::Count),
    };
    match (group_by, &source) {
        (None, _) => Ok((source, value)),
        (Some("eventType"), Source::Events) => Ok((Source::EachEventType, value)),
        (Some("eventType"), _) => Err(bad("groupBy", "only events and users can be grouped by eventType")),
        (Some(_), _) => Err(bad("groupBy", "must be 'eventType'")),
    }
}

fn not_built(name: &str) -> Problem {
    let detail = format!(
        "{name} is not available yet; there are {} and the project's event types (GET /v1/metrics lists them)",
        BUILT_IN.join(", ")
    );
    Problem::new(StatusCode::NOT_FOUND, "no-metric", "No such metric", detail)
}

fn granularity(name: &str, asked: Option<&str>) -> Result<Granularity, Problem> {
    let asked = match asked {
        Some(text) => Some(Granularity::parse(text).ok_or_else(|| bad("granularity", "must be one of 1m, 1h and 1d"))?),
        None => None,
    };
    match (name, asked) {
        ("daily_active_users", None | Some(Granularity::Day)) => Ok(Granularity::Day),
        ("daily_active_users", Some(_)) => {
            Err(bad("granularity", "daily_active_users has 1d only; active_users has 1m and 1h too"))
        }
        (_, asked) => Ok(asked.unwrap_or(Granularity::Hour)),
    }
}

fn time(field: &'static str, text: &str) -> Result<DateTime<Utc>, Problem> {
    // An offset's '+' arrives as a space unless it was escaped.
    DateTime::parse_from_rfc3339(&text.replace(' ', "+"))
        .map(|time| time.to_utc())
        .map_err(|_| bad(field, "must be RFC 3339, e.g. 2026-01-31T12:00:00Z"))
}

/// All windows that overlap the time from `start` up to `end`.
fn span(granularity: Granularity, start: Option<DateTime<Utc>>, end: DateTime<Utc>) -> Result<Range<i64>, Problem> {
    let length = granularity.seconds();
    // Window starts are whole seconds: one lies before `end` if and only if it lies before its next second.
    let end_s = end.timestamp() + i64::from(end.timestamp_subsec_nanos() > 0);
    let first = match start {
        Some(start) => granularity.window(start.timestamp_micros()),
        None => granularity.window(end.timestamp_micros()) - (DEFAULT_WINDOWS - 1) * length,
    };
    if start.is_some_and(|start| start >= end) {
        return Err(bad("startTime", "must lie before endTime"));
    }
    let windows = (end_s - first + length - 1) / length;
    if windows > MAX_WINDOWS {
        let detail = format!(
            "the time asked for has {windows} windows of {granularity}, and at most {MAX_WINDOWS} are given; \
             ask for less time or a coarser granularity"
        );
        return Err(bad("startTime", &detail));
    }
    Ok(first..end_s)
}

/// A parameter that is wrong.
pub fn bad(field: &str, detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-parameter", "Bad parameter", detail).field(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-31T12:34:56.5Z";

    fn parse(name: &str, params: &[(&str, &str)]) -> Result<Request, StatusCode> {
        let params = params.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Request::parse(name, &params, NOW.parse().expect("a time")).map_err(|problem| problem.status())
    }

    fn at(text: &str) -> i64 {
        text.parse::<DateTime<Utc>>().expect("a time").timestamp()
    }

    #[test]
    fn by_default_the_last_sixty_hours_are_given() {
        let request = parse("events", &[]).expect("good");
        assert_eq!(request.granularity, Granularity::Hour);
        assert_eq!(request.windows(), 60);
        assert_eq!(request.span, at("2026-01-29T01:00:00Z")..at("2026-01-31T12:34:57Z"));
        assert_eq!(parse("events", &[("granularity", "1m")]).expect("good").windows(), 60);
    }

    #[test]
    fn windows_that_overlap_the_time_are_given() {
        let times = [("startTime", "2026-01-01T10:59:59Z"), ("endTime", "2026-01-01T12:00:00Z")];
        let request = parse("events", &times).expect("good");
        assert_eq!(request.span, at("2026-01-01T10:00:00Z")..at("2026-01-01T12:00:00Z"));
        let offset = [("startTime", "2026-01-01T12:00:00 02:00"), ("endTime", "2026-01-01T12:00:00.001Z")];
        let request = parse("events", &offset).expect("an unescaped plus");
        assert_eq!(request.span, at("2026-01-01T10:00:00Z")..at("2026-01-01T12:00:01Z"));
    }

    #[test]
    fn at_most_ten_thousand_windows_are_given() {
        let days = |end: &str| {
            let times = [("startTime", "2000-01-01T00:00:00Z"), ("endTime", end), ("granularity", "1d")];
            parse("events", &times).map(|request| request.windows())
        };
        assert_eq!(days("2027-05-19T00:00:00Z"), Ok(10_000));
        assert_eq!(days("2027-05-19T00:00:01Z"), Err(StatusCode::BAD_REQUEST));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |params: &[(&str, &str)]| parse("events", params) == Err(StatusCode::BAD_REQUEST);
        assert!(refused(&[("startTime", "yesterday")]));
        assert!(refused(&[("startTime", "2026-01-01T00:00:00Z"), ("endTime", "2026-01-01T00:00:00Z")]));
        assert!(refused(&[("granularity", "5m")]));
        assert!(refused(&[("groupBy", "country")]));
        assert!(refused(&[("filter", "a=b")]));
        assert!(refused(&[("start", "2026-01-01T00:00:00Z")]));
        assert_eq!(parse("daily_active_users", &[("granularity", "1h")]), Err(StatusCode::BAD_REQUEST));
        assert_eq!(parse("sessions", &[("groupBy", "eventType")]), Err(StatusCode::BAD_REQUEST));
        assert_eq!(parse("revenue", &[]), Err(StatusCode::NOT_FOUND));
    }

    #[test]
    fn reserved_names_come_before_event_types() {
        let source = |name: &str| parse(name, &[]).expect("good").source;
        assert_eq!(source("events"), Source::Events);
        assert_eq!(source("active_users"), Source::Events);
        assert_eq!(source("sessions"), Source::Sessions);
        assert_eq!(source("purchase"), Source::EventType("purchase".to_owned()));
        let grouped = parse("events", &[("groupBy", "eventType")]).expect("good");
        assert_eq!(grouped.source, Source::EachEventType);
    }
}

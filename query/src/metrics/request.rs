//! What is asked of a metric, checked.

use std::collections::HashMap;
use std::ops::Range;

use chrono::{DateTime, Utc};
use tidemill_common::problem::Problem;
use tidemill_stream::metric::Metrics;
use tidemill_stream::window::Granularity;

use super::source::{Select, Source, bad};
use super::span::{self, MAX_WINDOWS};

/// Values of a dimension that are told apart when nobody says how many.
const DEFAULT_GROUPS: usize = 100;
const MOST_GROUPS: usize = 1_000;
const PARAMETERS: [&str; 6] = ["startTime", "endTime", "granularity", "groupBy", "filter", "limit"];

/// A request for a metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub name: String,
    pub source: Source,
    pub windows: Windows,
    /// Starts of windows, in seconds since 1970.
    pub span: Range<i64>,
    /// Values of a dimension that are told apart.
    pub limit: usize,
}

/// What the points of an answer stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// A window each.
    Each(Granularity),
    /// All the time asked for.
    All,
}

impl Windows {
    /// The name in requests and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Each(granularity) => granularity.as_str(),
            Self::All => "all",
        }
    }
}

/// Parameters by name, each of which may stand there once; several filters are one.
pub fn once(pairs: Vec<(String, String)>) -> Result<HashMap<String, String>, Problem> {
    let mut params = HashMap::<String, String>::new();
    for (name, value) in pairs {
        match params.get_mut(&name) {
            None => drop(params.insert(name, value)),
            Some(filters) if name == "filter" => *filters = format!("{filters};{value}"),
            Some(_) => return Err(bad(&name, "stands there twice")),
        }
    }
    Ok(params)
}

impl Request {
    /// Reads a request from its name and parameters; `metrics` are those the project has declared.
    pub fn parse(
        name: &str,
        params: &HashMap<String, String>,
        now: DateTime<Utc>,
        metrics: &Metrics,
    ) -> Result<Self, Problem> {
        if let Some(other) = params.keys().find(|name| !PARAMETERS.contains(&name.as_str())) {
            return Err(bad(other, &format!("unknown parameter; there are {}", PARAMETERS.join(", "))));
        }
        let get = |key: &str| params.get(key).map(String::as_str).filter(|value| !value.is_empty());
        let source = Source::of(name, metrics)?.select(get("groupBy"), get("filter"))?;
        let windows = windows(&source, get("granularity"))?;
        let end = get("endTime").map(|text| time("endTime", text)).transpose()?.unwrap_or(now);
        let start = get("startTime").map(|text| time("startTime", text)).transpose()?;
        if start.is_some_and(|start| start >= end) {
            return Err(bad("startTime", "must lie before endTime"));
        }
        let span = match windows {
            Windows::Each(granularity) => span::windows(granularity, start, end),
            Windows::All => span::whole(&source.granularities, start, end),
        }
        .map_err(|asked| {
            let detail = format!(
                "the time asked for has {asked} windows of {}, and at most {MAX_WINDOWS} are given; \
                 ask for less time or a coarser granularity",
                windows.as_str()
            );
            bad("startTime", &detail)
        })?;
        Ok(Self { name: name.to_owned(), source, windows, span, limit: limit(get("limit"))? })
    }

    /// Whether the values of a dimension are told apart.
    pub fn is_grouped(&self) -> bool {
        matches!(self.source.select, Select::Each(_))
    }
}

fn windows(source: &Source, asked: Option<&str>) -> Result<Windows, Problem> {
    let kept = &source.granularities;
    let names = || kept.iter().map(|kept| kept.as_str()).collect::<Vec<_>>().join(", ");
    match asked {
        Some("all") => Ok(Windows::All),
        Some(text) => match Granularity::parse(text) {
            Some(granularity) if kept.contains(&granularity) => Ok(Windows::Each(granularity)),
            _ => Err(bad("granularity", &format!("must be one of {} and all", names()))),
        },
        None if kept.contains(&Granularity::Hour) => Ok(Windows::Each(Granularity::Hour)),
        None => Ok(Windows::Each(kept.first().copied().unwrap_or(Granularity::Day))),
    }
}

fn limit(asked: Option<&str>) -> Result<usize, Problem> {
    let Some(text) = asked else { return Ok(DEFAULT_GROUPS) };
    let number = text.parse().ok().filter(|number| (1..=MOST_GROUPS).contains(number));
    number.ok_or_else(|| bad("limit", &format!("must be a number of groups from 1 to {MOST_GROUPS}")))
}

fn time(field: &'static str, text: &str) -> Result<DateTime<Utc>, Problem> {
    // An offset's '+' arrives as a space unless it was escaped.
    DateTime::parse_from_rfc3339(&text.replace(' ', "+"))
        .map(|time| time.to_utc())
        .map_err(|_| bad(field, "must be RFC 3339, e.g. 2026-01-31T12:00:00Z"))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use serde_json::json;
    use tidemill_stream::metric::{Aggregation, Declaration};

    use super::*;

    const NOW: &str = "2026-01-31T12:34:56.5Z";

    fn parse(name: &str, params: &[(&str, &str)]) -> Result<Request, StatusCode> {
        let declared = json!({"name": "sales", "aggregation": "sum", "field": "x", "dimensions": ["country", ["country", "plan"]],
                              "granularities": ["1h", "1d"]});
        let metrics = Metrics::of([Declaration::from_json(declared).expect("a declaration")]);
        let params = params.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Request::parse(name, &params, NOW.parse().expect("a time"), &metrics).map_err(|problem| problem.status())
    }

    fn at(text: &str) -> i64 {
        text.parse::<DateTime<Utc>>().expect("a time").timestamp()
    }

    #[test]
    fn by_default_the_last_sixty_hours_are_given() {
        let request = parse("events", &[]).expect("good");
        assert_eq!(request.windows, Windows::Each(Granularity::Hour));
        assert_eq!(request.span, at("2026-01-29T01:00:00Z")..at("2026-01-31T12:34:57Z"));
        assert_eq!(parse("daily_active_users", &[]).expect("good").windows, Windows::Each(Granularity::Day));
    }

    #[test]
    fn an_offset_may_stand_unescaped() {
        let offset = [("startTime", "2026-01-01T12:00:00 02:00"), ("endTime", "2026-01-01T12:00:00.001Z")];
        let request = parse("events", &offset).expect("an unescaped plus");
        assert_eq!(request.span, at("2026-01-01T10:00:00Z")..at("2026-01-01T12:00:01Z"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |name: &str, params: &[(&str, &str)]| parse(name, params) == Err(StatusCode::BAD_REQUEST);
        assert!(refused("events", &[("startTime", "yesterday")]));
        assert!(refused("events", &[("startTime", "2026-01-01T00:00:00Z"), ("endTime", "2026-01-01T00:00:00Z")]));
        assert!(refused("events", &[("granularity", "5m")]));
        assert!(refused("events", &[("groupBy", "country")]));
        assert!(refused("events", &[("filter", "a=b")]));
        assert!(refused("events", &[("filter", "country:DE")]));
        assert!(refused("events", &[("start", "2026-01-01T00:00:00Z")]));
        assert!(refused("events", &[("limit", "0")]));
        assert!(refused("daily_active_users", &[("granularity", "1h")]));
        assert!(refused("sessions", &[("groupBy", "eventType")]));
        assert!(refused("sales", &[("granularity", "1m")]));
        assert!(refused("sales", &[("groupBy", "country"), ("filter", "eventType:a")]));
        assert!(refused("sales", &[("groupBy", "plan")]));
        assert!(refused("sales", &[("groupBy", "country,plan"), ("filter", "eventType:a")]));
        assert!(refused("events", &[("groupBy", "eventType,eventType")]));
        let minutes = [("granularity", "1m"), ("startTime", "2000-01-01T00:00:00Z")];
        assert!(refused("events", &minutes));
    }

    #[test]
    fn reserved_names_come_first_then_declared_ones_then_event_types() {
        let source = |name: &str| parse(name, &[]).expect("good").source;
        let (events, users) = (source("events"), source("active_users"));
        assert_eq!((events.metric.as_str(), events.aggregation), ("events", Aggregation::Count));
        assert_eq!((users.metric.as_str(), users.aggregation), ("events", Aggregation::Unique));
        assert_eq!(source("revenue").aggregation, Aggregation::Sum);
        assert_eq!(source("bounce_rate").over, Some("sessions"));
        assert_eq!(source("sales").aggregation, Aggregation::Sum);
        let purchase = source("purchase");
        assert_eq!(purchase.select, Select::Only(vec!["purchase".to_owned()]));
        assert_eq!(purchase.dimension, "event_type");
    }

    #[test]
    fn values_are_grouped_and_filtered() {
        let select = |name: &str, params: &[(&str, &str)]| parse(name, params).expect("good").source.select;
        let values = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(select("events", &[("groupBy", "eventType")]), Select::Each(None));
        assert_eq!(select("sales", &[("filter", "country:DE,FR")]), Select::Only(values(&["DE", "FR"])));
        assert_eq!(select("sales", &[("filter", r#"country:["a,b"]"#)]), Select::Only(values(&["a,b"])));
        let both = [("filter", "country:DE"), ("groupBy", "country")];
        assert_eq!(select("sales", &both), Select::Each(Some(values(&["DE"]))));
    }

    #[test]
    fn several_dimensions_are_grouped_and_filtered_together() {
        let source = |params: &[(&str, &str)]| parse("sales", params).expect("good").source;
        for params in [&[("groupBy", "plan,country")][..], &[("groupBy", "plan"), ("filter", "country:DE,FR")]] {
            let source = source(params);
            assert_eq!((&*source.dimension, source.select), ("country,plan", Select::Each(None)));
        }
        assert_eq!(source(&[("groupBy", "plan,country")]).shown, ["plan", "country"], "as asked for");
        let filtered = source(&[("filter", "plan:a;country:DE,FR")]).select;
        let both = [r#"["DE","a"]"#.to_owned(), r#"["FR","a"]"#.to_owned()];
        assert_eq!(filtered, Select::Only(both.to_vec()));
        assert_eq!(source(&[("groupBy", "country")]).dimension, "country");
    }
}

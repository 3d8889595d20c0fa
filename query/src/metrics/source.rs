//! Which rows a metric is read from, and what is made of them.

use axum::http::StatusCode;
use tidemill_common::problem::Problem;
use tidemill_stream::metric::{self, Aggregation, Compiled, MAX_VALUES, Metrics, is_reserved};
use tidemill_stream::window::Granularity;

/// What the event type is called in requests and answers.
const EVENT_TYPE: &str = "eventType";
/// Values that one filter may name.
const MAX_FILTER: usize = 1_000;

/// Rows of the rollups, and the value they make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The rollups' `metric_name`.
    pub metric: String,
    /// The metric whose count the count is divided by.
    pub over: Option<&'static str>,
    /// What is computed.
    pub aggregation: Aggregation,
    /// Windows that are kept.
    pub granularities: Vec<Granularity>,
    /// The rollups' `dimension_key`.
    pub dimension: String,
    /// The dimension's name in requests and answers.
    pub shown: String,
    /// Which of its values.
    pub select: Select,
    /// How many values of the dimension are told apart by day.
    pub max_values: usize,
    /// The name in the hot windows' keys, if there are any.
    pub hot_name: Option<String>,
    /// Its dimensions as in requests and as in the rollups.
    dimensions: Vec<(String, String)>,
}

/// Values of a dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Select {
    /// All events: no dimension.
    Total,
    /// These, put together.
    Only(Vec<String>),
    /// All, or these, each by itself.
    Each(Option<Vec<String>>),
}

impl Source {
    /// What a name stands for: a built-in metric, else a declared one, else an event type.
    pub fn of(name: &str, metrics: &Metrics) -> Result<Self, Problem> {
        let built_in = |metric: &str, aggregation| Self::plain(metric, aggregation);
        Ok(match name {
            "events" => Self::events(Aggregation::Count),
            "active_users" => Self::events(Aggregation::Unique),
            "daily_active_users" => Self { granularities: vec![Granularity::Day], ..Self::events(Aggregation::Unique) },
            "revenue" => built_in(name, Aggregation::Sum),
            "bounce_rate" => {
                let over = Some(metric::SESSIONS);
                Self { over, hot_name: None, ..built_in(metric::BOUNCES, Aggregation::Count) }
            }
            reserved if is_reserved(reserved) => built_in(name, Aggregation::Count),
            name => match metrics.get(name) {
                Some(declared) => Self::declared(declared),
                None => Self::event_type(name)?,
            },
        })
    }

    fn plain(metric: &str, aggregation: Aggregation) -> Self {
        Self {
            metric: metric.to_owned(),
            over: None,
            aggregation,
            granularities: Granularity::ALL.to_vec(),
            dimension: String::new(),
            shown: String::new(),
            select: Select::Total,
            max_values: MAX_VALUES,
            hot_name: Some(metric.to_owned()),
            dimensions: Vec::new(),
        }
    }

    fn events(aggregation: Aggregation) -> Self {
        let dimensions = vec![(EVENT_TYPE.to_owned(), metric::EVENT_TYPE.to_owned())];
        Self { dimensions, ..Self::plain(metric::EVENTS, aggregation) }
    }

    fn event_type(name: &str) -> Result<Self, Problem> {
        if name.contains('\0') {
            return Err(bad("name", "must not contain the character U+0000"));
        }
        Ok(Self {
            dimension: metric::EVENT_TYPE.to_owned(),
            shown: EVENT_TYPE.to_owned(),
            select: Select::Only(vec![name.to_owned()]),
            hot_name: Some(name.to_owned()),
            ..Self::plain(metric::EVENTS, Aggregation::Count)
        })
    }

    fn declared(metric: &Compiled) -> Self {
        let declared = &metric.declaration;
        let mut granularities = declared.granularities.clone();
        granularities.sort();
        Self {
            granularities,
            max_values: declared.max_values,
            dimensions: declared.dimensions.iter().map(|name| (name.clone(), name.clone())).collect(),
            ..Self::plain(&declared.name, declared.aggregation)
        }
    }

    /// Whether its rows hold the users of events.
    pub fn has_users(&self) -> bool {
        self.metric == metric::EVENTS
    }

    /// With its events grouped or filtered by a dimension.
    pub fn select(self, group_by: Option<&str>, filter: Option<&str>) -> Result<Self, Problem> {
        let filter = filter.map(parse_filter).transpose()?;
        let (field, name) = match (group_by, &filter) {
            (None, None) => return Ok(self),
            (Some(name), Some((other, _))) if name != *other => {
                let detail = format!("{name} and {other} are not counted together; group and filter by the same one");
                return Err(bad("filter", &detail));
            }
            (Some(name), _) => ("groupBy", name),
            (None, Some((name, _))) => ("filter", *name),
        };
        let Some((shown, dimension)) = self.dimensions.iter().find(|(shown, _)| shown == name).cloned() else {
            let known: Vec<&str> = self.dimensions.iter().map(|(shown, _)| shown.as_str()).collect();
            let known =
                if known.is_empty() { "has no dimensions".to_owned() } else { format!("has {}", known.join(", ")) };
            return Err(bad(field, &format!("{name} is no dimension of this metric, which {known}")));
        };
        let values = filter.map(|(_, values)| values);
        let select = match (group_by, values) {
            (Some(_), values) => Select::Each(values),
            (None, values) => Select::Only(values.unwrap_or_default()),
        };
        Ok(Self { shown, dimension, select, hot_name: None, ..self })
    }
}

/// `<dimension>:<value>[,<value>…]`, or the values as a JSON array of texts.
fn parse_filter(text: &str) -> Result<(&str, Vec<String>), Problem> {
    let form = "must be <dimension>:<value>, several values with ',' between them or as a JSON array of texts";
    let (name, values) = text.split_once(':').ok_or_else(|| bad("filter", form))?;
    let values: Vec<String> = if values.starts_with('[') {
        serde_json::from_str(values).map_err(|_| bad("filter", form))?
    } else {
        values.split(',').map(str::to_owned).collect()
    };
    if values.is_empty() || values.len() > MAX_FILTER || values.iter().any(|value| value.contains('\0')) {
        return Err(bad("filter", &format!("must name 1 to {MAX_FILTER} values, without the character U+0000")));
    }
    Ok((name, values))
}

/// A parameter that is wrong.
pub fn bad(field: &str, detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-parameter", "Bad parameter", detail).field(field)
}

//! Which rows a metric is read from, and what is made of them.

use axum::http::StatusCode;
use tidemill_common::problem::Problem;
use tidemill_stream::metric::{self, Aggregation, Compiled, MAX_VALUES, Metrics, is_reserved};
use tidemill_stream::window::Granularity;

use super::selection::{Parts, Wanted};

/// What the event type is called in requests and answers.
const EVENT_TYPE: &str = "eventType";

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
    /// Names of dimensions in requests and answers: those that are told apart, else the one that is filtered.
    pub shown: Vec<String>,
    /// Which of its values.
    pub select: Select,
    /// How these are read, where the dimension is a combination.
    pub parts: Option<Parts>,
    /// How many values of the dimension are told apart by day.
    pub max_values: usize,
    /// The name in the hot windows' keys, if there are any.
    pub hot_name: Option<String>,
    /// Its dimensions, by their names in requests, as in the rollups.
    dimensions: Vec<(Vec<String>, String)>,
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
            shown: Vec::new(),
            select: Select::Total,
            parts: None,
            max_values: MAX_VALUES,
            hot_name: Some(metric.to_owned()),
            dimensions: Vec::new(),
        }
    }

    fn events(aggregation: Aggregation) -> Self {
        let dimensions = vec![(vec![EVENT_TYPE.to_owned()], metric::EVENT_TYPE.to_owned())];
        Self { dimensions, ..Self::plain(metric::EVENTS, aggregation) }
    }

    fn event_type(name: &str) -> Result<Self, Problem> {
        if name.contains('\0') {
            return Err(bad("name", "must not contain the character U+0000"));
        }
        Ok(Self {
            dimension: metric::EVENT_TYPE.to_owned(),
            shown: vec![EVENT_TYPE.to_owned()],
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
            dimensions: declared.dimensions.iter().map(|one| (one.names().to_vec(), one.key())).collect(),
            ..Self::plain(&declared.name, declared.aggregation)
        }
    }

    /// Whether its rows hold the users of events.
    pub fn has_users(&self) -> bool {
        self.metric == metric::EVENTS
    }

    /// With its events grouped or filtered by a dimension, or by several that are counted together.
    pub fn select(self, group_by: Option<&str>, filter: Option<&str>) -> Result<Self, Problem> {
        let wanted = Wanted::parse(group_by, filter)?;
        let names = wanted.names();
        if names.is_empty() {
            return Ok(self);
        }
        let is_it = |known: &[String]| known.len() == names.len() && known.iter().all(|name| names.contains(&**name));
        let Some((known, dimension)) = self.dimensions.iter().find(|(known, _)| is_it(known)).cloned() else {
            return Err(self.not_counted(&wanted));
        };
        let parts = (known.len() > 1).then(|| Parts::of(&known, &wanted));
        let values = match &parts {
            None => wanted.values(&known[0]).cloned(),
            Some(parts) if wanted.groups.is_empty() => Some(parts.all()?),
            Some(_) => None,
        };
        let (select, shown) = match wanted.groups.is_empty() {
            true => (Select::Only(values.unwrap_or_default()), known),
            false => (Select::Each(values), wanted.groups.iter().map(|name| (*name).to_owned()).collect()),
        };
        Ok(Self { shown, dimension, select, parts, hot_name: None, ..self })
    }

    /// Why there is no such dimension.
    fn not_counted(&self, wanted: &Wanted<'_>) -> Problem {
        let names: Vec<&str> = wanted.names().into_iter().collect();
        let field = if wanted.groups.is_empty() { "filter" } else { "groupBy" };
        let alone = |name: &&str| self.dimensions.iter().any(|(known, _)| known.iter().any(|known| known == name));
        let known: Vec<String> = self.dimensions.iter().map(|(names, _)| names.join(",")).collect();
        let known = if known.is_empty() { "no dimensions".to_owned() } else { known.join("; ") };
        match names.iter().find(|name| !alone(name)) {
            Some(unknown) => bad(field, &format!("{unknown} is no dimension of this metric, which has {known}")),
            None if names.len() == 1 => {
                let detail =
                    format!("{} is not counted by itself here; declare it as a dimension. There are {known}", names[0]);
                bad(field, &detail)
            }
            None => {
                let declare = names.join("\", \"");
                let detail = format!(
                    "{} are not counted together; declare [\"{declare}\"] as one of the dimensions. There are {known}",
                    names.join(" and ")
                );
                bad(field, &detail)
            }
        }
    }
}

/// A parameter that is wrong.
pub fn bad(field: &str, detail: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-parameter", "Bad parameter", detail).field(field)
}

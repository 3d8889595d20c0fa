//! How a metric is declared, in `metrics/*.yaml` and over the API, and what is wrong with it if anything.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::dimension::{Dimension, SEPARATOR};
use super::is_reserved;
use crate::window::Granularity;

/// Most metrics that a project may declare.
pub const MAX_DECLARED: usize = 100;
/// Values of a dimension that are told apart, by metric and day, unless declared otherwise.
pub const MAX_VALUES: usize = 10_000;
const MOST_VALUES: usize = 100_000;
const MAX_NAME: usize = 63;
const MAX_DIMENSIONS: usize = 8;
/// Names in a combination.
const MAX_TOGETHER: usize = 4;
const MAX_CONDITIONS: usize = 16;
const MAX_LISTED: usize = 1_000;
/// Longest name of a property, and longest text in a condition, in characters.
const MAX_TEXT: usize = 256;
/// What answers call their own fields.
const FIELDS: [&str; 6] = ["timestamp", "value", "count", "unique_users", "unique", "total"];

/// A declared metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Declaration {
    /// `[a-z][a-z0-9_]*`, at most 63 characters.
    pub name: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The event types that count; none: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub event_types: Vec<String>,
    /// All of them must hold.
    #[serde(default, rename = "where", skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// What is computed.
    #[serde(default)]
    pub aggregation: Aggregation,
    /// Of what: a property (a dotted path reaches into objects), `userId` or `sessionId`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What it can be grouped and filtered by: properties, `eventType`, `deviceType`, `trafficSource`, `country`; and
    /// several at once, where they stand in a list of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dimensions: Vec<Dimension>,
    /// Windows that are kept.
    #[serde(default = "all_granularities")]
    pub granularities: Vec<Granularity>,
    /// Values of a dimension that are told apart, by day.
    #[serde(default = "default_max_values")]
    pub max_values: usize,
}

/// A condition on a property. Several operators in one must all hold.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(default)]
pub struct Condition {
    /// The property's name; a dotted path reaches into objects.
    pub property: String,
    /// Is this text, number or boolean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub equals: Option<Value>,
    /// Is one of these.
    #[serde(rename = "in", skip_serializing_if = "Vec::is_empty")]
    pub one_of: Vec<Value>,
    /// Is there and not null, or is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exists: Option<bool>,
    /// Is a number above this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gt: Option<f64>,
    /// Is a number not below this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gte: Option<f64>,
    /// Is a number below this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lt: Option<f64>,
    /// Is a number not above this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lte: Option<f64>,
}

/// What is computed from the events that count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // they say it themselves
pub enum Aggregation {
    #[default]
    Count,
    Sum,
    Min,
    Max,
    Avg,
    /// Different values, within 2 %.
    Unique,
    P50,
    P95,
    P99,
}

/// What is wrong with a declaration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct BadDeclaration {
    /// The field at fault.
    pub field: &'static str,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl Aggregation {
    /// The name in declarations, rows and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Sum => "sum",
            Self::Min => "min",
            Self::Max => "max",
            Self::Avg => "avg",
            Self::Unique => "unique",
            Self::P50 => "p50",
            Self::P95 => "p95",
            Self::P99 => "p99",
        }
    }

    /// The aggregation with this name.
    pub fn parse(name: &str) -> Option<Self> {
        const ALL: [Aggregation; 9] = {
            use Aggregation::{Avg, Count, Max, Min, P50, P95, P99, Sum, Unique};
            [Count, Sum, Min, Max, Avg, Unique, P50, P95, P99]
        };
        ALL.into_iter().find(|aggregation| aggregation.as_str() == name)
    }

    /// The share of values that lie below a percentile, if it is one.
    pub fn quantile(self) -> Option<f64> {
        match self {
            Self::P50 => Some(0.50),
            Self::P95 => Some(0.95),
            Self::P99 => Some(0.99),
            _ => None,
        }
    }

    fn is_of_numbers(self) -> bool {
        !matches!(self, Self::Count | Self::Unique)
    }
}

impl Declaration {
    /// A declaration from JSON, checked.
    pub fn from_json(json: Value) -> Result<Self, BadDeclaration> {
        let declaration: Self = serde_json::from_value(json).map_err(|error| bad("body", error))?;
        declaration.check()?;
        Ok(declaration)
    }

    /// Says what is wrong.
    pub fn check(&self) -> Result<(), BadDeclaration> {
        self.check_name()?;
        self.check_field()?;
        self.check_dimensions()?;
        if self.event_types.len() > MAX_LISTED || self.event_types.iter().any(|name| !is_text(name)) {
            return Err(bad("eventTypes", format!("at most {MAX_LISTED} names of 1 to {MAX_TEXT} characters")));
        }
        if self.conditions.len() > MAX_CONDITIONS {
            return Err(bad("where", format!("at most {MAX_CONDITIONS} conditions")));
        }
        self.conditions.iter().try_for_each(Condition::check)?;
        let mut granularities = self.granularities.clone();
        granularities.sort();
        granularities.dedup();
        if granularities.is_empty() || granularities.len() != self.granularities.len() {
            return Err(bad("granularities", "name some of 1m, 1h and 1d, each once"));
        }
        if !self.dimensions.is_empty() && !granularities.contains(&Granularity::Day) {
            return Err(bad("granularities", "a metric with dimensions needs 1d, by which their values are limited"));
        }
        if !(1..=MOST_VALUES).contains(&self.max_values) {
            return Err(bad("maxValues", format!("must be 1 to {MOST_VALUES}")));
        }
        Ok(())
    }

    fn check_name(&self) -> Result<(), BadDeclaration> {
        let name = &self.name;
        let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !letters || !name.starts_with(|c: char| c.is_ascii_lowercase()) || name.len() > MAX_NAME {
            let problem =
                format!("{name:?} must be 1 to {MAX_NAME} characters of a-z, 0-9 and '_', beginning with a-z");
            return Err(bad("name", problem));
        }
        if is_reserved(name) {
            return Err(bad("name", format!("{name:?} is a built-in metric; choose another name")));
        }
        Ok(())
    }

    fn check_field(&self) -> Result<(), BadDeclaration> {
        let aggregation = self.aggregation.as_str();
        match (&self.field, self.aggregation) {
            (None, Aggregation::Count) => Ok(()),
            (Some(_), Aggregation::Count) => {
                let problem = "count counts events and takes no field; to count those that have a property, \
                               use where: [{property: …, exists: true}]";
                Err(bad("field", problem))
            }
            (None, _) => Err(bad("field", format!("{aggregation} needs one: a property's name, userId or sessionId"))),
            (Some(field), _) if !is_text(field) => {
                Err(bad("field", format!("must have 1 to {MAX_TEXT} characters, none of them U+0000")))
            }
            (Some(field), wanted) if wanted.is_of_numbers() && (field == "userId" || field == "sessionId") => {
                Err(bad("field", format!("{aggregation} needs a property with numbers; {field} fits unique only")))
            }
            _ => Ok(()),
        }
    }

    fn check_dimensions(&self) -> Result<(), BadDeclaration> {
        if self.dimensions.len() > MAX_DIMENSIONS {
            return Err(bad("dimensions", format!("at most {MAX_DIMENSIONS}")));
        }
        for (i, dimension) in self.dimensions.iter().enumerate() {
            check_dimension(dimension)?;
            let sorted = |dimension: &Dimension| {
                let mut names = dimension.names().to_vec();
                names.sort();
                names
            };
            if self.dimensions[..i].iter().any(|other| sorted(other) == sorted(dimension)) {
                return Err(bad("dimensions", format!("{} stands there twice", dimension.key())));
            }
        }
        Ok(())
    }
}

fn check_dimension(dimension: &Dimension) -> Result<(), BadDeclaration> {
    let (names, key) = (dimension.names(), dimension.key());
    for (i, name) in names.iter().enumerate() {
        if !is_text(name) || name.contains([':', ';', SEPARATOR]) {
            let problem =
                format!("{name:?} must have 1 to {MAX_TEXT} characters, none of them ':', ';', ',' or U+0000");
            return Err(bad("dimensions", problem));
        }
        if FIELDS.contains(&name.as_str()) {
            return Err(bad("dimensions", format!("{name} is what answers call a field of their own")));
        }
        if name == "userId" || name == "sessionId" {
            let problem = format!("{name} has a value per user; use aggregation unique with field {name}");
            return Err(bad("dimensions", problem));
        }
        if names[..i].contains(name) {
            return Err(bad("dimensions", format!("{name} stands twice in {key}")));
        }
    }
    if dimension.is_combined() && !(2..=MAX_TOGETHER).contains(&names.len()) {
        return Err(bad("dimensions", format!("[{key}] must name 2 to {MAX_TOGETHER} that are counted together")));
    }
    if key.chars().count() > MAX_TEXT {
        return Err(bad("dimensions", format!("[{key}] must have at most {MAX_TEXT} characters together")));
    }
    Ok(())
}

impl Condition {
    fn check(&self) -> Result<(), BadDeclaration> {
        let property = &self.property;
        if !is_text(property) {
            return Err(bad("where", format!("property must name one, in 1 to {MAX_TEXT} characters")));
        }
        let compared = [self.gt, self.gte, self.lt, self.lte];
        if self.equals.is_none() && self.one_of.is_empty() && self.exists.is_none() && compared == [None; 4] {
            let problem = format!("{property}: say what must hold: equals, in, exists, gt, gte, lt or lte");
            return Err(bad("where", problem));
        }
        if self.one_of.len() > MAX_LISTED {
            return Err(bad("where", format!("{property}: in takes at most {MAX_LISTED} values")));
        }
        if self.equals.iter().chain(&self.one_of).any(|value| !is_scalar(value)) {
            let problem = format!(
                "{property}: equals and in take texts of at most {MAX_TEXT} characters, numbers below 10^18 and \
                 booleans; for null use exists: false"
            );
            return Err(bad("where", problem));
        }
        let number = |value: &f64| crate::decimal::Decimal::from_f64(*value).is_some();
        if !compared.iter().flatten().all(number) {
            return Err(bad("where", format!("{property}: numbers to compare with must be below 10^18")));
        }
        Ok(())
    }
}

fn is_scalar(value: &Value) -> bool {
    match value {
        Value::String(text) => text.chars().count() <= MAX_TEXT,
        Value::Number(number) => crate::decimal::Decimal::parse(&number.to_string()).is_some(),
        Value::Bool(_) => true,
        _ => false,
    }
}

fn is_text(text: &str) -> bool {
    (1..=MAX_TEXT).contains(&text.chars().count()) && !text.contains('\0')
}

fn bad(field: &'static str, problem: impl ToString) -> BadDeclaration {
    BadDeclaration { field, problem: problem.to_string() }
}

fn all_granularities() -> Vec<Granularity> {
    Granularity::ALL.to_vec()
}

fn default_max_values() -> usize {
    MAX_VALUES
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn problem(json: Value) -> String {
        Declaration::from_json(json).expect_err("wrong").to_string()
    }

    #[test]
    fn what_is_not_said_has_defaults() {
        let declared = Declaration::from_json(json!({"name": "signups"})).expect("good");
        assert_eq!(declared.aggregation, Aggregation::Count);
        assert_eq!(declared.granularities, Granularity::ALL);
        assert_eq!(declared.max_values, MAX_VALUES);
        let text = serde_json::to_value(&declared).expect("JSON");
        assert_eq!(Declaration::from_json(text).expect("round trip"), declared);
    }

    #[test]
    fn mistakes_are_named() {
        for (json, expected) in [
            (json!({"name": "Big"}), "name: \"Big\" must be 1 to 63 characters"),
            (json!({"name": "events"}), "is a built-in metric"),
            (json!({"name": "a", "aggregate": "sum"}), "unknown field `aggregate`"),
            (json!({"name": "a", "aggregation": "median"}), "unknown variant `median`"),
            (json!({"name": "a", "aggregation": "sum"}), "field: sum needs one"),
            (json!({"name": "a", "field": "x"}), "count counts events"),
            (json!({"name": "a", "aggregation": "p95", "field": "userId"}), "p95 needs a property with numbers"),
            (json!({"name": "a", "dimensions": ["x", "x"]}), "x stands there twice"),
            (json!({"name": "a", "dimensions": ["userId"]}), "use aggregation unique"),
            (json!({"name": "a", "dimensions": ["value"]}), "a field of their own"),
            (json!({"name": "a", "dimensions": ["x"], "granularities": ["1m"]}), "needs 1d"),
            (json!({"name": "a", "granularities": []}), "name some of 1m, 1h and 1d"),
            (json!({"name": "a", "granularities": ["5m"]}), "5m"),
            (json!({"name": "a", "where": [{"property": "x"}]}), "x: say what must hold"),
            (json!({"name": "a", "where": [{"property": "x", "equals": [1]}]}), "x: equals and in take texts"),
            (json!({"name": "a", "where": [{"property": "x", "gt": 1e19}]}), "below 10^18"),
            (json!({"name": "a", "maxValues": 0}), "maxValues: must be 1 to 100000"),
        ] {
            let told = problem(json.clone());
            assert!(told.contains(expected), "{json}: {told}");
        }
    }
}

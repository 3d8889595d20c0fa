//! Declared metrics in a form that is quick to evaluate, and what an event means to them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tidemill_common::event::EventRef;

use super::declaration::{Aggregation, Condition, Declaration};
use super::dimension::{Dimension, together};
use crate::decimal::Decimal;
use crate::properties::{Json, Properties, storable};
use crate::window::Granularity;

/// Longest value of a dimension that is kept, in characters.
const MAX_LABEL: usize = 256;

/// A project's declared metrics.
#[derive(Debug, Default)]
pub struct Metrics(BTreeMap<String, Arc<Compiled>>);

/// A declared metric.
#[derive(Debug)]
pub struct Compiled {
    /// What was declared.
    pub declaration: Declaration,
    /// Its name.
    pub name: Arc<str>,
    /// The keys of its dimensions and combinations.
    pub dimensions: Vec<Arc<str>>,
    tests: Vec<Test>,
    field: Source,
    /// Of each of these, where its values come from.
    sources: Vec<Vec<Source>>,
}

/// An event to be measured.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The event.
    pub event: EventRef<'a>,
    /// Its properties.
    pub properties: Properties<'a, 'a>,
    /// What is known of it beside what it says.
    pub enriched: Enriched<'a>,
}

/// What enrichment has found out. Where it has found nothing, the event's property of that name counts.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs)] // the dimensions of the same names
pub struct Enriched<'a> {
    pub device_type: Option<&'a str>,
    pub traffic_source: Option<&'a str>,
    pub country: Option<&'a str>,
}

impl<'a> Subject<'a> {
    /// An event of which nothing is known but what it says.
    pub fn new(event: EventRef<'a>, properties: Properties<'a, 'a>) -> Self {
        Self { event, properties, enriched: Enriched::default() }
    }
}

/// What an event adds to a metric.
#[derive(Debug, Clone, PartialEq)]
pub enum Observation<'a> {
    /// One event.
    Event,
    /// A number.
    Number(Decimal),
    /// A text of which the different ones are counted.
    Text(Cow<'a, str>),
}

/// Where a value comes from.
#[derive(Debug)]
enum Source {
    Nothing,
    EventType,
    UserId,
    SessionId,
    /// What enrichment has found, else the property of this name.
    Enriched(fn(Enriched<'_>) -> Option<&str>, String),
    Property(String),
}

/// A condition.
#[derive(Debug)]
struct Test {
    property: String,
    one_of: Option<Vec<Literal>>,
    exists: Option<bool>,
    /// All must hold.
    limits: Vec<(Comparison, Decimal)>,
}

#[derive(Debug, PartialEq)]
enum Literal {
    Text(String),
    Number(Decimal),
    Boolean(bool),
}

#[derive(Debug, Clone, Copy)]
enum Comparison {
    Above,
    NotBelow,
    Below,
    NotAbove,
}

impl Metrics {
    /// These metrics, which have been checked. Of two with one name the later counts.
    pub fn of(declarations: impl IntoIterator<Item = Declaration>) -> Self {
        let named = |declared: Declaration| (declared.name.clone(), Arc::new(Compiled::of(declared)));
        Self(declarations.into_iter().map(named).collect())
    }

    /// The metric with this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Compiled>> {
        self.0.get(name)
    }

    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Compiled>> {
        self.0.values()
    }
}

impl Compiled {
    fn of(declaration: Declaration) -> Self {
        Self {
            name: declaration.name.as_str().into(),
            dimensions: declaration.dimensions.iter().map(|dimension| dimension.key().into()).collect(),
            tests: declaration.conditions.iter().map(Test::of).collect(),
            field: declaration.field.as_deref().map_or(Source::Nothing, Source::of),
            sources: declaration.dimensions.iter().map(sources).collect(),
            declaration,
        }
    }

    /// What it computes.
    pub fn aggregation(&self) -> Aggregation {
        self.declaration.aggregation
    }

    /// Whether windows of this length are kept.
    pub fn keeps(&self, granularity: Granularity) -> bool {
        self.declaration.granularities.contains(&granularity)
    }

    /// Whether it may count events of this type.
    pub fn takes(&self, event_type: &str) -> bool {
        let types = &self.declaration.event_types;
        types.is_empty() || types.iter().any(|name| name == event_type)
    }

    /// What an event of a type that it takes adds, if anything: conditions may not hold, or the field may be
    /// missing or no number.
    pub fn observe<'a>(&self, subject: Subject<'a>) -> Option<Observation<'a>> {
        if !self.tests.iter().all(|test| test.holds(subject.properties.get(&test.property))) {
            return None;
        }
        match self.aggregation() {
            Aggregation::Count => Some(Observation::Event),
            Aggregation::Unique => self.field.text(subject).map(Observation::Text),
            _ => match &self.field {
                Source::Property(name) | Source::Enriched(_, name) => {
                    subject.properties.get(name)?.number().map(Observation::Number)
                }
                _ => None,
            },
        }
    }

    /// The value of a dimension, by its place among them; empty when the event has none. Of a combination, all its
    /// values [`together`].
    pub fn label<'a>(&self, dimension: usize, subject: Subject<'a>) -> Cow<'a, str> {
        let value = |source: &Source| source.text(subject).unwrap_or_default();
        match self.sources[dimension].as_slice() {
            [one] => storable(value(one), MAX_LABEL),
            several => Cow::Owned(together(&several.iter().map(value).collect::<Vec<_>>())),
        }
    }
}

fn sources(dimension: &Dimension) -> Vec<Source> {
    dimension.names().iter().map(|name| Source::of(name)).collect()
}

impl Source {
    fn of(name: &str) -> Self {
        match name {
            "eventType" => Self::EventType,
            "userId" => Self::UserId,
            "sessionId" => Self::SessionId,
            "deviceType" => Self::Enriched(|known| known.device_type, name.to_owned()),
            "trafficSource" => Self::Enriched(|known| known.traffic_source, name.to_owned()),
            "country" => Self::Enriched(|known| known.country, name.to_owned()),
            property => Self::Property(property.to_owned()),
        }
    }

    fn text<'a>(&self, subject: Subject<'a>) -> Option<Cow<'a, str>> {
        let property = |name: &str| subject.properties.get(name)?.label();
        match self {
            Self::Nothing => None,
            Self::EventType => Some(Cow::Borrowed(subject.event.event_type)),
            Self::UserId => subject.event.user_id.map(Cow::Borrowed),
            Self::SessionId => subject.event.session_id.map(Cow::Borrowed),
            Self::Enriched(known, name) => known(subject.enriched).map(Cow::Borrowed).or_else(|| property(name)),
            Self::Property(name) => property(name),
        }
    }
}

impl Test {
    fn of(condition: &Condition) -> Self {
        let literals: Vec<Literal> = condition.one_of.iter().filter_map(Literal::of).collect();
        let equals = condition.equals.iter().filter_map(Literal::of).collect::<Vec<_>>();
        // `equals` beside `in`: both must hold.
        let one_of = match (equals.is_empty(), literals.is_empty()) {
            (true, true) => None,
            (true, false) => Some(literals),
            (false, true) => Some(equals),
            (false, false) => Some(equals.into_iter().filter(|literal| literals.contains(literal)).collect()),
        };
        let limits = [
            (Comparison::Above, condition.gt),
            (Comparison::NotBelow, condition.gte),
            (Comparison::Below, condition.lt),
            (Comparison::NotAbove, condition.lte),
        ];
        let limit = |(comparison, limit): (Comparison, Option<f64>)| Some((comparison, Decimal::from_f64(limit?)?));
        Self {
            property: condition.property.clone(),
            one_of,
            exists: condition.exists,
            limits: limits.into_iter().filter_map(limit).collect(),
        }
    }

    fn holds(&self, value: Option<Json<'_>>) -> bool {
        let value = value.filter(|value| !value.is_null());
        if self.exists.is_some_and(|wanted| wanted != value.is_some()) {
            return false;
        }
        if let Some(literals) = &self.one_of
            && !value.is_some_and(|value| literals.iter().any(|literal| literal.is(value)))
        {
            return false;
        }
        if self.limits.is_empty() {
            return true;
        }
        let Some(number) = value.and_then(Json::number) else { return false };
        self.limits.iter().all(|(comparison, limit)| match comparison {
            Comparison::Above => number > *limit,
            Comparison::NotBelow => number >= *limit,
            Comparison::Below => number < *limit,
            Comparison::NotAbove => number <= *limit,
        })
    }
}

impl Literal {
    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self::Text(text.clone())),
            Value::Number(number) => Decimal::parse(&number.to_string()).map(Self::Number),
            Value::Bool(value) => Some(Self::Boolean(*value)),
            _ => None,
        }
    }

    fn is(&self, value: Json<'_>) -> bool {
        match self {
            Self::Text(text) => value.text().is_some_and(|value| value == *text),
            Self::Number(number) => value.number() == Some(*number),
            Self::Boolean(boolean) => value.boolean() == Some(*boolean),
        }
    }
}

#[cfg(test)]
mod tests {
    use tidemill_common::event::Event;

    use super::*;
    use crate::properties::Fields;
    use serde_json::json;

    fn event(properties: &str) -> Event {
        Event { user_id: Some("u".to_owned()), properties: Some(properties.to_owned()), ..Event::new("", "buy", 0) }
    }

    fn metric(json: Value) -> Compiled {
        Compiled::of(Declaration::from_json(json).expect("a declaration"))
    }

    fn observed(metric: &Compiled, properties: &str) -> Option<String> {
        let (event, fields) = (event(properties), Fields::read(properties));
        metric.observe(Subject::new(event.as_ref(), fields.of(properties))).map(|seen| match seen {
            Observation::Event => "event".to_owned(),
            Observation::Number(number) => number.to_string(),
            Observation::Text(text) => text.into_owned(),
        })
    }

    #[test]
    fn conditions_hold_or_not() {
        let holds = |condition: Value, properties: Value| {
            let metric = metric(json!({"name": "a", "where": [condition]}));
            observed(&metric, &properties.to_string()).is_some()
        };
        let equals = |value: Value| json!({"property": "x", "equals": value});
        assert!(holds(equals(json!("a")), json!({"x": "a"})));
        assert!(!holds(equals(json!("a")), json!({"x": "b"})));
        assert!(!holds(equals(json!("a")), json!({})));
        assert!(holds(equals(json!(1)), json!({"x": 1.0})), "numbers are equal by value");
        assert!(holds(equals(json!(true)), json!({"x": true})));
        assert!(!holds(equals(json!("1")), json!({"x": 1})));
        let one_of = json!({"property": "x", "in": ["a", 2]});
        assert!(holds(one_of.clone(), json!({"x": 2})) && !holds(one_of, json!({"x": "c"})));
        let absent = json!({"property": "x", "exists": false});
        assert!(holds(absent.clone(), json!({})) && holds(absent.clone(), json!({"x": null})));
        assert!(!holds(absent, json!({"x": 0})));
        let between = json!({"property": "o.x", "gte": 10, "lt": 20});
        let at = |x: Value| holds(between.clone(), json!({"o": {"x": x}}));
        assert!(at(json!(10)) && at(json!("19.99")) && !at(json!(20)) && !at(json!(9.999)) && !at(json!("many")));
    }

    #[test]
    fn only_events_with_a_fitting_field_are_observed() {
        let sum = metric(json!({"name": "a", "aggregation": "sum", "field": "amount"}));
        assert_eq!(observed(&sum, r#"{"amount": 19.990}"#).as_deref(), Some("19.99"));
        assert_eq!(observed(&sum, r#"{"amount": "much"}"#), None);
        assert_eq!(observed(&sum, "{}"), None);
        let users = metric(json!({"name": "a", "aggregation": "unique", "field": "userId"}));
        assert_eq!(observed(&users, "{}").as_deref(), Some("u"));
        let sessions = metric(json!({"name": "a", "aggregation": "unique", "field": "sessionId"}));
        assert_eq!(observed(&sessions, "{}"), None);
    }

    #[test]
    fn labels_can_be_stored() {
        let metric = metric(json!({"name": "a", "dimensions": ["eventType", "plan"]}));
        let label = |dimension: usize, properties: &str| {
            let (event, fields) = (event(properties), Fields::read(properties));
            metric.label(dimension, Subject::new(event.as_ref(), fields.of(properties))).into_owned()
        };
        assert_eq!(label(0, "{}"), "buy");
        assert_eq!(label(1, "{}"), "");
        assert_eq!(label(1, r#"{"plan": 2.0}"#), "2");
        assert_eq!(label(1, r#"{"plan": "a\u0000b"}"#), "a\u{fffd}b");
        assert_eq!(label(1, &format!(r#"{{"plan": "{}"}}"#, "ä".repeat(300))).chars().count(), MAX_LABEL);
    }

    #[test]
    fn a_combination_has_all_its_values() {
        let metric = metric(json!({"name": "a", "dimensions": ["plan", ["eventType", "plan", "country"]]}));
        let properties = r#"{"plan": "a,b"}"#;
        let (event, fields) = (event(properties), Fields::read(properties));
        let subject = Subject::new(event.as_ref(), fields.of(properties));
        assert_eq!((&*metric.label(0, subject), &*metric.label(1, subject)), ("a,b", r#"["buy","a,b",""]"#));
        assert_eq!(&*metric.dimensions[1], "eventType,plan,country");
    }

    #[test]
    fn what_enrichment_has_found_counts_first() {
        let metric = metric(json!({"name": "a", "dimensions": ["country", "deviceType"]}));
        let properties = r#"{"country":"FR","deviceType":"watch"}"#;
        let (event, fields) = (event(properties), Fields::read(properties));
        let enriched = Enriched { country: Some("DE"), ..Enriched::default() };
        let subject = Subject { enriched, ..Subject::new(event.as_ref(), fields.of(properties)) };
        assert_eq!((&*metric.label(0, subject), &*metric.label(1, subject)), ("DE", "watch"));
    }

    #[test]
    fn without_event_types_all_are_taken() {
        let some = metric(json!({"name": "a", "eventTypes": ["buy", "sell"]}));
        assert!(some.takes("sell") && !some.takes("view"));
        assert!(metric(json!({"name": "b"})).takes("view"));
    }
}

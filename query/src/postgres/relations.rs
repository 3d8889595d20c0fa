//! The tables of SQL that lie in Postgres, and their scans. Each is a project's own rows by construction: the
//! conditions that say so are part of every statement.

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::{Postgres, QueryBuilder};
use tidemill_stream::session_key;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Time,
    Date,
    Integer,
    Float,
    /// With nine digits behind the point; from Postgres as text without the point.
    Money,
    Boolean,
}

/// A column.
#[derive(Debug)]
pub struct Column {
    pub name: &'static str,
    pub kind: Kind,
    pub nullable: bool,
    /// What it is in Postgres.
    sql: &'static str,
}

/// A table.
#[derive(Debug)]
pub struct Relation {
    pub name: &'static str,
    pub columns: &'static [Column],
    /// What it is read from, as `s`.
    from: &'static str,
    /// Whether it has rows of other generations.
    has_generations: bool,
}

const fn column(name: &'static str, kind: Kind, nullable: bool, sql: &'static str) -> Column {
    Column { name, kind, nullable, sql }
}

/// The session id; sessions of a user's events without one have none. See [`tidemill_stream::session_key`].
const SESSION_ID: &str = "CASE WHEN left(s.session_id, 1) <> E'\\x01' THEN s.session_id
     WHEN left(s.session_id, 2) = E'\\x01\\x01' THEN substr(s.session_id, 2) END";

/// One row per session.
pub static SESSIONS: Relation = Relation {
    name: "sessions",
    from: "sessions",
    has_generations: true,
    columns: &[
        column("session_id", Kind::Text, true, SESSION_ID),
        column("user_id", Kind::Text, true, "s.user_id"),
        column("first_event_at", Kind::Time, false, "s.first_event_at"),
        column("last_event_at", Kind::Time, false, "s.last_event_at"),
        column("total_events", Kind::Integer, false, "s.total_events"),
        column("page_views", Kind::Integer, false, "s.page_views"),
        column("conversions", Kind::Integer, false, "s.conversions"),
        column("has_conversion", Kind::Boolean, false, "s.conversions > 0"),
        column("revenue", Kind::Money, false, "(coalesce(s.revenue, 0) * 1000000000)::numeric(38, 0)::text"),
        column("is_new", Kind::Boolean, false, "s.is_new"),
        column("is_bounce", Kind::Boolean, false, "s.total_events = 1"),
        column("entry_page", Kind::Text, true, "s.entry_page"),
        column("exit_page", Kind::Text, true, "s.current_page"),
        column("current_page", Kind::Text, true, "s.current_page"),
        column("traffic_source", Kind::Text, false, "coalesce(s.traffic_source, 'direct')"),
        column("device_type", Kind::Text, true, "s.device_type"),
        column("country", Kind::Text, true, "s.country"),
        column(
            "duration_seconds",
            Kind::Float,
            false,
            "extract(epoch FROM s.last_event_at - s.first_event_at)::float8",
        ),
    ],
};

/// One row per metric, value of a dimension, granularity and window, over all shards. What nobody asks for is not
/// computed: Postgres leaves unused columns of a subquery out.
pub static METRICS: Relation = Relation {
    name: "metrics",
    from: "(SELECT generation, project, metric_name, dimension_key, dimension_value, granularity, window_start,
                   sum(count)::bigint AS count, sum(sum) AS sum, min(min) AS min, max(max) AS max,
                   CASE max(aggregation)
                       WHEN 'count' THEN sum(count)
                       WHEN 'sum' THEN coalesce(sum(sum), 0)
                       WHEN 'min' THEN min(min)
                       WHEN 'max' THEN max(max)
                       WHEN 'avg' THEN sum(sum) / nullif(sum(count), 0)
                       WHEN 'unique' THEN tidemill_unique(array_agg(users))
                       WHEN 'p50' THEN least(greatest(tidemill_quantile(array_agg(quantiles), 0.50), min(min)), max(max))
                       WHEN 'p95' THEN least(greatest(tidemill_quantile(array_agg(quantiles), 0.95), min(min)), max(max))
                       WHEN 'p99' THEN least(greatest(tidemill_quantile(array_agg(quantiles), 0.99), min(min)), max(max))
                   END AS value
            FROM metric_rollups GROUP BY 1, 2, 3, 4, 5, 6, 7)",
    has_generations: true,
    columns: &[
        column("metric_name", Kind::Text, false, "s.metric_name"),
        column("dimension_key", Kind::Text, false, "s.dimension_key"),
        column("dimension_value", Kind::Text, false, "s.dimension_value"),
        column("granularity", Kind::Text, false, "s.granularity"),
        column("window_start", Kind::Time, false, "s.window_start"),
        column("count", Kind::Integer, false, "s.count"),
        column("sum", Kind::Money, true, "(s.sum * 1000000000)::numeric(38, 0)::text"),
        column("min", Kind::Money, true, "(s.min * 1000000000)::numeric(38, 0)::text"),
        column("max", Kind::Money, true, "(s.max * 1000000000)::numeric(38, 0)::text"),
        column("value", Kind::Money, true, "(s.value * 1000000000)::numeric(38, 0)::text"),
    ],
};

/// One row per day, metric and value of a dimension.
pub static DAILY_METRICS: Relation = Relation {
    name: "daily_metrics",
    from: "daily_metrics",
    has_generations: false,
    columns: &[
        column("date", Kind::Date, false, "s.date"),
        column("metric_name", Kind::Text, false, "s.metric_name"),
        column("dimension_key", Kind::Text, false, "s.dimension_key"),
        column("dimension_value", Kind::Text, false, "s.dimension_value"),
        column("value", Kind::Money, true, "(s.value * 1000000000)::numeric(38, 0)::text"),
    ],
};

/// All of them.
pub static RELATIONS: [&Relation; 3] = [&SESSIONS, &METRICS, &DAILY_METRICS];

/// How a column is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// What a column is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Time(DateTime<Utc>),
    Date(NaiveDate),
}

/// A condition that Postgres checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The index in the relation's columns.
    pub column: usize,
    pub comparison: Comparison,
    pub value: Value,
}

/// A scan of a project's rows.
#[derive(Debug, Clone)]
pub struct Scan {
    pub relation: &'static Relation,
    pub generation: i32,
    pub project: String,
    /// Indexes in the relation's columns.
    pub columns: Vec<usize>,
    pub conditions: Vec<Condition>,
    pub limit: Option<usize>,
}

impl Scan {
    /// The statement that opens the cursor `scan`. With a cursor a scan that is given up (a LIMIT, a timeout)
    /// costs no more than what has been read of it.
    pub fn open(&self) -> QueryBuilder<Postgres> {
        let of = |column: &usize| self.relation.columns[*column].sql;
        let expressions: Vec<&str> = self.columns.iter().map(of).collect();
        let mut query = QueryBuilder::new("DECLARE scan NO SCROLL CURSOR FOR SELECT ");
        // Without columns only the number of rows is asked for.
        query.push(if expressions.is_empty() { "1".to_owned() } else { expressions.join(", ") });
        query.push(" FROM ").push(self.relation.from).push(" s");
        query.push(" WHERE s.project = ").push_bind(self.project.clone());
        if self.relation.has_generations {
            query.push(" AND s.generation = ").push_bind(self.generation);
        }
        for condition in &self.conditions {
            let Column { name, sql, .. } = self.relation.columns[condition.column];
            // The column itself, so that there is an index for it.
            let is_id = name == "session_id";
            query.push(" AND ").push(if is_id { "s.session_id" } else { sql }).push(match condition.comparison {
                Comparison::Equal => " = ",
                Comparison::Less => " < ",
                Comparison::LessOrEqual => " <= ",
                Comparison::Greater => " > ",
                Comparison::GreaterOrEqual => " >= ",
            });
            match &condition.value {
                Value::Text(text) if is_id => query.push_bind(session_key::of_session(text).into_owned()),
                Value::Text(text) => query.push_bind(text.clone()),
                Value::Time(time) => query.push_bind(*time),
                Value::Date(date) => query.push_bind(*date),
            };
        }
        if let Some(limit) = self.limit {
            query.push(" LIMIT ").push_bind(i64::try_from(limit).unwrap_or(i64::MAX));
        }
        query
    }

    /// The statement that reads on.
    pub const NEXT: &str = "FETCH 4096 FROM scan";
}

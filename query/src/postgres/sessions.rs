//! Sessions: those of one id, and scans for SQL.

use chrono::{DateTime, Utc};
use sqlx::{PgPool, Postgres, QueryBuilder};
use tidemill_common::projects::Project;

/// Whether the user's first event lies in the session.
const IS_NEW: &str = "coalesce(u.first_event_at BETWEEN s.first_event_at AND s.last_event_at, false)";
const USERS: &str =
    " LEFT JOIN users u ON u.generation = s.generation AND u.project = s.project AND u.user_id = s.user_id";

/// One session of a session id.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Interval {
    pub user_id: Option<String>,
    pub first_event_at: DateTime<Utc>,
    pub last_event_at: DateTime<Utc>,
    pub page_views: i64,
    pub total_events: i64,
    pub conversions: i64,
    pub is_new: bool,
    pub current_page: Option<String>,
}

/// The latest `limit` sessions of an id, latest first.
pub async fn intervals(
    pool: &PgPool,
    project: &Project,
    session_id: &str,
    limit: i64,
) -> Result<Vec<Interval>, sqlx::Error> {
    let mut query = QueryBuilder::new(
        "SELECT s.user_id, s.first_event_at, s.last_event_at, s.page_views, s.total_events, s.conversions, ",
    );
    query.push(IS_NEW).push(" AS is_new, s.current_page FROM sessions s").push(USERS);
    query.push(" WHERE s.generation = ").push_bind(project.generation);
    query.push(" AND s.project = ").push_bind(&project.id).push(" AND s.session_id = ").push_bind(session_id);
    query.push(" ORDER BY s.first_event_at DESC LIMIT ").push_bind(limit);
    query.build_query_as().fetch_all(pool).await
}

/// What a column of the table `sessions` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Time,
    Integer,
    Float,
    Boolean,
}

/// The columns of the table `sessions`: name, kind, whether it may be null, and what it is in Postgres.
pub const COLUMNS: [(&str, Kind, bool, &str); 11] = [
    ("session_id", Kind::Text, false, "s.session_id"),
    ("user_id", Kind::Text, true, "s.user_id"),
    ("first_event_at", Kind::Time, false, "s.first_event_at"),
    ("last_event_at", Kind::Time, false, "s.last_event_at"),
    ("total_events", Kind::Integer, false, "s.total_events"),
    ("page_views", Kind::Integer, false, "s.page_views"),
    ("conversions", Kind::Integer, false, "s.conversions"),
    ("has_conversion", Kind::Boolean, false, "s.conversions > 0"),
    ("is_new", Kind::Boolean, false, IS_NEW),
    ("current_page", Kind::Text, true, "s.current_page"),
    ("duration_seconds", Kind::Float, false, "extract(epoch FROM s.last_event_at - s.first_event_at)::float8"),
];

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
}

/// A condition that Postgres checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The index in [`COLUMNS`].
    pub column: usize,
    pub comparison: Comparison,
    pub value: Value,
}

/// A scan of a project's sessions.
#[derive(Debug, Clone)]
pub struct Scan {
    pub generation: i32,
    pub project: String,
    /// Indexes in [`COLUMNS`].
    pub columns: Vec<usize>,
    pub conditions: Vec<Condition>,
    pub limit: Option<usize>,
}

impl Scan {
    /// The statement that opens the cursor `scan`. With a cursor a scan that is given up (a LIMIT, a timeout)
    /// costs no more than what has been read of it.
    pub fn open(&self) -> QueryBuilder<Postgres> {
        let expressions: Vec<&str> = self.columns.iter().map(|column| COLUMNS[*column].3).collect();
        let mut query = QueryBuilder::new("DECLARE scan NO SCROLL CURSOR FOR SELECT ");
        // Without columns only the number of rows is asked for.
        query.push(if expressions.is_empty() { "1".to_owned() } else { expressions.join(", ") });
        query.push(" FROM sessions s");
        if expressions.contains(&IS_NEW) {
            query.push(USERS);
        }
        query.push(" WHERE s.generation = ").push_bind(self.generation);
        query.push(" AND s.project = ").push_bind(self.project.clone());
        for condition in &self.conditions {
            query.push(" AND ").push(COLUMNS[condition.column].3).push(match condition.comparison {
                Comparison::Equal => " = ",
                Comparison::Less => " < ",
                Comparison::LessOrEqual => " <= ",
                Comparison::Greater => " > ",
                Comparison::GreaterOrEqual => " >= ",
            });
            match &condition.value {
                Value::Text(text) => query.push_bind(text.clone()),
                Value::Time(time) => query.push_bind(*time),
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

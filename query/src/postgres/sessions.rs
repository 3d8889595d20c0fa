//! Sessions: those of one id, and scans for SQL.

use chrono::{DateTime, Utc};
use sqlx::{PgPool, Postgres, QueryBuilder};
use tidemill_common::projects::Project;
use tidemill_stream::fold::sessions::slot;
use tidemill_stream::session_key;

/// The session id; sessions of a user's events without one have none. See [`tidemill_stream::session_key`].
const SESSION_ID: &str = "CASE WHEN left(s.session_id, 1) <> E'\\x01' THEN s.session_id
     WHEN left(s.session_id, 2) = E'\\x01\\x01' THEN substr(s.session_id, 2) END";
const SOURCE: &str = "coalesce(s.traffic_source, 'direct')";
const INTERVAL: &str = "SELECT s.session_id AS session_key, s.user_id, s.first_event_at, s.last_event_at, s.page_views,
     s.total_events, s.conversions, s.revenue::text AS revenue, s.is_new, s.entry_page, s.current_page,
     coalesce(s.traffic_source, 'direct') AS traffic_source, s.device_type, s.country FROM sessions s";

/// One session of a session key.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct Interval {
    pub session_key: String,
    pub user_id: Option<String>,
    pub first_event_at: DateTime<Utc>,
    pub last_event_at: DateTime<Utc>,
    pub page_views: i64,
    pub total_events: i64,
    pub conversions: i64,
    pub revenue: Option<String>,
    pub is_new: bool,
    pub entry_page: Option<String>,
    pub current_page: Option<String>,
    pub traffic_source: String,
    pub device_type: Option<String>,
    pub country: Option<String>,
}

/// The latest `limit` sessions of a key, latest first.
pub async fn intervals(
    pool: &PgPool,
    project: &Project,
    session_key: &str,
    limit: i64,
) -> Result<Vec<Interval>, sqlx::Error> {
    let mut query = QueryBuilder::new(INTERVAL);
    query.push(" WHERE s.generation = ").push_bind(project.generation);
    query.push(" AND s.project = ").push_bind(&project.id).push(" AND s.session_id = ").push_bind(session_key);
    query.push(" ORDER BY s.first_event_at DESC LIMIT ").push_bind(limit);
    query.build_query_as().fetch_all(pool).await
}

/// The `limit` sessions with the latest events, among those with one after `since`. They are found by the half hour of
/// their last event, so it costs what is live, not what there is.
pub async fn active(
    pool: &PgPool,
    project: &Project,
    since: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Interval>, sqlx::Error> {
    let slot = slot(since.timestamp_micros());
    let mut query = QueryBuilder::new(INTERVAL);
    query.push(" WHERE s.generation = ").push_bind(project.generation);
    query.push(" AND s.project = ").push_bind(&project.id).push(" AND s.last_slot >= ").push_bind(slot);
    query.push(" AND s.last_event_at > ").push_bind(since);
    query.push(" ORDER BY s.last_event_at DESC, s.session_id, s.first_event_at LIMIT ").push_bind(limit);
    query.build_query_as().fetch_all(pool).await
}

/// Whether there is anything of a session key.
pub async fn is_known(pool: &PgPool, project: &Project, session_key: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM session_keys WHERE generation = $1 AND project = $2 AND session_id = $3)",
    )
    .bind(project.generation)
    .bind(&project.id)
    .bind(session_key)
    .fetch_one(pool)
    .await
}

/// What a column of the table `sessions` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Time,
    Integer,
    Float,
    /// With nine digits behind the point; from Postgres as text without the point.
    Money,
    Boolean,
}

/// The columns of the table `sessions`: name, kind, whether it may be null, and what it is in Postgres.
pub const COLUMNS: [(&str, Kind, bool, &str); 18] = [
    ("session_id", Kind::Text, true, SESSION_ID),
    ("user_id", Kind::Text, true, "s.user_id"),
    ("first_event_at", Kind::Time, false, "s.first_event_at"),
    ("last_event_at", Kind::Time, false, "s.last_event_at"),
    ("total_events", Kind::Integer, false, "s.total_events"),
    ("page_views", Kind::Integer, false, "s.page_views"),
    ("conversions", Kind::Integer, false, "s.conversions"),
    ("has_conversion", Kind::Boolean, false, "s.conversions > 0"),
    ("revenue", Kind::Money, false, "(coalesce(s.revenue, 0) * 1000000000)::numeric(38, 0)::text"),
    ("is_new", Kind::Boolean, false, "s.is_new"),
    ("is_bounce", Kind::Boolean, false, "s.total_events = 1"),
    ("entry_page", Kind::Text, true, "s.entry_page"),
    ("exit_page", Kind::Text, true, "s.current_page"),
    ("current_page", Kind::Text, true, "s.current_page"),
    ("traffic_source", Kind::Text, false, SOURCE),
    ("device_type", Kind::Text, true, "s.device_type"),
    ("country", Kind::Text, true, "s.country"),
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
        query.push(" WHERE s.generation = ").push_bind(self.generation);
        query.push(" AND s.project = ").push_bind(self.project.clone());
        for condition in &self.conditions {
            let (name, _, _, expression) = COLUMNS[condition.column];
            // The column itself, so that there is an index for it.
            let is_id = name == "session_id";
            query.push(" AND ").push(if is_id { "s.session_id" } else { expression }).push(
                match condition.comparison {
                    Comparison::Equal => " = ",
                    Comparison::Less => " < ",
                    Comparison::LessOrEqual => " <= ",
                    Comparison::Greater => " > ",
                    Comparison::GreaterOrEqual => " >= ",
                },
            );
            match &condition.value {
                Value::Text(text) if is_id => query.push_bind(session_key::of_session(text).into_owned()),
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

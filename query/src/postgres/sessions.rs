//! Sessions: those of one id, and those that are active.

use chrono::{DateTime, Utc};
use sqlx::{PgPool, QueryBuilder};
use tidemill_common::projects::Project;
use tidemill_stream::fold::sessions::slot;

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

//! What a project has that Redis should show, from Postgres, a stretch at a time. Each stretch begins behind the last
//! key of the one before, so what it costs depends on what is live, not on all that there is.

use chrono::{DateTime, Utc};
use sqlx::{PgPool, Row};

use crate::fold::rollups::RollupKey;
use crate::fold::sessions::{GAP, slot};
use crate::metric;
use crate::time::utc;
use crate::window::Granularity;

/// Sessions of the live generation that may be live, by the half hour of their last event and their key; from behind
/// `after` on.
pub async fn sessions(
    pool: &PgPool,
    project: &str,
    after: &(i32, String),
    limit: i64,
) -> Result<Vec<(i32, String)>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT s.last_slot, s.session_id FROM sessions s
         WHERE s.generation = (SELECT generation FROM projects WHERE id = $1) AND s.project = $1
           AND s.last_slot >= $2 AND (s.last_slot, s.session_id) > ($2, $3)
         ORDER BY s.last_slot, s.session_id LIMIT $4",
    )
    .bind(project)
    .bind(after.0)
    .bind(&after.1)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Where live sessions begin at `now`.
pub fn first_session(now: DateTime<Utc>) -> (i32, String) {
    (slot(now.timestamp_micros() - GAP), String::new())
}

/// Some sessions of the live generation whose last event is not before `from`: the first by its time.
pub async fn sample(pool: &PgPool, project: &str, from: DateTime<Utc>, limit: i64) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT s.session_id FROM sessions s
         WHERE s.generation = (SELECT generation FROM projects WHERE id = $1) AND s.project = $1
           AND s.last_slot >= $2 AND s.last_event_at >= $3
         ORDER BY s.last_event_at, s.session_id LIMIT $4",
    )
    .bind(project)
    .bind(slot(from.timestamp_micros()))
    .bind(from)
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// Session keys with cart events in the live generation, in order; from behind `after` on.
pub async fn carts(pool: &PgPool, project: &str, after: &str, limit: i64) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT DISTINCT session_id FROM cart_events
         WHERE generation = (SELECT generation FROM projects WHERE id = $1) AND project = $1 AND session_id > $2
         ORDER BY session_id LIMIT $3",
    )
    .bind(project)
    .bind(after)
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// Windows of events with a copy in Redis, of the live generation and one granularity, by their start; from behind
/// `after` on, which is a start and a dimension's key and value.
pub async fn windows(
    pool: &PgPool,
    project: &str,
    granularity: Granularity,
    after: &WindowCursor,
    limit: i64,
) -> Result<Vec<(WindowCursor, RollupKey)>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT DISTINCT r.window_start, r.dimension_key, r.dimension_value FROM metric_rollups r
         WHERE r.generation = (SELECT generation FROM projects WHERE id = $1) AND r.project = $1
           AND r.granularity = $2 AND r.metric_name = $3 AND r.window_start >= $4
           AND (r.window_start, r.dimension_key, r.dimension_value) > ($4, $5, $6)
         ORDER BY 1, 2, 3 LIMIT $7",
    )
    .bind(project)
    .bind(granularity.as_str())
    .bind(metric::EVENTS)
    .bind(after.0)
    .bind(&after.1)
    .bind(&after.2)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let (start, dimension, value): (DateTime<Utc>, String, String) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let key = RollupKey {
                project: project.to_owned(),
                metric: metric::EVENTS,
                event_type: (dimension == metric::EVENT_TYPE).then(|| value.clone()),
                granularity,
                window_start: start.timestamp(),
            };
            Ok(((start, dimension, value), key))
        })
        .collect()
}

/// A window's start, and the key and value of a dimension.
pub type WindowCursor = (DateTime<Utc>, String, String);

/// Where the windows of a granularity begin that are hot at `now`.
pub fn first_window(granularity: Granularity, now: DateTime<Utc>) -> WindowCursor {
    let kept = granularity.hot_until(0);
    (utc((now.timestamp() - kept) * 1_000_000), String::new(), String::new())
}

/// Users of the live generation, by their id; from behind `after` on.
pub async fn users(pool: &PgPool, project: &str, after: &str, limit: i64) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT user_id FROM users
         WHERE generation = (SELECT generation FROM projects WHERE id = $1) AND project = $1 AND user_id > $2
         ORDER BY user_id LIMIT $3",
    )
    .bind(project)
    .bind(after)
    .bind(limit)
    .fetch_all(pool)
    .await
}

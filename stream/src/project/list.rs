//! What a project has that Redis should show, from Postgres, a stretch at a time. Each stretch begins behind the last
//! key of the one before, so what it costs depends on what is live, not on all that there is.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgPool, Row};

use crate::fold::carts::KEPT;
use crate::fold::rollups::{RollupKey, Series};
use crate::fold::sessions::{GAP, slot};
use crate::metric::{self, Aggregation};
use crate::time::utc;
use crate::window::Granularity;

/// Whose state is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// The project's live generation.
    Live,
    /// The one that was live before it, as long as it is kept.
    Kept,
}

impl Of {
    /// The generation of project `$1`, in SQL.
    fn generation(self) -> &'static str {
        match self {
            Self::Live => "(SELECT generation FROM projects WHERE id = $1)",
            Self::Kept => "(SELECT kept_generation FROM projects WHERE id = $1)",
        }
    }
}

/// Sessions that may be live, by the half hour of their last event and their key; from behind
/// `after` on.
pub async fn sessions(
    pool: &PgPool,
    of: Of,
    project: &str,
    after: &(i32, String),
    limit: i64,
) -> Result<Vec<(i32, String)>, sqlx::Error> {
    by_slot(pool, of, project, ("sessions", "last_slot"), after, limit).await
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

/// Carts that may be shown, by the half hour of their last event and their key; from behind `after` on.
pub async fn carts(
    pool: &PgPool,
    of: Of,
    project: &str,
    after: &(i32, String),
    limit: i64,
) -> Result<Vec<(i32, String)>, sqlx::Error> {
    by_slot(pool, of, project, ("session_keys", "cart_slot"), after, limit).await
}

/// Session keys in a table, by a half hour that stands there.
async fn by_slot(
    pool: &PgPool,
    of: Of,
    project: &str,
    (table, slot): (&str, &str),
    after: &(i32, String),
    limit: i64,
) -> Result<Vec<(i32, String)>, sqlx::Error> {
    let generation = of.generation();
    sqlx::query_as(AssertSqlSafe(format!(
        "SELECT {slot}, session_id FROM {table}
         WHERE generation = {generation} AND project = $1
           AND {slot} >= $2 AND ({slot}, session_id) > ($2, $3)
         ORDER BY {slot}, session_id LIMIT $4"
    )))
    .bind(project)
    .bind(after.0)
    .bind(&after.1)
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// Where carts begin that are shown at `now`.
pub fn first_cart(now: DateTime<Utc>) -> (i32, String) {
    (slot(now.timestamp_micros() - KEPT), String::new())
}

/// Windows of one granularity that may have a copy in Redis, by their start; from behind
/// `after` on.
pub async fn windows(
    pool: &PgPool,
    of: Of,
    project: &str,
    granularity: Granularity,
    after: &WindowCursor,
    limit: i64,
) -> Result<Vec<(WindowCursor, RollupKey)>, sqlx::Error> {
    let generation = of.generation();
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT r.window_start, r.metric_name, r.dimension_value, r.dimension_key, max(r.aggregation)
         FROM metric_rollups r
         WHERE r.generation = {generation} AND r.project = $1
           AND r.granularity = $2 AND r.window_start >= $3
           AND (r.dimension_key = '' OR r.metric_name = $6 AND r.dimension_key = $7)
           AND (r.window_start, r.metric_name, r.dimension_value) > ($3, $4, $5)
         GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3 LIMIT $8"
    )))
    .bind(project)
    .bind(granularity.as_str())
    .bind(after.0)
    .bind(&after.1)
    .bind(&after.2)
    .bind(metric::EVENTS)
    .bind(metric::EVENT_TYPE)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let (start, name, value): (DateTime<Utc>, String, String) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let series = series(project, &name, (row.try_get(3)?, &value), row.try_get(4)?);
            let key = RollupKey { series: Arc::new(series), granularity, window_start: start.timestamp() };
            Ok(((start, name, value), key))
        })
        .collect()
}

/// A window as its copy's key has it: its project, what is asked for, and its start in seconds since 1970.
pub type Asked<'a> = (&'a str, &'a str, Granularity, i64);

/// The windows that each may stand for: an event type's, or a metric's, or both; of live generations.
pub async fn identify(pool: &PgPool, asked: &[Asked<'_>]) -> Result<Vec<Vec<RollupKey>>, sqlx::Error> {
    let mut known = vec![Vec::new(); asked.len()];
    if asked.is_empty() {
        return Ok(known);
    }
    let rows = sqlx::query(
        "SELECT k.n, r.dimension_key, max(r.aggregation)
         FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[])
              WITH ORDINALITY AS k(project, name, granularity, start, n)
         JOIN projects p ON p.id = k.project
         CROSS JOIN LATERAL (
             SELECT dimension_key, aggregation FROM metric_rollups
             WHERE generation = p.generation AND project = p.id AND metric_name = $5 AND dimension_key = $6
               AND dimension_value = k.name AND granularity = k.granularity AND window_start = k.start
             UNION ALL
             SELECT dimension_key, aggregation FROM metric_rollups
             WHERE generation = p.generation AND project = p.id AND metric_name = k.name AND dimension_key = ''
               AND granularity = k.granularity AND window_start = k.start OFFSET 0) r
         GROUP BY 1, 2 ORDER BY 1, 2 DESC",
    )
    .bind(asked.iter().map(|(project, ..)| *project).collect::<Vec<_>>())
    .bind(asked.iter().map(|(_, name, ..)| *name).collect::<Vec<_>>())
    .bind(asked.iter().map(|(_, _, granularity, _)| granularity.as_str()).collect::<Vec<_>>())
    .bind(asked.iter().map(|(.., start)| utc(start.saturating_mul(1_000_000))).collect::<Vec<_>>())
    .bind(metric::EVENTS)
    .bind(metric::EVENT_TYPE)
    .fetch_all(pool)
    .await?;
    for row in &rows {
        let at = row.try_get::<i64, _>(0)? as usize - 1;
        let ((project, name, granularity, window_start), dimension) = (asked[at], row.try_get::<&str, _>(1)?);
        let (metric, value) = if dimension.is_empty() { (name, "") } else { (metric::EVENTS, name) };
        let series = series(project, metric, (dimension, value), row.try_get(2)?);
        known[at].push(RollupKey { series: Arc::new(series), granularity, window_start });
    }
    Ok(known)
}

/// Windows of what sessions count for ([`metric::OF_SESSIONS`]) that may have a copy in Redis at `now`, of the live
/// generations of these projects.
pub async fn windows_of_sessions(
    pool: &PgPool,
    projects: &[String],
    now: DateTime<Utc>,
) -> Result<Vec<RollupKey>, sqlx::Error> {
    if projects.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "SELECT r.project, r.metric_name, r.granularity, r.window_start, max(r.aggregation)
         FROM unnest($1::text[]) AS k(project)
         JOIN projects p ON p.id = k.project
         CROSS JOIN unnest($2::text[]) AS m(name)
         CROSS JOIN unnest($3::text[], $4::timestamptz[]) AS g(name, since)
         CROSS JOIN LATERAL (
             SELECT * FROM metric_rollups
             WHERE generation = p.generation AND project = p.id AND metric_name = m.name AND dimension_key = ''
               AND granularity = g.name AND window_start >= g.since OFFSET 0) r
         GROUP BY 1, 2, 3, 4",
    )
    .bind(projects)
    .bind(metric::OF_SESSIONS.as_slice())
    .bind(Granularity::ALL.map(Granularity::as_str).as_slice())
    .bind(Granularity::ALL.map(|granularity| first_window(granularity, now).0).as_slice())
    .fetch_all(pool)
    .await?;
    let mut keys = Vec::with_capacity(rows.len());
    for row in &rows {
        let Some(granularity) = Granularity::parse(row.try_get(2)?) else { continue };
        let series = series(row.try_get(0)?, row.try_get(1)?, ("", ""), row.try_get(4)?);
        let window_start = row.try_get::<DateTime<Utc>, _>(3)?.timestamp();
        keys.push(RollupKey { series: Arc::new(series), granularity, window_start });
    }
    Ok(keys)
}

fn series(project: &str, metric: &str, (dimension, value): (&str, &str), aggregation: &str) -> Series {
    Series {
        project: project.into(),
        metric: metric.into(),
        dimension: dimension.into(),
        value: value.into(),
        aggregation: Aggregation::parse(aggregation).unwrap_or_default(),
    }
}

/// A window's start, the metric, and the value of the dimension.
pub type WindowCursor = (DateTime<Utc>, String, String);

/// Where the windows of a granularity begin that are hot at `now`.
pub fn first_window(granularity: Granularity, now: DateTime<Utc>) -> WindowCursor {
    let kept = granularity.hot_until(0);
    (utc((now.timestamp() - kept) * 1_000_000), String::new(), String::new())
}

/// Users by their id, from behind `after` on: all of the live generation, but of the kept one only those whom the live
/// one does not have.
pub async fn users(pool: &PgPool, of: Of, project: &str, after: &str, limit: i64) -> Result<Vec<String>, sqlx::Error> {
    let generation = of.generation();
    let which = match of {
        Of::Live => "",
        Of::Kept => {
            "AND NOT EXISTS (
                 SELECT FROM users WHERE generation = (SELECT generation FROM projects WHERE id = $1)
                    AND project = $1 AND user_id = u.user_id)"
        }
    };
    sqlx::query_scalar(AssertSqlSafe(format!(
        "SELECT user_id FROM users u
         WHERE generation = {generation} AND project = $1 AND user_id > $2 {which}
         ORDER BY user_id LIMIT $3"
    )))
    .bind(project)
    .bind(after)
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// Those of these users whom the live generation has.
pub async fn known(pool: &PgPool, project: &str, users: &[&str]) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT user_id FROM users
         WHERE generation = (SELECT generation FROM projects WHERE id = $1) AND project = $1 AND user_id = ANY ($2)",
    )
    .bind(project)
    .bind(users)
    .fetch_all(pool)
    .await
}

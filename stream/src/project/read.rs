//! What Redis should show, from Postgres: each value in one statement with the versions it stands for.
//!
//! `OFFSET 0` keeps the planner from joining: of a table without statistics, as a new one is, it believes that half a
//! key finds a row or two.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgPool, Row};

use crate::decimal::Decimal;
use crate::fold::rollups::RollupKey;
use crate::fold::sessions::GAP;
use crate::histogram::Histogram;
use crate::live_session::{LiveSession, Stamp};
use crate::metric::Totals;
use crate::sketch::UserSketch;
use crate::store::sessions::{SESSION, session};
use crate::time::utc;

/// A hot window.
pub struct HotWindow<'a> {
    /// Which.
    pub key: &'a RollupKey,
    /// Its state.
    pub stamp: Stamp,
    /// What is known of it.
    pub totals: Totals,
}

/// The sessions among `keys` that are live at `now`.
pub async fn sessions(
    pool: &PgPool,
    keys: &[&(String, String)],
    now: DateTime<Utc>,
) -> Result<Vec<LiveSession>, sqlx::Error> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT k.n, {SESSION}, p.generation, v.version, (SELECT epoch FROM timeline) AS epoch
         FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k(project, session_id, n)
         JOIN projects p ON p.id = k.project
         CROSS JOIN LATERAL (
             SELECT version FROM session_keys
             WHERE generation = p.generation AND project = k.project AND session_id = k.session_id OFFSET 0) v
         CROSS JOIN LATERAL (
             SELECT * FROM sessions s
             WHERE s.generation = p.generation AND s.project = k.project AND s.session_id = k.session_id
             ORDER BY s.first_event_at DESC LIMIT 1) s
         WHERE s.last_event_at > $3"
    )))
    .bind(keys.iter().map(|key| &*key.0).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| &*key.1).collect::<Vec<_>>())
    .bind(now - TimeDelta::microseconds(GAP))
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let stamp = Stamp {
                epoch: row.try_get("epoch")?,
                generation: row.try_get("generation")?,
                version: row.try_get("version")?,
            };
            let key = keys[row.try_get::<i64, _>(0)? as usize - 1].clone();
            Ok(LiveSession::new(key, stamp, &session(row)?))
        })
        .collect()
}

/// Those of these sessions, all of one epoch, that are not the present state of their keys any more.
pub async fn passed<'s>(
    pool: &PgPool,
    sessions: impl Iterator<Item = &'s LiveSession>,
) -> Result<HashSet<(String, String)>, sqlx::Error> {
    let sessions: Vec<&LiveSession> = sessions.collect();
    let Some(first) = sessions.first() else { return Ok(HashSet::new()) };
    let passed: Vec<i64> = sqlx::query_scalar(
        "SELECT k.n
         FROM unnest($1::text[], $2::text[], $3::int[], $4::bigint[]) WITH ORDINALITY
              AS k(project, session_id, generation, version, n)
         LEFT JOIN LATERAL (
             SELECT version FROM session_keys
             WHERE generation = k.generation AND project = k.project AND session_id = k.session_id OFFSET 0) v ON true
         LEFT JOIN projects p ON p.id = k.project
         WHERE v.version IS DISTINCT FROM k.version OR p.generation IS DISTINCT FROM k.generation
            OR (SELECT epoch FROM timeline) <> $5",
    )
    .bind(sessions.iter().map(|session| &*session.key.0).collect::<Vec<_>>())
    .bind(sessions.iter().map(|session| &*session.key.1).collect::<Vec<_>>())
    .bind(sessions.iter().map(|session| session.stamp.generation).collect::<Vec<_>>())
    .bind(sessions.iter().map(|session| session.stamp.version).collect::<Vec<_>>())
    .bind(first.stamp.epoch)
    .fetch_all(pool)
    .await?;
    Ok(passed.into_iter().map(|n| sessions[n as usize - 1].key.clone()).collect())
}

/// The epoch, and the live generations of these projects.
pub async fn times(pool: &PgPool, projects: &[&str]) -> Result<(i64, HashMap<String, i32>), sqlx::Error> {
    let rows: Vec<(i64, String, i32)> =
        sqlx::query_as("SELECT t.epoch, p.id, p.generation FROM timeline t, projects p WHERE p.id = ANY($1)")
            .bind(projects)
            .fetch_all(pool)
            .await?;
    let epoch = rows.first().map_or(0, |(epoch, _, _)| *epoch);
    Ok((epoch, rows.into_iter().map(|(_, project, generation)| (project, generation)).collect()))
}

/// The values of windows, summed (and their sketches merged) over shards.
pub async fn windows<'a>(pool: &PgPool, keys: &[&'a RollupKey]) -> Result<Vec<HotWindow<'a>>, sqlx::Error> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "SELECT k.n, p.generation, sum(r.version)::bigint, sum(r.count)::bigint, sum(r.sum)::text, min(r.min)::text,
                max(r.max)::text, array_agg(r.users), array_agg(r.quantiles),
                (SELECT epoch FROM timeline) AS epoch
         FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])
              WITH ORDINALITY AS k(project, metric, dimension, value, granularity, window_start, n)
         JOIN projects p ON p.id = k.project
         CROSS JOIN LATERAL (
             SELECT version, count, sum, min, max, users, quantiles FROM metric_rollups
             WHERE generation = p.generation AND project = k.project AND metric_name = k.metric
               AND dimension_key = k.dimension AND dimension_value = k.value AND granularity = k.granularity
               AND window_start = k.window_start OFFSET 0) r
         GROUP BY k.n, p.generation",
    )
    .bind(keys.iter().map(|key| &*key.series.project).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| &*key.series.metric).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| &*key.series.dimension).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| &*key.series.value).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| key.granularity.as_str()).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| utc(key.window_start * 1_000_000)).collect::<Vec<_>>())
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(HotWindow {
                key: keys[row.try_get::<i64, _>(0)? as usize - 1],
                stamp: Stamp { epoch: row.try_get("epoch")?, generation: row.try_get(1)?, version: row.try_get(2)? },
                totals: totals(row)?,
            })
        })
        .collect()
}

fn totals(row: &PgRow) -> Result<Totals, sqlx::Error> {
    let number = |at: usize| row.try_get::<Option<&str>, _>(at).map(|text| text.and_then(Decimal::parse));
    let shards = |at: usize| row.try_get::<Vec<Option<Vec<u8>>>, _>(at).map(|all| all.into_iter().flatten());
    let mut totals =
        Totals { count: row.try_get(3)?, sum: number(4)?, min: number(5)?, max: number(6)?, ..Totals::default() };
    for bytes in shards(7)? {
        let users = UserSketch::from_bytes(&bytes).map_err(|error| sqlx::Error::Decode(error.into()))?;
        totals.merge(Totals { users: Some(users), ..Totals::default() });
    }
    for bytes in shards(8)? {
        let quantiles = Histogram::from_bytes(&bytes).map_err(|error| sqlx::Error::Decode(error.into()))?;
        totals.merge(Totals { quantiles: Some(quantiles), ..Totals::default() });
    }
    Ok(totals)
}

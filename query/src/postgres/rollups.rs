//! Counts and sketches per window.

use std::ops::Range;

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use sqlx::PgPool;
use tidemill_common::projects::Project;
use tidemill_stream::metric::{EVENT_TYPE, EVENTS};
use tidemill_stream::sketch::{BadSketch, UserSketch};
use tidemill_stream::window::Granularity;

/// Which rollups.
#[derive(Debug, Clone)]
pub struct Series {
    /// `metric_name`.
    pub metric: &'static str,
    /// `dimension_key`.
    pub dimension: &'static str,
    /// `dimension_value`s.
    pub values: Vec<String>,
}

/// A window, its shards put together.
#[derive(Debug)]
pub struct Rollup {
    /// Its start, in seconds since 1970.
    pub start: i64,
    /// The value of the series' dimension.
    pub dimension_value: String,
    /// The sum of the shards.
    pub count: i64,
    /// The users of all shards.
    pub users: Option<UserSketch>,
}

#[derive(sqlx::FromRow)]
struct Shard {
    window_start: DateTime<Utc>,
    dimension_value: String,
    count: i64,
    users: Option<Vec<u8>>,
}

/// The windows that start in `span` (seconds since 1970) and are not in `known`, by start and value. They are
/// put together while they stream in, so that only one window's sketches are in memory.
pub async fn rollups(
    pool: &PgPool,
    project: &Project,
    series: &Series,
    granularity: Granularity,
    span: Range<i64>,
    known: &[i64],
    mut each: impl FnMut(Rollup),
) -> Result<(), sqlx::Error> {
    let mut shards = sqlx::query_as::<_, Shard>(
        "SELECT window_start, dimension_value, count, users FROM metric_rollups
         WHERE generation = $1 AND project = $2 AND metric_name = $3 AND dimension_key = $4
           AND dimension_value = ANY($5) AND granularity = $6
           AND window_start >= to_timestamp($7) AND window_start < to_timestamp($8)
           AND NOT extract(epoch FROM window_start)::bigint = ANY($9)
         ORDER BY window_start, dimension_value",
    )
    .bind(project.generation)
    .bind(&project.id)
    .bind(series.metric)
    .bind(series.dimension)
    .bind(&series.values)
    .bind(granularity.as_str())
    .bind(span.start)
    .bind(span.end)
    .bind(known)
    .fetch(pool);
    let mut open: Option<Rollup> = None;
    while let Some(shard) = shards.try_next().await? {
        let shard = rollup(shard).map_err(|error| sqlx::Error::Decode(error.into()))?;
        match &mut open {
            Some(window) if window.start == shard.start && window.dimension_value == shard.dimension_value => {
                add(window, shard);
            }
            _ => open.replace(shard).into_iter().for_each(&mut each),
        }
    }
    open.into_iter().for_each(each);
    Ok(())
}

fn rollup(shard: Shard) -> Result<Rollup, BadSketch> {
    Ok(Rollup {
        start: shard.window_start.timestamp(),
        dimension_value: shard.dimension_value,
        count: shard.count,
        users: shard.users.map(|bytes| UserSketch::from_bytes(&bytes)).transpose()?,
    })
}

fn add(window: &mut Rollup, shard: Rollup) {
    window.count += shard.count;
    match (&mut window.users, shard.users) {
        (Some(users), Some(more)) => users.merge(&more),
        (users @ None, more) => *users = more,
        (Some(_), None) => {}
    }
}

/// The event types that have been counted, in order, at most `limit`. Steps from one to the next through the
/// index, so that the cost grows with the types and not with the windows.
pub async fn event_types(pool: &PgPool, project: &Project, limit: i64) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "WITH RECURSIVE types AS (
           (SELECT dimension_value FROM metric_rollups
            WHERE generation = $1 AND project = $2 AND metric_name = $3 AND dimension_key = $4
            ORDER BY dimension_value LIMIT 1)
           UNION ALL
           SELECT (SELECT dimension_value FROM metric_rollups
                   WHERE generation = $1 AND project = $2 AND metric_name = $3 AND dimension_key = $4
                     AND dimension_value > types.dimension_value
                   ORDER BY dimension_value LIMIT 1)
           FROM types WHERE types.dimension_value IS NOT NULL
         )
         SELECT dimension_value FROM types WHERE dimension_value IS NOT NULL LIMIT $5",
    )
    .bind(project.generation)
    .bind(&project.id)
    .bind(EVENTS)
    .bind(EVENT_TYPE)
    .bind(limit)
    .fetch_all(pool)
    .await
}

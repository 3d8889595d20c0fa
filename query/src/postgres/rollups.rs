//! Counts and sketches per window.

use std::collections::BTreeMap;
use std::ops::Range;

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use sqlx::PgPool;
use tidemill_common::projects::Project;
use tidemill_stream::decimal::Decimal;
use tidemill_stream::histogram::Histogram;
use tidemill_stream::metric::{EVENT_TYPE, EVENTS, OTHER, Totals};
use tidemill_stream::sketch::UserSketch;
use tidemill_stream::window::Granularity;

use crate::metrics::Piece;

/// Which rollups.
#[derive(Debug, Clone)]
pub struct Series<'a> {
    /// `metric_name`s.
    pub metrics: Vec<&'a str>,
    /// `dimension_key`.
    pub dimension: &'a str,
    /// `dimension_value`s; none: all.
    pub values: Option<&'a [String]>,
}

/// A window of a metric and value, as one of its shards has it.
#[derive(Debug)]
pub struct Rollup {
    /// `metric_name`.
    pub metric: String,
    /// Its start, in seconds since 1970.
    pub start: i64,
    /// `dimension_value`.
    pub value: String,
    /// What is known of it.
    pub totals: Totals,
}

#[derive(sqlx::FromRow)]
struct Shard {
    metric_name: String,
    window_start: DateTime<Utc>,
    dimension_value: String,
    count: i64,
    sum: Option<String>,
    min: Option<String>,
    max: Option<String>,
    users: Option<Vec<u8>>,
    quantiles: Option<Vec<u8>>,
}

/// The rows of the windows in `pieces` that do not start at one of `known`, in order of time, shard by shard. They
/// stream in, so that the caller needs room for one window's sketches only.
pub async fn rollups(
    pool: &PgPool,
    project: &Project,
    series: &Series<'_>,
    pieces: &[Piece],
    known: &[i64],
    mut each: impl FnMut(Rollup),
) -> Result<(), sqlx::Error> {
    let pieces = Pieces::of(pieces);
    let mut shards = sqlx::query_as::<_, Shard>(
        "SELECT r.metric_name, r.window_start, r.dimension_value, r.count, r.sum::text, r.min::text, r.max::text,
                r.users, r.quantiles
         FROM unnest($6::text[], $7::bigint[], $8::bigint[]) AS p(granularity, starts, ends)
         JOIN metric_rollups r
           ON r.generation = $1 AND r.project = $2 AND r.metric_name = ANY($3) AND r.dimension_key = $4
          AND r.granularity = p.granularity
          AND r.window_start >= to_timestamp(p.starts) AND r.window_start < to_timestamp(p.ends)
         WHERE ($5::text[] IS NULL OR r.dimension_value = ANY($5))
           AND NOT extract(epoch FROM r.window_start)::bigint = ANY($9)
         ORDER BY r.window_start",
    )
    .bind(project.generation)
    .bind(&project.id)
    .bind(&series.metrics)
    .bind(series.dimension)
    .bind(series.values)
    .bind(&pieces.granularities)
    .bind(&pieces.starts)
    .bind(&pieces.ends)
    .bind(known)
    .fetch(pool);
    while let Some(shard) = shards.try_next().await? {
        each(rollup(shard).map_err(sqlx::Error::Decode)?);
    }
    Ok(())
}

fn rollup(shard: Shard) -> Result<Rollup, sqlx::error::BoxDynError> {
    let number = |text: Option<String>| text.and_then(|text| Decimal::parse(&text));
    let totals = Totals {
        count: shard.count,
        sum: number(shard.sum),
        min: number(shard.min),
        max: number(shard.max),
        users: shard.users.map(|bytes| UserSketch::from_bytes(&bytes)).transpose()?,
        quantiles: shard.quantiles.map(|bytes| Histogram::from_bytes(&bytes)).transpose()?,
    };
    Ok(Rollup {
        metric: shard.metric_name,
        start: shard.window_start.timestamp(),
        value: shard.dimension_value,
        totals,
    })
}

/// How often each value of a dimension was counted in these windows.
pub async fn counts_by_value(
    pool: &PgPool,
    project: &Project,
    series: &Series<'_>,
    pieces: &[Piece],
) -> Result<Vec<(String, i64)>, sqlx::Error> {
    let pieces = Pieces::of(pieces);
    sqlx::query_as(
        "SELECT r.dimension_value, sum(r.count)::bigint
         FROM unnest($6::text[], $7::bigint[], $8::bigint[]) AS p(granularity, starts, ends)
         JOIN metric_rollups r
           ON r.generation = $1 AND r.project = $2 AND r.metric_name = ANY($3) AND r.dimension_key = $4
          AND r.granularity = p.granularity
          AND r.window_start >= to_timestamp(p.starts) AND r.window_start < to_timestamp(p.ends)
         WHERE ($5::text[] IS NULL OR r.dimension_value = ANY($5))
         GROUP BY 1",
    )
    .bind(project.generation)
    .bind(&project.id)
    .bind(&series.metrics)
    .bind(series.dimension)
    .bind(series.values)
    .bind(&pieces.granularities)
    .bind(&pieces.starts)
    .bind(&pieces.ends)
    .fetch_all(pool)
    .await
}

/// All values stored for the days in `days` (starts, in seconds since 1970) on which some were turned away, by day.
pub async fn overflowing_days(
    pool: &PgPool,
    project: &Project,
    metric: &str,
    dimension: &str,
    days: Range<i64>,
) -> Result<BTreeMap<i64, Vec<String>>, sqlx::Error> {
    let rows: Vec<(i64, String)> = sqlx::query_as(
        "SELECT DISTINCT extract(epoch FROM r.window_start)::bigint, r.dimension_value
         FROM metric_rollups r
         WHERE r.generation = $1 AND r.project = $2 AND r.metric_name = $3 AND r.dimension_key = $4
           AND r.granularity = '1d' AND r.dimension_value <> $7
           AND r.window_start IN (
               SELECT o.window_start FROM metric_rollups o
               WHERE o.generation = $1 AND o.project = $2 AND o.metric_name = $3 AND o.dimension_key = $4
                 AND o.dimension_value = $7 AND o.granularity = '1d'
                 AND o.window_start >= to_timestamp($5) AND o.window_start < to_timestamp($6))",
    )
    .bind(project.generation)
    .bind(&project.id)
    .bind(metric)
    .bind(dimension)
    .bind(days.start)
    .bind(days.end)
    .bind(OTHER)
    .fetch_all(pool)
    .await?;
    let mut values = BTreeMap::<i64, Vec<String>>::new();
    for (day, value) in rows {
        values.entry(day).or_default().push(value);
    }
    Ok(values)
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

/// Pieces by column.
struct Pieces {
    granularities: Vec<&'static str>,
    starts: Vec<i64>,
    ends: Vec<i64>,
}

impl Pieces {
    fn of(pieces: &[Piece]) -> Self {
        Self {
            granularities: pieces.iter().map(|piece| Granularity::as_str(piece.granularity)).collect(),
            starts: pieces.iter().map(|piece| piece.span.start).collect(),
            ends: pieces.iter().map(|piece| piece.span.end).collect(),
        }
    }
}

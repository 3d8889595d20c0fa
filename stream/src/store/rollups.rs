//! Rollups: a batch adds what it has to one shard of each window.

use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{PgConnection, Postgres, Row};

use super::shards::Shards;
use crate::decimal::Decimal;
use crate::fold::rollups::{Change, RollupKey};
use crate::histogram::Histogram;
use crate::sketch::UserSketch;
use crate::time::utc;

/// Adds the changes, which are sorted. Rows that need no sketch, or whose sketch stays as it is, are only added to:
/// most users of a busy window are in its sketch already.
pub async fn apply(
    tx: &mut PgConnection,
    generation: i32,
    shards: &Shards,
    rows: &[(RollupKey, Change)],
) -> Result<(), sqlx::Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let shard = shards.take(tx, generation).await?;
    let (users, quantiles) = sketches(tx, generation, shard, rows).await?;
    let keys = Columns::of(rows.iter().map(|(key, _)| key));
    let text = |number: Option<Decimal>| number.map(|number| number.to_string());
    keys.bind(
        "INSERT INTO metric_rollups AS r (generation, project, metric_name, dimension_key, dimension_value, granularity,
             window_start, shard, version, aggregation, count, sum, min, max, users, quantiles)
         SELECT $1, project, metric, dimension, value, granularity, window_start, $2, 1, aggregation, count,
                sum::numeric, min::numeric, max::numeric, users, quantiles
         FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[], $9::text[],
                     $10::bigint[], $11::text[], $12::text[], $13::text[], $14::bytea[], $15::bytea[])
              AS k(project, metric, dimension, value, granularity, window_start, aggregation, count, sum, min, max,
                   users, quantiles)
         ON CONFLICT (generation, project, metric_name, dimension_key, dimension_value, granularity, window_start, shard)
         DO UPDATE SET version = r.version + 1, aggregation = excluded.aggregation, count = r.count + excluded.count,
             sum = CASE WHEN excluded.sum IS NULL THEN r.sum ELSE coalesce(r.sum, 0) + excluded.sum END,
             min = least(r.min, excluded.min), max = greatest(r.max, excluded.max),
             users = coalesce(excluded.users, r.users), quantiles = coalesce(excluded.quantiles, r.quantiles)",
        generation,
        shard,
    )
    .bind(rows.iter().map(|(key, _)| key.series.aggregation.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, change)| change.count).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, change)| text(change.sum)).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, change)| text(change.min)).collect::<Vec<_>>())
    .bind(rows.iter().map(|(_, change)| text(change.max)).collect::<Vec<_>>())
    .bind(users)
    .bind(quantiles)
    .execute(tx)
    .await?;
    Ok(())
}

/// The bytes of a row's sketch; none where it has none or it stays as it is.
type Sketch = Option<Vec<u8>>;
type Sketches = Vec<Sketch>;

/// The sketches that change, of users and of quantiles, as they are to be written. The shard is ours, so nobody
/// writes them between this and the write.
async fn sketches(
    tx: &mut PgConnection,
    generation: i32,
    shard: i16,
    rows: &[(RollupKey, Change)],
) -> Result<(Sketches, Sketches), sqlx::Error> {
    let (mut users, mut quantiles) = (vec![None; rows.len()], vec![None; rows.len()]);
    let sketched: Vec<usize> = (0..rows.len()).filter(|at| rows[*at].1.has_sketch()).collect();
    if sketched.is_empty() {
        return Ok((users, quantiles));
    }
    let keys = Columns::of(sketched.iter().map(|at| &rows[*at].0));
    let found = keys
        .bind(
            "SELECT k.n, r.users, r.quantiles
             FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[])
                  WITH ORDINALITY AS k(project, metric, dimension, value, granularity, window_start, n)
             CROSS JOIN LATERAL (
                 SELECT users, quantiles FROM metric_rollups
                 WHERE generation = $1 AND shard = $2 AND project = k.project AND metric_name = k.metric
                   AND dimension_key = k.dimension AND dimension_value = k.value AND granularity = k.granularity
                   AND window_start = k.window_start OFFSET 0) r",
            generation,
            shard,
        )
        .fetch_all(tx)
        .await?;
    let mut stored: Vec<(Sketch, Sketch)> = vec![(None, None); rows.len()];
    for row in found {
        stored[sketched[row.try_get::<i64, _>(0)? as usize - 1]] = (row.try_get(1)?, row.try_get(2)?);
    }
    for at in sketched {
        let (change, (stored_users, stored_quantiles)) = (&rows[at].1, &stored[at]);
        users[at] = merged_users(stored_users.as_deref(), change)?;
        quantiles[at] = merged_quantiles(stored_quantiles.as_deref(), change)?;
    }
    Ok((users, quantiles))
}

fn merged_users(stored: Option<&[u8]>, change: &Change) -> Result<Option<Vec<u8>>, sqlx::Error> {
    if change.unique.is_empty() {
        return Ok(None);
    }
    let mut users = match stored {
        Some(bytes) => UserSketch::from_bytes(bytes).map_err(|error| sqlx::Error::Decode(error.into()))?,
        None => UserSketch::default(),
    };
    Ok(users.add_all(&change.unique).then(|| users.to_bytes()))
}

fn merged_quantiles(stored: Option<&[u8]>, change: &Change) -> Result<Option<Vec<u8>>, sqlx::Error> {
    if change.quantiles.count() == 0 {
        return Ok(None);
    }
    let mut quantiles = change.quantiles.clone();
    if let Some(bytes) = stored {
        quantiles.merge(&Histogram::from_bytes(bytes).map_err(|error| sqlx::Error::Decode(error.into()))?);
    }
    Ok(Some(quantiles.to_bytes()))
}

impl Change {
    fn has_sketch(&self) -> bool {
        !self.unique.is_empty() || self.quantiles.count() > 0
    }
}

/// Keys by column, as Postgres' `unnest` takes them.
#[derive(Default)]
struct Columns<'a> {
    projects: Vec<&'a str>,
    metrics: Vec<&'a str>,
    dimensions: Vec<&'a str>,
    values: Vec<&'a str>,
    granularities: Vec<&'a str>,
    windows: Vec<chrono::DateTime<chrono::Utc>>,
}

impl<'a> Columns<'a> {
    fn of(keys: impl Iterator<Item = &'a RollupKey>) -> Self {
        let mut columns = Self::default();
        for key in keys {
            columns.projects.push(&key.series.project);
            columns.metrics.push(&key.series.metric);
            columns.dimensions.push(&key.series.dimension);
            columns.values.push(&key.series.value);
            columns.granularities.push(key.granularity.as_str());
            columns.windows.push(utc(key.window_start * 1_000_000));
        }
        columns
    }

    fn bind<'q>(&'q self, sql: &'static str, generation: i32, shard: i16) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(sql)
            .bind(generation)
            .bind(shard)
            .bind(&self.projects)
            .bind(&self.metrics)
            .bind(&self.dimensions)
            .bind(&self.values)
            .bind(&self.granularities)
            .bind(&self.windows)
    }
}

//! Rollups: rows are made, locked in order, and changed.

use sqlx::{PgConnection, Row};

use crate::decimal::Decimal;
use crate::fold::rollups::{Change, Changes, RollupKey};
use crate::metric;
use crate::sketch::UserSketch;
use crate::time::utc;

/// Adds the changes to one shard of each window.
pub async fn apply(tx: &mut PgConnection, generation: i32, shard: i16, changes: &Changes) -> Result<(), sqlx::Error> {
    let keys = Columns::of(changes.0.keys());
    if keys.projects.is_empty() {
        return Ok(());
    }
    keys.bind(
        "INSERT INTO metric_rollups (generation, project, metric_name, dimension_key, dimension_value, granularity,
                                     window_start, shard, version, count)
         SELECT $1, project, metric, dimension, value, granularity, window_start, $2, 0, 0
         FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[])
              AS k(project, metric, dimension, value, granularity, window_start)
         ON CONFLICT DO NOTHING",
        generation,
        shard,
    )
    .execute(&mut *tx)
    .await?;
    let rows = keys
        .bind(
            "SELECT k.n, r.users
             FROM metric_rollups r
             JOIN unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[])
                  WITH ORDINALITY AS k(project, metric, dimension, value, granularity, window_start, n)
               ON r.project = k.project AND r.metric_name = k.metric AND r.dimension_key = k.dimension
              AND r.dimension_value = k.value AND r.granularity = k.granularity AND r.window_start = k.window_start
             WHERE r.generation = $1 AND r.shard = $2 ORDER BY k.n FOR UPDATE OF r",
            generation,
            shard,
        )
        .fetch_all(&mut *tx)
        .await?;
    let mut users: Vec<Option<Vec<u8>>> = vec![None; changes.0.len()];
    let deltas: Vec<&Change> = changes.0.values().collect();
    for row in rows {
        let index = row.try_get::<i64, _>(0)? as usize - 1;
        users[index] = merged(row.try_get(1)?, deltas[index])?;
    }
    keys.bind(
        "UPDATE metric_rollups r SET count = r.count + k.count, version = r.version + 1,
                                     sum = CASE WHEN k.sum IS NULL THEN r.sum ELSE coalesce(r.sum, 0) + k.sum::numeric END,
                                     users = coalesce(k.users, r.users)
         FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[], $9::bigint[],
                     $10::bytea[], $11::text[])
              AS k(project, metric, dimension, value, granularity, window_start, count, users, sum)
         WHERE r.generation = $1 AND r.shard = $2 AND r.project = k.project AND r.metric_name = k.metric
           AND r.dimension_key = k.dimension AND r.dimension_value = k.value AND r.granularity = k.granularity
           AND r.window_start = k.window_start",
        generation,
        shard,
    )
    .bind(deltas.iter().map(|change| change.count).collect::<Vec<_>>())
    .bind(users)
    .bind(deltas.iter().map(|change| (change.sum != Decimal::ZERO).then(|| change.sum.to_string())).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

/// The users a row holds with those of a change, if the change has any.
fn merged(stored: Option<Vec<u8>>, change: &Change) -> Result<Option<Vec<u8>>, sqlx::Error> {
    let Some(new) = &change.users else { return Ok(None) };
    let Some(stored) = stored else { return Ok(Some(new.to_bytes())) };
    let mut users = UserSketch::from_bytes(&stored).map_err(|error| sqlx::Error::Decode(error.into()))?;
    users.merge(new);
    Ok(Some(users.to_bytes()))
}

/// Keys by column, as Postgres' `unnest` takes them.
#[derive(Default)]
pub struct Columns<'a> {
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
            columns.projects.push(&key.project);
            columns.metrics.push(key.metric);
            columns.dimensions.push(if key.event_type.is_some() { metric::EVENT_TYPE } else { "" });
            columns.values.push(key.event_type.as_deref().unwrap_or_default());
            columns.granularities.push(key.granularity.as_str());
            columns.windows.push(utc(key.window_start * 1_000_000));
        }
        columns
    }

    fn bind<'q>(
        &'q self,
        sql: &'static str,
        generation: i32,
        shard: i16,
    ) -> sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments> {
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

//! Raw events: every event once more in Postgres, for SQL there. A setting; the archive is the place for all of them.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use serde_json::Value;
use sqlx::{Connection, PgConnection, PgPool};
use tidemill_common::event::EventRef;
use tokio_util::sync::CancellationToken;

use super::Counted;
use crate::time::utc;

/// How often old days are looked for.
const LOOK: Duration = Duration::from_secs(600);
/// Properties up to this length hold no number that is too long for Postgres.
const SHORT: usize = 8_192;

/// Keeps events by day of receipt, which is when they were appended to the log: what producers say of it may be
/// anything.
#[derive(Debug, Clone)]
pub struct RawEvents {
    keep: TimeDelta,
    /// Days that have a partition.
    prepared: Arc<Mutex<BTreeSet<NaiveDate>>>,
}

impl RawEvents {
    /// Keeps the last `days`.
    pub fn new(days: u32) -> Self {
        Self { keep: TimeDelta::days(days.max(1).into()), prepared: Arc::default() }
    }

    /// Makes room for the days of these events. Not in the batch's transaction: partitions are for everybody.
    pub async fn prepare(&self, pool: &PgPool, events: &[Counted]) -> Result<(), sqlx::Error> {
        let oldest = Utc::now() - self.keep;
        let days: BTreeSet<NaiveDate> =
            events.iter().map(appended).filter(|at| *at >= oldest).map(|at| at.date_naive()).collect();
        let missing: Vec<NaiveDate> = days.difference(&self.prepared()).copied().collect();
        for day in missing {
            sqlx::query("SELECT tidemill_prepare_raw_events($1)").bind(day).execute(pool).await?;
            self.prepared().insert(day);
        }
        Ok(())
    }

    /// Writes the events, but for those of days that are not kept any more.
    pub async fn insert(&self, tx: &mut PgConnection, events: &[Counted]) -> Result<(), sqlx::Error> {
        let prepared = self.prepared().clone();
        let events: Vec<&Counted> =
            events.iter().filter(|counted| prepared.contains(&appended(counted).date_naive())).collect();
        if events.is_empty() {
            return Ok(());
        }
        let seen: Vec<EventRef<'_>> = events.iter().map(|counted| counted.event()).collect();
        sqlx::query(
            "INSERT INTO raw_events (generation, project, append_time, kafka_partition, kafka_offset, event_id,
                 event_type, event_action, user_id, session_id, occurred_at, received_at, properties)
             SELECT generation, project, append_time, partition, \"offset\", id, type, action, user_id, session_id,
                    occurred_at, received_at, properties::jsonb
             FROM unnest($1::int[], $2::text[], $3::timestamptz[], $4::int[], $5::bigint[], $6::text[], $7::text[],
                         $8::text[], $9::text[], $10::text[], $11::timestamptz[], $12::timestamptz[], $13::text[])
                  AS e(generation, project, append_time, partition, \"offset\", id, type, action, user_id, session_id,
                       occurred_at, received_at, properties)",
        )
        .bind(events.iter().map(|counted| counted.generation()).collect::<Vec<_>>())
        .bind(events.iter().map(|counted| &**counted.project()).collect::<Vec<_>>())
        .bind(events.iter().map(|counted| appended(counted)).collect::<Vec<_>>())
        .bind(events.iter().map(|counted| counted.origin.partition).collect::<Vec<_>>())
        .bind(events.iter().map(|counted| counted.origin.offset).collect::<Vec<_>>())
        .bind(seen.iter().map(|event| event.event_id).collect::<Vec<_>>())
        .bind(seen.iter().map(|event| event.event_type).collect::<Vec<_>>())
        .bind(seen.iter().map(|event| event.event_action).collect::<Vec<_>>())
        .bind(seen.iter().map(|event| event.user_id).collect::<Vec<_>>())
        .bind(seen.iter().map(|event| event.session_id).collect::<Vec<_>>())
        .bind(seen.iter().map(|event| utc(event.timestamp)).collect::<Vec<_>>())
        .bind(seen.iter().map(|event| event.received_at.map(utc)).collect::<Vec<_>>())
        .bind(seen.iter().map(|event| event.properties.map(storable)).collect::<Vec<_>>())
        .execute(tx)
        .await?;
        Ok(())
    }

    /// Drops days that are over, again and again until shutdown.
    pub fn drop_old(&self, pool: PgPool, shutdown: CancellationToken) {
        let this = self.clone();
        tokio::spawn(async move {
            loop {
                match this.drop_days(&pool, Utc::now()).await {
                    Ok(0) => {}
                    Ok(days) => tracing::info!(days, "raw events dropped"),
                    Err(error) => tracing::debug!(%error, "old raw events stay a while longer"),
                }
                if shutdown.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_none() {
                    return;
                }
            }
        });
    }

    /// Drops the days that are over at this time; gives how many.
    pub async fn drop_days(&self, pool: &PgPool, now: DateTime<Utc>) -> Result<i64, sqlx::Error> {
        let oldest = (now - self.keep).date_naive();
        let dropped = sqlx::query_scalar("SELECT tidemill_drop_raw_events($1)").bind(oldest).fetch_one(pool).await?;
        self.prepared().retain(|day| *day >= oldest);
        Ok(dropped)
    }

    fn prepared(&self) -> std::sync::MutexGuard<'_, BTreeSet<NaiveDate>> {
        self.prepared.lock().expect("no holder panics")
    }
}

/// Deletes a project's events, of one generation or of all, a day at a time: days are tables of their own, in which rows
/// are not named alike. Calls `each` with how many have gone.
pub async fn delete(
    db: &mut PgConnection,
    project: &str,
    generation: Option<i32>,
    mut each: impl FnMut(u64),
) -> Result<(), sqlx::Error> {
    let days: Vec<DateTime<Utc>> = sqlx::query_scalar(
        "SELECT DISTINCT date_trunc('day', append_time, 'UTC') FROM raw_events
         WHERE project = $1 AND ($2 IS NULL OR generation = $2)",
    )
    .bind(project)
    .bind(generation)
    .fetch_all(&mut *db)
    .await?;
    for day in days {
        let mut tx = db.begin().await?;
        unlimited(&mut tx).await?;
        let step = "DELETE FROM raw_events WHERE project = $1 AND ($2 IS NULL OR generation = $2)
                       AND append_time >= $3 AND append_time < $3 + interval '1 day'";
        // A plan for any values would take the whole day's segments apart, everybody's.
        let step = sqlx::query(step).persistent(false).bind(project).bind(generation).bind(day);
        let rows = step.execute(&mut *tx).await?.rows_affected();
        tx.commit().await?;
        each(rows);
    }
    Ok(())
}

/// Lets a transaction delete any number of events. TimescaleDB takes apart what it has compressed to delete from it, by
/// itself only up to a limit; elsewhere nobody reads this setting.
pub async fn unlimited(tx: &mut PgConnection) -> Result<(), sqlx::Error> {
    let setting = "SELECT set_config('timescaledb.max_tuples_decompressed_per_dml_transaction', '0', true)";
    sqlx::query(setting).execute(tx).await.map(drop)
}

fn appended(counted: &Counted) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(counted.origin.append_ms).unwrap_or_default()
}

/// Properties as Postgres' jsonb takes them. It refuses some valid JSON (U+0000, halves of surrogates, endless
/// numbers); none of that may keep everybody's batch from going through. What cannot be mended is kept as text.
fn storable(properties: &str) -> Cow<'_, str> {
    let is_exponent = |pair: &[u8]| pair[0].is_ascii_digit() && matches!(pair[1], b'e' | b'E');
    let plain = properties.len() <= SHORT && !properties.contains("\\u");
    if plain && !properties.as_bytes().windows(2).any(is_exponent) {
        return Cow::Borrowed(properties);
    }
    let readable = serde_json::from_str::<Value>(properties);
    let Ok(mut value) = readable else {
        return Cow::Owned(Value::String(properties.replace('\0', "\u{fffd}")).to_string());
    };
    if plain {
        return Cow::Borrowed(properties); // with all its digits
    }
    without_nul(&mut value);
    Cow::Owned(value.to_string())
}

fn without_nul(value: &mut Value) {
    match value {
        Value::String(text) if text.contains('\0') => *text = text.replace('\0', "\u{fffd}"),
        Value::Array(values) => values.iter_mut().for_each(without_nul),
        Value::Object(fields) => {
            if fields.keys().any(|name| name.contains('\0')) {
                *fields = std::mem::take(fields).into_iter().map(|(n, v)| (n.replace('\0', "\u{fffd}"), v)).collect();
            }
            fields.values_mut().for_each(without_nul);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_jsonb_refuses_is_mended_or_kept_as_text() {
        for fine in [r#"{"a":19.990}"#, r#"{"price":1.5e3,"deep":[true]}"#] {
            assert!(matches!(storable(fine), Cow::Borrowed(_)), "{fine}");
        }
        assert_eq!(storable(r#"{"a\u0000":["\u0000b"]}"#), "{\"a\u{fffd}\":[\"\u{fffd}b\"]}");
        for broken in [r#"{"a":"\ud800"}"#, r#"{"a":1e999}"#] {
            assert_eq!(
                serde_json::from_str::<Value>(&storable(broken)).expect("JSON"),
                Value::String(broken.to_owned())
            );
        }
        let long = format!(r#"{{"a":0.{}}}"#, "1".repeat(20_000));
        assert!(storable(&long).len() < 100, "a float's digits");
    }
}

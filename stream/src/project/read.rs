//! What Redis should show, from Postgres: each value in one statement with the versions it stands for.
//!
//! `OFFSET 0` keeps the planner from joining: of a table without statistics, as a new one is, it believes that half a
//! key finds a row or two.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};

use crate::decimal::Decimal;
use crate::enrich::DIRECT;
use crate::fold::rollups::RollupKey;
use crate::fold::sessions::GAP;
use crate::histogram::Histogram;
use crate::metric::Totals;
use crate::session_key;
use crate::sketch::UserSketch;
use crate::time::utc;

/// Which state a value shows; ordered. The epoch comes first: a Postgres that has come back older may have an older
/// live generation, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// Raised when Postgres comes back older.
    pub epoch: i64,
    /// The live generation.
    pub generation: i32,
    /// The row's version, or the sum of the shards' versions.
    pub version: i64,
}

/// The latest session of a session key.
pub struct LiveSession {
    /// Project and session key.
    pub key: (String, String),
    /// Its state.
    pub stamp: Stamp,
    /// Hash fields and values.
    pub fields: Vec<(&'static str, String)>,
    /// When it stops being live, in milliseconds since 1970.
    pub expires_ms: i64,
}

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
    let rows = sqlx::query(
        "SELECT k.project, k.session_id, p.generation, v.version, s.first_event_at, s.last_event_at, s.total_events,
                s.page_views, s.conversions, s.user_id, s.current_page, s.is_new, s.entry_page, s.traffic_source,
                s.device_type, s.country, s.revenue::text AS revenue, (SELECT epoch FROM timeline) AS epoch
         FROM unnest($1::text[], $2::text[]) AS k(project, session_id)
         JOIN projects p ON p.id = k.project
         CROSS JOIN LATERAL (
             SELECT version FROM session_keys
             WHERE generation = p.generation AND project = k.project AND session_id = k.session_id OFFSET 0) v
         CROSS JOIN LATERAL (
             SELECT * FROM sessions s
             WHERE s.generation = p.generation AND s.project = k.project AND s.session_id = k.session_id
             ORDER BY s.first_event_at DESC LIMIT 1) s
         WHERE s.last_event_at > $3",
    )
    .bind(keys.iter().map(|key| &*key.0).collect::<Vec<_>>())
    .bind(keys.iter().map(|key| &*key.1).collect::<Vec<_>>())
    .bind(now - TimeDelta::microseconds(GAP))
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let (first, last): (DateTime<Utc>, DateTime<Utc>) = (row.try_get(4)?, row.try_get(5)?);
            let session_key: String = row.try_get(1)?;
            let mut fields = vec![
                ("firstEventAt", rfc3339(first)),
                ("lastEventAt", rfc3339(last)),
                ("totalEvents", row.try_get::<i64, _>(6)?.to_string()),
                ("pageViews", row.try_get::<i64, _>(7)?.to_string()),
                ("conversions", row.try_get::<i64, _>(8)?.to_string()),
                ("hasConversion", (row.try_get::<i64, _>(8)? > 0).to_string()),
                ("isNew", row.try_get::<bool, _>(11)?.to_string()),
            ];
            fields.extend(session_key::session_id(&session_key).map(|id| ("sessionId", id.to_owned())));
            for (field, column) in [
                ("userId", "user_id"),
                ("currentPage", "current_page"),
                ("entryPage", "entry_page"),
                ("deviceType", "device_type"),
                ("country", "country"),
                ("revenue", "revenue"),
            ] {
                fields.extend(row.try_get::<Option<String>, _>(column)?.map(|value| (field, value)));
            }
            let source = row.try_get::<Option<String>, _>("traffic_source")?;
            fields.push(("trafficSource", source.unwrap_or_else(|| DIRECT.to_owned())));
            Ok(LiveSession {
                key: (row.try_get(0)?, session_key),
                stamp: Stamp { epoch: row.try_get("epoch")?, generation: row.try_get(2)?, version: row.try_get(3)? },
                fields,
                expires_ms: (last.timestamp_micros() + GAP) / 1_000,
            })
        })
        .collect()
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

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

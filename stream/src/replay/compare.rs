//! How a replay's generation differs from the live one, at equal offsets: by metric and day.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{PgConnection, PgPool, Row};

use super::{Level, Replay, ReplayError};
use crate::decimal::Decimal;
use crate::histogram::Histogram;
use crate::metric::{Aggregation, Totals};
use crate::sketch::UserSketch;

/// A metric on a day, sessions that began on it, or users who were first seen on it, where the generations differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The metric's name; `(sessions)` and `(users)` are the rows themselves.
    pub what: String,
    /// The day, in UTC.
    pub day: NaiveDate,
    /// The live generation's value: the metric's of that day, or the number of rows.
    pub live: Option<String>,
    /// The replay's.
    pub rebuilt: Option<String>,
    /// How many windows, over all granularities and dimensions, or rows differ.
    pub rows: i64,
}

/// What differs, by name and day.
type Found = BTreeMap<(String, NaiveDate), Difference>;

/// Compares both generations as they are at equal offsets, and keeps the result with the replay. The live workers go on
/// as soon as a snapshot is taken.
pub async fn compare(pool: &PgPool, level: Level, replay: &Replay) -> Result<Vec<Difference>, ReplayError> {
    let mut snapshot = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    sqlx::query("SELECT count(*) FROM ledger").execute(&mut *snapshot).await?; // takes it
    level.release().await?;
    let mut found = Found::new();
    windows(&mut snapshot, replay, &mut found).await?;
    days(&mut snapshot, replay, &mut found).await?;
    for (name, sql) in [("(sessions)", SESSIONS), ("(users)", USERS)] {
        rows(&mut snapshot, replay, name, sql, &mut found).await?;
    }
    snapshot.rollback().await?;
    let differences: Vec<Difference> = found.into_values().collect();
    sqlx::query("UPDATE replays SET comparison = $2, compared_at = now() WHERE id = $1")
        .bind(replay.id)
        .bind(json!(differences))
        .execute(pool)
        .await?;
    Ok(differences)
}

/// Windows whose counts, sums or bounds differ. What shard a part of it stands in means nothing.
const WINDOWS: &str = "
    WITH windows AS (
        SELECT metric_name, dimension_key, dimension_value, granularity, window_start, generation = $3 AS rebuilt,
               sum(count) AS count, coalesce(sum(sum), 0) AS sum, min(min) AS min, max(max) AS max
        FROM metric_rollups WHERE generation IN ($2, $3) AND project = $1
        GROUP BY 1, 2, 3, 4, 5, 6
    )
    SELECT metric_name, (window_start AT TIME ZONE 'UTC')::date, count(*)
    FROM (SELECT * FROM windows WHERE NOT rebuilt AND (count, sum) <> (0, 0)) l
    FULL JOIN (SELECT * FROM windows WHERE rebuilt AND (count, sum) <> (0, 0)) r
         USING (metric_name, dimension_key, dimension_value, granularity, window_start)
    WHERE (l.count, l.sum, l.min, l.max) IS DISTINCT FROM (r.count, r.sum, r.min, r.max)
    GROUP BY 1, 2";

/// The values of days, by metric.
const DAYS: &str = "
    SELECT metric_name, (window_start AT TIME ZONE 'UTC')::date, generation = $3, aggregation, count, sum::text,
           min::text, max::text, users, quantiles
    FROM metric_rollups
    WHERE generation IN ($2, $3) AND project = $1 AND granularity = '1d' AND dimension_key = ''
    ORDER BY metric_name, window_start";

const SESSIONS: &str = "
    SELECT (first_event_at AT TIME ZONE 'UTC')::date, count(l.session_id), count(r.session_id),
           count(*) FILTER (WHERE (l.last_event_at, l.total_events, l.page_views, l.conversions, l.user_id, l.revenue,
                                   l.is_new, l.entry_page, l.current_page, l.traffic_source, l.device_type, l.country)
               IS DISTINCT FROM   (r.last_event_at, r.total_events, r.page_views, r.conversions, r.user_id, r.revenue,
                                   r.is_new, r.entry_page, r.current_page, r.traffic_source, r.device_type, r.country))
    FROM (SELECT * FROM sessions WHERE generation = $2 AND project = $1) l
    FULL JOIN (SELECT * FROM sessions WHERE generation = $3 AND project = $1) r USING (session_id, first_event_at)
    GROUP BY 1";

const USERS: &str = "
    SELECT (coalesce(l.first_event_at, r.first_event_at) AT TIME ZONE 'UTC')::date, count(l.user_id), count(r.user_id),
           count(*) FILTER (WHERE l.first_event_at IS DISTINCT FROM r.first_event_at)
    FROM (SELECT * FROM users WHERE generation = $2 AND project = $1) l
    FULL JOIN (SELECT * FROM users WHERE generation = $3 AND project = $1) r USING (user_id)
    GROUP BY 1";

fn bound<'q>(
    sql: &'static str,
    replay: &'q Replay,
) -> sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments> {
    sqlx::query(sql).bind(&replay.project).bind(replay.replaces).bind(replay.generation)
}

fn at(found: &mut Found, what: String, day: NaiveDate) -> &mut Difference {
    let none = Difference { what: what.clone(), day, live: None, rebuilt: None, rows: 0 };
    found.entry((what, day)).or_insert(none)
}

async fn windows(db: &mut PgConnection, replay: &Replay, found: &mut Found) -> Result<(), ReplayError> {
    for row in bound(WINDOWS, replay).fetch_all(db).await? {
        at(found, row.try_get(0)?, row.try_get(1)?).rows = row.try_get(2)?;
    }
    Ok(())
}

/// A day's shards come together; what sketches say is compared here, too.
async fn days(db: &mut PgConnection, replay: &Replay, found: &mut Found) -> Result<(), ReplayError> {
    let mut rows = bound(DAYS, replay).fetch(db);
    let mut day: Option<((String, NaiveDate), Day)> = None;
    while let Some(row) = rows.try_next().await? {
        let key: (String, NaiveDate) = (row.try_get(0)?, row.try_get(1)?);
        if day.as_ref().is_some_and(|(known, _)| *known != key)
            && let Some((key, day)) = day.take()
        {
            day.note(key, found);
        }
        let (_, day) = day.get_or_insert_with(|| (key, Day::default()));
        day.aggregation = Aggregation::parse(row.try_get(3)?).unwrap_or_default();
        let side = if row.try_get(2)? { &mut day.rebuilt } else { &mut day.live };
        side.get_or_insert_default().merge(totals(&row)?);
    }
    if let Some((key, day)) = day {
        day.note(key, found);
    }
    Ok(())
}

/// Both generations' totals of a metric on a day.
#[derive(Default)]
struct Day {
    aggregation: Aggregation,
    live: Option<Totals>,
    rebuilt: Option<Totals>,
}

impl Day {
    fn note(self, (what, day): (String, NaiveDate), found: &mut Found) {
        let value = |totals: &Option<Totals>| Some(totals.as_ref()?.value(self.aggregation)?.to_string());
        let unique = |totals: &Option<Totals>| totals.as_ref().map_or(0, Totals::unique);
        let (live, rebuilt) = (value(&self.live), value(&self.rebuilt));
        let known = found.contains_key(&(what.clone(), day));
        let nothing = |value: &Option<String>| value.as_deref().is_none_or(|value| value == "0");
        let same = live == rebuilt || (nothing(&live) && nothing(&rebuilt));
        if known || !same || unique(&self.live) != unique(&self.rebuilt) {
            let difference = at(found, what, day);
            (difference.live, difference.rebuilt) = (live, rebuilt);
            difference.rows = difference.rows.max(1);
        }
    }
}

fn totals(row: &sqlx::postgres::PgRow) -> Result<Totals, sqlx::Error> {
    let number = |at: usize| row.try_get::<Option<&str>, _>(at).map(|text| text.and_then(Decimal::parse));
    let sketch = |at: usize| row.try_get::<Option<&[u8]>, _>(at);
    Ok(Totals {
        count: row.try_get(4)?,
        sum: number(5)?,
        min: number(6)?,
        max: number(7)?,
        users: sketch(8)?.map(UserSketch::from_bytes).transpose().map_err(|error| sqlx::Error::Decode(error.into()))?,
        quantiles: sketch(9)?.map(Histogram::from_bytes).transpose().map_err(|e| sqlx::Error::Decode(e.into()))?,
    })
}

async fn rows(
    db: &mut PgConnection,
    replay: &Replay,
    name: &str,
    sql: &'static str,
    found: &mut Found,
) -> Result<(), ReplayError> {
    for row in bound(sql, replay).fetch_all(db).await? {
        let (live, rebuilt, differ): (i64, i64, i64) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        if differ > 0 {
            let difference = at(found, name.to_owned(), row.try_get(0)?);
            difference.live = Some(live.to_string());
            difference.rebuilt = Some(rebuilt.to_string());
            difference.rows = differ;
        }
    }
    Ok(())
}

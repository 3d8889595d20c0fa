//! What Postgres holds of a project.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgPool, Row};
use tidemill_common::kafka::topic_incarnations;
use tidemill_common::names::events_topic;
use tidemill_stream::sketch::UserSketch;
use tidemill_testkit::Stack;

use crate::oracle::{Session, WindowKey};

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Counted {
    /// By session id and time of the first event, in microseconds.
    pub sessions: BTreeMap<(String, i64), Session>,
    /// Each user's first and last event, in microseconds.
    pub users: BTreeMap<String, i64>,
    /// Events by window.
    pub events: BTreeMap<WindowKey, i64>,
    /// Different users by window, by sketch.
    pub uniques: BTreeMap<WindowKey, u64>,
    /// Sessions by window.
    pub session_windows: BTreeMap<WindowKey, i64>,
    /// Partition, offset and reason.
    pub dead: BTreeMap<(i32, i64), String>,
}

/// By partition: the next offset, and that up to where Redis is known to show everything.
pub type Ledger = BTreeMap<i32, (i64, i64)>;

/// The stream's ledger of the topic as it is now.
pub async fn ledger(stack: &Stack) -> anyhow::Result<Ledger> {
    let (kafka, topic) = (stack.connections.kafka.clone(), events_topic(&stack.project));
    let asked = topic.clone();
    let ask = move || topic_incarnations(&kafka, &[&asked], Duration::from_secs(10));
    let incarnation = tokio::task::spawn_blocking(ask).await??.remove(&topic).unwrap_or_default();
    let rows = sqlx::query(
        "SELECT partition, next_offset, projected_offset FROM ledger
         WHERE view = 'stream' AND topic = $1 AND topic_incarnation = $2",
    )
    .bind(&topic)
    .bind(incarnation)
    .fetch_all(&stack.pool)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?)))).collect()
}

/// Everything counted of the stack's project.
pub async fn counted(stack: &Stack) -> anyhow::Result<Counted> {
    let (pool, project) = (&stack.pool, &*stack.project);
    let mut counted =
        Counted { sessions: sessions(pool, project).await?, dead: dead(pool, project).await?, ..Counted::default() };
    let users = sqlx::query("SELECT user_id, first_event_at FROM users WHERE project = $1");
    for row in users.bind(project).fetch_all(pool).await? {
        counted.users.insert(row.try_get(0)?, micros(row.try_get(1)?));
    }
    windows(pool, project, &mut counted).await?;
    Ok(counted)
}

async fn sessions(pool: &PgPool, project: &str) -> Result<BTreeMap<(String, i64), Session>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT session_id, first_event_at, last_event_at, total_events, page_views, conversions, user_id,
                current_page, is_new
         FROM sessions WHERE project = $1",
    )
    .bind(project)
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let session = Session {
                last: micros(row.try_get(2)?),
                events: row.try_get(3)?,
                page_views: row.try_get(4)?,
                conversions: row.try_get(5)?,
                user: row.try_get(6)?,
                page: row.try_get(7)?,
                is_new: row.try_get(8)?,
            };
            Ok(((row.try_get(0)?, micros(row.try_get(1)?)), session))
        })
        .collect()
}

async fn dead(pool: &PgPool, project: &str) -> Result<BTreeMap<(i32, i64), String>, sqlx::Error> {
    let letters = sqlx::query(r#"SELECT partition, "offset", reason FROM dead_letters WHERE project = $1"#);
    let rows = letters.bind(project).fetch_all(pool).await?;
    rows.iter().map(|row| Ok(((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?))).collect()
}

async fn windows(pool: &PgPool, project: &str, counted: &mut Counted) -> anyhow::Result<()> {
    let rows = sqlx::query(
        "SELECT metric_name, dimension_value, granularity, extract(epoch FROM window_start)::bigint,
                sum(count)::bigint, array_agg(users)
         FROM metric_rollups
         WHERE project = $1 AND (metric_name = 'events' AND dimension_key IN ('', 'event_type')
                                 OR metric_name = 'sessions' AND dimension_key = '')
         GROUP BY 1, 2, 3, 4",
    )
    .bind(project)
    .fetch_all(pool)
    .await?;
    for row in rows {
        let key: WindowKey = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        let count: i64 = row.try_get(4)?;
        if row.try_get::<String, _>(0)? == "sessions" {
            counted.session_windows.insert(key, count);
            continue;
        }
        let mut users = UserSketch::default();
        for bytes in row.try_get::<Vec<Option<Vec<u8>>>, _>(5)?.into_iter().flatten() {
            users.merge(&UserSketch::from_bytes(&bytes)?);
        }
        counted.uniques.insert(key.clone(), users.count());
        counted.events.insert(key, count);
    }
    // Sessions that have merged away leave a zero behind.
    counted.session_windows.retain(|_, count| *count != 0);
    Ok(())
}

fn micros(time: DateTime<Utc>) -> i64 {
    time.timestamp_micros()
}

//! What Postgres holds of a project.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};
use tidemill_common::kafka::History;
use tidemill_common::names::partition_number;
use tidemill_common::projects;
use tidemill_stream::decimal::Decimal;
use tidemill_stream::fold::carts::{Lines, needed};
use tidemill_stream::histogram::Histogram;
use tidemill_stream::metric::{Aggregation, Totals};
use tidemill_stream::sketch::UserSketch;
use tidemill_testkit::Stack;

use crate::oracle::{Change, EVENTS, Reading, Session, SessionKey, WindowKey, cents};

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Counted {
    /// All sessions.
    pub sessions: BTreeMap<SessionKey, Session>,
    /// What carts need, by session key, time in microseconds and eventId.
    pub cart_events: BTreeMap<(String, i64, String), Change>,
    /// Each user's first event, in microseconds.
    pub users: BTreeMap<String, i64>,
    /// All windows of all metrics.
    pub windows: BTreeMap<WindowKey, Reading>,
    /// Partition, offset and reason.
    pub dead: BTreeMap<(i32, i64), String>,
}

/// By the partition's number: the next offset, and that up to where Redis is known to show everything.
pub type Ledger = BTreeMap<i32, (i64, i64)>;

/// The stream's ledger of the topics as they are now.
pub async fn ledger(stack: &Stack) -> anyhow::Result<Ledger> {
    let project = projects::load(&stack.pool, &stack.project).await?.context("the project is gone")?;
    let (history, topics) = (History::new(stack.connections.kafka.clone()), project.topics());
    let ask = move || history.incarnations(&topics, Duration::from_secs(10));
    let (topics, ids): (Vec<String>, Vec<String>) = tokio::task::spawn_blocking(ask).await??.into_iter().unzip();
    let rows = sqlx::query(
        "SELECT l.topic, l.partition, l.next_offset, l.projected_offset
         FROM ledger l JOIN unnest($1::text[], $2::text[]) AS w(topic, id) ON l.topic = w.topic AND l.topic_incarnation = w.id
         WHERE l.view = 'stream'",
    )
    .bind(topics)
    .bind(ids)
    .fetch_all(&stack.pool)
    .await?;
    let number = |row: &PgRow| Ok::<_, sqlx::Error>(partition_number(row.try_get(0)?, row.try_get(1)?));
    rows.iter().map(|row| Ok((number(row)?, (row.try_get(2)?, row.try_get(3)?)))).collect()
}

/// Everything counted of the stack's project.
pub async fn counted(stack: &Stack) -> anyhow::Result<Counted> {
    let (pool, project) = (&stack.pool, &*stack.project);
    Ok(Counted {
        sessions: sessions(pool, project).await?,
        cart_events: cart_events(pool, project).await?,
        users: users(pool, project).await?,
        windows: windows(pool, project).await?,
        dead: dead(pool, project).await?,
    })
}

async fn sessions(pool: &PgPool, project: &str) -> anyhow::Result<BTreeMap<SessionKey, Session>> {
    let rows = sqlx::query(
        "SELECT session_id, first_event_at, last_event_at, total_events, page_views, conversions, revenue::text,
                user_id, is_new, entry_page, current_page, traffic_source, device_type, country
         FROM sessions WHERE project = $1",
    )
    .bind(project)
    .fetch_all(pool)
    .await?;
    let session = |row: &PgRow| {
        let session = Session {
            last: micros(row.try_get(2)?),
            events: row.try_get(3)?,
            page_views: row.try_get(4)?,
            conversions: row.try_get(5)?,
            revenue: in_cents(row, 6)?,
            user: row.try_get(7)?,
            is_new: row.try_get(8)?,
            entry: row.try_get(9)?,
            page: row.try_get(10)?,
            source: row.try_get(11)?,
            device: row.try_get(12)?,
            country: row.try_get(13)?,
        };
        Ok(((row.try_get(0)?, micros(row.try_get(1)?)), session))
    };
    rows.iter().map(session).collect()
}

async fn cart_events(pool: &PgPool, project: &str) -> anyhow::Result<BTreeMap<(String, i64, String), Change>> {
    let carts = sqlx::query_as("SELECT session_id, cart FROM session_keys WHERE project = $1 AND cart IS NOT NULL");
    let rows: Vec<(String, String)> = carts.bind(project).fetch_all(pool).await?;
    let mut events = BTreeMap::new();
    for (key, cart) in &rows {
        for event in needed(Lines::read(cart)?) {
            let price = event.price.map(|price| whole_cents(&price.to_string())).transpose()?;
            let change = Change { item: event.item.map(Cow::into_owned), quantity: event.quantity, price };
            events.insert((key.clone(), event.at, event.event_id.into_owned()), change);
        }
    }
    Ok(events)
}

async fn users(pool: &PgPool, project: &str) -> anyhow::Result<BTreeMap<String, i64>> {
    let users = sqlx::query("SELECT user_id, first_event_at FROM users WHERE project = $1");
    let rows = users.bind(project).fetch_all(pool).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, micros(row.try_get(1)?)))).collect()
}

async fn dead(pool: &PgPool, project: &str) -> anyhow::Result<BTreeMap<(i32, i64), String>> {
    let letters = sqlx::query(r#"SELECT partition, "offset", reason FROM dead_letters WHERE project = $1"#);
    let rows = letters.bind(project).fetch_all(pool).await?;
    rows.iter().map(|row| Ok(((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?))).collect()
}

/// The window that the first five columns of a row name.
pub fn window_key(row: &PgRow) -> Result<WindowKey, sqlx::Error> {
    Ok(WindowKey {
        metric: row.try_get(0)?,
        dimension: row.try_get(1)?,
        value: row.try_get(2)?,
        granularity: row.try_get(3)?,
        start: row.try_get(4)?,
    })
}

async fn windows(pool: &PgPool, project: &str) -> anyhow::Result<BTreeMap<WindowKey, Reading>> {
    let rows = sqlx::query(
        "SELECT metric_name, dimension_key, dimension_value, granularity, extract(epoch FROM window_start)::bigint,
                count, sum::text, min::text, max::text, users, quantiles, aggregation
         FROM metric_rollups WHERE project = $1",
    )
    .bind(project)
    .fetch_all(pool)
    .await?;
    let mut windows = BTreeMap::<WindowKey, (Aggregation, Totals)>::new();
    for row in &rows {
        let key = window_key(row)?;
        let name: String = row.try_get(11)?;
        let aggregation = match &*key.metric {
            EVENTS => Aggregation::Unique,
            _ => Aggregation::parse(&name).with_context(|| format!("{key:?} computes {name:?}"))?,
        };
        windows.entry(key).or_insert((aggregation, Totals::default())).1.merge(shard(row)?);
    }
    // Sessions that have merged away leave a zero behind.
    windows.retain(|_, (_, totals)| totals.count != 0 || totals.sum.unwrap_or_default() != Decimal::ZERO);
    let reading = |(aggregation, totals): (Aggregation, Totals)| {
        let value = totals.value(aggregation).map(Decimal::to_f64);
        Reading { count: totals.count, value }
    };
    Ok(windows.into_iter().map(|(key, window)| (key, reading(window))).collect())
}

fn shard(row: &PgRow) -> anyhow::Result<Totals> {
    let number = |i: usize| row.try_get::<Option<&str>, _>(i).map(|text| text.and_then(Decimal::parse));
    Ok(Totals {
        count: row.try_get(5)?,
        sum: number(6)?,
        min: number(7)?,
        max: number(8)?,
        users: row.try_get::<Option<&[u8]>, _>(9)?.map(UserSketch::from_bytes).transpose()?,
        quantiles: row.try_get::<Option<&[u8]>, _>(10)?.map(Histogram::from_bytes).transpose()?,
    })
}

/// An amount that has to be one of whole cents.
fn in_cents(row: &PgRow, i: usize) -> anyhow::Result<Option<i64>> {
    let amount: Option<String> = row.try_get(i)?;
    amount.map(|text| whole_cents(&text)).transpose()
}

fn whole_cents(text: &str) -> anyhow::Result<i64> {
    cents(text).with_context(|| format!("{text} is no amount of cents"))
}

fn micros(time: DateTime<Utc>) -> i64 {
    time.timestamp_micros()
}

//! Workers on the real components, and what their views must say.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod spread;

use std::collections::{BTreeMap, BTreeSet};

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use sqlx::Row;
use tidemill_common::config::Connections;
use tidemill_common::event::Event;
use tidemill_common::names::events_topic;
use tidemill_stream::metric::{OF_SESSIONS, is_reserved};
use tidemill_stream::window::Granularity;
use tidemill_stream::{Config, keys};
use tidemill_testkit::{Stack, event, eventually};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub struct Running {
    pub url: String,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// As abrupt as it gets within a process: whatever was awaited is never resumed.
    pub fn kill(self) {
        self.task.abort();
    }

    /// What it says of itself.
    pub async fn health(&self) -> (u16, String) {
        let answer = reqwest::get(format!("{}/health", self.url)).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }
}

/// A worker of a group of its own, on this test's topic.
pub async fn worker(stack: &Stack, group: &str, change: impl FnOnce(&mut Config, &mut Connections)) -> Running {
    let mut connections = stack.connections.clone();
    let mut config = Config {
        group: format!("{}-{group}", stack.project),
        topics: stack.pattern(),
        session_timeout_ms: 6_000,
        batch_size: 200,
        batch_wait_ms: 20,
        unknown_schema_wait_ms: 1_500,
        hot_key_interval_ms: 200,
        seen_dir: stack.folder("seen-stream"),
        ..Config::default()
    };
    change(&mut config, &mut connections);
    let shutdown = CancellationToken::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(tidemill_stream::run(config, connections, listener.into(), shutdown.clone()));
    Running { url, shutdown, task }
}

/// Events of `users` users in as many sessions, within the last five minutes: live and hot.
pub fn live_traffic(range: std::ops::Range<usize>, users: usize) -> Vec<Event> {
    let now = chrono::Utc::now().timestamp();
    range
        .map(|i| {
            let user = i % users;
            let mut event =
                event(&format!("e-{i}"), ["view", "click", "purchase"][i % 3], now - 300 + (i * 7 % 300) as i64);
            event.user_id = Some(format!("u-{user}"));
            event.session_id = Some(format!("s-{user}"));
            event.properties = Some(format!("{{\"page\":\"p{}\"}}", i % 5));
            event
        })
        .collect()
}

/// Declares a metric for this project alone.
pub async fn declare(stack: &Stack, definition: serde_json::Value) {
    sqlx::query("INSERT INTO metric_definitions (project, name, definition) VALUES ($1, $2->>'name', $2)")
        .bind(&stack.project)
        .bind(definition)
        .execute(&stack.pool)
        .await
        .unwrap();
}

/// The events that count.
pub async fn counted(stack: &Stack) -> i64 {
    sqlx::query_scalar(
        "SELECT coalesce(sum(count), 0)::bigint FROM metric_rollups
         WHERE project = $1 AND metric_name = 'events' AND dimension_key = '' AND granularity = '1d'",
    )
    .bind(&stack.project)
    .fetch_one(&stack.pool)
    .await
    .unwrap()
}

/// Waits until the ledger has passed everything that the topic holds at that time.
pub async fn drained(stack: &Stack) {
    eventually("the ledger reaches the log's end", || async {
        let topic = events_topic(&stack.project);
        let ends = stack.ends(&topic).await;
        let sql = "SELECT coalesce(sum(next_offset), 0)::bigint FROM ledger WHERE view = 'stream' AND topic = $1";
        let position: i64 = sqlx::query_scalar(sql).bind(&topic).fetch_one(&stack.pool).await.unwrap();
        position == ends.values().sum::<i64>()
    })
    .await;
}

/// The epoch that Postgres is in.
pub async fn epoch(stack: &Stack) -> i64 {
    sqlx::query_scalar("SELECT epoch FROM timeline").fetch_one(&stack.pool).await.unwrap()
}

/// What Postgres says of live sessions: events by session id.
async fn sessions(stack: &Stack) -> BTreeMap<String, i64> {
    let sql = "SELECT DISTINCT ON (session_id) session_id, total_events FROM sessions ORDER BY 1, first_event_at DESC";
    let rows = sqlx::query(sql).fetch_all(&stack.pool).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// What Postgres says of a granularity's windows that have a copy: counts by event type, or metric of sessions, and start.
async fn windows(stack: &Stack, granularity: Granularity) -> BTreeMap<(String, i64), i64> {
    let rows = sqlx::query(
        "SELECT CASE dimension_key WHEN '' THEN metric_name ELSE dimension_value END,
                extract(epoch FROM window_start)::bigint, sum(count)::bigint, dimension_key
         FROM metric_rollups
         WHERE (metric_name = 'events' AND dimension_key = 'event_type' OR metric_name = ANY ($2) AND dimension_key = '')
           AND granularity = $1 GROUP BY 1, 2, 4",
    )
    .bind(granularity.as_str())
    .bind(OF_SESSIONS.as_slice())
    .fetch_all(&stack.pool)
    .await
    .unwrap();
    let rows = rows.iter().filter(|row| row.get::<&str, _>(3).is_empty() || !is_reserved(row.get(0)));
    rows.map(|row| ((row.get(0), row.get(1)), row.get(2))).collect()
}

/// How Redis differs from Postgres, all of whose sessions are live and whose windows are hot.
pub async fn differences(stack: &Stack, mut redis: MultiplexedConnection) -> Vec<String> {
    let mut found = Vec::new();
    for (id, events) in sessions(stack).await {
        let key = keys::session(&stack.project, &id);
        let shown: Option<i64> = redis.hget(&key, "totalEvents").await.unwrap();
        if shown != Some(events) {
            found.push(format!("{key}: {shown:?}, not {events}"));
        }
    }
    for granularity in Granularity::ALL {
        for ((event_type, start), count) in windows(stack, granularity).await {
            let key = keys::metric(&stack.project, &event_type, granularity, start);
            let shown: Option<String> = redis.get(&key).await.unwrap();
            let shown = shown.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok()?["count"].as_i64());
            if shown != Some(count) {
                found.push(format!("{key}: {shown:?}, not {count}"));
            }
        }
    }
    let seen: BTreeSet<String> = redis.smembers(keys::seen_users(&stack.project)).await.unwrap();
    let users: Vec<String> = sqlx::query_scalar("SELECT user_id FROM users").fetch_all(&stack.pool).await.unwrap();
    found.extend(users.into_iter().filter(|user| !seen.contains(user)).map(|user| format!("{user} is not seen")));
    found
}

/// Copies every table that changes, as a backup does.
pub async fn back_up(stack: &Stack) {
    for table in tables(stack).await {
        let sql = format!("DROP TABLE IF EXISTS backup_{table}; CREATE TABLE backup_{table} AS TABLE {table}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&stack.pool).await.unwrap();
    }
}

/// Puts every table back to how it was then.
pub async fn restore(stack: &Stack) {
    let each = |sql: fn(&str) -> String, tables: &[String]| tables.iter().map(|t| sql(t)).collect::<String>();
    let tables = tables(stack).await;
    // The locks wait for what is being committed, so that nothing is torn.
    let locks = each(|t| format!("LOCK TABLE {t} IN ACCESS EXCLUSIVE MODE;"), &tables);
    let rows = each(
        |t| format!("DELETE FROM {t}; INSERT INTO {t} OVERRIDING SYSTEM VALUE SELECT * FROM backup_{t};"),
        &tables,
    );
    let sql = format!("BEGIN; {locks} {rows} COMMIT;");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&stack.pool).await.unwrap();
}

/// The ledger comes first, as in every transaction.
async fn tables(stack: &Stack) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT relname::text FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
           AND relname NOT IN ('projects', 'api_keys', 'audit', '_sqlx_migrations') AND relname NOT LIKE 'backup%'
         ORDER BY relname <> 'ledger', relname",
    )
    .fetch_all(&stack.pool)
    .await
    .unwrap()
}

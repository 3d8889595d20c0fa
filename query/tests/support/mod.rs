//! A query service on the real components, with a project of its own.
#![allow(dead_code, clippy::unwrap_used)] // every test file uses a part of it

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tidemill_common::auth;
use tidemill_common::codec::{Encoder, processed};
use tidemill_common::event::Event;
use tidemill_common::kafka::Outgoing;
use tidemill_common::names::processed_topic;
use tidemill_common::origin::Origin;
use tidemill_query::Config;
use tidemill_stream::sketch::UserSketch;
use tidemill_testkit::Stack;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub struct Api {
    pub stack: Stack,
    /// A read key of the stack's project.
    pub key: String,
    pub client: reqwest::Client,
    pub base: String,
    _stop: DropGuard,
}

/// An archiver at work; it ends when this is dropped.
pub struct Archiver {
    running: JoinHandle<anyhow::Result<()>>,
    stop: DropGuard,
}

impl Archiver {
    /// Ends it, and what it has in hand goes in.
    pub async fn end(self) {
        drop(self.stop);
        self.running.await.unwrap().unwrap();
    }
}

impl Api {
    /// Starts an archiver of the stack's project.
    pub async fn archiver(&self, change: impl FnOnce(&mut tidemill_archiver::Config)) -> Archiver {
        let mut config = tidemill_archiver::Config {
            group: format!("test.{}", self.stack.project),
            topics: self.stack.pattern(),
            commit_interval_ms: 100,
            seen_dir: self.stack.folder("seen"),
            ..Default::default()
        };
        change(&mut config);
        let (stop, connections) = (CancellationToken::new(), self.stack.connections.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let running = tokio::spawn(tidemill_archiver::run(config, connections, listener.into(), stop.clone()));
        Archiver { running, stop: stop.drop_guard() }
    }

    pub async fn start() -> Self {
        Self::start_with(Config::default(), |_| ()).await
    }

    pub async fn start_with(config: Config, change: impl FnOnce(&mut Stack)) -> Self {
        tidemill_common::telemetry::start_logging("warn");
        let mut stack = Stack::new().await;
        change(&mut stack);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let connections = stack.connections.clone();
        let shutdown = stop.clone();
        tokio::spawn(async move { tidemill_query::run(config, connections, listener.into(), shutdown).await.unwrap() });
        let key = new_key(&stack, &stack.project, "read").await;
        Self { stack, key, client: reqwest::Client::new(), base, _stop: stop.drop_guard() }
    }

    /// The answer to a GET with the read key.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.get_as(&self.key, path).await
    }

    pub async fn get_as(&self, key: &str, path: &str) -> (u16, Value) {
        let request = self.client.get(format!("{}{path}", self.base)).bearer_auth(key);
        answer(request.send().await.unwrap()).await
    }

    /// The answer to a request with this key and body.
    pub async fn send(&self, key: &str, method: reqwest::Method, path: &str, body: &Value) -> (u16, Value) {
        let request = self.client.request(method, format!("{}{path}", self.base)).bearer_auth(key).json(body);
        answer(request.send().await.unwrap()).await
    }

    /// The answer to a query, by POST.
    pub async fn sql(&self, sql: &str) -> (u16, Value) {
        self.sql_as(&self.key, sql).await
    }

    pub async fn sql_as(&self, key: &str, sql: &str) -> (u16, Value) {
        let request = self.client.post(format!("{}/v1/query", self.base)).bearer_auth(key);
        answer(request.json(&json!({ "sql": sql })).send().await.unwrap()).await
    }

    /// The rows of a query that must work.
    #[track_caller]
    pub fn rows(&self, sql: &str) -> impl Future<Output = Value> {
        let (answer, sql) = (self.sql(sql), sql.to_owned());
        async move {
            let (status, answer) = answer.await;
            assert_eq!(status, 200, "{sql}: {answer}");
            answer["rows"].clone()
        }
    }

    pub async fn redis(&self, command: &[&str]) {
        let client = redis::Client::open(self.stack.connections.redis_url.as_str()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut redis_command = redis::cmd(command[0]);
        redis_command.arg(&command[1..]);
        redis_command.query_async::<()>(&mut connection).await.unwrap();
    }
}

/// Every error is problem+json.
async fn answer(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    if status == 204 {
        return (status, Value::Null);
    }
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    let expected = if status < 300 { "application/json" } else { "application/problem+json" };
    let body = response.text().await.unwrap();
    assert_eq!(kind, expected, "{status} {body}");
    (status, serde_json::from_str(&body).unwrap())
}

/// A new key of a project with one scope.
pub async fn new_key(stack: &Stack, project: &str, scope: &str) -> String {
    let new = auth::generate();
    sqlx::query("INSERT INTO api_keys (hash, prefix, project, scopes) VALUES ($1, $2, $3, ARRAY[$4])")
        .bind(new.hash)
        .bind(new.prefix)
        .bind(project)
        .bind(scope)
        .execute(&stack.pool)
        .await
        .unwrap();
    new.key
}

/// Sends events as the gateway does, and their copies as the stream does.
pub async fn send_processed(stack: &Stack, events: &[Event]) {
    let topic = processed_topic(&stack.project);
    for event in events {
        let (partition, offset) = stack.send(event).await;
        let (datum, mut value) = (&stack.encoder.encode(event)[Encoder::EVENT_ID..], Vec::new());
        let at = Origin { partition, offset, append_ms: 1_767_225_600_000 };
        processed::write(&stack.encoder, datum, [None; 3], at, &mut value);
        let key = Some(event.event_id.as_bytes());
        stack.producer.send(&Outgoing { topic: &topic, partition, key, value: &value, headers: &[] }).await.unwrap();
    }
}

/// A row of the rollups.
pub struct Rollup<'a> {
    pub generation: i32,
    pub project: &'a str,
    pub metric: &'a str,
    pub event_type: Option<&'a str>,
    pub granularity: &'a str,
    pub start: i64,
    pub shard: i16,
    pub count: i64,
    pub users: &'a [&'a str],
}

impl Rollup<'_> {
    pub async fn insert(&self, stack: &Stack) {
        let mut users = UserSketch::default();
        self.users.iter().for_each(|user| users.add(user));
        sqlx::query(
            "INSERT INTO metric_rollups (generation, project, metric_name, dimension_key, dimension_value, granularity,
                                         window_start, shard, version, count, users)
             VALUES ($1, $2, $3, $4, $5, $6, to_timestamp($7), $8, 1, $9, $10)",
        )
        .bind(self.generation)
        .bind(self.project)
        .bind(self.metric)
        .bind(if self.event_type.is_some() { "event_type" } else { "" })
        .bind(self.event_type.unwrap_or_default())
        .bind(self.granularity)
        .bind(self.start)
        .bind(self.shard)
        .bind(self.count)
        .bind(users.to_bytes())
        .execute(&stack.pool)
        .await
        .unwrap();
    }
}

/// A row of the sessions.
pub async fn insert_session(
    stack: &Stack,
    project: &str,
    id: &str,
    user: Option<&str>,
    first: DateTime<Utc>,
    minutes: i64,
) {
    sqlx::query(
        "INSERT INTO sessions (generation, project, session_id, first_event_at, last_event_at, total_events,
                               page_views, conversions, user_id, current_page, last_slot)
         VALUES (0, $1, $2, $3, $3 + make_interval(mins => $4), 5, 3, 1, $5, '/cart',
                 floor(extract(epoch FROM $3 + make_interval(mins => $4)) / 1800))",
    )
    .bind(project)
    .bind(id)
    .bind(first)
    .bind(minutes as i32)
    .bind(user)
    .execute(&stack.pool)
    .await
    .unwrap();
}

/// A row of the users, who were new in the session that this moment lies in.
pub async fn insert_user(stack: &Stack, project: &str, user: &str, first: DateTime<Utc>) {
    for sql in [
        "INSERT INTO users (generation, project, user_id, first_event_at) VALUES (0, $1, $2, $3)",
        "UPDATE sessions SET is_new = true, user_at = $3
         WHERE project = $1 AND user_id = $2 AND $3 BETWEEN first_event_at AND last_event_at",
    ] {
        sqlx::query(sql).bind(project).bind(user).bind(first).execute(&stack.pool).await.unwrap();
    }
}

/// A time from its text.
pub fn time(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

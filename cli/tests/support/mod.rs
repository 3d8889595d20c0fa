//! The services as processes of their own, which can be killed, and a journal of what was sent.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)] // not every test uses all of it

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tidemill_archiver::positions;
use tidemill_archiver::table::Tables;
use tidemill_common::codec::Decoder;
use tidemill_common::names::events_topic;
use tidemill_common::registry::Registry;
use tidemill_stream::keys;
use tidemill_stream::window::Granularity;
use tidemill_testkit::{Stack, eventually, eventually_within, free_port};

pub const SERVICES: [&str; 4] = ["ingest", "stream", "archiver", "query"];

/// All services on a stack of one's own, and the keys to them.
pub struct Fleet {
    pub stack: Stack,
    pub write_key: String,
    pub read_key: String,
    env: Vec<(String, String)>,
    ports: BTreeMap<&'static str, u16>,
    running: BTreeMap<&'static str, Child>,
}

impl Fleet {
    /// Starts all services and waits until they are ready.
    pub async fn start(stack: Stack) -> Self {
        Self::start_with(stack, &[]).await
    }

    /// The same with more settings.
    pub async fn start_with(stack: Stack, settings: &[(&str, &str)]) -> Self {
        let c = &stack.connections;
        let project = &stack.project;
        let mut env: Vec<(String, String)> = [
            ("KAFKA_BROKERS", c.kafka.brokers.clone()),
            ("DATABASE_URL", c.database_url.clone()),
            ("REDIS_URL", c.redis_url.clone()),
            ("SCHEMA_REGISTRY_URL", c.registry_url.clone()),
            ("WAREHOUSE_URL", c.warehouse_url.clone()),
            ("LOG_LEVEL", "warn,tidemill=info".to_owned()),
            ("TIDEMILL_ARCHIVER__COMMIT_INTERVAL_MS", "1000".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        for view in ["STREAM", "ARCHIVER"] {
            env.push((format!("TIDEMILL_{view}__GROUP"), format!("{project}-{view}")));
            env.push((format!("TIDEMILL_{view}__TOPICS"), stack.pattern()));
            env.push((format!("TIDEMILL_{view}__SESSION_TIMEOUT_MS"), "6000".to_owned()));
            let folder = |name: &str| stack.folder(name).display().to_string();
            env.push((format!("TIDEMILL_{view}__SEEN_DIR"), folder(&format!("seen-{view}"))));
            env.push((
                format!("TIDEMILL_{view}__CHECKPOINT_URL"),
                format!("file://{}", folder(&format!("checkpoints-{view}"))),
            ));
        }
        env.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let ports = SERVICES.into_iter().map(|name| (name, free_port())).collect();
        let (write_key, read_key) = (String::new(), String::new());
        let mut fleet = Self { stack, write_key, read_key, env, ports, running: BTreeMap::new() };
        fleet.write_key = fleet.create_key("write");
        fleet.read_key = fleet.create_key("read");
        for name in SERVICES {
            fleet.spawn(name);
        }
        for name in SERVICES {
            fleet.ready(name).await;
        }
        fleet
    }

    /// The binary, with the settings of the services.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
        command.args(args).envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    fn create_key(&self, scope: &str) -> String {
        let made = self
            .command(&["--output", "json", "keys", "create", &self.stack.project, "--scope", scope, "--yes"])
            .output();
        let made = made.expect("tidemill keys create");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let made: Value = serde_json::from_slice(&made.stdout).expect("JSON");
        made["key"].as_str().expect("key").to_owned()
    }

    fn spawn(&mut self, name: &'static str) {
        let logs = std::env::temp_dir().join(format!("{}-{name}.log", self.stack.project));
        let log = std::fs::File::options().create(true).append(true).open(&logs).expect("log");
        let child = self
            .command(&[name])
            .env(format!("TIDEMILL_{}__PORT", name.to_uppercase()), self.ports[name].to_string())
            .env("TIDEMILL_LISTEN__HOST", "127.0.0.1")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("tidemill");
        self.running.insert(name, child);
    }

    /// kill -9, then a new process.
    pub fn kill_and_restart(&mut self, name: &'static str) {
        let mut child = self.running.remove(name).expect("running");
        child.kill().expect("kill");
        child.wait().expect("wait");
        self.spawn(name);
    }

    pub async fn ready(&self, name: &str) {
        let url = format!("{}/readyz", self.url(name));
        eventually_within(
            Duration::from_secs(60),
            &format!("{name} is ready; its log is in {}", self.log(name)),
            || async { reqwest::get(&url).await.is_ok_and(|answer| answer.status().is_success()) },
        )
        .await;
    }

    pub fn url(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}", self.ports[name])
    }

    fn log(&self, name: &str) -> String {
        std::env::temp_dir().join(format!("{}-{name}.log", self.stack.project)).display().to_string()
    }

    /// How many warnings and errors each service has logged.
    pub fn warnings(&self) -> BTreeMap<&'static str, usize> {
        let of = |name| {
            let log = std::fs::read_to_string(self.log(name)).unwrap_or_default();
            log.lines().filter(|line| line.contains("\"WARN\"") || line.contains("\"ERROR\"")).count()
        };
        SERVICES.into_iter().map(|name| (name, of(name))).collect()
    }

    /// Whether no service has ended.
    pub fn all_alive(&mut self) -> bool {
        self.running.values_mut().all(|child| matches!(child.try_wait(), Ok(None)))
    }

    pub fn journal_path(&self) -> PathBuf {
        std::env::temp_dir().join(format!("{}.journal", self.stack.project))
    }

    /// Load with a journal; more arguments are the caller's.
    pub fn loadgen(&self, args: &[&str]) -> Child {
        let journal = self.journal_path();
        self.command(&["loadgen", "--url", &self.url("ingest"), "--key", &self.write_key])
            .arg("--journal")
            .arg(journal)
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("loadgen")
    }

    /// A SQL query's rows, once the service answers.
    pub async fn sql(&self, sql: &str) -> Vec<Value> {
        let client = reqwest::Client::new();
        let ask = client.post(format!("{}/v1/query", self.url("query"))).bearer_auth(&self.read_key);
        let answer = ask.json(&serde_json::json!({ "sql": sql })).send().await.expect("query service");
        let status = answer.status();
        let body: Value = answer.json().await.expect("JSON");
        assert!(status.is_success(), "{status}: {body}");
        body["rows"].as_array().expect("rows").clone()
    }

    /// Events counted in Postgres; 0 while it cannot be asked.
    pub async fn counted(&self) -> i64 {
        sqlx::query_scalar(
            "SELECT coalesce(sum(count), 0)::bigint FROM metric_rollups
             WHERE metric_name = 'events' AND dimension_key = '' AND granularity = '1d'",
        )
        .fetch_one(&self.stack.pool)
        .await
        .unwrap_or(0)
    }

    /// Records in the events topic, copies too.
    pub async fn accepted_in_log(&self) -> usize {
        self.stack.records(&events_topic(&self.stack.project)).await.len()
    }

    /// Whether Redis shows every live session and every event type's hot windows as Postgres has them.
    pub async fn redis_matches(&self) -> bool {
        let client = redis::Client::open(self.stack.connections.redis_url.clone()).unwrap();
        let Ok(mut redis) = client.get_multiplexed_async_connection().await else { return false };
        let project = &self.stack.project;
        let live: Vec<(String, i64)> = sqlx::query_as(
            "SELECT DISTINCT ON (session_id) session_id, total_events FROM sessions
             WHERE last_event_at > now() - interval '29 minutes' ORDER BY session_id, first_event_at DESC",
        )
        .fetch_all(&self.stack.pool)
        .await
        .unwrap();
        assert!(!live.is_empty(), "the load has live sessions");
        for (session_id, total_events) in live {
            let key = keys::session(project, &session_id);
            let shown: Option<i64> =
                redis::cmd("HGET").arg(key).arg("totalEvents").query_async(&mut redis).await.unwrap();
            if shown != Some(total_events) {
                return false;
            }
        }
        let windows: Vec<(String, i64, i64)> = sqlx::query_as(
            "SELECT dimension_value, extract(epoch FROM window_start)::bigint, sum(count)::bigint FROM metric_rollups
             WHERE metric_name = 'events' AND dimension_key = 'event_type' AND granularity = '1m'
               AND window_start > now() - interval '55 minutes' GROUP BY 1, 2",
        )
        .fetch_all(&self.stack.pool)
        .await
        .unwrap();
        assert!(!windows.is_empty(), "the load has hot windows");
        for (event_type, start, count) in windows {
            let key = keys::metric(project, &event_type, Granularity::Minute, start);
            let shown: Option<String> = redis::cmd("GET").arg(key).query_async(&mut redis).await.unwrap();
            let shown: Option<Value> = shown.map(|text| serde_json::from_str(&text).unwrap());
            if shown.is_none_or(|value| value["count"] != count) {
                return false;
            }
        }
        true
    }

    /// Every distinct event in the log, by id, with its type.
    pub async fn in_log(&self) -> BTreeMap<String, String> {
        let decoder = Decoder::new(Registry::new(&self.stack.connections.registry_url).unwrap());
        let mut events = BTreeMap::new();
        for record in self.stack.records(&events_topic(&self.stack.project)).await {
            let event = decoder.decode(record.value()).await.expect("an event");
            events.insert(event.event_id, event.event_type);
        }
        events
    }

    /// Waits until the stream has passed what the log holds now.
    pub async fn stream_has_passed_the_log(&self) {
        let end = self.stack.records(&events_topic(&self.stack.project)).await.len() as i64;
        eventually_within(Duration::from_secs(120), "the stream's ledger reaches the log's end", || async {
            let sum: i64 =
                sqlx::query_scalar("SELECT coalesce(sum(next_offset), 0)::bigint FROM ledger WHERE view = 'stream'")
                    .fetch_one(&self.stack.pool)
                    .await
                    .unwrap_or(-1);
            sum == end
        })
        .await;
    }

    /// Waits until the archive has passed what the log holds now.
    pub async fn archive_has_passed_the_log(&self) {
        let topic = events_topic(&self.stack.project);
        let ends = self.stack.ends(&topic).await;
        let (tables, topic) = (Tables::new(&self.stack.connections), topic.as_str());
        eventually_within(Duration::from_secs(120), "the archive reaches the log's end", || async {
            let Ok(Some(table)) = tables.load(&self.stack.project).await else { return false };
            let at = positions::read(table.metadata().properties(), topic).unwrap();
            let passed =
                |(partition, end): (&i32, &i64)| *end == 0 || at.get(partition).is_some_and(|at| at.next >= *end);
            ends.iter().all(passed)
        })
        .await;
    }

    /// Waits until the stream and the archive have passed what the log holds now.
    pub async fn views_have_passed_the_log(&self) {
        self.stream_has_passed_the_log().await;
        let expected = self.in_log().await.len() as u64;
        eventually_within(Duration::from_secs(120), "the archive holds every event", || async {
            self.sql("SELECT count(*) AS n FROM events").await[0]["n"].as_u64() >= Some(expected)
        })
        .await;
    }

    /// Compares journal, log, Postgres, archive and Redis, event by event.
    pub async fn assert_exact(&self) {
        let log = self.in_log().await;
        for line in std::fs::read_to_string(self.journal_path()).expect("journal").lines() {
            let line: Value = serde_json::from_str(line).expect("a journal line");
            let (id, status) = (line["eventId"].as_str().unwrap(), line["status"].as_str().unwrap());
            if status == "accepted" || status == "duplicate" {
                assert!(log.contains_key(id), "{id} was answered {status} but is not in the log");
            }
        }
        let mut by_type = BTreeMap::<String, i64>::new();
        log.values().for_each(|event_type| *by_type.entry(event_type.clone()).or_default() += 1);
        let counted: Vec<(String, i64)> = sqlx::query_as(
            "SELECT dimension_value, sum(count)::bigint FROM metric_rollups
             WHERE metric_name = 'events' AND dimension_key = 'event_type' AND granularity = '1d' GROUP BY 1",
        )
        .fetch_all(&self.stack.pool)
        .await
        .unwrap();
        assert_eq!(counted.into_iter().collect::<BTreeMap<_, _>>(), by_type, "Postgres");

        let rows = self.sql("SELECT event_id FROM events").await;
        let archived: BTreeSet<&str> = rows.iter().map(|row| row["event_id"].as_str().unwrap()).collect();
        assert_eq!(rows.len(), archived.len(), "the archive holds an event twice");
        assert_eq!(archived, log.keys().map(String::as_str).collect(), "the archive");

        let dead: i64 =
            sqlx::query_scalar("SELECT count(*) FROM dead_letters").fetch_one(&self.stack.pool).await.unwrap();
        assert_eq!(dead, 0, "dead letters");
        eventually("Redis shows what Postgres has", || async { self.redis_matches().await }).await;
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_file(self.journal_path());
        if !std::thread::panicking() {
            for name in SERVICES {
                let _ = std::fs::remove_file(self.log(name));
            }
        }
    }
}

//! Hot copies in Redis: filled, compared with Postgres, mended and taken elsewhere by the operators' command.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::process::{Command, Output, Stdio};

use redis::AsyncCommands;
use serde_json::{Value, json};
use tidemill_common::event::Event;
use tidemill_common::redis::Redis;
use tidemill_stream::window::Granularity;
use tidemill_stream::{Config, keys};
use tidemill_testkit::{PrivateRedis, Redises, Stack, event, eventually};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Sessions with more text than this are compressed, by workers and by the command.
const COMPRESSED: usize = 600;
const USERS: usize = 30;

struct Worker(CancellationToken, JoinHandle<anyhow::Result<()>>);

impl Worker {
    async fn start(stack: &Stack, redis: &PrivateRedis) -> Self {
        let config = Config {
            group: format!("{}-cache", stack.project),
            topics: stack.pattern(),
            session_timeout_ms: 6_000,
            batch_size: 100,
            batch_wait_ms: 20,
            hot_key_interval_ms: 100,
            compress_sessions_above: Some(COMPRESSED),
            seen_dir: stack.folder("seen-stream"),
            ..Config::default()
        };
        let mut connections = stack.connections.clone();
        connections.redis_url.clone_from(&redis.url);
        let stop = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self(stop.clone(), tokio::spawn(tidemill_stream::run(config, connections, listener.into(), stop)))
    }

    async fn stop(self) {
        self.0.cancel();
        self.1.await.unwrap().unwrap();
    }
}

/// Sessions with and without long URLs, purchases, carts; all of it live and hot.
fn traffic(range: std::ops::Range<usize>) -> Vec<Event> {
    let now = chrono::Utc::now().timestamp();
    let each = |i: usize| {
        let (user, what) = (i % USERS, ["view", "purchase", "add_to_cart", "page_view"][i / USERS % 4]);
        let mut event = event(&format!("e-{i}"), what, now - 300 + (i * 7 % 300) as i64);
        event.user_id = Some(format!("u-{user}"));
        event.session_id = Some(format!("s-{user}"));
        let query = "utm_campaign=spring-sale&".repeat(user);
        let properties =
            json!({"page": format!("https://shop.example/?{query}"), "sku": format!("sku-{}", i % 7), "price": 2});
        event.properties = Some(properties.to_string());
        event
    };
    range.map(each).collect()
}

/// Waits until all that was sent is counted, and Redis shows all of it.
async fn level(stack: &Stack, redis: &PrivateRedis) {
    let topic = tidemill_common::names::events_topic(&stack.project);
    eventually("all is counted and shown", || async {
        let end: i64 = stack.ends(&topic).await.values().sum();
        let sql =
            "SELECT coalesce(sum(next_offset), 0)::bigint, coalesce(sum(projected_offset), 0)::bigint FROM ledger";
        let stands: (i64, i64) = sqlx::query_as(sql).fetch_one(&stack.pool).await.unwrap();
        let marks = keys::projection(&stack.project, "");
        stands == (end, end) && redis.connection().await.hexists::<_, _, bool>(marks, "whole").await.unwrap()
    })
    .await;
}

/// A Redis that a worker has filled; nobody counts any more.
async fn filled() -> (Stack, PrivateRedis) {
    let (stack, redis) = (Stack::new().await, PrivateRedis::start().await);
    let worker = Worker::start(&stack, &redis).await;
    stack.send_all(&traffic(0..600)).await;
    level(&stack, &redis).await;
    worker.stop().await;
    (stack, redis)
}

/// All copies, byte by byte, and when they expire.
async fn copies(redis: &PrivateRedis) -> BTreeMap<String, (Vec<(Vec<u8>, Vec<u8>)>, i64)> {
    let mut connection = redis.connection().await;
    let mut all = BTreeMap::new();
    for key in connection.keys::<_, Vec<String>>("*").await.unwrap() {
        let members: Vec<(Vec<u8>, Vec<u8>)> = match key.split(':').nth(1).filter(|_| key.starts_with("analytics:")) {
            Some("session") => hash(&mut connection, &key).await,
            Some("seen_users") => {
                let users: Vec<Vec<u8>> = connection.smembers(&key).await.unwrap();
                let mut users: Vec<_> = users.into_iter().map(|user| (user, Vec::new())).collect();
                users.sort();
                users
            }
            _ if key.starts_with("cart:") => {
                let mut cart = hash(&mut connection, &key).await;
                cart.retain(|(field, _)| field != b"version"); // its session's, which rises without it
                cart
            }
            _ if key.starts_with("metric:") => vec![(Vec::new(), connection.get(&key).await.unwrap())],
            _ => continue,
        };
        let expires = redis::cmd("PEXPIRETIME").arg(&key).query_async(&mut connection).await.unwrap();
        all.insert(key, (members, expires));
    }
    all
}

async fn hash(connection: &mut redis::aio::MultiplexedConnection, key: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    connection.hgetall::<_, BTreeMap<Vec<u8>, Vec<u8>>>(key).await.unwrap().into_iter().collect()
}

fn command(stack: &Stack, redis: &PrivateRedis, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
    command
        .arg("cache")
        .args(arguments)
        .args(["--output", "json"])
        .env("DATABASE_URL", &stack.connections.database_url)
        .env("REDIS_URL", &redis.url)
        .env("TIDEMILL_STREAM__COMPRESS_SESSIONS_ABOVE", COMPRESSED.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The exit code and the one line of a command.
fn run(stack: &Stack, redis: &PrivateRedis, arguments: &[&str]) -> (Option<i32>, Value) {
    told(&command(stack, redis, arguments).output().unwrap())
}

fn told(output: &Output) -> (Option<i32>, Value) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code(), serde_json::from_str(&out).unwrap_or_else(|_| Value::from(err.into_owned())))
}

/// Of a kind, what is told of it.
fn tally<'a>(report: &'a Value, kind: &str) -> &'a Value {
    report["kinds"].as_array().expect("kinds").iter().find(|row| row["kind"] == kind).expect("the kind")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_redis_is_filled_as_workers_fill_it() {
    let ((stack, redis), other) = (filled().await, PrivateRedis::start().await);
    let schema = json!({"type": "object"});
    sqlx::query("INSERT INTO event_schemas (project, event_type, version, schema) VALUES ($1, 'view', 1, $2)")
        .bind(&stack.project)
        .bind(&schema)
        .execute(&stack.pool)
        .await
        .unwrap();
    sqlx::query("UPDATE projects SET schema_mode = 'strict'").execute(&stack.pool).await.unwrap();
    let claims = [("stored", "C:incarnation:1:7:hash"), ("known", "C:incarnation:1:8:hash"), ("flying", "P:token")];
    let claim = |id: &str| format!("event:{}:{id}", stack.project);
    for (id, value) in claims {
        redis.command::<()>(&["SET", &claim(id), value, "PX", "60000"]).await;
    }
    other.command::<()>(&["SET", &claim("known"), "C:newer", "PX", "60000"]).await;

    let warm = ["warm", "--to", &other.url, "--claims"];
    assert_eq!(run(&stack, &redis, &warm).0, Some(3), "there is nobody to ask");
    let (code, planned) = run(&stack, &redis, &[&warm[..], &["--dry-run"]].concat());
    assert_eq!((code, &planned["applied"], &planned["parts"]), (Some(0), &json!(false), &json!([1, 2, 3, 4, 5, 6])));
    assert_eq!(other.command::<i64>(&["DBSIZE"]).await, 1, "only what this test has put there");
    let (code, done) = run(&stack, &redis, &[&warm[..], &["--yes"]].concat());
    assert_eq!((code, &done["applied"], &done["claims_copied"]), (Some(0), &json!(true), &json!(1)), "{done}");
    let written = copies(&redis).await;
    let compressed = |key: &&String| written[*key].0.iter().any(|(field, _)| field == b"z");
    let sessions = written.keys().filter(|key| key.starts_with("analytics:session:")).count();
    let packed = written.keys().filter(compressed).count();
    assert!(sessions == USERS && packed > 5 && packed < USERS, "{packed} of {sessions} are compressed");
    assert!(written.keys().filter(|key| key.starts_with("cart:")).count() == USERS);
    assert_eq!(copies(&other).await, written);
    let verified: u64 = done["shards"].as_array().unwrap().iter().map(|part| part["verified"].as_u64().unwrap()).sum();
    assert_eq!(verified as usize, written.len() - 1 + USERS + 1, "each copy, each user and a schema");

    let held = async |key: &str| other.connection().await.get::<_, Option<String>>(key).await.unwrap();
    assert_eq!(held(&claim("stored")).await.as_deref(), Some(claims[0].1));
    assert_eq!(held(&claim("known")).await.as_deref(), Some("C:newer"), "what stands there is newer");
    assert_eq!(held(&claim("flying")).await, None);
    let left: i64 = other.connection().await.pttl(claim("stored")).await.unwrap();
    assert!((1..=60_000).contains(&left), "{left}");
    let changed = "SELECT (extract(epoch FROM schemas_changed_at) * 1000000)::bigint FROM projects";
    let changed: i64 = sqlx::query_scalar(changed).fetch_one(&stack.pool).await.unwrap();
    let key = format!("schema:{}:view:latest@{changed}", stack.project);
    assert_eq!(held(&key).await, Some(schema.to_string()));

    let (code, report) = run(&stack, &redis, &["audit", "--url", &other.url]);
    assert_eq!((code, tally(&report, "sessions")), (Some(0), &tally_of("sessions", USERS)), "{report}");
    assert_eq!(tally(&report, "schemas"), &tally_of("schemas", 1));
    let entered: Vec<(String, Option<String>)> =
        sqlx::query_as("SELECT command, outcome FROM audit").fetch_all(&stack.pool).await.unwrap();
    assert_eq!(entered, [("cache warm".to_owned(), Some("done".to_owned()))]);
}

/// All of so many are equal.
fn tally_of(kind: &str, count: usize) -> Value {
    json!({"kind": kind, "compared": count, "equal": count, "behind": 0, "missing": 0, "ahead": 0, "corrupt": 0,
           "foreign": 0, "replica_behind": 0})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_cache_is_found_out_and_mended() {
    let ((stack, redis), replica) = (filled().await, PrivateRedis::start().await);
    let right = copies(&redis).await;
    let (host, port) = redis.url.trim_start_matches("redis://").trim_end_matches("/0").split_once(':').unwrap();
    redis.command::<()>(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]).await;
    replica.command::<()>(&["REPLICAOF", host, port]).await;
    eventually("the replica has followed", || async { copies(&replica).await == right }).await;
    let replication = async || redis.command::<String>(&["INFO", "replication"]).await;
    eventually("the master knows", || async { replication().await.contains("state=online") }).await;
    let (code, nodes) = run(&stack, &redis, &["status"]);
    let roles: Vec<&Value> = nodes.as_array().unwrap().iter().map(|node| &node["role"]).collect();
    assert_eq!((code, roles), (Some(0), vec![&json!("master"), &json!("replica")]), "{nodes}");
    assert!(nodes[1]["lag_bytes"].is_u64() && nodes[0]["p99_ms"].as_f64().unwrap() > 0.0, "{nodes}");
    let (code, report) = run(&stack, &redis, &["audit"]);
    assert_eq!((code, &report["to_mend"]), (Some(0), &json!(0)), "{report}");

    let session = |user: usize| keys::session(&stack.project, &format!("s-{user}"));
    let hour = Granularity::Hour;
    let window = right.keys().find(|key| key.contains(":view:1h:")).unwrap();
    let ahead = String::from_utf8(right[window].0[0].1.clone()).unwrap();
    let mut ahead: Value = serde_json::from_str(&ahead).unwrap();
    ahead["version"] = json!(1_i64 << 40);
    let foreign = keys::metric(&stack.project, "nobodys", hour, hour.window(0));
    let breaks: [&[&str]; 11] = [
        &["DEL", &session(1)],
        &["HSET", &session(2), "version", "0"],
        &["DEL", &session(3)],
        &["RPUSH", &session(3), "what is no hash"],
        &["HSET", &session(USERS - 1), "z", "what is not compressed"],
        &["HSET", &keys::cart(&stack.project, "s-4"), "total_items", "999"],
        &["SET", window, &ahead.to_string(), "KEEPTTL"],
        &["SET", &foreign, r#"{"count":1,"epoch":0,"generation":0,"version":1}"#],
        &["HSET", &keys::session("nobodys", "s-1"), "version", "1"],
        &["SADD", &keys::seen_users(&stack.project), "nobody"],
        &["SREM", &keys::seen_users(&stack.project), "u-5"],
    ];
    for wrong in breaks {
        redis.command::<()>(wrong).await;
    }
    replica.command::<()>(&["CONFIG", "SET", "replica-read-only", "no"]).await;
    replica.command::<()>(&["HSET", &session(6), "version", "0"]).await;

    let (code, report) = run(&stack, &redis, &["audit"]);
    assert_eq!(code, Some(4), "{report}");
    let odd = |kind: &str| {
        let row = tally(&report, kind);
        ["behind", "missing", "ahead", "corrupt", "foreign", "replica_behind"].map(|name| row[name].as_u64().unwrap())
    };
    assert_eq!(odd("sessions"), [1, 1, 0, 2, 1, 1], "{report}");
    assert_eq!(odd("carts"), [0, 0, 0, 1, 0, 0], "{report}");
    assert_eq!(odd("windows"), [0, 0, 1, 0, 1, 0], "{report}");
    assert_eq!(odd("seen-users"), [0, 1, 0, 0, 1, 0], "{report}");
    assert_eq!(report["examples"].as_array().unwrap().len(), 9, "{report}");
    let (code, report) = run(&stack, &redis, &["audit", "--repair", "--yes"]);
    assert_eq!((code, &report["applied"], &report["mended"]["left"]), (Some(0), &json!(true), &json!([])), "{report}");
    assert_eq!(copies(&redis).await, right);
    eventually("the replica has followed", || async { copies(&replica).await == right }).await;
    let (code, report) = run(&stack, &redis, &["audit"]);
    assert_eq!((code, &report["to_mend"]), (Some(0), &json!(0)), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_verify_is_rolled_back() {
    let ((stack, redis), other) = (filled().await, PrivateRedis::start().await);
    let right = copies(&redis).await;
    let mut warming = command(&stack, &redis, &["warm", "--to", &other.url, "--yes"]);
    let mut warming = warming.env("TIDEMILL_FAILPOINTS", "cache.written=pause:300").spawn().unwrap();
    let session = keys::session(&stack.project, "s-1");
    // Whenever it is there, it is wrong.
    let wrong = "if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'totalEvents', '999') end";
    while warming.try_wait().unwrap().is_none() {
        other.command::<()>(&["EVAL", wrong, "1", &session]).await;
    }
    let (code, done) = told(&warming.wait_with_output().unwrap());
    let failed: Vec<&Value> =
        done["shards"].as_array().unwrap().iter().filter(|part| part["problems"] != json!([])).collect();
    assert_eq!((code, failed.len(), &failed[0]["rolled_back"]), (Some(1), 1, &json!(1)), "{done}");
    assert!(failed[0]["problems"][0].as_str().unwrap().contains("another value of version"), "{done}");
    let mut without = right.clone();
    without.remove(&session);
    assert_eq!(copies(&other).await, without, "all else stays");
    let outcome: String = sqlx::query_scalar("SELECT outcome FROM audit").fetch_one(&stack.pool).await.unwrap();
    let part = failed[0]["shard"].to_string();
    assert!(outcome.contains(&format!("--shard {part}")), "{outcome}");
    let (code, done) = run(&stack, &redis, &["warm", "--to", &other.url, "--yes", "--shard", &part]);
    assert_eq!((code, done["shards"].as_array().unwrap().len()), (Some(0), 1), "{done}");
    assert_eq!(copies(&other).await, right);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_runs_beside_a_worker_that_writes_newer_values() {
    let (stack, redis) = (Stack::new().await, PrivateRedis::start().await);
    let worker = Worker::start(&stack, &redis).await;
    stack.send_all(&traffic(0..300)).await;
    level(&stack, &redis).await;
    // Read and not yet written by the command, while the worker goes on.
    let mut warming = command(&stack, &redis, &["warm", "--yes"]);
    let mut warming = warming.env("TIDEMILL_FAILPOINTS", "cache.read=pause:500").spawn().unwrap();
    let mut sent = 300;
    while warming.try_wait().unwrap().is_none() {
        stack.send_all(&traffic(sent..sent + 10)).await;
        sent += 10;
    }
    let (code, done) = told(&warming.wait_with_output().unwrap());
    assert_eq!(code, Some(0), "{done}");
    assert!(sent > 350, "the worker went on meanwhile");
    level(&stack, &redis).await;
    worker.stop().await;
    let (code, report) = run(&stack, &redis, &["audit"]);
    assert_eq!((code, &report["to_mend"]), (Some(0), &json!(0)), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_and_rings_are_filled_master_by_master() {
    let ((stack, redis), cluster, ring) = (filled().await, Redises::cluster().await, Redises::ring().await);
    for several in [&cluster, &ring] {
        let url = several.url.as_str();
        let (code, done) = run(&stack, &redis, &["warm", "--to", url, "--yes"]);
        let shards = done["shards"].as_array().expect("shards");
        let names: Vec<&str> = shards.iter().map(|part| part["name"].as_str().unwrap()).collect();
        assert_eq!((code, names.len()), (Some(0), 3), "{done}");
        assert!(names.iter().all(|name| several.nodes.iter().any(|node| node == name)), "{names:?}");
        assert!(shards.iter().all(|part| part["verified"].as_u64() > Some(0)), "{done}");
        let (code, report) = run(&stack, &redis, &["audit", "--url", url]);
        assert_eq!((code, &report["to_mend"]), (Some(0), &json!(0)), "{report}");
        assert_eq!(tally(&report, "sessions")["equal"], json!(USERS));

        let client = Redis::background(url).unwrap();
        let older = |user: usize| keys::session(&stack.project, &format!("s-{user}"));
        let mut wrong = redis::pipe();
        for user in 0..USERS {
            wrong.cmd("HSET").arg(older(user)).arg("version").arg(0).ignore();
        }
        client.run::<()>(&wrong).await.unwrap();
        let (code, report) = run(&stack, &redis, &["audit", "--url", url, "--repair", "--yes"]);
        assert_eq!((code, &tally(&report, "sessions")["behind"]), (Some(0), &json!(USERS)), "{report}");
        let (code, report) = run(&stack, &redis, &["audit", "--url", url]);
        assert_eq!((code, &report["to_mend"]), (Some(0), &json!(0)), "{report}");

        let (code, nodes) = run(&stack, &redis, &["status", "--url", url]);
        let nodes = nodes.as_array().expect("nodes");
        assert_eq!((code, nodes.len()), (Some(0), several.nodes.len()), "{nodes:?}");
        let masters = nodes.iter().filter(|node| node["role"] == "master");
        let share: f64 = masters.map(|node| node["share"].as_f64().unwrap()).sum();
        assert!((share - 100.0).abs() < 0.1, "{share} of 100 keys");
        let uncovered = nodes.iter().filter(|node| node["anomalies"].to_string().contains("slots have no master"));
        assert_eq!(uncovered.count(), 0, "{nodes:?}");
    }
}

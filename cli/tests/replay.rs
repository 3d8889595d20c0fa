//! `tidemill replay`, run as the binary that it is, beside a live worker on the real components.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output, Stdio};

use chrono::{TimeDelta, Utc};
use serde_json::Value;
use tidemill_archiver::positions;
use tidemill_archiver::table::Tables;
use tidemill_common::event::Event;
use tidemill_common::names::events_topic;
use tidemill_testkit::{PARTITIONS, Stack, event, eventually};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// 2024-03-01T00:00:00Z
const T0: i64 = 1_709_251_200;

fn command(stack: &Stack, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
    command
        .args(["--output", "json", "replay"])
        .args(arguments)
        .current_dir(stack.folder(""))
        .env("DATABASE_URL", &stack.connections.database_url)
        .env("WAREHOUSE_URL", &stack.connections.warehouse_url)
        .env("TIDEMILL_STREAM__SEEN_DIR", stack.folder("seen"))
        .env("TIDEMILL_OPERATOR", "the operator")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

async fn run(stack: &Stack, arguments: &[&str]) -> Output {
    let mut command = command(stack, arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn json(stack: &Stack, arguments: &[&str]) -> Value {
    let output = run(stack, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

async fn error(stack: &Stack, arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(stack, arguments).await;
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// A live worker of the usual group's kind; it has its own, since tests share the brokers.
async fn live(stack: &Stack, shutdown: CancellationToken) -> tokio::task::JoinHandle<anyhow::Result<()>> {
    let config = tidemill_stream::Config {
        group: format!("{}-live", stack.project),
        topics: stack.pattern(),
        session_timeout_ms: 6_000,
        seen_dir: stack.folder("seen"),
        ..Default::default()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    tokio::spawn(tidemill_stream::run(config, stack.connections.clone(), listener.into(), shutdown))
}

/// An archiver of the same kind.
async fn archiver(stack: &Stack, shutdown: CancellationToken) -> tokio::task::JoinHandle<anyhow::Result<()>> {
    let config = tidemill_archiver::Config {
        group: format!("{}-archiver", stack.project),
        topics: stack.pattern(),
        session_timeout_ms: 6_000,
        commit_interval_ms: 200,
        seen_dir: stack.folder("seen-archiver"),
        ..Default::default()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    tokio::spawn(tidemill_archiver::run(config, stack.connections.clone(), listener.into(), shutdown))
}

/// Events that the archive has come behind, by its offsets.
async fn archived(stack: &Stack) -> i64 {
    let tables = Tables::new(&stack.connections);
    let Some(table) = tables.load(&stack.project).await.unwrap() else { return 0 };
    let positions = positions::read(table.metadata().properties(), &events_topic(&stack.project)).unwrap();
    positions.values().map(|position| position.next).sum()
}

async fn counted(stack: &Stack) -> i64 {
    let sql =
        "SELECT coalesce(sum(value), 0)::bigint FROM daily_metrics WHERE metric_name = 'events' AND dimension_key = ''";
    sqlx::query_scalar(sql).fetch_one(&stack.pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_from_plan_to_drop() {
    let stack = Stack::new().await;
    let project = stack.project.as_str();
    let (_, refused) = error(&stack, &["plan", "--project", project, "--yes"]).await;
    assert!(refused.contains("nothing of"), "{refused}");
    let shutdown = CancellationToken::new();
    let worker = live(&stack, shutdown.clone()).await;
    let events: Vec<_> = (0..3_000).map(|i| event(&format!("e-{i}"), "view", T0 + i)).collect();
    stack.send_all(&events).await;
    eventually("all is counted", || async { counted(&stack).await == 3_000 }).await;
    sqlx::query("UPDATE metric_rollups SET count = count + 1 WHERE metric_name = 'events'")
        .execute(&stack.pool)
        .await
        .unwrap();

    let plan = ["plan", "--project", project];
    assert_eq!(json(&stack, &[&plan[..], &["--dry-run"]].concat()).await[0]["applied"], false);
    assert_eq!(error(&stack, &plan).await.0, Some(3), "nobody to ask");
    assert_eq!(json(&stack, &["status"]).await, serde_json::json!([]));
    let planned = json(&stack, &[&plan[..], &["--rate", "200", "--yes"]].concat()).await;
    assert_eq!((&planned[0]["records"], &planned[0]["left_out"]), (&Value::from(3_000), &Value::from(0)));
    let id = planned[0]["id"].to_string();

    // Killed, it goes on where it was.
    for after in [1, 400, 800] {
        let mut running = command(&stack, &["run", &id]).spawn().unwrap();
        let done = || async { json(&stack, &["status", &id]).await["done"].as_i64().unwrap() };
        eventually("it gets on", || async { done().await >= after }).await;
        running.kill().unwrap();
        running.wait().unwrap();
    }
    let ran = json(&stack, &["run", &id, "--rate", "0"]).await;
    assert_eq!((&ran[0]["left"], &ran[0]["state"]), (&Value::from(0), &Value::from("running")));
    let status = json(&stack, &["status", &id]).await;
    let events = status["comparison"].as_array().unwrap().iter().find(|found| found["what"] == "events").unwrap();
    assert_eq!(events["day"], "2024-03-01");
    assert!(events["live"].as_str().unwrap() > "3000" && events["rebuilt"] == "3000", "{events}");

    let asked = json(&stack, &["switch", &id, "--dry-run"]).await;
    assert_eq!((&asked["applied"], &asked["state"]), (&Value::from(false), &Value::from("running")));
    assert_ne!(counted(&stack).await, 3_000);
    assert_eq!(json(&stack, &["switch", &id, "--yes"]).await["state"], "switched");
    assert_eq!(counted(&stack).await, 3_000);
    stack.send(&event("after", "view", T0)).await;
    eventually("the live worker goes on in it", || async { counted(&stack).await == 3_001 }).await;
    assert!(error(&stack, &["abort", &id, "--yes"]).await.1.contains("is live"));
    assert_eq!(json(&stack, &["drop", &id, "--yes"]).await["applied"], true);
    let (left, book): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM metric_rollups WHERE generation = 0),
                (SELECT count(*) FROM audit WHERE who = 'the operator' AND outcome = 'done' AND project = $1)",
    )
    .bind(project)
    .fetch_one(&stack.pool)
    .await
    .unwrap();
    assert_eq!((left, book), (0, 4), "plan, run, switch and drop are in the book");
    shutdown.cancel();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_moved_and_put_back() {
    let stack = Stack::new().await;
    let (topic, group) = (events_topic(&stack.project), format!("{}-live", stack.project));
    let shutdown = CancellationToken::new();
    let worker = live(&stack, shutdown.clone()).await;
    stack.send_all(&(0..100).map(|i| event(&format!("e-{i}"), "view", T0 + i)).collect::<Vec<_>>()).await;
    eventually("all is counted", || async { counted(&stack).await == 100 }).await;
    let reset = ["reset", "--group", &group, "--topic", &topic, "--to-beginning"];
    let (code, active) = error(&stack, &[&reset[..], &["--yes"]].concat()).await;
    assert!(code == Some(1) && active.contains("is active"), "{active}");
    shutdown.cancel();
    worker.await.unwrap().unwrap();

    let from =
        |seeks: &Value| seeks["seeks"].as_array().unwrap().iter().filter_map(|s| s["from"].as_i64()).sum::<i64>();
    let dry = json(&stack, &[&reset[..], &["--dry-run"]].concat()).await;
    assert_eq!((from(&dry), &dry["applied"], &dry["undo_file"]), (100, &Value::from(false), &Value::Null));
    let done = json(&stack, &[&reset[..], &["--yes"]].concat()).await;
    let file = done["undo_file"].as_str().unwrap();
    assert_eq!(from(&json(&stack, &[&reset[..], &["--dry-run"]].concat()).await), 0, "it was moved");
    let undone = json(&stack, &["reset", "--undo", file, "--yes"]).await;
    assert_eq!((from(&undone), &undone["applied"]), (0, &Value::from(true)));
    assert_eq!(from(&json(&stack, &[&reset[..], &["--dry-run"]].concat()).await), 100, "it is where it was");
    let nowhere = ["reset", "--group", &group, "--topic", &topic, "--yes"];
    assert!(error(&stack, &nowhere).await.1.contains("--to-beginning"));

    // A group that has never committed anything has nothing committed again.
    let new = format!("{}-new", stack.project);
    let reset = ["reset", "--group", &new, "--topic", &topic, "--to-end"];
    let committed = |seeks: &Value| seeks["seeks"].as_array().unwrap().iter().filter(|s| s["from"].is_i64()).count();
    let done = json(&stack, &[&reset[..], &["--yes"]].concat()).await;
    assert_eq!(committed(&json(&stack, &[&reset[..], &["--dry-run"]].concat()).await), PARTITIONS as usize);
    json(&stack, &["reset", "--undo", done["undo_file"].as_str().unwrap(), "--yes"]).await;
    assert_eq!(committed(&json(&stack, &[&reset[..], &["--dry-run"]].concat()).await), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_begins_in_the_archive_and_goes_on_in_the_log() {
    let stack = Stack::new().await;
    sqlx::query("UPDATE projects SET dedupe_window_ms = 3000").execute(&stack.pool).await.unwrap();
    let shutdown = CancellationToken::new();
    let (worker, archiver) = (live(&stack, shutdown.clone()).await, archiver(&stack, shutdown.clone()).await);
    let events: Vec<_> = (0..900)
        .map(|i| Event {
            user_id: Some(format!("u-{}", i % 30)),
            session_id: Some(format!("s-{}", i % 30)),
            user_agent: (i % 3 == 0).then(|| "curl/8".to_owned()),
            properties: Some(format!("{{\"utm_source\":\"s-{}\"}}", i % 4)),
            ..event(&format!("e-{i}"), "view", T0 + i * 7)
        })
        .collect();
    for (n, chunk) in events[..300].chunks(100).enumerate() {
        stack.send_all(chunk).await;
        eventually("it is archived", || async { archived(&stack).await == 100 * (n as i64 + 1) }).await; // a commit each
    }
    let sent = Utc::now();
    stack.send_all(&events[300..600]).await;
    stack.send_all(&events[300..340]).await; // copies of what retention will have deleted
    eventually("a dedupe window has passed, twice", || async { Utc::now() > sent + TimeDelta::seconds(7) }).await;
    stack.send_all(&events[600..]).await;
    stack.send_all(&events[600..700]).await; // copies around the join
    eventually("all is counted", || async { counted(&stack).await == 900 }).await;
    eventually("all is archived", || async { archived(&stack).await == 1_040 }).await;
    for partition in 0..PARTITIONS {
        stack.delete_records(partition, 80).await; // retention: the rest of `300..600` is its first window
    }

    let plan = json(&stack, &["plan", "--project", &stack.project, "--rate", "200", "--yes"]).await;
    let files = plan[0]["archive_files"].as_i64().unwrap();
    assert!(files >= 3 && plan[0]["left_out"] == 0 && plan[0]["records"].as_i64().unwrap() <= 400, "{plan}");
    let id = plan[0]["id"].to_string();
    let mut running = command(&stack, &["run", &id]).spawn().unwrap();
    let left = || async { json(&stack, &["status", &id]).await["files_left"].as_i64().unwrap() };
    eventually("it reads the archive", || async { left().await < files }).await;
    running.kill().unwrap();
    running.wait().unwrap();
    assert!(left().await > 0, "killed in the middle of it");
    json(&stack, &["run", &id, "--rate", "0"]).await;
    let status = json(&stack, &["status", &id]).await;
    assert_eq!(status["comparison"], serde_json::json!([]), "sessions, sources, devices: all is the same");
    assert_eq!(json(&stack, &["switch", &id, "--yes"]).await["state"], "switched");
    assert_eq!(counted(&stack).await, 900);
    assert!(error(&stack, &["switch", &id, "--yes"]).await.1.contains("stood still"), "there is no way back");
    json(&stack, &["drop", &id, "--yes"]).await;

    // From a time that lies before what Kafka holds: what was archived since then, and what Kafka has.
    let plan = json(&stack, &["plan", "--project", &stack.project, "--from-time", &sent.to_rfc3339(), "--yes"]).await;
    assert!((1..files).contains(&plan[0]["archive_files"].as_i64().unwrap()), "older files are not read: {plan}");
    let id = plan[0]["id"].to_string();
    json(&stack, &["run", &id]).await;
    json(&stack, &["switch", &id, "--yes"]).await;
    assert_eq!(counted(&stack).await, 600);
    shutdown.cancel();
    worker.await.unwrap().unwrap();
    archiver.await.unwrap().unwrap();
}

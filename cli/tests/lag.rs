//! `tidemill lag`, `limits` and `doctor`, run as the binary that they are.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

use serde_json::Value;
use tidemill_archiver::table::Tables;
use tidemill_common::kafka::History;
use tidemill_common::names::events_topic;
use tidemill_testkit::{PARTITIONS, Stack, event};

fn run(stack: &Stack, arguments: &[&str]) -> Output {
    let connections = &stack.connections;
    Command::new(env!("CARGO_BIN_EXE_tidemill"))
        .args(arguments)
        .env("DATABASE_URL", &connections.database_url)
        .env("KAFKA_BROKERS", &connections.kafka.brokers)
        .env("REDIS_URL", &connections.redis_url)
        .env("SCHEMA_REGISTRY_URL", &connections.registry_url)
        .env("WAREHOUSE_URL", &connections.warehouse_url)
        .env("TIDEMILL_OPERATOR", "the operator")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The one line of JSON of a command, whatever its exit code.
fn json_of(output: &Output) -> Value {
    let out = text(&output.stdout);
    assert_eq!(out.lines().count(), 1, "{out}{}", text(&output.stderr));
    serde_json::from_str(&out).unwrap()
}

fn json(stack: &Stack, arguments: &[&str]) -> Value {
    let output = run(stack, &[arguments, &["--output", "json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    json_of(&output)
}

async fn ledger(stack: &Stack, partition: i32, next: i64) {
    let topic = events_topic(&stack.project);
    let id = History::new(stack.connections.kafka.clone())
        .incarnations([&topic], std::time::Duration::from_secs(10))
        .unwrap();
    sqlx::query(
        "INSERT INTO ledger (view, topic, partition, topic_incarnation, generation, next_offset, projected_offset, as_of)
         SELECT 'stream', $1, $2, $3, generation, $4, $4, now() FROM projects WHERE id = $5",
    )
    .bind(&topic)
    .bind(partition)
    .bind(&id[&topic])
    .bind(next)
    .bind(&stack.project)
    .execute(&stack.pool)
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_is_told_of_every_view_and_partition() {
    let stack = Stack::new().await;
    let events: Vec<_> = (0..40).map(|i| event(&format!("e-{i}"), "view", 1_800_000_000)).collect();
    stack.send_all(&events).await;
    let ends = stack.ends(&events_topic(&stack.project)).await;
    ledger(&stack, 0, ends[&0]).await;
    ledger(&stack, 1, 2).await;
    let project = stack.project.clone();
    let rows = json(&stack, &["lag", "--project", &project, "--measure", "1"]);
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 2 * PARTITIONS as usize);
    let row = |view: &str, partition: i32| {
        rows.iter().find(|row| row["view"] == view && row["partition"] == partition).unwrap()
    };
    assert_eq!((&row("stream", 0)["lag"], &row("stream", 0)["seconds"]), (&0.into(), &0.0.into()));
    let behind = row("stream", 1);
    assert_eq!((&behind["offset"], &behind["lag"]), (&2.into(), &(ends[&1] - 2).into()));
    // Nobody has looked before: the log says how old the record is.
    assert!(behind["seconds"].as_f64().is_some_and(|seconds| (0.5..60.0).contains(&seconds)), "{behind}");
    assert_eq!((&behind["rate"], &behind["leader_changes"], &behind["hot"]), (&0.0.into(), &0.into(), &false.into()));
    assert_eq!(row("archiver", 3)["lag"], ends[&3], "there is no table yet");
    assert_eq!(json(&stack, &["lag", "--view", "stream", "--behind", "--measure", "0"]).as_array().unwrap().len(), 3);
    assert_eq!(json(&stack, &["lag", "hot"]), serde_json::json!([]));
    let nobody = run(&stack, &["lag", "--project", "nobodys"]);
    assert!(!nobody.status.success() && text(&nobody.stderr).contains("tidemill projects list"));
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_set_after_a_yes_and_entered() {
    let stack = Stack::new().await;
    let project = stack.project.as_str();
    let set = ["limits", "set", "--project", project, "--user", "bot", "--rate", "5"];
    let with = |more: &'static str| [&set[..], &[more]].concat();
    let asked = run(&stack, &set);
    assert_eq!(asked.status.code(), Some(3), "there is nobody to ask");
    let planned = json(&stack, &with("--dry-run"));
    assert_eq!((&planned["after"], &planned["applied"]), (&5.into(), &false.into()));
    assert_eq!(json(&stack, &["limits", "list"]), serde_json::json!([]));
    let done = json(&stack, &with("--yes"));
    assert_eq!((&done["before"], &done["after"], &done["applied"]), (&Value::Null, &5.into(), &true.into()));
    let listed = json(&stack, &["limits", "list", "--project", project]);
    assert_eq!(
        (&listed[0]["kind"], &listed[0]["name"], &listed[0]["per_second"]),
        (&"user".into(), &"bot".into(), &5.into())
    );
    let removed = json(&stack, &["limits", "remove", "--project", project, "--user", "bot", "--yes"]);
    assert_eq!((&removed["before"], &removed["after"]), (&5.into(), &Value::Null));
    assert_eq!(json(&stack, &["limits", "list"]), serde_json::json!([]));
    let again = run(&stack, &["limits", "remove", "--project", project, "--user", "bot", "--yes"]);
    assert!(text(&again.stderr).contains("tidemill limits list"));
    let unknown = run(&stack, &["limits", "set", "--project", "nobodys", "--type", "view", "--rate", "1", "--yes"]);
    assert!(text(&unknown.stderr).contains("tidemill projects list"));
    let whose = run(&stack, &["limits", "set", "--project", project, "--rate", "1"]);
    assert!(text(&whose.stderr).contains("<--type <TYPE>|--user <USER>>"), "{}", text(&whose.stderr));
    for wrong in [&["--rate", "1"][..], &["--type", "a", "--user", "b", "--rate", "1"], &["--type", "a", "--rate=-1"]] {
        let output = run(&stack, &[&["limits", "set", "--project", project], wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
    let rows = "SELECT command, outcome FROM audit ORDER BY id";
    let rows: Vec<(String, String)> = sqlx::query_as(rows).fetch_all(&stack.pool).await.unwrap();
    let done = |command: &str| (command.to_owned(), "done".to_owned());
    assert_eq!(rows, [done("limits set"), done("limits remove")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_what_is_wrong_and_what_to_do() {
    let mut stack = Stack::new().await;
    let before = format!("file://{}", stack.folder("archive-2").display());
    stack.connections.warehouse_url.clone_from(&before);
    Tables::new(&stack.connections).load_or_create(&stack.project).await.unwrap();
    stack.connections.warehouse_url = format!("file://{}", stack.folder("archive").display());
    // The testkit's topics are not as declared, and the processed topic has no schema.
    let output = run(&stack, &["doctor", "--all", "--output", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let findings = json_of(&output);
    let findings = findings.as_array().unwrap();
    let find = |check: &str, what: &str| {
        findings.iter().find(|f| f["check"] == check && f["what"].as_str().unwrap().contains(what))
    };
    let ours = |check: &str, what: &str| find(check, what).unwrap_or_else(|| panic!("no {what}: {findings:#?}"));
    for (check, what) in [
        ("postgres", "migrations are there"),
        ("postgres", "may read and write all tables"),
        ("kafka", "topics have ids"),
        ("redis", "version"),
        ("warehouse", "the catalog answers"),
        ("warehouse", "can be written, read and cleared"),
        ("clocks", "Postgres"),
        ("clocks", "Redis"),
    ] {
        assert_eq!(ours(check, what)["state"], "ok", "{check} {what}");
    }
    let drifted = ours("topics", &format!("of events.{} ", stack.project));
    assert!(drifted["what_to_do"].as_str().unwrap().contains("tidemill topics apply"), "{drifted}");
    let moved = ours("warehouse", &format!("the table of {} lies in {before}/", stack.project));
    assert_eq!(moved["state"], "warning");
    let subject = ours("registry", &format!("events.processed.{}-value has no schema", stack.project));
    assert_eq!(subject["state"], "failure");
    assert!(subject["what_to_do"].as_str().unwrap().contains(&format!("tidemill projects create {}", stack.project)));
    assert!(findings.iter().all(|f| (f["state"] == "ok") == f["what_to_do"].is_null()), "{findings:#?}");

    sqlx::query("DELETE FROM _sqlx_migrations WHERE version = 2").execute(&stack.pool).await.unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_tidemill"))
        .args(["doctor", "--output", "json"])
        .env("DATABASE_URL", &stack.connections.database_url)
        .env("REDIS_URL", "redis://127.0.0.1:1")
        .env("KAFKA_BROKERS", "127.0.0.1:1")
        .env("SCHEMA_REGISTRY_URL", "http://127.0.0.1:1")
        .env("WAREHOUSE_URL", "file:///proc/nowhere")
        .output()
        .unwrap();
    let findings = json_of(&output);
    let failed = |check: &str, what: &str| {
        let mut all = findings.as_array().unwrap().iter();
        all.any(|f| f["check"] == check && f["state"] == "failure" && f["what"].as_str().unwrap().contains(what))
    };
    for (check, what) in [
        ("postgres", "1 of"),
        ("redis", ""),
        ("kafka", "does not answer"),
        ("registry", ""),
        ("warehouse", "could not be written"),
    ] {
        assert!(failed(check, what), "{check} {what}: {findings:#}");
    }
}

#[test]
fn shells_are_told_what_they_can_complete() {
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(env!("CARGO_BIN_EXE_tidemill")).args(["completion", shell]).output().unwrap();
        let script = text(&output.stdout);
        assert!(output.status.success() && script.contains("limits") && script.contains("doctor"), "{shell}: {script}");
    }
}

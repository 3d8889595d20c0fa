//! Dead letters from the gateway to the archive and back again, by the operators' command, on real processes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use sqlx::Row;
use support::Fleet;
use tidemill_testkit::{LateRegistry, Stack, eventually};

const EVENTS: usize = 12;

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn run(fleet: &Fleet, args: &[&str]) -> Output {
    let mut command = fleet.command(&[&["dlq"], args].concat());
    command.env("TIDEMILL_OPERATOR", "the operator").stdin(Stdio::null()).output().unwrap()
}

/// The result of a command that has to succeed: one line.
fn dlq(fleet: &Fleet, args: &[&str]) -> Value {
    let output = run(fleet, &[args, &["--output", "json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    let out = text(&output.stdout);
    assert_eq!(out.lines().count(), 1, "{out}");
    serde_json::from_str(&out).unwrap()
}

async fn send(fleet: &Fleet, id: &str) -> u16 {
    let event = json!({"eventId": id, "eventType": "view", "properties": {"page": "/"}});
    let client = reqwest::Client::new();
    let post = client.post(format!("{}/v1/events", fleet.url("ingest"))).bearer_auth(&fleet.write_key);
    post.json(&event).send().await.unwrap().status().as_u16()
}

async fn states(fleet: &Fleet) -> Vec<(String, i64)> {
    let sql = "SELECT state, count(*) FROM dead_letters GROUP BY 1 ORDER BY 1";
    sqlx::query_as(sql).fetch_all(&fleet.stack.pool).await.unwrap()
}

async fn archived(fleet: &Fleet) -> u64 {
    let rows = fleet.sql("SELECT count(*) AS n, count(DISTINCT event_id) AS ids FROM events").await;
    assert_eq!(rows[0]["n"], rows[0]["ids"], "the archive holds an event twice");
    rows[0]["n"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_counts_once_after_its_schema_has_come() {
    let mut stack = Stack::new().await;
    // The gateway's own schema is lost to those who read.
    let registry = LateRegistry::without(Some(1)).await;
    stack.connections.registry_url = registry.url.clone();
    let fleet = Fleet::start_with(stack, &[("TIDEMILL_STREAM__UNKNOWN_SCHEMA_WAIT_MS", "300")]).await;
    let project = fleet.stack.project.clone();
    let project = project.as_str();
    let ids: Vec<String> = (0..EVENTS).map(|i| format!("e-{i}")).collect();
    for id in &ids {
        assert_eq!(send(&fleet, id).await, 202);
    }
    let all = EVENTS as i64;
    eventually("all are dead letters", || async { states(&fleet).await == [("open".to_owned(), all)] }).await;

    let listed = dlq(&fleet, &["list", "--project", project]);
    assert_eq!((&listed[0]["reason"], &listed[0]["count"]), (&json!("unknown-schema"), &json!(EVENTS)));
    assert_eq!(dlq(&fleet, &["list", "--reason", "invalid"]), json!([]));
    assert_eq!(dlq(&fleet, &["list", "--until", "1h"]), json!([]));
    let records = dlq(&fleet, &["list", "--records", "--since", "1h"]);
    assert_eq!(records.as_array().unwrap().len(), EVENTS);
    let at = format!("{}:{}", records[0]["partition"], records[0]["offset"]);
    let shown = dlq(&fleet, &["show", &at, "--project", project]);
    assert!(shown["value"].as_str().unwrap().starts_with("0x0000000001"), "nobody knows its schema: {shown}");
    assert!(shown["remedy"].as_str().unwrap().contains("redrive"), "{shown}");

    // One is given up: with a reason, with somebody's word, and in the book.
    let discard = ["discard", "--project", project, "--at", &at];
    for why in [&[][..], &["--why", " "]] {
        let output = run(&fleet, &[&discard, why, &["--yes"]].concat());
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    }
    let discard = [&discard[..], &["--why", "a test"]].concat();
    let unasked = run(&fleet, &discard);
    assert_eq!(unasked.status.code(), Some(3), "{}", text(&unasked.stderr));
    assert_eq!(dlq(&fleet, &[&discard[..], &["--dry-run"]].concat())["applied"], false);
    assert_eq!(states(&fleet).await, [("open".to_owned(), all)]);
    let discarded = dlq(&fleet, &[&discard[..], &["--yes"]].concat());
    assert_eq!((&discarded["letters"], &discarded["applied"]), (&json!(1), &json!(true)));
    let book = "SELECT who, command, project, plan->>'why', outcome FROM audit ORDER BY id";
    let rows = sqlx::query(book).fetch_all(&fleet.stack.pool).await.unwrap();
    let entry: Vec<&str> = (0..5).map(|i| rows.last().unwrap().get(i)).collect();
    assert_eq!(entry, ["the operator", "dlq discard", project, "a test", "done"]);

    // The others go through again, by a run that is killed and one that does the rest.
    registry.learn();
    let redrive = ["redrive", "--project", project, "--yes", "--output", "json"];
    let slow = [&["dlq"], &redrive[..], &["--rate", "2"]].concat();
    let mut killed = fleet.command(&slow).stdout(Stdio::null()).spawn().unwrap();
    eventually("some have come", || async { fleet.counted().await >= 2 }).await;
    killed.kill().unwrap();
    killed.wait().unwrap();
    let before = fleet.counted().await;
    assert!(before < all - 1, "the run was over before it was killed");
    let report = dlq(&fleet, &redrive[..4]);
    assert_eq!((&report["applied"], &report["result"]["refused"]), (&json!(true), &json!(0)), "{report}");
    let expected = [("counted".to_owned(), all - 1), ("discarded".to_owned(), 1)];
    eventually("all others count", || async { states(&fleet).await == expected }).await;
    assert_eq!(dlq(&fleet, &redrive[..4])["letters"], 0);
    assert_eq!(fleet.counted().await, all - 1);
    eventually("and are in the archive", || async { archived(&fleet).await == EVENTS as u64 - 1 }).await;

    // The gateway remembers the first try, and what it knew then is true now.
    let gone = dlq(&fleet, &["show", &at, "--project", project]);
    assert_eq!((&gone["state"], &gone["why"]), (&json!("discarded"), &json!("a test")));
    let id = gone["value"]["eventId"].as_str().unwrap();
    let counted = ids.iter().find(|other| *other != id).unwrap();
    assert_eq!(send(&fleet, counted).await, 409);
    assert_eq!(gone["value"]["properties"], json!({"page": "/"}), "its schema is known by now");

    // All of them at once, ordinary copies and forgotten redrives, change nothing any more.
    sqlx::query("UPDATE dead_letters SET state = 'open', sent_attempts = NULL WHERE state = 'counted'")
        .execute(&fleet.stack.pool)
        .await
        .unwrap();
    let report = dlq(&fleet, &redrive[..4]);
    assert_eq!(report["result"]["duplicate"], json!(EVENTS - 1), "{report}");
    fleet.stream_has_passed_the_log().await;
    assert_eq!(fleet.counted().await, all - 1);
    fleet.archive_has_passed_the_log().await;
    assert_eq!(archived(&fleet).await, EVENTS as u64 - 1);
}

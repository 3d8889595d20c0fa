//! A project is deleted while events of it and of another one come in: the services go on with the other one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::Fleet;
use tidemill_testkit::{Stack, eventually, eventually_within};
use tokio_util::sync::CancellationToken;

/// How long the other project may stand still.
const STILL: Duration = Duration::from_secs(15);
/// Warnings and errors of a service, from the deletion on; a flood has hundreds.
const LINES: usize = 10;

/// Sends batches until it is stopped, or nobody takes them any more; gives how many events were accepted.
async fn send(url: String, key: String, stop: CancellationToken) -> usize {
    let (client, mut accepted) = (reqwest::Client::new(), 0);
    for batch in 0.. {
        let event =
            |i: usize| json!({"eventId": format!("e-{batch}-{i}"), "eventType": "view", "userId": format!("u-{i}")});
        let events: Vec<Value> = (0..50).map(event).collect();
        let answer = client.post(format!("{url}/v1/events")).bearer_auth(&key).json(&events).send().await.unwrap();
        if answer.status().as_u16() == 401 {
            break;
        }
        let answer: Value = answer.json().await.unwrap();
        let results = answer["results"].as_array().into_iter().flatten();
        accepted += results.filter(|result| result["status"] == "accepted").count();
        if stop.is_cancelled() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    accepted
}

async fn counted(fleet: &Fleet, project: &str) -> i64 {
    let sql = "SELECT coalesce(sum(count), 0)::bigint FROM metric_rollups
               WHERE project = $1 AND metric_name = 'events' AND dimension_key = '' AND granularity = '1d'";
    sqlx::query_scalar(sql).bind(project).fetch_one(&fleet.stack.pool).await.unwrap()
}

/// Rows of a project that workers write, and of its topic in the ledger.
async fn rows(fleet: &Fleet, project: &str) -> i64 {
    let sql = "SELECT (SELECT count(*) FROM metric_rollups WHERE project = $1) + (SELECT count(*) FROM users WHERE project = $1)
                    + (SELECT count(*) FROM sessions WHERE project = $1) + (SELECT count(*) FROM session_keys WHERE project = $1)
                    + (SELECT count(*) FROM ledger WHERE topic = 'events.' || $1)";
    sqlx::query_scalar(sql).bind(project).fetch_one(&fleet.stack.pool).await.unwrap()
}

async fn tidemill(fleet: &Fleet, arguments: &[&str]) -> Value {
    let mut command = fleet.command(&[arguments, &["--output", "json", "--yes"]].concat());
    command.stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projects_end_is_no_business_of_the_others() {
    let stack = Stack::new().await;
    let (shop, gone) = (stack.project.clone(), format!("{}-gone", stack.project));
    let both = format!("^events\\.{shop}(-gone)?$");
    let settings = [("TIDEMILL_STREAM__TOPICS", &*both), ("TIDEMILL_ARCHIVER__TOPICS", &both)];
    let mut fleet = Fleet::start_with(stack, &settings).await;
    let made = tidemill(&fleet, &["projects", "create", &gone, "--size", "small", "--replication", "1"]).await;
    let (stop, url) = (CancellationToken::new(), fleet.url("ingest"));
    let key = made["keys"][0]["key"].as_str().unwrap().to_owned();
    let ours = tokio::spawn(send(url.clone(), fleet.write_key.clone(), stop.clone()));
    let theirs = tokio::spawn(send(url, key, stop.clone()));
    eventually("both are counted", || async {
        counted(&fleet, &shop).await > 500 && counted(&fleet, &gone).await > 500
    })
    .await;

    let lines = fleet.warnings();
    let delete = ["projects", "delete", &gone];
    let deleting = tidemill(&fleet, &delete);
    let watching = async {
        let (mut before, mut since, mut longest) = (counted(&fleet, &shop).await, Instant::now(), Duration::ZERO);
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(25) {
            let now = counted(&fleet, &shop).await;
            if now > before {
                (before, since) = (now, Instant::now());
            }
            longest = longest.max(since.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        longest
    };
    let (deleted, longest) = tokio::join!(deleting, watching);
    assert_eq!(deleted["applied"], true);
    assert!(deleted["rows"].as_u64().unwrap() > 0, "{deleted}");
    println!("the other project stood still for {longest:?} at most");
    assert!(longest < STILL, "the other project stood still for {longest:?}");
    theirs.await.unwrap(); // its key was refused
    stop.cancel();
    let sent = ours.await.unwrap();
    for name in ["stream", "archiver"] {
        fleet.ready(name).await;
        let new = fleet.warnings()[name] - lines[name];
        println!("{name}: {new} warnings and errors");
        assert!(new < LINES, "{name} has said {new} things");
    }
    assert_eq!(rows(&fleet, &gone).await, 0, "and nobody has put anything there again");
    eventually_within(Duration::from_secs(60), "all of the other project is counted and archived", || async {
        let archived = fleet.sql("SELECT count(*) AS n FROM events").await[0]["n"].as_i64();
        counted(&fleet, &shop).await >= sent as i64 && archived >= Some(sent as i64)
    })
    .await;
    assert!(fleet.all_alive(), "no process ended");
}

//! `tidemill routes`, on the real components.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Command, Output};

use serde_json::{Value, json};
use support::Fleet;
use tidemill_testkit::{Stack, eventually};

fn run(mut command: Command) -> Output {
    command.output().unwrap()
}

fn result(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_gets_a_topic_of_its_own_while_everything_runs() {
    let fleet = Fleet::start(Stack::new().await).await;
    let project = fleet.stack.project.clone();
    let command = |arguments: &[&str]| run(fleet.command(&[&["routes"], arguments, &["--output", "json"]].concat()));
    let create = |name: &str, event_type: &str, more: &[&str]| {
        command(&[&["create", &project, "--name", name, "--type", event_type], more].concat())
    };
    let error = |output: &Output| String::from_utf8(output.stderr.clone()).unwrap();
    let client = reqwest::Client::new();
    let send = async |from: usize, to: usize| {
        let event = |i: usize| json!({"eventId": format!("e-{i}"), "eventType": if i.is_multiple_of(2) { "click" } else { "view" }, "userId": "u"});
        let events: Vec<Value> = (from..to).map(event).collect();
        let url = format!("{}/v1/events", fleet.url("ingest"));
        let answer = client.post(url).bearer_auth(&fleet.write_key).json(&events).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 202);
    };
    send(0, 100).await;
    assert!(error(&create("Clicks", "click", &["--yes"])).contains("a-z, 0-9 and '-'"));
    assert!(
        error(&run(fleet.command(&["routes", "create", "nobody", "--name", "a", "--type", "b", "--yes"])))
            .contains("tidemill projects list")
    );
    assert_eq!(result(&create("clicks", "click", &["--dry-run"]))["applied"], false);
    assert_eq!(create("clicks", "click", &[]).status.code(), Some(3), "nobody was asked");
    assert_eq!(result(&command(&["list"])), json!([]), "nothing was changed");

    let made = result(&create("clicks", "click", &["--yes"]));
    let topic = format!("events.{project}.1-clicks");
    assert_eq!((&made["applied"], &made["topic"]), (&true.into(), &json!(topic)));
    let listed = result(&command(&["list", "--project", &project]));
    assert_eq!((&listed[0]["topic"], &listed[0]["event_types"]), (&json!(topic), &json!(["click"])));
    assert!(error(&create("clicks", "click", &["--yes"])).contains("choose another name"));
    assert!(error(&create("others", "click", &["--yes"])).contains("go to the route clicks already"));
    let sql = "SELECT plan->>'topic' || ' ' || outcome FROM audit WHERE command = 'routes create'";
    let audited: Vec<String> = sqlx::query_scalar(sql).fetch_all(&fleet.stack.pool).await.unwrap();
    assert_eq!(audited, [format!("{topic} done")]);

    send(50, 200).await; // some of it once more
    eventually("all is in SQL, once", || async {
        let rows = fleet.sql("SELECT count(*) AS n, count(DISTINCT event_id) AS ids FROM events").await;
        assert!(rows[0]["n"] == rows[0]["ids"], "{rows:?}");
        rows[0]["n"] == 200
    })
    .await;
    eventually("the route's partitions are archived and counted, and 'lag' has them", || async {
        let lag = result(&run(fleet.command(&["lag", "--project", &project, "--output", "json"])));
        let of_route = lag.as_array().unwrap().iter().filter(|row| row["topic"] == json!(topic));
        let caught_up: Vec<bool> = of_route.map(|row| row["lag"] == 0 && row["end"].as_i64() > Some(0)).collect();
        caught_up.len() == 8 && caught_up.iter().filter(|done| **done).count() >= 6
    })
    .await;
    let plan = result(&run(fleet.command(&["topics", "plan", "--replication", "1", "--output", "json"])));
    let of_route: Vec<&Value> =
        plan["plan"].as_array().unwrap().iter().filter(|step| step["topic"] == json!(topic)).collect();
    assert!(of_route.iter().all(|step| step["action"] != "create"), "it is declared, and there: {of_route:?}");
    let deleted = result(&run(fleet.command(&["projects", "delete", &project, "--yes", "--output", "json"])));
    assert!(deleted["topics"].as_array().unwrap().iter().any(|deleted| deleted["name"] == json!(topic)), "{deleted}");
}

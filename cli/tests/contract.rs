//! The event contract, read back and written by clients that share no code with us.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::process::Command;

use serde_json::{Value, json};
use support::Fleet;
use tidemill_common::home::home_partition;
use tidemill_common::names::events_topic;
use tidemill_testkit::{PARTITIONS, Stack, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn independent_clients_read_and_write_our_records() {
    let fleet = Fleet::start(Stack::new().await).await;
    let body = r#"{"eventId": "über-1", "eventType": "purchase", "timestamp": "2024-05-01T10:00:00.123456Z",
        "userId": "u-1", "sessionId": "s-1", "eventAction": "buy", "properties": {"price": 12.30, "items": ["a"]}}"#;
    let sent: Value = serde_json::from_str(body).unwrap();
    let client = reqwest::Client::new();
    let post = client.post(format!("{}/v1/events", fleet.url("ingest"))).bearer_auth(&fleet.write_key);
    let answer = post.header("content-type", "application/json").body(body).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    let answer: Value = answer.json().await.unwrap();

    // A native producer, with Kafka's own partitioner.
    let native = json!({
        "eventId": "native-1", "eventType": "view", "timestamp": 1_714_557_600_000_000_i64, "receivedAt": null,
        "userId": "u-1", "sessionId": "s-1", "eventAction": null, "properties": "{\"page\":\"home\"}",
        "clientAddress": null, "userAgent": null,
    });
    let python =
        std::env::var("TIDEMILL_PYTHON").expect("TIDEMILL_PYTHON; dev/install makes it, dev/services env names it");
    let topic = events_topic(&fleet.stack.project);
    let connections = &fleet.stack.connections;
    let output = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/native_client.py"))
        .args([&connections.kafka.brokers, &connections.registry_url, &topic, &native.to_string()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 2);
    for record in &records {
        let key = record["key"].as_str().unwrap();
        assert_eq!((&record["magic"], &record["leftover"]), (&json!(0), &json!(0)));
        assert_eq!(record["event"]["eventId"], key, "the key is the eventId");
        let home = home_partition(key.as_bytes(), PARTITIONS);
        assert_eq!(record["partition"], home, "ours and theirs agree where {key} belongs");
    }
    let ours = records.iter().find(|record| record["key"] == "über-1").unwrap();
    let position = answer["position"].as_str().unwrap();
    assert!(position.starts_with(&format!("{}:", ours["partition"])), "{position}");
    let event = &ours["event"];
    for field in ["eventType", "userId", "sessionId", "eventAction"] {
        assert_eq!(event[field], sent[field], "{field}");
    }
    // fastavro gives timestamp-micros as a time.
    assert_eq!(event["timestamp"], "2024-05-01 10:00:00.123456+00:00");
    assert!(event["receivedAt"].is_string());
    let properties: Value = serde_json::from_str(event["properties"].as_str().unwrap()).unwrap();
    assert_eq!(properties, sent["properties"]);
    assert!(event["properties"].as_str().unwrap().contains("12.30"), "numbers keep their text");

    eventually("both are counted", || async { fleet.counted().await == 2 }).await;
    eventually("both are archived", || async { fleet.sql("SELECT count(*) AS n FROM events").await[0]["n"] == 2 })
        .await;
}

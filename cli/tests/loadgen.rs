//! The load generator against a gateway that does as it is told.
#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::process::Command;

/// What the gateway has seen: how often each event came, and its body.
#[derive(Clone, Default)]
struct Gateway {
    seen: Arc<Mutex<HashMap<String, (u32, Value)>>>,
    requests: Arc<Mutex<u32>>,
}

/// The first request finds it overloaded; then each event whose id starts with a digit below 2 (in its random
/// part) has to come twice before it is accepted.
async fn events(State(gateway): State<Gateway>, Json(batch): Json<Vec<Value>>) -> Response {
    let mut requests = gateway.requests.lock().unwrap();
    *requests += 1;
    if *requests == 1 {
        return (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "0")]).into_response();
    }
    let mut seen = gateway.seen.lock().unwrap();
    let mut answer = |(index, event): (usize, &Value)| {
        let id = event["eventId"].as_str().unwrap();
        let (times, body) = seen.entry(id.to_owned()).or_insert((0, event.clone()));
        *times += 1;
        assert_eq!(body, event, "the same id has the same body");
        let delayed = id.starts_with("run-0") || id.starts_with("run-1");
        let status = match *times - u32::from(delayed) {
            0 => "retry",
            1 => "accepted",
            _ => "duplicate",
        };
        json!({ "index": index, "eventId": id, "status": status, "position": (status != "retry").then_some("0:1") })
    };
    let results: Vec<Value> = batch.iter().enumerate().map(&mut answer).collect();
    (StatusCode::ACCEPTED, [("retry-after", "0")], Json(json!({ "results": results }))).into_response()
}

#[tokio::test]
async fn every_event_is_sent_until_it_has_its_verdict() {
    let gateway = Gateway::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().route("/v1/events", post(events)).with_state(gateway.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let journal = std::env::temp_dir().join(format!("loadgen-{}.ndjson", uuid::Uuid::new_v4()));

    let output = Command::new(env!("CARGO_BIN_EXE_tidemill"))
        .args(["loadgen", "--url", &url, "--key", "k", "--run", "run", "--rate", "0", "--events", "1000"])
        .args(["--batch", "50", "--duplicates", "0.1", "--journal"])
        .arg(&journal)
        .stderr(Stdio::inherit())
        .output()
        .await
        .unwrap();
    assert!(output.status.success());
    let out = String::from_utf8(output.stdout).unwrap();
    let summary: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let count = |name: &str| summary[name].as_u64().unwrap();
    assert_eq!((count("events"), count("accepted"), count("invalid"), count("failed")), (1000, 1000, 0, 0));
    assert!((50..200).contains(&count("duplicates")), "{summary}");
    assert_eq!(count("sent"), count("accepted") + count("duplicates"));
    assert!(count("retries") > 1);

    let lines = std::fs::read_to_string(&journal).unwrap();
    std::fs::remove_file(&journal).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: HashSet<&str> = lines.iter().map(|line| line["eventId"].as_str().unwrap()).collect();
    assert_eq!((lines.len(), ids.len()), (1000, 1000), "one line per event");
    assert!(lines.iter().all(|line| line["status"] == "accepted" && line["position"] == "0:1"));
    let copies = lines.iter().filter(|line| line["copy"] == "duplicate").count();
    assert_eq!(copies as u64, count("duplicates"));
    let seen = gateway.seen.lock().unwrap();
    for line in &lines {
        let body = &seen[line["eventId"].as_str().unwrap()].1;
        for field in ["eventType", "userId", "sessionId", "timestamp"] {
            assert_eq!(line[field], body[field]);
        }
    }
}

#[tokio::test]
async fn a_refusal_ends_the_run_with_the_gateways_words() {
    let refuse = || async { (StatusCode::UNAUTHORIZED, Json(json!({ "detail": "this API key is unknown" }))) };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().route("/v1/events", post(refuse));
    tokio::spawn(async move { axum::serve(listener, app).await });
    let arguments = ["loadgen", "--url", &url, "--key", "k", "--events", "10"];
    let output = Command::new(env!("CARGO_BIN_EXE_tidemill")).args(arguments).output().await.unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("this API key is unknown"), "{error}");
}

//! Segment's protocol, with a published client library of theirs and by hand.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::{Gateway, answer, create_key};
use tokio::process::Command;

const MESSAGES: [&str; 7] = ["m-alias", "m-anonymous", "m-group", "m-identify", "m-page", "m-screen", "m-track"];

async fn library(gateway: &Gateway, key: &str, options: &[&str]) -> std::process::Output {
    let python =
        std::env::var("TIDEMILL_PYTHON").expect("TIDEMILL_PYTHON; dev/install makes it, dev/services env names it");
    Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/segment_client.py"))
        .args([&format!("http://{}", gateway.address), key])
        .args(options)
        .output()
        .await
        .unwrap()
}

async fn in_log(gateway: &Gateway) -> Vec<String> {
    let records = gateway.stack.records(&format!("events.{}", gateway.stack.project)).await;
    let mut ids: Vec<String> =
        records.iter().map(|record| String::from_utf8(record.key().unwrap().to_vec()).unwrap()).collect();
    ids.sort();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn the_published_python_library_sends_its_messages() {
    let gateway = Gateway::start().await;
    for options in [&[][..], &["gzip"][..]] {
        // The second time no id is new: nothing more gets into the log.
        let output = library(&gateway, &gateway.key, options).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(in_log(&gateway).await, MESSAGES);
    }
    let refused = library(&gateway, "nobodys", &[]).await;
    assert!(!refused.status.success(), "the library is told that its key is refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_become_events() {
    let gateway = Gateway::start().await;
    let time = "2026-01-31T12:00:00.000Z";
    let batch = json!({"sentAt": time, "writeKey": "ignored", "batch": [
        {"type": "track", "messageId": "s-1", "event": "Order Completed", "userId": "u-1", "timestamp": time,
            "properties": {"price": 1}, "context": {"sessionId": "x"}},
        {"type": "page", "messageId": "s-2", "name": "Home", "anonymousId": "a-1", "timestamp": time},
        {"type": "dance", "messageId": "s-3"},
    ]});
    let send = |path: &str, body: &Value| answer(gateway.to(path).basic_auth(&gateway.key, Some("")).json(body));
    let first = send("/v1/batch", &batch).await;
    assert_eq!((first.status, &first.body["success"]), (200, &json!(true)), "{first:?}");
    let statuses = |body: &Value| -> Vec<String> {
        body["results"].as_array().unwrap().iter().map(|item| item["status"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(statuses(&first.body), ["accepted", "accepted", "invalid"]);
    assert_eq!(statuses(&send("/v1/batch", &batch).await.body), ["duplicate", "duplicate", "invalid"]);
    let same = json!([
        {"eventId": "s-1", "eventType": "Order Completed", "userId": "u-1", "timestamp": time, "sessionId": "x",
            "properties": {"price": 1}},
        {"eventId": "s-2", "eventType": "page", "userId": "a-1", "timestamp": time, "properties": {"page": "Home"}},
    ]);
    assert_eq!(gateway.post(&same).await.statuses(), ["duplicate", "duplicate"], "they are the same events");
    for call in ["track", "page", "screen", "identify", "group", "alias"] {
        let message = json!({"messageId": call, "event": "t", "name": "n", "userId": "u"});
        assert_eq!(statuses(&send(&format!("/v1/{call}"), &message).await.body), ["accepted"], "{call}");
    }
    let metrics = gateway.get("/metrics").await.unwrap().text().await.unwrap();
    assert!(metrics.contains("analytics_api_requests_total{endpoint=\"/v1/batch\",status=\"200\"}"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_batch_is_refused_whole() {
    let gateway = Gateway::start().await;
    let send = |body: &'static str| {
        let request = gateway.to("/v1/batch").basic_auth(&gateway.key, Some(""));
        answer(request.header("content-type", "application/json").body(body))
    };
    for body in ["", "[]", "{}", "{\"batch\":{}}", "{\"batch\":[]}", "{\"batch\":[{}}"] {
        let refused = send(body).await;
        assert_eq!((refused.status, refused.problem()), (400, "bad-body"), "{body}");
    }
    let ndjson = gateway.to("/v1/batch").bearer_auth(&gateway.key).header("content-type", "application/x-ndjson");
    assert_eq!(answer(ndjson.body("{}")).await.status, 415);
    assert_eq!(answer(gateway.to("/v1/batch").json(&json!({"batch": [{}]}))).await.status, 401);
    assert_eq!(answer(gateway.to("/v1/batch").basic_auth("nobodys", Some("")).body("{}")).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_not_wholly_decided_is_to_be_sent_again() {
    let gateway = Gateway::start().await;
    let message = |id: &str| json!({"type": "identify", "messageId": id, "userId": "u"});
    gateway.set_claim(&gateway.stack.project, "open", "P:another", 30_000).await;
    let open = answer(
        gateway.to("/v1/batch").bearer_auth(&gateway.key).json(&json!({"batch": [message("new"), message("open")]})),
    )
    .await;
    assert_eq!((open.status, open.problem()), (503, "retry"));
    assert!(open.retry_after.is_some());
    assert_eq!(open.body["results"][0]["status"], "accepted", "what was decided is told");

    let slow = create_key(&gateway.stack, &gateway.stack.project, &["write"], Some(1)).await;
    let batch: Vec<Value> = (0..20).map(|i| message(&format!("limited-{i}"))).collect();
    let limited = answer(gateway.to("/v1/batch").bearer_auth(&slow).json(&json!({"batch": batch}))).await;
    assert_eq!((limited.status, limited.problem()), (429, "limited"));
    assert!(limited.retry_after.is_some());
}

//! `Idempotency-Key`: the first answer again.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::{Answer, Gateway, answer, event};

async fn send(gateway: &Gateway, api_key: &str, key: &str, body: &Value) -> Answer {
    answer(gateway.anonymous().bearer_auth(api_key).header("idempotency-key", key).json(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_sent_again_gets_its_first_answer() {
    let gateway = Gateway::start().await;
    let one = send(&gateway, &gateway.key, "k-1", &event("e-1")).await;
    assert_eq!(one.status, 202, "{one:?}");
    let again = send(&gateway, &gateway.key, "k-1", &event("e-1")).await;
    assert_eq!((again.status, &again.body), (202, &one.body), "accepted, not duplicate");
    assert_eq!(gateway.post(&event("e-1")).await.problem(), "duplicate", "without the key it is a copy");

    let body = json!([event("e-2"), {"eventId": "e-3"}, event("e-1"), 7]);
    let several = send(&gateway, &gateway.key, "k-2", &body).await;
    assert_eq!(several.statuses(), ["accepted", "invalid", "duplicate", "invalid"]);
    let again = send(&gateway, &gateway.key, "k-2", &body).await;
    assert_eq!(again.body, several.body);
    assert_eq!(gateway.in_log(&gateway.stack.project, "e-2").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_request_with_the_same_key_is_refused() {
    let gateway = Gateway::start().await;
    assert_eq!(send(&gateway, &gateway.key, "k", &event("e-1")).await.status, 202);
    let other = send(&gateway, &gateway.key, "k", &event("e-2")).await;
    assert_eq!((other.status, other.problem()), (422, "idempotency-key-reused"));
    assert_eq!(gateway.in_log(&gateway.stack.project, "e-2").await, 0);
    let long = send(&gateway, &gateway.key, &"k".repeat(256), &event("e-2")).await;
    assert_eq!((long.status, long.problem()), (400, "bad-header"));

    let theirs = format!("{}-2", gateway.stack.project);
    gateway.stack.create_project(&theirs).await;
    let key = support::create_key(&gateway.stack, &theirs, &["write"], None).await;
    assert_eq!(send(&gateway, &key, "k", &event("e-2")).await.status, 202, "projects have keys of their own");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_to_retry_is_tried_anew() {
    let gateway = Gateway::start().await;
    gateway.set_claim(&gateway.stack.project, "e-2", "P:another", 60_000).await;
    let body = json!([event("e-1"), event("e-2")]);
    let first = send(&gateway, &gateway.key, "k", &body).await;
    assert_eq!(first.statuses(), ["accepted", "retry"]);
    gateway.set_claim(&gateway.stack.project, "e-2", "P:another", 1).await;
    tidemill_testkit::eventually("the claim runs out", || async {
        gateway.claim(&gateway.stack.project, "e-2").await.is_none()
    })
    .await;
    let second = send(&gateway, &gateway.key, "k", &body).await;
    assert_eq!(second.statuses(), ["accepted", "accepted"]);
    assert_eq!(second.body["results"][0], first.body["results"][0]);
    assert_eq!(send(&gateway, &gateway.key, "k", &body).await.body, second.body, "now it is final");
}

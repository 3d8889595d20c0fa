//! What is refused, with which status and problem, and that it goes nowhere.
#![allow(clippy::unwrap_used)]

mod support;

use reqwest::RequestBuilder;
use serde_json::{Value, json};
use support::{Answer, Gateway, answer, create_key, event};
use tidemill_testkit::{Stack, eventually, eventually_within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn refused(answer: &Answer, status: u16, problem: &str, field: &str) {
    assert_eq!((answer.status, answer.problem()), (status, problem), "{answer:?}");
    assert_eq!(answer.body["field"], field, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_none_name_the_field() {
    let gateway = Gateway::start().await;
    let long = |n: usize| "x".repeat(n);
    let at = |hours: i64| (chrono::Utc::now() + chrono::TimeDelta::hours(hours)).to_rfc3339();
    let table = [
        (json!({"eventType": "t"}), "eventId"),
        (json!({"eventId": null, "eventType": "t"}), "eventId"),
        (json!({"eventId": 7, "eventType": "t"}), "eventId"),
        (json!({"eventId": "", "eventType": "t"}), "eventId"),
        (json!({"eventId": long(129), "eventType": "t"}), "eventId"),
        (json!({"eventId": "e\u{0}", "eventType": "t"}), "eventId"),
        (json!({"eventId": "e"}), "eventType"),
        (json!({"eventId": "e", "eventType": {"a": 1}}), "eventType"),
        (json!({"eventId": "e", "eventType": long(101)}), "eventType"),
        (json!({"eventId": "e", "eventType": "t", "timestamp": at(48)}), "timestamp"),
        (json!({"eventId": "e", "eventType": "t", "timestamp": "1999-12-31T23:59:59Z"}), "timestamp"),
        (json!({"eventId": "e", "eventType": "t", "timestamp": "2026-01-31"}), "timestamp"),
        (json!({"eventId": "e", "eventType": "t", "timestamp": 1_769_860_800}), "timestamp"),
        (json!({"eventId": "e", "eventType": "t", "userId": 7}), "userId"),
        (json!({"eventId": "e", "eventType": "t", "userId": long(257)}), "userId"),
        (json!({"eventId": "e", "eventType": "t", "sessionId": ["s"]}), "sessionId"),
        (json!({"eventId": "e", "eventType": "t", "eventAction": false}), "eventAction"),
        (json!({"eventId": "e", "eventType": "t", "properties": "{}"}), "properties"),
        (json!({"eventId": "e", "eventType": "t", "properties": [1]}), "properties"),
        (json!({"eventId": "e", "eventType": "t", "properties": {"a": long(900_000)}}), "properties"),
        (json!("an event"), "event"),
    ];
    for (body, field) in table {
        refused(&gateway.post(&body).await, 422, "invalid-event", field);
        let several = gateway.post(&json!([body])).await;
        assert_eq!(several.statuses(), ["invalid"]);
        assert_eq!(several.body["results"][0]["error"]["field"], field, "{several:?}");
    }
    for body in [json!({"eventId": long(128), "eventType": long(100)}), event("soon")] {
        assert_eq!(gateway.post(&body).await.status, 202);
    }
    assert_eq!(gateway.stack.records(&format!("events.{}", gateway.stack.project)).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_cannot_be_read_are_refused_whole() {
    let gateway = Gateway::with(Stack::new().await, |config, _| config.max_events = 3).await;
    let json = |body: &'static str| gateway.request().header("content-type", "application/json").body(body);
    for broken in ["", "{", "{\"eventId\":\"e\",}", "[{}", "{} {}", "\u{7f}", "[]"] {
        refused(&answer(json(broken)).await, 400, "bad-body", "body");
    }
    let many = json!([event("a"), event("b"), event("c"), event("d")]);
    refused(&gateway.post(&many).await, 413, "too-large", "body");

    for content_type in ["text/csv", "application/x-www-form-urlencoded", "application/jsonp"] {
        let request = gateway.request().header("content-type", content_type).body("{}");
        let answer = answer(request).await;
        refused(&answer, 415, "unsupported-media-type", "Content-Type");
        assert!(answer.body["detail"].as_str().unwrap().contains("application/json"), "it names what is accepted");
    }
    let compressed = answer(json("{}").header("content-encoding", "compress")).await;
    refused(&compressed, 415, "unsupported-media-type", "Content-Encoding");
    let untyped = gateway.request().body(event("untyped").to_string());
    assert_eq!(answer(untyped).await.status, 202, "without a content type, it is taken for JSON");
    assert_eq!(gateway.stack.records(&format!("events.{}", gateway.stack.project)).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_refused_however_it_is_sent() {
    let gateway = Gateway::start().await;
    let padded = |bytes: usize| {
        let mut body = event("big").to_string();
        body.extend(std::iter::repeat_n(' ', bytes - body.len()));
        body
    };
    let send = |body: reqwest::Body| answer(gateway.request().header("content-type", "application/json").body(body));
    const LIMIT: usize = 5 * 1024 * 1024;
    refused(&send(padded(LIMIT + 1).into()).await, 413, "too-large", "body");
    refused(&chunked(&gateway, &padded(LIMIT + 1)).await, 413, "too-large", "body");
    let much = chunked(&gateway, &padded(4 * LIMIT)).await;
    refused(&much, 413, "too-large", "body"); // and not a connection broken in the middle of it
    assert_eq!(send(padded(LIMIT).into()).await.status, 202);
}

/// Sends a body without announcing its length.
async fn chunked(gateway: &Gateway, body: &str) -> Answer {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
        gateway.key
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
    Answer {
        status: head[9..12].parse().unwrap(),
        retry_after: None,
        content_type: header("content-type: "),
        body: serde_json::from_str(body).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_are_known_before_their_body_is_read() {
    let gateway = Gateway::start().await;
    let stack = &gateway.stack;
    let body = |request: RequestBuilder| request.json(&event(&uuid::Uuid::new_v4().to_string()));
    let other = create_key(stack, &stack.project, &["write"], None).await;
    let wrong = format!("{}{}", &gateway.key[..11], &other[11..]);
    for key in [&wrong, "tm_", "nonsense", "tm_ünknown-key-of-some-length", ""] {
        refused(&answer(body(gateway.anonymous()).bearer_auth(key)).await, 401, "unauthorized", "Authorization");
    }
    refused(&answer(body(gateway.anonymous())).await, 401, "unauthorized", "Authorization");
    let reader = create_key(stack, &stack.project, &["read"], None).await;
    refused(&answer(body(gateway.anonymous()).bearer_auth(&reader)).await, 403, "forbidden", "Authorization");

    assert_eq!(answer(body(gateway.anonymous()).header("x-api-key", &gateway.key)).await.status, 202);
    let in_url = |key: &str| body(gateway.to(&format!("/collect?api_key={key}")));
    assert_eq!(answer(in_url(&gateway.key)).await.status, 202);
    let both = create_key(stack, &stack.project, &["write", "read"], None).await;
    refused(&answer(in_url(&both)).await, 403, "forbidden", "Authorization");

    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = "POST /v1/events HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer tm_nobody-knows\r\n\
                Content-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 401", "the body was not asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_and_expired_keys_stop_working_within_five_seconds() {
    let gateway = Gateway::start().await;
    let stack = &gateway.stack;
    for change in ["revoked_at = now()", "expires_at = now()"] {
        let key = create_key(stack, &stack.project, &["write"], None).await;
        let number = std::sync::atomic::AtomicU32::new(0);
        let send = || {
            let id = format!("{change}-{}", number.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
            let key = &key;
            let gateway = &gateway;
            async move { gateway.post_as(key, &event(&id)).await.status }
        };
        assert_eq!(send().await, 202);
        let sql = format!("UPDATE api_keys SET {change} WHERE prefix = $1");
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(&key[..11]).execute(&stack.pool).await.unwrap();
        let limit = std::time::Duration::from_secs(5);
        eventually_within(limit, change, || async { send().await == 401 }).await;
    }
    let unissued = "tm_12345678901234567890";
    assert_eq!(gateway.post_as(unissued, &event("e")).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_project_takes_no_events_until_it_is_resumed() {
    let gateway = Gateway::start().await;
    let stack = &gateway.stack;
    let key = create_key(stack, &stack.project, &["write"], None).await;
    let number = std::sync::atomic::AtomicU32::new(0);
    let send = || {
        let id = format!("e-{}", number.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let (key, gateway) = (&key, &gateway);
        async move { gateway.post_as(key, &event(&id)).await }
    };
    assert_eq!(send().await.status, 202);
    for (to, status, problem) in [("now()", 403, "project-suspended"), ("NULL", 202, "")] {
        let sql = format!("UPDATE projects SET suspended_at = {to} WHERE id = $1");
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(&stack.project).execute(&stack.pool).await.unwrap();
        let limit = std::time::Duration::from_secs(5);
        eventually_within(limit, to, || async {
            let answer = send().await;
            answer.status == status && (problem.is_empty() || answer.problem() == problem)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_counts_events() {
    let gateway = Gateway::start().await;
    let stack = &gateway.stack;
    let key = create_key(stack, &stack.project, &["write"], Some(5)).await;
    let events: Vec<Value> = (0..8).map(|i| event(&format!("e-{i}"))).collect();
    let several = gateway.post_as(&key, &json!(events)).await;
    let expected = ["accepted", "accepted", "accepted", "accepted", "accepted", "limited", "limited", "limited"];
    assert_eq!(several.statuses(), expected);
    assert_eq!(several.body["results"][7]["error"]["type"], "urn:tidemill:problem:limited");
    assert_eq!(several.retry_after, Some(1));
    let one = gateway.post_as(&key, &event("e-8")).await;
    // A machine that stands still for long enough may have refilled the limit.
    assert!(one.status == 202 || (one.problem() == "limited" && one.status == 429), "{one:?}");
    assert!(one.status == 202 || one.retry_after == Some(1), "{one:?}");
    eventually("the limit fills up again", || async { gateway.post_as(&key, &event("e-7")).await.status == 202 }).await;
}

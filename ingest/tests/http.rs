//! The gateway as an HTTP server.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::{Gateway, answer, event};
use tidemill_testkit::Stack;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_ends_its_head_is_dropped() {
    let gateway = Gateway::start().await;
    let mut slow = TcpStream::connect(gateway.address).await.unwrap();
    let started = Instant::now();
    slow.write_all(b"POST /v1/events HTTP/1.1\r\nHost: t\r\nX-Slow: ").await.unwrap();
    assert_eq!(gateway.post(&event("e-1")).await.status, 202, "others are served meanwhile");
    // A byte now and then does not keep it alive.
    let (mut reader, mut writer) = slow.into_split();
    let drip = tokio::spawn(async move {
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    let end = tokio::time::timeout(Duration::from_secs(20), reader.read_to_end(&mut Vec::new())).await;
    assert!(end.is_ok(), "the connection is closed");
    assert!(started.elapsed() > Duration::from_secs(5), "closed for its slowness");
    drip.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_ends_its_body_is_told_so() {
    let gateway = Gateway::with(Stack::new().await, |config, _| config.body_timeout_ms = 500).await;
    let mut slow = TcpStream::connect(gateway.address).await.unwrap();
    let head =
        format!("POST /v1/events HTTP/1.1\r\nHost: t\r\nX-API-Key: {}\r\nContent-Length: 100\r\n\r\n{{", gateway.key);
    slow.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    tokio::time::timeout(support::QUICK, slow.read_exact(&mut status)).await.unwrap().unwrap();
    assert_eq!(&status, b"HTTP/1.1 408");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_at_once_is_told_to_come_back() {
    let gateway = Gateway::with(Stack::new().await, |config, _| {
        (config.max_requests, config.max_bytes_in_flight) = (1, 1_000);
    })
    .await;
    let large = answer(gateway.request().body(vec![b' '; 1_001])).await;
    assert_eq!((large.status, large.problem(), large.retry_after), (503, "overloaded", Some(1)));
    let mut slow = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!(
        "POST /collect HTTP/1.1\r\nHost: t\r\nX-API-Key: {}\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
        gateway.key
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    let mut go_on = [0; 12];
    slow.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100", "it takes the only place");
    let refused = gateway.post(&event("e-1")).await;
    assert_eq!((refused.status, refused.problem()), (503, "overloaded"));
    drop(slow);
    tidemill_testkit::eventually("the place is free again", || async {
        gateway.post(&event("e-2")).await.status == 202
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_callers_are_answered_at_once_take_no_place_and_can_go_on() {
    let gateway = Gateway::with(Stack::new().await, |config, _| {
        (config.max_requests, config.max_body_bytes) = (1, 10_000);
    })
    .await;
    for (key, sent, status) in [("nobodys", 1, "401"), (gateway.key.as_str(), 10_001, "413")] {
        let mut refused = TcpStream::connect(gateway.address).await.unwrap();
        let head = format!("POST /v1/events HTTP/1.1\r\nHost: t\r\nX-API-Key: {key}\r\nContent-Length: 20000\r\n\r\n");
        refused.write_all(format!("{head}{}", "x".repeat(sent)).as_bytes()).await.unwrap();
        assert_eq!(status_of_next(&mut refused).await, status, "before the rest of the body has come");
        let other = gateway.post(&event(&uuid::Uuid::new_v4().to_string())).await;
        assert_eq!(other.status, 202, "the only place is free though {status} is still sending");
        let rest = "x".repeat(20_000 - sent);
        refused.write_all(format!("{rest}GET /livez HTTP/1.1\r\nHost: t\r\n\r\n").as_bytes()).await.unwrap();
        assert_eq!(status_of_next(&mut refused).await, "200", "the connection of {status} serves its next request");
    }
}

/// Reads an answer with a body; gives its status.
async fn status_of_next(connection: &mut TcpStream) -> String {
    let (mut text, mut byte) = (String::new(), [0]);
    while !text.ends_with("\r\n\r\n") {
        connection.read_exact(&mut byte).await.unwrap();
        text.push(char::from(byte[0]));
    }
    let length = text.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    connection.read_exact(&mut vec![0; length.unwrap_or(0)]).await.unwrap();
    text[9..12].to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_health_and_metrics() {
    let gateway = Gateway::start().await;
    assert_eq!(gateway.post(&event("e-1")).await.status, 202);
    for path in ["/livez", "/readyz", "/health"] {
        assert_eq!(gateway.get(path).await.unwrap().status(), 200, "{path}");
    }
    let metrics = gateway.get("/metrics").await.unwrap().text().await.unwrap();
    for line in [
        "analytics_events_received_total{type=\"page_view\"}",
        "analytics_events_queued_total",
        "analytics_batch_size_histogram_bucket",
        "analytics_queue_depth",
        "analytics_api_requests_total{endpoint=\"/v1/events\",status=\"202\"}",
        "analytics_api_latency_seconds_bucket{endpoint=\"/v1/events\"",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
    assert_eq!(gateway.get("/v1/events").await.unwrap().status(), 405);
    assert_eq!(gateway.get("/nothing").await.unwrap().status(), 404);
}

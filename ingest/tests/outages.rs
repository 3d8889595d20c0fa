//! What goes on when something is down, and what never happens then.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use futures::future::join_all;
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use serde_json::json;
use support::{Gateway, PrivateRedis, Proxy, create_key, event};
use tidemill_ingest::Config;
use tidemill_testkit::{Stack, eventually, eventually_within};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread")]
async fn events_are_accepted_while_redis_is_dead() {
    let mut redis = PrivateRedis::start().await;
    let url = redis.url.clone();
    let gateway = Gateway::with(Stack::new().await, |_, connections| connections.redis_url = url).await;
    assert_eq!(gateway.post(&event("before")).await.status, 202);
    assert_eq!(gateway.post(&event("before")).await.problem(), "duplicate");
    redis.kill();
    for i in 0..30 {
        let answer = gateway.post(&json!([event(&format!("e-{i}")), event(&format!("f-{i}"))])).await;
        assert_eq!(answer.statuses(), ["accepted", "accepted"]);
    }
    assert_eq!(gateway.post(&event("before")).await.status, 202, "the workers' own dedupe will see to it");
    assert_eq!(gateway.in_log(&gateway.stack.project, "before").await, 2);
    // Gateways of other tests in this process say how theirs stand, by the same name.
    eventually("metrics say so", || async {
        gateway.post(&event("metrics")).await;
        let metrics = gateway.get("/metrics").await.unwrap().text().await.unwrap();
        metrics.contains("tidemill_breaker_open{component=\"redis\"} 1")
    })
    .await;
    eventually("health says so", || async {
        let health: serde_json::Value = gateway.get("/health").await.unwrap().json().await.unwrap();
        health["status"] == "degraded" && health["checks"]["redis"] != "ok"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_accepted_while_redis_is_full_or_hangs() {
    let redis = PrivateRedis::start().await;
    let url = redis.url.clone();
    let gateway = Gateway::with(Stack::new().await, |_, connections| connections.redis_url = url).await;
    redis.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(gateway.post(&event("full")).await.status, 202);
    redis.run(&["CONFIG", "SET", "maxmemory", "0"]).await;
    assert_eq!(gateway.post(&event("room again")).await.status, 202);
    redis.run(&["CLIENT", "PAUSE", "60000", "ALL"]).await;
    let started = Instant::now();
    assert_eq!(gateway.post(&event("hangs")).await.status, 202);
    assert!(started.elapsed() < support::QUICK, "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_accepted_while_redis_has_no_room_for_claims() {
    let redis = PrivateRedis::start().await;
    let url = redis.url.clone();
    let gateway = Gateway::with(Stack::new().await, |_, connections| connections.redis_url = url).await;
    redis.run(&["CONFIG", "SET", "maxmemory", "1mb"]).await; // less than an empty Redis takes
    redis.run(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    let events: Vec<_> = (0..2_000).map(|i| event(&format!("e-{i}"))).collect();
    for chunk in events.chunks(500) {
        let answer = gateway.post(&json!(chunk)).await;
        assert!(answer.statuses().iter().all(|status| *status == "accepted"), "{answer:?}");
    }
    let records = gateway.stack.records(&format!("events.{}", gateway.stack.project)).await;
    assert_eq!(records.len(), events.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_was_stopped_is_used_again_once_it_goes_on() {
    let redis = PrivateRedis::start().await;
    let url = redis.url.clone();
    let gateway = Gateway::with(Stack::new().await, |_, connections| connections.redis_url = url).await;
    assert_eq!(gateway.post(&event("e-0")).await.status, 202);
    redis.freeze(true);
    let events: Vec<_> = (1..40).map(|i| event(&format!("e-{i}"))).collect();
    let answers = join_all(events.iter().map(|event| gateway.post(event))).await;
    assert!(answers.iter().all(|answer| answer.status == 202), "{answers:?}");
    redis.freeze(false);
    // The breaker tries again after 30 s.
    eventually_within(Duration::from_secs(60), "copies are known again", || async {
        let new = event(&uuid::Uuid::new_v4().to_string());
        assert_eq!(gateway.post(&new).await.status, 202);
        let copy = gateway.post(&new).await;
        copy.status == 409 && copy.problem() == "duplicate"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_to_redis_is_made_again_at_once() {
    let redis = PrivateRedis::start().await;
    let url = redis.url.clone();
    let gateway = Gateway::with(Stack::new().await, |_, connections| connections.redis_url = url).await;
    assert_eq!(gateway.post(&event("e-1")).await.status, 202);
    redis.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    assert_eq!(gateway.post(&event("e-1")).await.problem(), "duplicate");
}

#[tokio::test(flavor = "multi_thread")]
async fn known_keys_go_on_working_without_postgres() {
    let stack = Stack::new().await;
    let (proxy, through) = Proxy::before(&stack.connections.database_url).await;
    let gateway = Gateway::with(stack, |_, connections| connections.database_url = through).await;
    let unknown = create_key(&gateway.stack, &gateway.stack.project, &["write"], None).await;
    assert_eq!(gateway.post(&event("before")).await.status, 202);
    proxy.cut();
    // Longer than anything is remembered as fresh.
    let (started, mut number) = (Instant::now(), 0);
    while started.elapsed() < Duration::from_secs(9) {
        number += 1;
        let answer = gateway.post(&event(&format!("e-{number}"))).await;
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    let answer = gateway.post_as(&unknown, &event("unknown")).await;
    assert_eq!((answer.status, answer.problem()), (503, "unavailable"), "not 401: nobody knows");
    assert!(answer.retry_after.is_some());
    assert_eq!(gateway.get("/readyz").await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn known_schemas_go_on_working_without_the_registry() {
    let stack = Stack::new().await;
    let (proxy, through) = Proxy::before(&stack.connections.registry_url).await;
    let gateway = Gateway::with(stack, |_, connections| connections.registry_url = through).await;
    let other = format!("{}-2", gateway.stack.project);
    gateway.stack.create_project(&other).await;
    let key = create_key(&gateway.stack, &other, &["write"], None).await;
    assert_eq!(gateway.post(&event("before")).await.status, 202);
    proxy.cut();
    assert_eq!(gateway.post(&event("after")).await.status, 202);
    let answer = gateway.post_as(&key, &event("e-1")).await;
    assert_eq!((answer.status, answer.problem()), (503, "retry"));
    assert_eq!(gateway.claim(&other, "e-1").await, None, "nothing was claimed");
    let bad = gateway.post_as(&key, &json!({"eventId": "e-2"})).await;
    assert_eq!(bad.status, 422, "what is wrong is wrong without it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_down_at_the_start_is_waited_for() {
    let stack = Stack::new().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let real = stack.connections.registry_url.clone();
    let path = real.split_once("://").unwrap().1.split_once('/').unwrap().1.to_owned();
    let gateway =
        Gateway::with(stack, |_, connections| connections.registry_url = format!("http://{address}/{path}")).await;
    let early = gateway.post(&event("e-1")).await;
    assert_eq!((early.status, early.problem()), (503, "retry"));
    let _proxy = Proxy::at(address, &real).await;
    // A breaker may have opened meanwhile.
    eventually_within(Duration::from_secs(60), "the event is accepted", || async {
        let answer = gateway.post(&event("e-1")).await;
        assert!(answer.status == 202 || answer.problem() == "retry", "{answer:?}");
        answer.status == 202
    })
    .await;
}

/// Sends an event, without waiting for the answer.
async fn send(gateway: &Gateway, key: &str, event: &serde_json::Value) -> TcpStream {
    let body = event.to_string();
    let head = format!("POST /v1/events HTTP/1.1\r\nHost: t\r\nX-API-Key: {key}\r\nContent-Length: {}", body.len());
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_leaves_nothing_half_done() {
    let (gateway, project, key) = Gateway::without_topics().await;
    let client = send(&gateway, &key, &event("e-1")).await;
    gateway.in_flight(&project, "e-1").await;
    drop(client); // while nothing can be delivered yet
    gateway.stack.create_topics(&project).await;
    // Before the claim would have run out by itself.
    eventually_within(Duration::from_secs(8), "the event is confirmed or its claim given back", || async {
        gateway.claim(&project, "e-1").await.is_none_or(|claim| claim.starts_with("C:"))
    })
    .await;
    let confirmed = gateway.claim(&project, "e-1").await.is_some();
    assert!(!confirmed || gateway.in_log(&project, "e-1").await == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_waits_for_requests_whose_clients_have_gone() {
    let redis = PrivateRedis::start().await;
    let url = redis.url.clone();
    let mut gateway = Gateway::with(Stack::new().await, |_, connections| connections.redis_url = url).await;
    let service = gateway.service.take().unwrap();
    redis.run(&["CLIENT", "PAUSE", "900", "ALL"]).await; // holds the request before it gets to Kafka
    let gone = json!({"eventId": "e-1", "eventType": gateway.stack.project});
    let client = send(&gateway, &gateway.key, &gone).await;
    eventually("the event is under way", || async {
        let metrics = gateway.get("/metrics").await.unwrap().text().await.unwrap();
        metrics.contains(&format!("type=\"{}\"", gateway.stack.project))
    })
    .await;
    drop(client);
    gateway.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(30), service).await.expect("it ends").unwrap().unwrap();
    assert_eq!(gateway.in_log(&gateway.stack.project, "e-1").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_waits_for_requests_under_way() {
    let (mut gateway, project, key) = Gateway::without_topics().await;
    let service = gateway.service.take().unwrap();
    let (address, body) = (gateway.address, event("e-1"));
    let request = gateway.post_as(&key, &body);
    let stop = async {
        gateway.in_flight(&project, "e-1").await;
        gateway.shutdown.cancel();
        eventually("no new connections", || async { TcpStream::connect(address).await.is_err() }).await;
        assert!(!service.is_finished(), "a request is under way");
        gateway.stack.create_topics(&project).await;
    };
    let (answer, ()) = tokio::join!(request, stop);
    assert!(answer.status == 202 || answer.problem() == "retry", "{answer:?}");
    tokio::time::timeout(Duration::from_secs(30), service).await.expect("it ends").unwrap().unwrap();
    assert_eq!(gateway.claim(&project, "e-1").await.is_some(), answer.status == 202, "settled before it ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_can_never_send_again_ends() {
    let kafka = MockCluster::new(1).unwrap();
    kafka.request_errors(
        RDKafkaApiKey::InitProducerId,
        &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED; 10],
    );
    let stack = Stack::new().await;
    let mut connections = stack.connections.clone();
    connections.kafka.brokers = kafka.bootstrap_servers();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let service = tidemill_ingest::run(Config::default(), connections, listener.into(), CancellationToken::new());
    let end = tokio::time::timeout(Duration::from_secs(30), service).await.expect("it ends by itself");
    assert!(end.expect_err("not as if it were told to").to_string().contains("never send"));
}

//! A gateway with a spool while Kafka is down.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;
use std::time::Instant;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use serde_json::json;
use support::{Gateway, event};
use tidemill_testkit::{Stack, eventually};

type Kafka = MockCluster<'static, DefaultProducerContext>;

/// A gateway with a spool of this size, and the Kafka that it alone uses.
async fn start(bytes: u64) -> (Gateway, Kafka, PathBuf) {
    let folder = std::env::temp_dir().join(format!("spooling-{}", uuid::Uuid::new_v4().simple()));
    let (kafka, stack) = (MockCluster::new(1).unwrap(), Stack::new().await);
    kafka.create_topic(&format!("events.{}", stack.project), 6, 1).unwrap();
    let gateway = Gateway::with(stack, |config, connections| {
        connections.kafka.brokers = kafka.bootstrap_servers();
        (config.spool_dir, config.spool_max_bytes) = (Some(folder.clone()), bytes);
    })
    .await;
    (gateway, kafka, folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn events_wait_on_disk_until_kafka_is_back() {
    let (gateway, kafka, folder) = start(64 << 20).await;
    assert_eq!(gateway.post(&event("before")).await.status, 202);
    kafka.broker_down(1).unwrap();
    let first = gateway.post(&event("e-1")).await; // finds out
    assert_eq!((first.status, &first.body["position"]), (202, &json!("spooled")), "{first:?}");
    let started = Instant::now();
    let answer = gateway.post(&json!([event("e-2"), event("e-3"), event("e-2"), event("before")])).await;
    assert!(started.elapsed() < support::QUICK / 4, "the outage is known by now");
    assert_eq!(answer.statuses(), ["accepted", "accepted", "retry", "duplicate"]);
    assert_eq!(answer.body["results"][0]["position"], "spooled");
    assert_eq!(gateway.claim(&gateway.stack.project, "e-2").await, None, "the claim is given back");
    assert_eq!(gateway.get("/readyz").await.unwrap().status(), 200, "events are still accepted");

    kafka.broker_up(1).unwrap();
    eventually("what was spooled is in the log and confirmed", || async {
        let mut confirmed = true;
        for id in ["e-1", "e-2", "e-3"] {
            let claim = gateway.claim(&gateway.stack.project, id).await;
            confirmed &= claim.is_some_and(|claim| claim.starts_with("C:"));
        }
        confirmed
    })
    .await;
    let copy = gateway.post(&event("e-2")).await;
    assert_eq!((copy.status, copy.problem()), (409, "duplicate"), "with the hash that was spooled");
    eventually("new events go to Kafka again", || async {
        let answer = gateway.post(&event(&uuid::Uuid::new_v4().to_string())).await;
        answer.status == 202 && answer.body["position"] != "spooled"
    })
    .await;
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_tells_to_retry() {
    let (gateway, kafka, folder) = start(20_000).await;
    assert_eq!(gateway.post(&event("before")).await.status, 202);
    kafka.broker_down(1).unwrap();
    let mut number = 0;
    let full = loop {
        number += 1;
        let answer = gateway.post(&event(&format!("e-{number}"))).await;
        if answer.status != 202 {
            break answer;
        }
        assert_eq!(answer.body["position"], "spooled");
        assert!(number < 1_000, "the spool has no bound");
    };
    assert_eq!((full.status, full.problem()), (503, "retry"));
    assert!(full.retry_after.is_some());
    let metrics = gateway.get("/metrics").await.unwrap().text().await.unwrap();
    assert!(metrics.contains("tidemill_spool_full_total"), "{metrics}");
    kafka.broker_up(1).unwrap();
    eventually("there is room again", || async { gateway.post(&event("after")).await.status == 202 }).await;
    std::fs::remove_dir_all(folder).unwrap();
}

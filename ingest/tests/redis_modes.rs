//! Claims in a Redis of several nodes, some of which are away.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use serde_json::json;
use support::{Gateway, event};
use tidemill_common::redis::Redis;
use tidemill_testkit::{Redises, Stack, eventually_within};

const EVENTS: usize = 200;

async fn gateway(url: &str) -> Gateway {
    let url = url.to_owned();
    Gateway::with(Stack::new().await, |_, connections| connections.redis_url = url).await
}

/// What the gateway says of all events, sent in one request.
async fn sent(gateway: &Gateway) -> Vec<String> {
    let events: Vec<_> = (0..EVENTS).map(|number| event(&format!("e-{number}"))).collect();
    gateway.post(&json!(events)).await.statuses().into_iter().map(str::to_owned).collect()
}

/// Which events are claimed at a node.
fn at(redis: &Redis, gateway: &Gateway, node: &str) -> Vec<bool> {
    let key = |number| format!("event:{}:e-{number}", gateway.stack.project);
    (0..EVENTS).map(|number| redis.node_of(key(number).as_bytes()).as_deref() == Some(node)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_rings_dead_node_are_accepted_again_and_copies_of_others_are_not() {
    let mut own = Redises::ring().await;
    let (gateway, redis) = (gateway(&own.url).await, Redis::new(&own.url).unwrap());
    assert!(sent(&gateway).await.iter().all(|status| status == "accepted"));
    assert!(sent(&gateway).await.iter().all(|status| status == "duplicate"));
    let dead = own.nodes[1].clone();
    own.kill(&dead);
    let expected: Vec<&str> =
        at(&redis, &gateway, &dead).into_iter().map(|is_dead| if is_dead { "accepted" } else { "duplicate" }).collect();
    assert!(expected.contains(&"accepted") && expected.contains(&"duplicate"));
    for _ in 0..3 {
        assert_eq!(sent(&gateway).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clusters_scripts_are_told_to_a_master_that_is_new() {
    let mut own = Redises::cluster().await;
    let gateway = gateway(&own.url).await;
    assert!(sent(&gateway).await.iter().all(|status| status == "accepted"));
    assert!(sent(&gateway).await.iter().all(|status| status == "duplicate"));
    let masters = own.masters().await;
    own.kill(&masters[0]);
    let answer = sent(&gateway).await;
    assert!(answer.iter().any(|status| status == "accepted") && answer.iter().any(|status| status == "duplicate"));
    // Those that were accepted again are claimed at the master that took their slots.
    eventually_within(
        Duration::from_secs(20),
        "all are known again, before any breaker would let it be seen",
        || async { sent(&gateway).await.iter().all(|status| status == "duplicate") },
    )
    .await;
}

//! A projection into several nodes, each of which may lose what it has.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::Row;
use support::{Running, drained, live_traffic, worker};
use tidemill_common::redis::Redis;
use tidemill_stream::keys;
use tidemill_testkit::{Redises, Stack, eventually, eventually_within};

/// What is lost is there again within this time, once its node is.
const SOON: Duration = Duration::from_secs(10);
const USERS: usize = 100;

async fn start(url: &str) -> (Stack, Redis, Running) {
    let stack = Stack::with(|connections| connections.redis_url = url.to_owned()).await;
    let running = worker(&stack, "a", |_, _| {}).await;
    (stack, Redis::background(url).unwrap(), running)
}

async fn traffic(stack: &Stack, events: std::ops::Range<usize>) {
    stack.send_all(&live_traffic(events, USERS)).await;
    drained(stack).await;
}

/// The version of each session in Postgres, by its key in Redis.
async fn versions(stack: &Stack) -> BTreeMap<String, i64> {
    let rows = sqlx::query("SELECT session_id, version FROM session_keys WHERE session_id LIKE 's-%'");
    let rows = rows.fetch_all(&stack.pool).await.unwrap();
    let versions = rows.iter().map(|row| (keys::session(&stack.project, row.get(0)), row.get(1)));
    versions.collect()
}

/// Keys under which Redis does not have the version that Postgres has.
async fn behind(stack: &Stack, redis: &Redis) -> Vec<String> {
    let versions = versions(stack).await;
    assert_eq!(versions.len(), USERS);
    let mut pipeline = redis::pipe();
    for key in versions.keys() {
        pipeline.cmd("HGET").arg(key).arg("version");
    }
    let answers = redis.run_each(&pipeline).await.into_iter();
    let shown = answers.map(|answer| redis::from_redis_value::<Option<i64>>(answer.ok()?).ok().flatten());
    versions
        .iter()
        .zip(shown)
        .filter(|((_, stored), shown)| Some(**stored) != *shown)
        .map(|((key, _), _)| key.clone())
        .collect()
}

async fn level(limit: Duration, stack: &Stack, redis: &Redis) {
    eventually_within(limit, "Redis shows what Postgres has", || async { behind(stack, redis).await.is_empty() }).await;
}

/// Waits until the ledger knows that Redis shows everything.
async fn marked(stack: &Stack) {
    eventually("all is marked as projected", || async {
        let level = sqlx::query_scalar("SELECT bool_and(projected_offset = next_offset) FROM ledger");
        level.fetch_one(&stack.pool).await.unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ring_goes_on_without_a_node_and_fills_it_when_it_is_back() {
    let mut own = Redises::ring().await;
    let (stack, redis, running) = start(&own.url).await;
    traffic(&stack, 0..600).await;
    level(Duration::from_secs(60), &stack, &redis).await;
    marked(&stack).await;
    own.ask::<()>(&own.nodes[1], &["FLUSHALL"]).await.unwrap();
    level(SOON, &stack, &redis).await;

    let dead = own.nodes[2].clone();
    own.kill(&dead);
    traffic(&stack, 600..1_200).await;
    eventually_within(SOON, "the other nodes go on", || async {
        behind(&stack, &redis).await.iter().all(|key| redis.node_of(key.as_bytes()).as_ref() == Some(&dead))
    })
    .await;
    assert!(!behind(&stack, &redis).await.is_empty());
    // While it is away, another one loses what it has.
    own.ask::<()>(&own.nodes[0], &["FLUSHALL"]).await.unwrap();
    eventually_within(SOON, "it is filled again", || async {
        behind(&stack, &redis).await.iter().all(|key| redis.node_of(key.as_bytes()).as_ref() == Some(&dead))
    })
    .await;
    own.start_again(&dead).await;
    level(SOON, &stack, &redis).await;
    marked(&stack).await;
    running.stop().await;

    // A fourth joins: what is its share is written there.
    own.join().await;
    let mut stack = stack;
    stack.connections.redis_url = own.ring_url();
    let four = Redis::background(&own.ring_url()).unwrap();
    assert!(!behind(&stack, &four).await.is_empty());
    let running = worker(&stack, "b", |_, _| {}).await;
    level(SOON, &stack, &four).await;
    traffic(&stack, 1_200..1_800).await;
    level(SOON, &stack, &four).await;
    marked(&stack).await;
    running.stop().await;

    // It leaves again. What the others have of its keys is from before it came, in processes that have run all the time.
    stack.connections.redis_url = own.url.clone();
    assert!(!behind(&stack, &redis).await.is_empty());
    let running = worker(&stack, "c", |_, _| {}).await;
    level(SOON, &stack, &redis).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clusters_master_that_is_replaced_has_everything_again() {
    let mut own = Redises::cluster().await;
    let (stack, redis, running) = start(&own.url).await;
    traffic(&stack, 0..600).await;
    level(Duration::from_secs(60), &stack, &redis).await;
    marked(&stack).await;
    // Each master is flushed by itself.
    let masters = own.masters().await;
    for master in &masters {
        own.ask::<()>(master, &["FLUSHALL"]).await.unwrap();
        assert!(!behind(&stack, &redis).await.is_empty());
        level(SOON, &stack, &redis).await;
        marked(&stack).await;
    }
    // One is killed under traffic; a replica takes its place.
    own.kill(&masters[1]);
    traffic(&stack, 600..1_200).await;
    level(Duration::from_secs(30), &stack, &redis).await;
    marked(&stack).await;
    running.stop().await;
}

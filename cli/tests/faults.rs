//! Faults, on the real components and the real processes: whatever dies, every acknowledged event counts
//! exactly once in Postgres, Redis and the archive.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use support::{Fleet, SERVICES};
use tidemill_testkit::{Own, Stack, eventually};

/// Waits for the load generator; its last line.
async fn finish(load: std::process::Child) -> Value {
    let output = tokio::task::spawn_blocking(move || load.wait_with_output().unwrap()).await.unwrap();
    assert!(output.status.success(), "loadgen failed");
    let last = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(last.lines().last().expect("a last line")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_every_service_at_random() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut fleet = Fleet::start(Stack::new().await).await;
    let mut load = fleet.loadgen(&[
        "--events",
        "50000",
        "--rate",
        "2500",
        "--duplicates",
        "0.02",
        "--retries",
        "60",
        "--duration",
        "300s",
    ]);
    let mut kills = 0;
    while load.try_wait().unwrap().is_none() {
        // The pause is the randomness of the test, not a wait for anything.
        tokio::time::sleep(Duration::from_millis(random.random_range(300..1_500))).await;
        let victim = SERVICES.choose(&mut random).unwrap();
        fleet.kill_and_restart(victim);
        kills += 1;
    }
    let sent = finish(load).await;
    println!("{kills} kills; {sent}");
    assert_eq!(sent["failed"], 0, "every event got its verdict in the end: {sent}");
    assert!(kills >= 8, "only {kills} kills");
    for name in SERVICES {
        fleet.ready(name).await;
    }
    fleet.views_have_passed_the_log().await;
    fleet.assert_exact().await;
    assert_eq!(fleet.in_log().await.len(), 50_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_away_for_twenty_seconds() {
    let postgres = Own::start(&["postgres"]).await;
    let stack = Stack::with(|connections| connections.database_url = postgres.value("DATABASE_URL")).await;
    let fleet = Fleet::start(stack).await;
    let load = fleet.loadgen(&["--events", "12000", "--rate", "400", "--duplicates", "0.02", "--retries", "60"]);
    eventually("some are counted", || async { fleet.counted().await > 500 }).await;
    let before = fleet.accepted_in_log().await;
    postgres.services("stop").await;
    // What the promise is about: this long without Postgres.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let during = fleet.accepted_in_log().await;
    assert!(during > before + 4_000, "ingest goes on without Postgres: {before} to {during}");
    postgres.services("start").await;
    let sent = finish(load).await;
    assert_eq!((&sent["failed"], &sent["invalid"]), (&0.into(), &0.into()), "{sent}");
    fleet.views_have_passed_the_log().await;
    fleet.assert_exact().await;
    drop(fleet);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_away_during_ingest() {
    let redis = Own::start(&["redis"]).await;
    let stack = Stack::with(|connections| connections.redis_url = redis.value("REDIS_URL")).await;
    let fleet = Fleet::start(stack).await;
    // Duplicates come some seconds later: some of them when Redis no longer knows the first one.
    let load = fleet.loadgen(&["--events", "8000", "--rate", "600", "--duplicates", "0.1", "--retries", "60"]);
    eventually("some are counted", || async { fleet.counted().await > 500 }).await;
    let before = fleet.accepted_in_log().await;
    redis.services("stop").await;
    eventually("ingest goes on without Redis", || async { fleet.accepted_in_log().await > before + 2_000 }).await;
    redis.services("start").await;
    let sent = finish(load).await;
    assert_eq!(sent["failed"], 0, "{sent}");
    fleet.views_have_passed_the_log().await;
    let records = fleet.accepted_in_log().await;
    let distinct = fleet.in_log().await.len();
    assert!(records > distinct, "some duplicates went past the empty Redis into the log: {records} records");
    fleet.assert_exact().await;
    drop(fleet);
}

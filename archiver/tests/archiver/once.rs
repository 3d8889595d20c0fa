//! Every event once, whatever happens to archivers.

use std::time::Duration;

use rand::Rng;
use tidemill_common::home::home_partition;
use tidemill_testkit::{PARTITIONS, event, eventually};

use crate::support::{
    World, archived, config, ends, events_with_copies, first_sights, rows, send_to, start, table_positions,
};

#[tokio::test(flavor = "multi_thread")]
async fn copies_strays_and_garbage_leave_no_row() {
    let world = World::new().await;
    world.send_all(&events_with_copies(0, 500)).await;
    let stray = event("stray", "click", 1_700_000_000);
    let elsewhere = (home_partition(b"stray", PARTITIONS) + 1) % PARTITIONS;
    world.send_raw(elsewhere, Some(b"stray"), &world.encoder.encode(&stray)).await;
    sqlx::query("UPDATE projects SET dedupe_window_ms = 3600000").execute(&world.pool).await.unwrap();
    world.send_stray(&event("late-stray", "click", 1_700_000_000), 3_700).await;
    world.send_stray(&event("e-in-time", "click", 1_700_000_000), 3_500).await;
    world.send_raw(0, Some(b"garbage"), b"no avro").await;
    world.send_raw(1, None, b"").await;
    world.send_raw(2, Some(b"too-old"), &world.encoder.encode(&event("too-old", "click", 1))).await;

    let archiver = start(&world, config(&world, "a")).await;
    archived(&world, &world.project).await;
    let expected = first_sights(&world, |id| id.starts_with("e-")).await;
    assert_eq!(expected.len(), 501);
    assert_eq!(rows(&world, &world.project).await, expected);

    // Nothing but copies: the positions move all the same, and a later archiver does not read them again.
    world.send_all(&events_with_copies(0, 50)).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    let archiver = start(&world, config(&world, "a")).await;
    world.send_all(&events_with_copies(450, 600)).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    assert_eq!(rows(&world, &world.project).await, first_sights(&world, |id| id.starts_with("e-")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_again_is_another_log() {
    let world = World::new().await;
    world.send_all(&events_with_copies(0, 100)).await;
    let archiver = start(&world, config(&world, "a")).await;
    archived(&world, &world.project).await;
    let mut expected = rows(&world, &world.project).await;
    world.delete_topics(&world.project).await;
    world.create_topics(&world.project).await;
    // More than there was: the offsets go on as if it were the same.
    world.send_all(&events_with_copies(1_000, 1_300)).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    expected.extend(first_sights(&world, |_| true).await);
    expected.sort();
    assert_eq!(rows(&world, &world.project).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_commits_what_is_buffered() {
    let world = World::new().await;
    let mut slow = config(&world, "a");
    slow.commit_interval_ms = 3_600_000;
    let archiver = start(&world, slow).await;
    world.send_all(&events_with_copies(0, 40)).await;
    let waiting = format!("tidemill_archiver_buffered_rows{{project=\"{}\"}} 40\n", world.project);
    eventually("all is buffered", || async { archiver.get("/metrics").await.contains(&waiting) }).await;
    assert_eq!(rows(&world, &world.project).await, []);
    archiver.stop().await;
    assert_eq!(rows(&world, &world.project).await, first_sights(&world, |_| true).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_buffer_does_not_wait() {
    let world = World::new().await;
    let mut full = config(&world, "a");
    full.commit_interval_ms = 3_600_000;
    full.batch_size = 20;
    let archiver = start(&world, full).await;
    world.send_all(&events_with_copies(0, 50)).await;
    eventually("full buffers are committed", || async { rows(&world, &world.project).await.len() >= 40 }).await;
    archiver.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_buffers_together_have_a_limit_too() {
    let world = World::new().await;
    let small = format!("{}-small", world.project);
    world.create_project(&small).await;
    let mut config = config(&world, "a");
    config.commit_interval_ms = 3_600_000;
    config.max_bytes_total = 4_000;
    let archiver = start(&world, config).await;
    send_to(&world, &small, &[event("small", "click", 1_700_000_000)]).await;
    let waiting = format!("tidemill_archiver_buffered_rows{{project=\"{small}\"}} 1\n");
    eventually("it is buffered", || async { archiver.get("/metrics").await.contains(&waiting) }).await;
    world.send_all(&events_with_copies(0, 500)).await;
    eventually("the largest is committed", || async { !rows(&world, &world.project).await.is_empty() }).await;
    assert_eq!(rows(&world, &small).await, []);
    archiver.stop().await;
    assert_eq!(rows(&world, &small).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_archivers_of_the_same_partitions() {
    let world = World::new().await;
    // Two groups: both are given all partitions and neither knows of the other.
    let (one, other) = (start(&world, config(&world, "a")).await, start(&world, config(&world, "b")).await);
    // Round by round, so that both are at it for most of them.
    for round in 0..25 {
        world.send_all(&events_with_copies(round * 100, (round + 1) * 100)).await;
        archived(&world, &world.project).await;
    }
    one.stop().await;
    other.stop().await;
    assert_eq!(rows(&world, &world.project).await, first_sights(&world, |_| true).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_archivers_of_one_group_share_a_table() {
    let world = World::new().await;
    let (one, other) = (start(&world, config(&world, "a")).await, start(&world, config(&world, "a")).await);
    for round in 0..10 {
        world.send_all(&events_with_copies(round * 200, (round + 1) * 200)).await;
    }
    archived(&world, &world.project).await;
    one.stop().await;
    world.send_all(&events_with_copies(2_000, 2_500)).await;
    archived(&world, &world.project).await;
    other.stop().await;
    assert_eq!(rows(&world, &world.project).await, first_sights(&world, |_| true).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_moments() {
    let world = World::new().await;
    for life in 0..8 {
        // A group of its own for each life: the next one need not wait for Kafka to miss the dead one.
        let mut config = config(&world, &format!("life-{life}"));
        config.commit_interval_ms = rand::rng().random_range(1..60);
        let before = table_positions(&world, &world.project).await;
        let archiver = start(&world, config).await;
        world.send_all(&events_with_copies(life * 500, life * 500 + 250)).await;
        eventually("this life commits something", || async { table_positions(&world, &world.project).await != before })
            .await;
        let kill_after = Duration::from_micros(rand::rng().random_range(0..100_000));
        let more = events_with_copies(life * 500 + 250, life * 500 + 500);
        tokio::join!(world.send_all(&more), tokio::time::sleep(kill_after));
        archiver.kill().await;
    }
    world.send_all(&events_with_copies(4_000, 4_100)).await;
    let archiver = start(&world, config(&world, "last")).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    let expected = first_sights(&world, |_| true).await;
    assert_eq!(expected.len(), 4_100);
    assert_eq!(rows(&world, &world.project).await, expected);
    let at: Vec<_> = table_positions(&world, &world.project).await.into_iter().map(|(p, at)| (p, at.next)).collect();
    assert_eq!(at, ends(&world, &world.project).await.into_iter().collect::<Vec<_>>());
}

//! A project whose topics get more partitions: every event is archived once, whichever number its copies were sent by.

use tidemill_common::event::Event;
use tidemill_common::home::home_partition;
use tidemill_testkit::{PARTITIONS, event, eventually};

use crate::support::{World, archived, assert_once, config, start};

const GROWN: i32 = 2 * PARTITIONS;

fn events(range: std::ops::Range<usize>) -> Vec<Event> {
    range.map(|i| event(&format!("e-{i}"), "click", 1_700_000_000)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_from_before_and_after_are_archived_once() {
    let world = World::new().await;
    let (all, archiver) = (events(0..500), start(&world, config(&world, "a")).await);
    world.send_by(&all[..200], PARTITIONS).await;
    archived(&world, &world.project).await;
    world.add_partitions(GROWN).await;
    // Strays there, which the stream would send home.
    world.send_by(&all[180..240], GROWN).await;
    archived(&world, &world.project).await;
    world.grow(GROWN).await;
    // The archiver has the old number in hand, and strays for first sights.
    world.send_by(&all[150..450], PARTITIONS).await;
    world.send_by(&all, GROWN).await;
    assert_once(&world, 0..500).await;
    // Its store is lost: what is new in a partition is what the partition's parent has not had.
    archiver.stop().await;
    std::fs::remove_dir_all(world.folder("seen-archiver")).unwrap();
    let archiver = start(&world, config(&world, "a")).await;
    world.send_by(&events(0..520), GROWN).await;
    assert_once(&world, 0..520).await;
    archiver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_seen_by_an_old_layout_is_forgotten() {
    let world = World::new().await;
    let mut slow = config(&world, "a");
    slow.commit_interval_ms = 3_600_000;
    world.add_partitions(GROWN).await;
    let archiver = start(&world, slow).await;
    // One event alone, so that most of the new partitions inherit nothing: else they were completed anew in any case.
    world.send_by(&events(0..1), PARTITIONS).await;
    let rows_waiting = format!("tidemill_archiver_buffered_rows{{project=\"{}\"}} ", world.project);
    let waiting = async |count: usize| {
        let line = format!("{rows_waiting}{count}\n");
        eventually("all is buffered", || async { archiver.get("/metrics").await.contains(&line) }).await;
    };
    waiting(1).await;
    world.grow(GROWN).await;
    // To the archiver that does not know, those that have moved are strays.
    world.send_by(&events(1..140), GROWN).await;
    let stay = (1..140).map(|i| format!("e-{i}")).filter(|id| home_partition(id.as_bytes(), GROWN) < PARTITIONS);
    waiting(1 + stay.count()).await;
    archiver.stop().await; // its last commit must not go through, nor what it has seen stay
    let archiver = start(&world, config(&world, "a")).await;
    archived(&world, &world.project).await;
    // What is on disk has to do: what was only in memory is gone.
    archiver.stop().await;
    let archiver = start(&world, config(&world, "a")).await;
    world.send_by(&events(0..140), GROWN).await;
    assert_once(&world, 0..140).await;
    archiver.stop().await;
}

//! A project one of whose event types gets a topic of its own: every event is archived once, wherever its copies were sent.

use std::collections::BTreeSet;

use tidemill_common::event::Event;
use tidemill_common::names::ROUTE;
use tidemill_testkit::event;

use crate::support::{World, archived, config, rows, start};

/// Every third is a click.
fn events(range: std::ops::Range<usize>) -> Vec<Event> {
    range.map(|i| event(&format!("e-{i}"), if i % 3 == 0 { "click" } else { "view" }, 1_700_000_000)).collect()
}

/// The ids in the table, each once; gives how many are from the route's topic.
async fn assert_once(world: &World, ids: std::ops::Range<usize>) -> usize {
    archived(world, &world.project).await;
    let rows = rows(world, &world.project).await;
    let distinct: BTreeSet<&str> = rows.iter().map(|(.., id)| id.as_str()).collect();
    let expected: Vec<String> = ids.map(|i| format!("e-{i}")).collect();
    assert_eq!(distinct, expected.iter().map(String::as_str).collect());
    let twice = rows.iter().filter(|(.., id)| rows.iter().filter(|row| row.2 == *id).count() > 1);
    assert_eq!(twice.collect::<Vec<_>>(), Vec::<&(i32, i64, String)>::new());
    rows.iter().filter(|(partition, ..)| *partition >= ROUTE).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_in_either_topic_are_archived_once() {
    let world = World::new().await;
    let (all, archiver) = (events(0..600), start(&world, config(&world, "a")).await);
    world.send_all(&all[..200]).await;
    archived(&world, &world.project).await;
    world.route("clicks", "click").await;
    // To the project's own topic, too: strays, which the stream would send home.
    world.send_all(&all[150..300]).await;
    world.send_home(&all).await;
    let routed = assert_once(&world, 0..600).await;
    assert_eq!(routed, all[200..].iter().filter(|event| event.event_type == "click").count());
    // Its stores are lost: what is new in the route is what the project's own topic has not had.
    archiver.stop().await;
    std::fs::remove_dir_all(world.folder("seen-archiver")).unwrap();
    let archiver = start(&world, config(&world, "a")).await;
    world.send_home(&events(0..630)).await;
    assert_once(&world, 0..630).await;
    archiver.stop().await;
}

//! A project one of whose event types gets a topic of its own: every event is archived once, wherever its copies were sent.

use tidemill_common::event::Event;
use tidemill_common::names::ROUTE;
use tidemill_testkit::event;

use crate::support::{World, archived, assert_once, config, start};

/// Every third is a click.
fn events(range: std::ops::Range<usize>) -> Vec<Event> {
    range.map(|i| event(&format!("e-{i}"), if i % 3 == 0 { "click" } else { "view" }, 1_700_000_000)).collect()
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
    let rows = assert_once(&world, 0..600).await;
    let routed = rows.iter().filter(|(partition, ..)| *partition >= ROUTE).count();
    assert_eq!(routed, all[200..].iter().filter(|event| event.event_type == "click").count());
    // Its stores are lost: what is new in the route is what the project's own topic has not had.
    archiver.stop().await;
    std::fs::remove_dir_all(world.folder("seen-archiver")).unwrap();
    let archiver = start(&world, config(&world, "a")).await;
    world.send_home(&events(0..630)).await;
    assert_once(&world, 0..630).await;
    archiver.stop().await;
}

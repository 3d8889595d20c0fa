//! Records that the stream has given up on, though they can be read by now; and what is sent through again.

use tidemill_common::dead_letters::REDRIVE_OF;
use tidemill_common::event::Event;
use tidemill_common::home::home_partition;
use tidemill_common::kafka::Outgoing;
use tidemill_common::names::events_topic;
use tidemill_testkit::{LateRegistry, PARTITIONS, event, eventually};

use crate::support::{
    World, archived, config, events_with_copies, first_sights, give_up, incarnation, rows, start, start_with,
    table_positions,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_comes_too_late_for_the_stream_comes_too_late_for_the_archive() {
    let world = World::new().await;
    world.send_all(&events_with_copies(0, 40)).await;
    let registry = LateRegistry::without(None).await;
    let mut connections = world.connections.clone();
    connections.registry_url = registry.url.clone();
    let archiver = start_with(config(&world, "a"), connections).await;
    eventually("every partition waits for the schema", || async { registry.asked() >= PARTITIONS as usize }).await;
    // The stream gives up on the record that waits and on the one behind it, and then the schema comes.
    give_up(&world, 1, &[0, 1]).await;
    registry.learn();
    archived(&world, &world.project).await;
    archiver.stop().await;
    let mut expected = first_sights(&world, |_| true).await;
    expected.retain(|(partition, offset, _)| *partition != 1 || *offset > 1);
    assert_eq!(rows(&world, &world.project).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archiver_that_comes_later_than_the_schema_knows_what_was_given_up() {
    let world = World::new().await;
    world.send_all(&events_with_copies(0, 40)).await;
    let dead = event("dead", "click", 1_700_000_000);
    let (partition, offset) = world.send(&dead).await;
    give_up(&world, partition, &[offset]).await;
    let archiver = start(&world, config(&world, "a")).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    let mut expected = first_sights(&world, |id| id != "dead").await;
    assert_eq!(rows(&world, &world.project).await, expected);

    // Sent through again it counts, also for an archiver that has to learn from the log what was seen.
    let (partition, offset) = world.send(&dead).await;
    let archiver = start(&world, config(&world, "b")).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    expected.push((partition, offset, "dead".to_owned()));
    expected.sort();
    assert_eq!(rows(&world, &world.project).await, expected);
}

/// Sends an event as one that is sent through again for the letter at an offset of its home.
async fn send_again(world: &World, event: &Event, letter: i64) -> (i32, i64) {
    let (topic, key) = (events_topic(&world.project), event.event_id.as_bytes());
    let (partition, value) = (home_partition(key, PARTITIONS), world.encoder.encode(event));
    let letter = format!("{}:{partition}:{letter}", incarnation(world).await);
    let headers = &[(REDRIVE_OF, &*letter)];
    world.producer.send(&Outgoing { topic: &topic, partition, key: Some(key), value: &value, headers }).await.unwrap()
}

/// The stream comes to a partition's record that was sent through again, and passes it.
async fn decide(world: &World, (partition, offset): (i32, i64), outcome: Option<&str>) {
    let mut tx = world.pool.begin().await.unwrap();
    let incarnation = incarnation(world).await;
    sqlx::query(
        "INSERT INTO ledger (view, generation, topic, topic_incarnation, partition, next_offset, projected_offset, as_of)
         VALUES ('stream', 0, $1, $2, $3, $4, $4, now())
         ON CONFLICT (view, generation, topic, topic_incarnation, partition) DO UPDATE SET next_offset = $4",
    )
    .bind(events_topic(&world.project))
    .bind(&incarnation)
    .bind(partition)
    .bind(offset + 1)
    .execute(&mut *tx)
    .await
    .unwrap();
    if let Some(outcome) = outcome {
        sqlx::query("INSERT INTO redrives VALUES ($1, $2, $3, $4, $2, $3, 0, $5)")
            .bind(events_topic(&world.project))
            .bind(&incarnation)
            .bind(partition)
            .bind(offset)
            .bind(outcome)
            .execute(&mut *tx)
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_through_again_is_archived_when_the_stream_says_that_it_counts() {
    let world = World::new().await;
    // All of them in one partition, so that what stands still shows.
    let mut ids = (0..).map(|i| format!("e-{i}")).filter(|id| home_partition(id.as_bytes(), PARTITIONS) == 0);
    let mut next = || event(&ids.next().unwrap(), "click", 1_700_000_000);
    let (letter, discarded, forged, last) = (next(), next(), next(), next());
    let (_, first) = world.send(&letter).await;
    let (_, second) = world.send(&discarded).await;
    give_up(&world, 0, &[first, second]).await;
    let archiver = start(&world, config(&world, "a")).await;
    archived(&world, &world.project).await;

    let counted = send_again(&world, &letter, first).await;
    let closed = send_again(&world, &discarded, second).await;
    let again = send_again(&world, &letter, first).await;
    let ordinary = send_again(&world, &forged, 12_345).await;
    let of_its_own = world.send(&discarded).await;
    let behind = world.send(&last).await;
    let stands_at = |offset: i64| {
        let world = &world;
        async move { table_positions(world, &world.project).await.get(&0).is_some_and(|at| at.next == offset) }
    };
    eventually("the archive waits for the stream", || stands_at(counted.1)).await;
    decide(&world, counted, Some("counted")).await;
    eventually("and waits again", || stands_at(closed.1)).await;
    decide(&world, closed, Some("closed")).await;
    decide(&world, again, Some("closed")).await;
    eventually("and waits again", || stands_at(ordinary.1)).await;
    decide(&world, ordinary, None).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    let row = |(partition, offset): (i32, i64), event: &Event| (partition, offset, event.event_id.clone());
    // What was closed was no sighting either, so a copy that comes of its own counts.
    let mut expected =
        vec![row(counted, &letter), row(ordinary, &forged), row(of_its_own, &discarded), row(behind, &last)];
    expected.sort();
    assert_eq!(rows(&world, &world.project).await, expected);

    // One that has to learn from the log what was seen knows the same.
    for event in [&letter, &discarded, &forged, &last] {
        world.send(event).await;
    }
    std::fs::remove_dir_all(world.folder("seen-archiver")).unwrap();
    let archiver = start(&world, config(&world, "b")).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    assert_eq!(rows(&world, &world.project).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_could_be_read_by_now_is_no_sighting_whatever_it_was_refused_for() {
    let world = World::new().await;
    let dead = event("dead", "click", 1_700_000_000);
    let (partition, offset) = world.send(&dead).await;
    give_up(&world, partition, &[offset]).await;
    sqlx::query("UPDATE dead_letters SET reason = 'bad-datum'").execute(&world.pool).await.unwrap();
    let archiver = start(&world, config(&world, "a")).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    assert_eq!(rows(&world, &world.project).await, []);
    // Neither is it to one that learns from the log.
    std::fs::remove_dir_all(world.folder("seen-archiver")).unwrap();
    let counted = send_again(&world, &dead, offset).await;
    decide(&world, counted, Some("counted")).await;
    let archiver = start(&world, config(&world, "b")).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    assert_eq!(rows(&world, &world.project).await, [(counted.0, counted.1, "dead".to_owned())]);
}

//! What cannot be archived: gaps, unreadable records, tables and projects that are broken or missing.

use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::topic_partition_list::Offset;
use tidemill_archiver::positions::{Position, Positions};
use tidemill_archiver::table::identifier;
use tidemill_archiver::{Config, OnGap};
use tidemill_common::names::events_topic;
use tidemill_testkit::{event, eventually};

use crate::support::{
    Archiver, World, archived, commit, config, ends, events_with_copies, first_sights, give_up, incarnation, rows,
    send_to, start, table_positions,
};

/// Deletes a partition's records before an offset, as retention does.
async fn delete_before(world: &World, partition: i32, offset: i64) {
    let admin: AdminClient<DefaultClientContext> = world.connections.kafka.client().create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&events_topic(&world.project), partition, Offset::Offset(offset)).unwrap();
    admin.delete_records(&list, &AdminOptions::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_is_named_and_stops_until_a_person_decides() {
    let world = World::new().await;
    world.send_all(&events_with_copies(0, 100)).await;
    let archiver = start(&world, config(&world, "a")).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    let before = rows(&world, &world.project).await;
    let position = table_positions(&world, &world.project).await[&2].next;
    world.send_all(&events_with_copies(100, 200)).await;
    delete_before(&world, 2, position + 7).await;

    let archiver = start(&world, config(&world, "b")).await;
    let error = archiver.task.await.unwrap().unwrap_err().to_string();
    let gap = format!("offsets {position} to {} (7 records) were deleted", position + 6);
    assert!(error.contains(&gap), "{error}");
    assert_eq!(rows(&world, &world.project).await, before);

    let archiver = start(&world, Config { on_gap: OnGap::Skip, ..config(&world, "c") }).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    let after = rows(&world, &world.project).await;
    let lost: Vec<_> = (position..position + 7).collect();
    assert!(after.len() > before.len() && after.iter().all(|(p, offset, _)| *p != 2 || !lost.contains(offset)));
}

/// A record that names a schema which the registry does not have.
const UNKNOWN: &[u8] = b"\0\x7f\xff\xff\xffwhatever";

/// The stream passes an offset.
async fn pass(world: &World, partition: i32, offset: i64) {
    sqlx::query(
        "INSERT INTO ledger (view, generation, topic, topic_incarnation, partition, next_offset, projected_offset, as_of)
         VALUES ('stream', 0, $1, $2, $3, $4, 0, now())",
    )
    .bind(events_topic(&world.project))
    .bind(incarnation(world).await)
    .bind(partition)
    .bind(offset + 1)
    .execute(&world.pool)
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_schema_waits_for_the_stream_to_give_the_record_up() {
    let world = World::new().await;
    let (partition, offset) = world.send_raw(1, Some(b"unknown"), UNKNOWN).await;
    world.send_all(&events_with_copies(0, 100)).await;
    let archiver = start(&world, config(&world, "a")).await;
    eventually("the other partitions go on", || async {
        let at = table_positions(&world, &world.project).await;
        [0, 2, 3].iter().all(|partition| at.contains_key(partition)) && !at.contains_key(&1)
    })
    .await;
    give_up(&world, partition, &[offset]).await;
    pass(&world, partition, offset).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    assert_eq!(rows(&world, &world.project).await, first_sights(&world, |id| id.starts_with("e-")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_archiver_cannot_read_stops_it() {
    let world = World::new().await;
    world.send_all(&events_with_copies(0, 100)).await;
    let (partition, offset) = world.send_raw(1, Some(b"unknown"), UNKNOWN).await;
    pass(&world, partition, offset).await;
    let archiver = start(&world, config(&world, "a")).await;
    let error = archiver.task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains(&format!("partition 1 offset {offset}")), "{error}");
    let rows = rows(&world, &world.project).await;
    assert_eq!(rows, first_sights(&world, |id| id.starts_with("e-")).await, "what came before it is archived");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_has_lost_its_end_waits_for_a_person_however_long_it_grows() {
    let world = World::new().await;
    let known = world.tables.load_or_create(&world.project).await.unwrap();
    let newest_ms = chrono::Utc::now().timestamp_millis() - 1_000;
    let ahead = Position { incarnation: incarnation(&world).await, next: 5, newest_ms };
    let (catalog, topic) = (world.tables.catalog().await.unwrap(), events_topic(&world.project));
    commit(catalog, &known, &topic, &Positions::from([(2, ahead)]), &[]).await.unwrap();
    let waits = async |archiver: &Archiver| {
        eventually("health says what is wrong and what to do", || async {
            let health = archiver.get("/health").await;
            let wrong = health.contains("partition 2: the log has lost its end: offsets 0 to 4 (5 records)");
            health.starts_with("HTTP/1.1 503") && wrong && health.contains("TIDEMILL_ARCHIVER__ON_GAP=skip")
        })
        .await;
    };
    let archiver = start(&world, config(&world, "a")).await;
    waits(&archiver).await;
    world.send_all(&events_with_copies(0, 100)).await;
    assert!(ends(&world, &world.project).await[&2] > 5);
    archiver.stop().await;
    let archiver = start(&world, config(&world, "b")).await;
    waits(&archiver).await;
    archiver.stop().await;
    assert_eq!(rows(&world, &world.project).await, []);

    let skip = |group| Config { on_gap: OnGap::Skip, ..config(&world, group) };
    let archiver = start(&world, skip("c")).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    assert_eq!(rows(&world, &world.project).await, first_sights(&world, |_| true).await);

    // It has to be said once, though no record comes.
    let known = world.tables.load_or_create(&world.project).await.unwrap();
    let position = table_positions(&world, &world.project).await.remove(&2).unwrap();
    let ahead = Position { next: position.next + 5, ..position.clone() };
    commit(catalog, &known, &topic, &Positions::from([(2, ahead)]), &[]).await.unwrap();
    let archiver = start(&world, skip("d")).await;
    let stands = async || table_positions(&world, &world.project).await.get(&2) == Some(&position);
    eventually("the table is where the log ends", stands).await;
    archiver.stop().await;
    let archiver = start(&world, config(&world, "e")).await;
    world.send_all(&events_with_copies(100, 200)).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    assert_eq!(rows(&world, &world.project).await, first_sights(&world, |_| true).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_fail_alone() {
    let world = World::new().await;
    let (broken, late) = (format!("{}-broken", world.project), format!("{}-late", world.project));
    world.create_project(&broken).await;
    world.create_topics(&late).await;
    world.tables.load_or_create(&broken).await.unwrap();
    sqlx::query("UPDATE iceberg_tables SET metadata_location = 'file:///nowhere.json' WHERE table_namespace = $1")
        .bind(identifier(&broken).namespace().to_string())
        .execute(&world.pool)
        .await
        .unwrap();
    world.send_all(&events_with_copies(0, 100)).await;
    let archiver = start(&world, config(&world, "a")).await;
    archived(&world, &world.project).await;
    assert_eq!(rows(&world, &world.project).await.len(), 100);
    eventually("health names what is broken", || async {
        let health = archiver.get("/health").await;
        health.starts_with("HTTP/1.1 503") && health.contains(&events_topic(&broken))
    })
    .await;

    // A project that is made after its topic is found.
    send_to(&world, &late, &["a", "b", "c"].map(|id| event(id, "click", 1_700_000_000))).await;
    world.insert_project(&late).await;
    archived(&world, &late).await;
    assert_eq!(rows(&world, &late).await.len(), 3);
    archiver.stop().await;
}

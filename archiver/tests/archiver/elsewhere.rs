//! Other storages and catalogs: the same life of a table on each.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use futures::TryStreamExt;
use tidemill_archiver::Config;
use tidemill_archiver::maintain::{Maintenance, Neighbours, maintain};
use tidemill_archiver::table::Tables;
use tidemill_common::config::{CatalogKind, Connections};
use tidemill_common::event::Event;
use tidemill_testkit::{S3, event};

use crate::support::{World, archived, ask, batches, config, events_with_copies, first_sights, rows, start};

/// Bytes of a row group in memory, and how many events of 32 KB make two of them, the second one smaller.
const GROUP: usize = 16 * 1024 * 1024;
const EVENTS: usize = 1_000;

/// Archives, goes on with another archiver, maintains; every event is there once.
async fn lives(change: impl FnOnce(&mut Connections, &str)) {
    let mut world = World::new().await;
    let project = world.project.clone();
    change(&mut world.stack.connections, &project);
    world.tables = Tables::new(&world.connections);
    world.send_all(&events_with_copies(0, 500)).await;
    let archiver = start(&world, config(&world, "a")).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    world.send_all(&events_with_copies(500, 700)).await;
    let archiver = start(&world, config(&world, "b")).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    let what = Maintenance {
        snapshots_older_than: std::time::Duration::ZERO,
        keep_snapshots: 1,
        orphans_older_than: std::time::Duration::from_secs(24 * 3_600),
        dry_run: false,
    };
    let neighbours = Neighbours::load(&world.tables).await.unwrap();
    let later = chrono::Utc::now().timestamp_millis() + 48 * 3_600_000;
    let done = maintain(&world.tables, &neighbours, &world.project, &what, later).await.unwrap().unwrap();
    assert!(done.snapshots > 0 && done.snapshots_left == 1 && done.expired_files > 0, "{done:?}");
    eprintln!("{done:?}");
    assert_eq!(rows(&world, &world.project).await, first_sights(&world, |_| true).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_s3() {
    let server = S3::start().await;
    lives(|connections, project| {
        server.reach(connections);
        connections.warehouse_url = format!("s3://warehouse/{project}");
    })
    .await;
}

/// A file is sent a row group at a time, in parts that S3 puts together.
#[tokio::test(flavor = "multi_thread")]
async fn in_parts_to_s3() {
    let server = S3::start().await;
    let mut world = World::new().await;
    server.reach(&mut world.stack.connections);
    world.stack.connections.warehouse_url = format!("s3://warehouse/{}", world.project);
    world.tables = Tables::new(&world.connections);
    let noise = || std::iter::repeat_with(|| uuid::Uuid::new_v4().simple().to_string()).take(1_000).collect::<String>();
    let noisy = |i| Event {
        properties: Some(format!("{{\"noise\":\"{}\"}}", noise())),
        ..event(&format!("e-{i}"), "click", 1_700_000_000)
    };
    let events: Vec<Event> = (0..EVENTS).map(noisy).collect();
    world.send_all(&events).await;
    let whole =
        Config { batch_size: EVENTS, commit_interval_ms: 600_000, row_group_bytes: GROUP, ..config(&world, "a") };
    let archiver = start(&world, whole).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    let table = world.tables.load(&world.project).await.unwrap().unwrap();
    let files: Vec<_> = table.scan().build().unwrap().plan_files().await.unwrap().try_collect().await.unwrap();
    let [file] = &files[..] else { panic!("one commit, one day, one file: {files:?}") };
    let object =
        ask(server.endpoint.trim_start_matches("http://"), &file.data_file_path.replace("s3:/", "HEAD ")).await;
    let tag = object.lines().find_map(|line| line.to_lowercase().strip_prefix("etag: ").map(str::to_owned));
    // S3's tags of such objects end with the number of parts.
    assert!(tag.is_some_and(|tag| tag.ends_with("-3\"")), "two row groups and the end: {object}");
    assert_eq!(rows(&world, &world.project).await, first_sights(&world, |_| true).await);
    let sent: BTreeMap<_, _> = events.into_iter().map(|event| (event.event_id, event.properties.unwrap())).collect();
    let mut found = BTreeMap::new();
    for batch in batches(&world, &world.project).await {
        let texts = |name| batch.column_by_name(name).unwrap().as_string::<i32>();
        let both = texts("event_id").iter().zip(texts("properties"));
        found.extend(both.map(|(id, properties)| (id.unwrap().to_owned(), properties.unwrap().to_owned())));
    }
    assert!(found == sent, "another text came back");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a REST catalog"]
async fn with_a_rest_catalog() {
    lives(|connections, _| {
        connections.warehouse.catalog = CatalogKind::Rest;
        connections.warehouse.catalog_url = Some(std::env::var("ICEBERG_REST_URL").unwrap());
    })
    .await;
}

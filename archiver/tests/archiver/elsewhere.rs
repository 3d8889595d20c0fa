//! Other storages and catalogs: the same life of a table on each.

use tidemill_archiver::maintain::{Maintenance, Neighbours, maintain};
use tidemill_archiver::table::Tables;
use tidemill_common::config::{CatalogKind, Connections};
use tidemill_testkit::S3;

use crate::support::{World, archived, config, events_with_copies, first_sights, rows, start};

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

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a REST catalog"]
async fn with_a_rest_catalog() {
    lives(|connections, _| {
        connections.warehouse.catalog = CatalogKind::Rest;
        connections.warehouse.catalog_url = Some(std::env::var("ICEBERG_REST_URL").unwrap());
    })
    .await;
}

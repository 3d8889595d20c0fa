//! Other storages and catalogs: the same life of a table on each.

use tidemill_archiver::maintain::{Maintenance, Neighbours, maintain};
use tidemill_archiver::table::Tables;
use tidemill_common::config::{CatalogKind, Connections};

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

fn s3(connections: &mut Connections, project: &str) {
    let env = |name| Some(std::env::var(name).unwrap());
    connections.warehouse_url = format!("s3://warehouse/{project}");
    connections.warehouse.s3_endpoint = env("S3_ENDPOINT");
    connections.warehouse.s3_access_key_id = env("S3_ACCESS_KEY_ID");
    connections.warehouse.s3_secret_access_key = env("S3_SECRET_ACCESS_KEY");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an S3 server: dev/services start s3"]
async fn on_s3() {
    lives(s3).await;
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

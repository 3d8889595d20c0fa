//! Data files: how many are open, and how rows lie in them.

use std::path::Path;

use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use tidemill_archiver::positions::{Position, Positions};
use tidemill_testkit::event;

use crate::support::{World, batches, commit, write_files};

/// How many of this process's open files lie in a folder.
fn open_files(folder: &Path) -> usize {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    files.filter(|file| std::fs::read_link(file.path()).is_ok_and(|target| target.starts_with(folder))).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_many_days_do_not_open_many_files() {
    let world = World::new().await;
    let table = world.tables.load_or_create(&world.project).await.unwrap();
    let folder = world.connections.warehouse_url.strip_prefix("file://").unwrap().to_owned();
    // Two of each day, far from each other.
    let events: Vec<_> =
        (0..1_000).map(|i| (i, event(&format!("e-{i}"), "click", 946_684_800 + (i % 500) * 86_400))).collect();
    let writing = tokio::spawn(async move { write_files(&table, 0, &events).await });
    let mut most = 0;
    while !writing.is_finished() {
        most = most.max(open_files(Path::new(&folder)));
        tokio::task::yield_now().await;
    }
    let files = writing.await.unwrap();
    assert_eq!(files.len(), 500, "one for each day");
    assert!(files.iter().all(|file| file.record_count() == 2));
    // The storage closes them in the background, so the last one may still be there.
    assert!(most <= 4, "{most} files were open at a time");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_lie_by_type_and_time() {
    let world = World::new().await;
    let table = world.tables.load_or_create(&world.project).await.unwrap();
    let types = ["view", "click", "buy"];
    let event = |i: i64| event(&format!("e-{i}"), types[i as usize % 3], 1_700_000_000 + (i * 37) % 60);
    let files = write_files(&table, 0, &(0..60).map(|i| (i, event(i))).collect::<Vec<_>>()).await;
    assert_eq!(files[0].sort_order_id(), Some(1));
    let catalog = world.tables.catalog().await.unwrap();
    let end = Positions::from([(0, Position { incarnation: "one".to_owned(), next: 60, newest_ms: 0 })]);
    commit(catalog, &table, "events.any", &end, &files).await.unwrap();
    let mut read = Vec::new();
    for batch in batches(&world, &world.project).await {
        let types = batch.column_by_name("event_type").unwrap().as_string::<i32>().clone();
        let times = batch.column_by_name("occurred_at").unwrap().as_primitive::<TimestampMicrosecondType>().clone();
        read.extend((0..batch.num_rows()).map(|i| (types.value(i).to_owned(), times.value(i))));
    }
    assert_eq!(read.len(), 60);
    assert!(read.is_sorted(), "{read:?}");
}

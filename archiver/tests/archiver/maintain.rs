//! Maintenance: what goes, and what must stay.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use chrono::Utc;
use iceberg::TableIdent;
use tidemill_archiver::maintain::{MaintainError, Maintained, Maintenance, Neighbours};
use tidemill_archiver::positions::{Position, Positions};
use tidemill_archiver::table::{identifier, namespace};
use tidemill_testkit::event;

use crate::support::{World, commit, rows, write_files};

const HOUR: Duration = Duration::from_secs(3_600);
const ALL: Maintenance = Maintenance {
    snapshots_older_than: Duration::ZERO,
    keep_snapshots: 1,
    orphans_older_than: Duration::from_secs(24 * 3_600),
    dry_run: false,
};

/// Commits a few rows, so many times.
async fn fill(world: &World, times: std::ops::Range<i64>) {
    let catalog = world.tables.catalog().await.unwrap();
    let mut table = world.tables.load_or_create(&world.project).await.unwrap();
    for round in times {
        let files = write_files(&table, 0, &[(round, event(&format!("e-{round}"), "click", 1_700_000_000))]).await;
        let end = Positions::from([(0, Position { incarnation: "one".to_owned(), next: round + 1, newest_ms: 0 })]);
        table = commit(catalog, &table, "events.any", &end, &files).await.unwrap();
    }
}

fn folder(world: &World) -> PathBuf {
    let warehouse = PathBuf::from(world.connections.warehouse_url.strip_prefix("file://").unwrap());
    warehouse.join("tidemill").join(&world.project).join("events")
}

fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => drop(found.insert(entry.path())),
        }
    }
    found
}

/// Makes a file that nobody knows, last written so long ago.
fn orphan(folder: &Path, name: &str, age: Duration) -> PathBuf {
    let path = folder.join("data").join(name);
    File::create(&path).unwrap().set_modified(SystemTime::now() - age).unwrap();
    path
}

async fn maintain(
    world: &World,
    project: &str,
    what: &Maintenance,
    now_ms: i64,
) -> Result<Option<Maintained>, MaintainError> {
    let neighbours = Neighbours::load(&world.tables).await?;
    tidemill_archiver::maintain::maintain(&world.tables, &neighbours, project, what, now_ms).await
}

fn now_ms() -> i64 {
    Utc::now().timestamp_millis()
}

#[tokio::test(flavor = "multi_thread")]
async fn old_snapshots_and_orphans_go_and_every_row_stays() {
    let world = World::new().await;
    fill(&world, 0..6).await;
    let folder = folder(&world);
    let (old, young) = (orphan(&folder, "old.parquet", 25 * HOUR), orphan(&folder, "young.parquet", 23 * HOUR));
    let (before, all) = (rows(&world, &world.project).await, files(&folder));

    let looked = maintain(&world, &world.project, &Maintenance { dry_run: true, ..ALL }, now_ms()).await.unwrap();
    assert_eq!(looked.map(|looked| (looked.snapshots, looked.snapshots_left, looked.orphans)), Some((0, 6, 1)));
    assert_eq!(files(&folder), all);

    let done = maintain(&world, &world.project, &ALL, now_ms()).await.unwrap().unwrap();
    assert_eq!((done.snapshots, done.snapshots_left, done.orphans), (5, 1, 1), "{done:?}");
    assert_eq!(done.expired_files, 5, "the manifest lists of the snapshots: manifests and data are in use");
    let left = files(&folder);
    assert!(!left.contains(&old) && left.contains(&young));
    assert_eq!(all.difference(&left).count(), 6);
    assert_eq!(rows(&world, &world.project).await, before);
    fill(&world, 6..8).await;
    assert_eq!(rows(&world, &world.project).await.len(), 8, "it goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interval_protects_young_snapshots_and_there_is_always_one() {
    let world = World::new().await;
    fill(&world, 0..4).await;
    let hour = Maintenance { snapshots_older_than: HOUR, ..ALL };
    let done = maintain(&world, &world.project, &hour, now_ms()).await.unwrap().unwrap();
    assert_eq!((done.snapshots, done.snapshots_left, done.expired_files), (0, 4, 0));
    let later = now_ms() + 2 * HOUR.as_millis() as i64;
    let three = Maintenance { keep_snapshots: 3, ..hour };
    let done = maintain(&world, &world.project, &three, later).await.unwrap().unwrap();
    assert_eq!((done.snapshots, done.snapshots_left), (1, 3));
    assert_eq!(maintain(&world, "nobody", &ALL, later).await.unwrap(), None);
}

/// The table of a new name and its successor lie in the same folder.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_renamed_table_are_not_orphans() {
    let world = World::new().await;
    fill(&world, 0..3).await;
    let catalog = world.tables.catalog().await.unwrap();
    let renamed = TableIdent::new(namespace(&world.project), "events_before".to_owned());
    catalog.rename_table(&identifier(&world.project), &renamed).await.unwrap();
    fill(&world, 3..5).await;
    let later = now_ms() + 48 * HOUR.as_millis() as i64;
    maintain(&world, &world.project, &ALL, later).await.unwrap().unwrap();
    let before = catalog.load_table(&renamed).await.unwrap();
    let rows = before.scan().build().unwrap().to_arrow().await.unwrap();
    let counts: Vec<usize> =
        futures::TryStreamExt::try_collect::<Vec<_>>(rows).await.unwrap().iter().map(|b| b.num_rows()).collect();
    assert_eq!(counts.iter().sum::<usize>(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_when_a_needed_file_is_not_found() {
    let world = World::new().await;
    fill(&world, 0..3).await;
    let folder = folder(&world);
    orphan(&folder, "old.parquet", 25 * HOUR);
    let needed = files(&folder.join("data")).into_iter().find(|path| !path.ends_with("old.parquet")).unwrap();
    std::fs::remove_file(&needed).unwrap();
    let all = files(&folder);
    let error = maintain(&world, &world.project, &ALL, now_ms()).await.unwrap_err();
    assert!(
        matches!(&error, MaintainError::Missing { missing } if missing.ends_with(needed.file_name().unwrap().to_str().unwrap()))
    );
    let gone: Vec<_> = all.difference(&files(&folder)).cloned().collect();
    assert_eq!(gone, Vec::<PathBuf>::new());
}

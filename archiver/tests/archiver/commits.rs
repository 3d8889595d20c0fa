//! The commit itself, against a catalog that lies and against others who are faster.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use iceberg::spec::DataFile;
use iceberg::table::Table;
use iceberg::{Catalog, Error, ErrorKind, Namespace, NamespaceIdent, Result, TableCommit, TableCreation, TableIdent};
use tidemill_archiver::commit::CommitError;
use tidemill_archiver::positions::{Position, Positions};
use tidemill_common::home::home_partition;
use tidemill_common::names::events_topic;
use tidemill_testkit::{PARTITIONS, event};

use crate::support::{
    World, archived, commit, config, first_sights, incarnation, rows, start, table_positions, write_files,
};

const TOPIC: &str = "events.any";

fn at(list: &[(i32, i64)]) -> Positions {
    let position = |next| Position { incarnation: "one".to_owned(), next, newest_ms: 0 };
    list.iter().map(|&(partition, next)| (partition, position(next))).collect()
}

async fn files_of(table: &Table, partition: i32, offsets: std::ops::Range<i64>) -> Vec<DataFile> {
    let events: Vec<_> =
        offsets.map(|offset| (offset, event(&format!("{partition}-{offset}"), "click", 1_700_000_000))).collect();
    write_files(table, partition, &events).await
}

async fn offsets(world: &World) -> Vec<(i32, i64)> {
    rows(world, &world.project).await.into_iter().map(|(partition, offset, _)| (partition, offset)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_among_others_goes_in_once_and_a_late_one_not_at_all() {
    let world = World::new().await;
    let catalog = world.tables.catalog().await.unwrap();
    let known = world.tables.load_or_create(&world.project).await.unwrap();
    let files = files_of(&known, 0, 0..3).await;
    // Another archiver's partitions move on meanwhile: the same files go in on the next table.
    let others = files_of(&known, 1, 0..2).await;
    commit(catalog, &known, TOPIC, &at(&[(1, 2)]), &others).await.unwrap();
    let now = commit(catalog, &known, TOPIC, &at(&[(0, 3)]), &files).await.unwrap();
    assert_eq!(offsets(&world).await, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]);
    // A zombie that still knows the first table.
    for zombie in [at(&[(0, 2)]), at(&[(0, 9)]), at(&[(0, 3), (1, 1)])] {
        let files = files_of(&known, 0, 0..2).await;
        let late = commit(catalog, &known, TOPIC, &zombie, &files).await;
        assert!(matches!(late, Err(CommitError::Passed)), "{late:?}");
    }
    assert_eq!(offsets(&world).await.len(), 5);
    commit(catalog, &now, TOPIC, &at(&[(0, 4)]), &files_of(&now, 0, 3..4).await).await.unwrap();
    assert_eq!(offsets(&world).await.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_that_lies_is_not_believed() {
    for lie in [Lie::SaysDoneButIsNot, Lie::FailsButIsDone, Lie::FailsAndIsNot] {
        let world = World::new().await;
        let known = world.tables.load_or_create(&world.project).await.unwrap();
        let liar = Liar { honest: world.tables.catalog().await.unwrap(), lie, told: AtomicBool::new(false) };
        let files = files_of(&known, 0, 0..3).await;
        let now = commit(&liar, &known, TOPIC, &at(&[(0, 3)]), &files).await.unwrap();
        assert!(liar.told.load(Ordering::Relaxed));
        assert_eq!(offsets(&world).await, [(0, 0), (0, 1), (0, 2)], "{lie:?}");
        assert_eq!(now.metadata().snapshots().count(), 1, "{lie:?}");
    }
}

/// While one archiver commits, another gets in between its look at the positions and its commit, with positions
/// alone. Without a snapshot of its own such a commit would be written over.
#[tokio::test(flavor = "multi_thread")]
async fn positions_without_rows_are_fenced_too() {
    let world = World::new().await;
    let known = world.tables.load_or_create(&world.project).await.unwrap();
    let honest = world.tables.catalog().await.unwrap();
    for rows in [0..0, 0..3] {
        let known = if rows.is_empty() { known.clone() } else { honest.load_table(known.identifier()).await.unwrap() };
        let next = if rows.is_empty() { 5 } else { 8 };
        let meddler = Meddler { honest, known: known.clone(), end: at(&[(0, next)]), done: AtomicBool::new(false) };
        let files = files_of(&known, 0, rows).await;
        let late = commit(&meddler, &known, TOPIC, &at(&[(0, next - 2)]), &files).await;
        assert!(matches!(late, Err(CommitError::Passed)), "{late:?}");
        let now = world.tables.load(&world.project).await.unwrap().unwrap();
        let read = tidemill_archiver::positions::read(now.metadata().properties(), TOPIC).unwrap();
        assert_eq!(read, at(&[(0, next)]));
    }
    assert_eq!(offsets(&world).await, []);
    assert_eq!(table_positions(&world, &world.project).await, Positions::new(), "of another topic");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_make_one_table_and_all_commit() {
    let world = World::new().await;
    let writers = (0..4).map(async |partition| {
        // A catalog each, as processes have.
        let tables = tidemill_archiver::table::Tables::new(&world.connections);
        let mut table = loop {
            // Making the table may fail for the slower ones; the worker tries again, and so do we.
            if let Ok(table) = tables.load_or_create(&world.project).await {
                break table;
            }
        };
        for round in 0..3 {
            let files = files_of(&table, partition, round * 2..round * 2 + 2).await;
            let end = at(&[(partition, round * 2 + 2)]);
            table = commit(tables.catalog().await.unwrap(), &table, TOPIC, &end, &files).await.unwrap();
        }
    });
    futures::future::join_all(writers).await;
    let expected: Vec<_> = (0..4).flat_map(|partition| (0..6).map(move |offset| (partition, offset))).collect();
    assert_eq!(offsets(&world).await, expected);
}

/// Who had a partition before us may put rows in while we read them, too; and our next commit, of other partitions, makes us
/// know a table that has them.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_between_two_of_ours_is_noticed_by_the_third() {
    let world = World::new().await;
    let home = |partition: i32, from: usize| {
        let ids =
            (from..).map(|i| format!("e-{i}")).filter(move |id| home_partition(id.as_bytes(), PARTITIONS) == partition);
        ids.map(|id| event(&id, "click", 1_700_000_000)).take(10).collect::<Vec<_>>()
    };
    let archiver = start(&world, config(&world, "a")).await;
    world.send_all(&home(0, 0)).await;
    archived(&world, &world.project).await;
    let known = world.tables.load(&world.project).await.unwrap().unwrap();
    let catalog = world.tables.catalog().await.unwrap();
    let coming = home(1, 0);
    let rows_of: Vec<_> = (0..).zip(coming[..5].iter().cloned()).collect();
    let files = write_files(&known, 1, &rows_of).await;
    let end = Position { incarnation: incarnation(&world).await, next: 5, newest_ms: 0 };
    commit(catalog, &known, &events_topic(&world.project), &Positions::from([(1, end)]), &files).await.unwrap();
    world.send_all(&home(0, 1_000)).await;
    archived(&world, &world.project).await;
    for event in &coming {
        world.send(event).await;
    }
    archived(&world, &world.project).await;
    archiver.stop().await;
    assert_eq!(rows(&world, &world.project).await, first_sights(&world, |_| true).await);
}

#[derive(Debug, Clone, Copy)]
enum Lie {
    SaysDoneButIsNot,
    FailsButIsDone,
    FailsAndIsNot,
}

/// Lies about the first commit.
#[derive(Debug)]
struct Liar<'a> {
    honest: &'a dyn Catalog,
    lie: Lie,
    told: AtomicBool,
}

impl Liar<'_> {
    async fn update(&self, commit: TableCommit) -> Result<Table> {
        if self.told.swap(true, Ordering::Relaxed) {
            return self.honest.update_table(commit).await;
        }
        let failed = Err(Error::new(ErrorKind::Unexpected, "connection lost").with_retryable(true));
        match self.lie {
            Lie::SaysDoneButIsNot => self.honest.load_table(commit.identifier()).await,
            Lie::FailsButIsDone => self.honest.update_table(commit).await.and(failed),
            Lie::FailsAndIsNot => failed,
        }
    }
}

/// Lets another archiver commit positions just before the first commit.
#[derive(Debug)]
struct Meddler<'a> {
    honest: &'a dyn Catalog,
    known: Table,
    end: Positions,
    done: AtomicBool,
}

impl Meddler<'_> {
    async fn update(&self, update: TableCommit) -> Result<Table> {
        if !self.done.swap(true, Ordering::Relaxed) {
            commit(self.honest, &self.known, TOPIC, &self.end, &[]).await.unwrap();
        }
        self.honest.update_table(update).await
    }
}

/// A commit only loads and updates.
macro_rules! catalog {
    ($name:ident) => {
        #[async_trait]
        impl Catalog for $name<'_> {
            async fn load_table(&self, table: &TableIdent) -> Result<Table> {
                self.honest.load_table(table).await
            }
            async fn update_table(&self, commit: TableCommit) -> Result<Table> {
                self.update(commit).await
            }
            async fn list_namespaces(&self, _: Option<&NamespaceIdent>) -> Result<Vec<NamespaceIdent>> {
                unimplemented!()
            }
            async fn create_namespace(&self, _: &NamespaceIdent, _: HashMap<String, String>) -> Result<Namespace> {
                unimplemented!()
            }
            async fn get_namespace(&self, _: &NamespaceIdent) -> Result<Namespace> {
                unimplemented!()
            }
            async fn namespace_exists(&self, _: &NamespaceIdent) -> Result<bool> {
                unimplemented!()
            }
            async fn update_namespace(&self, _: &NamespaceIdent, _: HashMap<String, String>) -> Result<()> {
                unimplemented!()
            }
            async fn drop_namespace(&self, _: &NamespaceIdent) -> Result<()> {
                unimplemented!()
            }
            async fn list_tables(&self, _: &NamespaceIdent) -> Result<Vec<TableIdent>> {
                unimplemented!()
            }
            async fn create_table(&self, _: &NamespaceIdent, _: TableCreation) -> Result<Table> {
                unimplemented!()
            }
            async fn drop_table(&self, _: &TableIdent) -> Result<()> {
                unimplemented!()
            }
            async fn purge_table(&self, _: &TableIdent) -> Result<()> {
                unimplemented!()
            }
            async fn table_exists(&self, _: &TableIdent) -> Result<bool> {
                unimplemented!()
            }
            async fn rename_table(&self, _: &TableIdent, _: &TableIdent) -> Result<()> {
                unimplemented!()
            }
            async fn register_table(&self, _: &TableIdent, _: String) -> Result<Table> {
                unimplemented!()
            }
        }
    };
}

catalog!(Liar);
catalog!(Meddler);

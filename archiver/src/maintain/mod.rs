//! Maintenance that is safe in process: old snapshots go, then the files that only they referred to, then files that
//! nobody has referred to for days (what crashes leave). Compaction is Spark's (`archiver/maintenance/`).
//!
//! A file is only removed if no snapshot of any table that lies there refers to it. Should a file that a table needs
//! not be where it was looked for, names are not understood, and nothing is removed.

mod location;
mod neighbours;
mod reachable;
mod storage;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use iceberg::Catalog;
use iceberg::table::Table;
use iceberg::transaction::{ApplyTransactionAction, Transaction};
use serde::Serialize;

use self::location::{place, within};
pub use self::neighbours::Neighbours;
use self::reachable::reachable;
use self::storage::{Listed, list};
use crate::table::{Tables, identifier};

/// Files are put into storage before a commit refers to them; nobody takes that long.
pub const LEAST_ORPHAN_AGE: Duration = Duration::from_secs(24 * 3_600);

/// What to remove.
#[derive(Debug, Clone, Copy)]
pub struct Maintenance {
    /// Snapshots older than this. Queries that run on one are not longer than that.
    pub snapshots_older_than: Duration,
    /// So many of the newest stay in any case; at least 1.
    pub keep_snapshots: usize,
    /// Files that nobody refers to and that were last written before so long; at least [`LEAST_ORPHAN_AGE`].
    pub orphans_older_than: Duration,
    /// Only look.
    pub dry_run: bool,
}

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Maintained {
    /// Whose table it is.
    pub project: String,
    /// Snapshots that went; when only looking, none do.
    pub snapshots: usize,
    /// Snapshots that are left.
    pub snapshots_left: usize,
    /// Files that only those snapshots had.
    pub expired_files: usize,
    /// Files that nobody had.
    pub orphans: usize,
    /// Bytes of both.
    pub bytes: u64,
}

/// Why a table could not be maintained. What was removed until then was not needed.
#[derive(Debug, thiserror::Error)]
pub enum MaintainError {
    /// The catalog or a file of the table cannot be read or written.
    #[error("the table cannot be used: {0}")]
    Table(#[from] iceberg::Error),
    /// The storage cannot be listed, or does not remove.
    #[error("the storage cannot be used: {0}")]
    Storage(#[from] opendal::Error),
    /// Where the table lies is not understood.
    #[error("{0:?} is no place that can be listed; the warehouse must be file:///… or s3://…")]
    Location(String),
    /// Nothing would be safe to remove.
    #[error(
        "nothing was removed: the table needs {missing}, which is not in its folder as it is listed. If the file is \
         gone, the table is broken; if it is there, its name is written in another way than this can read"
    )]
    Missing {
        /// The first file that was not found.
        missing: String,
    },
    /// The table says so.
    #[error("the table's property gc.enabled is false: somebody wants its files to stay")]
    Kept,
}

/// Maintains a project's table, if it has one. `now_ms` is in milliseconds since 1970.
pub async fn maintain(
    tables: &Tables,
    neighbours: &Neighbours,
    project: &str,
    what: &Maintenance,
    now_ms: i64,
) -> Result<Option<Maintained>, MaintainError> {
    let Some(before) = tables.load(project).await? else { return Ok(None) };
    if before.metadata().properties().get("gc.enabled").is_some_and(|enabled| enabled == "false") {
        return Err(MaintainError::Kept);
    }
    let catalog = tables.catalog().await?;
    let all = reachable(&before).await?;
    let now = if what.dry_run { before.clone() } else { expire(catalog, &before, what, now_ms).await? };
    let own = reachable(&now).await?;
    let mut needed: BTreeSet<String> = own.iter().map(|file| place(file)).collect();
    // A table that was renamed still lies where it lay, where its successor lies too.
    for other in neighbours.of(catalog, &now).await? {
        needed.extend(reachable(&other).await?.iter().map(|file| place(file)));
    }
    let listed = list(&now).await?;
    let folder = place(now.metadata().location());
    let known: HashMap<String, &Listed> = listed.iter().map(|file| (place(&file.url), file)).collect();
    let inside = |file: &&String| within(&place(file), &folder);
    if let Some(missing) = own.iter().filter(inside).find(|file| !known.contains_key(&place(file))) {
        return Err(MaintainError::Missing { missing: missing.clone() });
    }
    let expired: BTreeSet<String> = all.iter().map(|file| place(file)).filter(|file| !needed.contains(file)).collect();
    let oldest = now_ms - what.orphans_older_than.max(LEAST_ORPHAN_AGE).as_millis() as i64;
    let orphan = |at: &String, file: &Listed| !needed.contains(at) && !expired.contains(at) && file.written_ms < oldest;
    let orphans: Vec<&Listed> = known.iter().filter(|(at, file)| orphan(at, file)).map(|(_, file)| *file).collect();
    let expired: Vec<&Listed> = expired.iter().filter_map(|at| known.get(at).copied()).collect();
    let doomed = || expired.iter().chain(&orphans);
    if !what.dry_run {
        storage::remove(&now, doomed().map(|file| file.url.as_str())).await?;
    }
    Ok(Some(Maintained {
        project: project.to_owned(),
        snapshots: before.metadata().snapshots().count().saturating_sub(now.metadata().snapshots().count()),
        snapshots_left: now.metadata().snapshots().count(),
        expired_files: expired.len(),
        orphans: orphans.len(),
        bytes: doomed().map(|file| file.bytes).sum(),
    }))
}

/// Removes old snapshots from the table's metadata; gives the table as it is then.
async fn expire(catalog: &dyn Catalog, table: &Table, what: &Maintenance, now_ms: i64) -> Result<Table, MaintainError> {
    let older_than = now_ms - what.snapshots_older_than.as_millis() as i64;
    let transaction = Transaction::new(table);
    let expire =
        transaction.expire_snapshots().expire_older_than_ms(older_than).retain_last(what.keep_snapshots.max(1));
    // It may run again on a table that has grown meanwhile: which snapshots are old does not change by that.
    let refusal = expire.apply(transaction)?.commit(catalog).await.err();
    let now = catalog.load_table(table.identifier()).await?;
    match refusal {
        // What the catalog says of a commit is not believed; what is left is all the same.
        Some(error) if now.metadata_location() == table.metadata_location() => Err(error.into()),
        _ => Ok(now),
    }
}

/// Lets go of everything but the table as it is now, with the files that only its past had: what was deleted from it
/// is gone then.
pub async fn forget_past(tables: &Tables, project: &str, now_ms: i64) -> Result<Option<Maintained>, MaintainError> {
    let what = Maintenance {
        snapshots_older_than: Duration::ZERO,
        keep_snapshots: 1,
        orphans_older_than: LEAST_ORPHAN_AGE,
        dry_run: false,
    };
    tracing::info!(table = %identifier(project), "letting go of its past");
    maintain(tables, &Neighbours::load(tables).await?, project, &what, now_ms).await
}

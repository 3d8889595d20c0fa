//! The commit: files and positions in one step, once.
//!
//! The library's own commit reloads the table when it has changed, applies its changes to whatever it finds
//! and tries again, so two archivers of one partition would both put their rows in. Here the base is pinned:
//! a commit goes through only on the very table whose positions were compared. And what a catalog says of a
//! commit is not believed, success included (the SQL catalog drops errors of its own COMMIT): the table is
//! loaded again, and its positions tell.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use iceberg::spec::DataFile;
use iceberg::table::Table;
use iceberg::transaction::{ApplyTransactionAction, Transaction};
use iceberg::{Catalog, Error, ErrorKind, Namespace, NamespaceIdent, Result, TableCommit, TableCreation, TableIdent};
use tidemill_common::failpoint::{Injected, hit, mutant};

use crate::positions::{self, BadPosition, Positions, Standing, standing};

/// Catalogs that take longer are given up for now.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Other archivers of the same table may get in between this often.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(20);
/// In the summary of every snapshot. It makes a commit without rows a snapshot too, and only snapshots are
/// checked against the base: without it, two commits of positions alone would write over each other.
const MARK: (&str, &str) = ("tidemill.archiver", env!("CARGO_PKG_VERSION"));

/// Why rows were not committed. None of them are in the table, unless it says that this is open.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The table's positions are neither those that we started from nor those that we made.
    #[error("another archiver has moved these partitions on")]
    Passed,
    /// Too many others commit to this table, or the catalog refuses ours.
    #[error("the table did not take the commit in {ATTEMPTS} tries: {0}")]
    Refused(Error),
    /// The table cannot be loaded; whether the commit has happened is open.
    #[error("the table cannot be loaded: {0}")]
    Unknown(#[from] Error),
    /// The catalog is slow; whether the commit has happened is open.
    #[error("the catalog has not answered for {} s, so whether the table took the commit is not known yet", TIMEOUT.as_secs())]
    Slow,
    /// The table's positions are broken.
    #[error(transparent)]
    Positions(#[from] BadPosition),
    /// A drill asked for it.
    #[error(transparent)]
    Injected(#[from] Injected),
}

/// Adds `files` to a table and moves partitions from `start` to `end`. Gives the table with all of it in. `start` has to be
/// where the rows were read from, not what a later table says: that may know of rows which another archiver of these
/// partitions has put in meanwhile.
pub async fn commit(
    catalog: &dyn Catalog,
    table: &TableIdent,
    topic: &str,
    start: &Positions,
    end: &Positions,
    files: &[DataFile],
) -> std::result::Result<Table, CommitError> {
    let committing = async {
        let mut tries = 0;
        let mut refusal = None;
        loop {
            let base = catalog.load_table(table).await?;
            match standing(start, end, &positions::read(base.metadata().properties(), topic)?) {
                Standing::Done => {
                    hit("archive.verified").await?;
                    return Ok(base);
                }
                Standing::Passed if !mutant("no-archive-fencing") => return Err(CommitError::Passed),
                Standing::Passed | Standing::Start => {}
            }
            if tries == ATTEMPTS {
                let silent = || Error::new(ErrorKind::Unexpected, "the catalog says it did what it did not");
                return Err(CommitError::Refused(refusal.unwrap_or_else(silent)));
            }
            tokio::time::sleep(PAUSE * tries).await;
            tries += 1;
            hit("archive.committing").await?;
            refusal = append(catalog, base, topic, end, files).await.err();
            hit("archive.committed").await?;
            if let Some(error) = &refusal {
                tracing::debug!(%error, %table, "commit failed, looking at the table");
            }
        }
    };
    tokio::time::timeout(TIMEOUT, committing).await.unwrap_or(Err(CommitError::Slow))
}

async fn append(catalog: &dyn Catalog, base: Table, topic: &str, end: &Positions, files: &[DataFile]) -> Result<Table> {
    let transaction = Transaction::new(&base);
    let append = transaction
        .fast_append()
        // It would read every manifest. These files' names are new, and positions tell whether they are in.
        .with_check_duplicate(false)
        .set_snapshot_properties(HashMap::from([(MARK.0.to_owned(), MARK.1.to_owned())]))
        .add_data_files(files.iter().cloned());
    let transaction = append.apply(transaction)?;
    let properties = transaction.update_table_properties();
    let properties = positions::write(topic, end).into_iter().fold(properties, |all, (key, value)| all.set(key, value));
    properties.apply(transaction)?.commit(&Pinned { catalog, base }).await
}

/// A catalog as one commit sees it: the table stays what it was when its positions were compared, and a
/// refusal is final.
#[derive(Debug)]
struct Pinned<'a> {
    catalog: &'a dyn Catalog,
    base: Table,
}

fn unused<T>() -> Result<T> {
    Err(Error::new(ErrorKind::FeatureUnsupported, "a commit asks its catalog only for its table"))
}

#[async_trait]
impl Catalog for Pinned<'_> {
    async fn load_table(&self, _: &TableIdent) -> Result<Table> {
        Ok(self.base.clone())
    }

    async fn update_table(&self, commit: TableCommit) -> Result<Table> {
        self.catalog.update_table(commit).await.map_err(|error| error.with_retryable(false))
    }

    async fn list_namespaces(&self, _: Option<&NamespaceIdent>) -> Result<Vec<NamespaceIdent>> {
        unused()
    }

    async fn create_namespace(&self, _: &NamespaceIdent, _: HashMap<String, String>) -> Result<Namespace> {
        unused()
    }

    async fn get_namespace(&self, _: &NamespaceIdent) -> Result<Namespace> {
        unused()
    }

    async fn namespace_exists(&self, _: &NamespaceIdent) -> Result<bool> {
        unused()
    }

    async fn update_namespace(&self, _: &NamespaceIdent, _: HashMap<String, String>) -> Result<()> {
        unused()
    }

    async fn drop_namespace(&self, _: &NamespaceIdent) -> Result<()> {
        unused()
    }

    async fn list_tables(&self, _: &NamespaceIdent) -> Result<Vec<TableIdent>> {
        unused()
    }

    async fn create_table(&self, _: &NamespaceIdent, _: TableCreation) -> Result<Table> {
        unused()
    }

    async fn drop_table(&self, _: &TableIdent) -> Result<()> {
        unused()
    }

    async fn purge_table(&self, _: &TableIdent) -> Result<()> {
        unused()
    }

    async fn table_exists(&self, _: &TableIdent) -> Result<bool> {
        unused()
    }

    async fn rename_table(&self, _: &TableIdent, _: &TableIdent) -> Result<()> {
        unused()
    }

    async fn register_table(&self, _: &TableIdent, _: String) -> Result<Table> {
        unused()
    }
}

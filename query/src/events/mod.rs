//! What `events` is: the archive's rows and, behind them, the tail of those that are not archived yet.
//!
//! For a project that is being asked for, a keeper follows its table, and a reader its processed topic. A query takes
//! a snapshot and the tail that is cut at this very snapshot's positions, both at once, so however far either has got,
//! they make every event once. Nobody asks any more: both end after a minute, and their memory is free.

mod data;
mod keeper;
mod reader;
mod rows;
mod snapshot;
pub mod store;
mod table;
mod tail;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use datafusion::catalog::TableProvider;
use datafusion::execution::cache::DefaultFilesMetadataCache;
use datafusion::execution::cache::cache_manager::FileMetadataCache;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tidemill_archiver::declared::Declared;
use tidemill_archiver::table::Tables;
use tidemill_common::config::Connections;
use tidemill_common::kafka::{History, KafkaConfig};
use tidemill_common::projects::Project;
use tokio::runtime::Handle;

use arrow::array::RecordBatch;
use keeper::{Keeper, Kept, Reach, Taken};
use snapshot::{Rows, Snapshot};
use store::Files;
use table::EventsTable;

/// A query waits this long for the table, and
const LOADING: Duration = Duration::from_secs(10);
/// this long for the tail to be whole.
const CATCHING_UP: Duration = Duration::from_millis(1_500);
/// Memory for the footers of files, in bytes.
const FOOTERS: usize = 128 * 1024 * 1024;

/// Why there are no events to query.
#[derive(Debug, thiserror::Error)]
#[error("the archive cannot be read: {0}")]
pub struct NoEvents(String);

/// The events of all projects.
pub struct Events {
    shared: Arc<Shared>,
    footers: Arc<dyn FileMetadataCache>,
}

/// What keepers share.
struct Shared {
    tables: Tables,
    kafka: KafkaConfig,
    history: History,
    /// What projects declare.
    pool: PgPool,
    kept: Mutex<HashMap<String, Arc<Kept>>>,
    /// The bytes that all tails hold, and how many they may.
    held: Arc<AtomicUsize>,
    most: usize,
    /// Where keepers run.
    runtime: Handle,
}

/// A project's events at one moment.
pub struct View {
    snapshot: Arc<Snapshot>,
    tail: Vec<RecordBatch>,
    /// How much of the tail there is.
    pub tail_is: TailIs,
    /// The same for the same rows.
    pub identity: String,
    footers: Arc<dyn FileMetadataCache>,
}

/// How much of the tail a view has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TailIs {
    /// All that was there: events are seen as soon as the stream has processed them.
    Whole,
    /// What has been read, or fits into memory. The rest is seen later.
    Behind,
    /// Nothing: it was not asked for.
    Off,
}

impl TailIs {
    /// In the answer's header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Behind => "behind",
            Self::Off => "off",
        }
    }
}

impl Events {
    /// Connects when it is first asked. Tails hold `tail_bytes` together at most; 0: there are none. Keepers run on
    /// `runtime`.
    pub fn new(connections: &Connections, pool: PgPool, tail_bytes: usize, runtime: Handle) -> Self {
        let shared = Shared {
            tables: Tables::new(connections),
            kafka: connections.kafka.clone(),
            history: History::new(connections.kafka.clone()),
            pool,
            kept: Mutex::default(),
            held: Arc::default(),
            most: tail_bytes,
            runtime,
        };
        Self { shared: Arc::new(shared), footers: Arc::new(DefaultFilesMetadataCache::new(FOOTERS)) }
    }

    /// A project's events now, with the tail or without.
    pub async fn view(&self, project: &Project, with_tail: bool) -> Result<View, NoEvents> {
        let kept = self.kept(project);
        let with_tail = with_tail && self.shared.most > 0;
        let mut phase = kept.phase();
        let loaded = phase.wait_for(|phase| phase.loaded || phase.failure.is_some());
        let loaded = match tokio::time::timeout(LOADING, loaded).await {
            Ok(Ok(phase)) => (phase.loaded, phase.failure.clone()),
            _ => (false, Some(format!("the catalog did not answer within {} s", LOADING.as_secs()))),
        };
        if let (false, Some(failure)) = loaded {
            return Err(NoEvents(failure));
        }
        if with_tail {
            let read = phase.wait_for(|phase| phase.tail != Reach::Starting);
            drop(tokio::time::timeout(CATCHING_UP, read).await);
        }
        let Taken { snapshot, tail, fingerprint, is_whole } =
            kept.take(with_tail).ok_or_else(|| NoEvents("its table is not loaded".to_owned()))?;
        let tail_is = match (with_tail, is_whole) {
            (true, true) => TailIs::Whole,
            (true, false) => TailIs::Behind,
            (false, _) => TailIs::Off,
        };
        let identity = match tail_is {
            TailIs::Off => snapshot.id.clone(),
            _ => format!("{}+{fingerprint:016x}", snapshot.id),
        };
        Ok(View { snapshot, tail, tail_is, identity, footers: Arc::clone(&self.footers) })
    }

    /// A project's keeper; starts one where there is none.
    fn kept(&self, project: &Project) -> Arc<Kept> {
        let mut all = self.shared.kept.lock().expect("no holder panics");
        let kept = match all.entry(project.id.clone()) {
            // The topics may have got more partitions.
            Entry::Occupied(there) if there.get().layout == project.layout => Arc::clone(there.get()),
            entry => {
                let kept = Arc::new(Kept::new(project.layout));
                entry.insert_entry(Arc::clone(&kept));
                let (shared, project, kept) = (Arc::clone(&self.shared), project.clone(), Arc::clone(&kept));
                let keeper = Keeper { shared, project, kept: Arc::clone(&kept), declared: Declared::default() };
                self.shared.runtime.spawn(keeper.run());
                kept
            }
        };
        kept.touch();
        kept
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.shared.kept.lock().expect("no holder panics").drain().for_each(|(_, kept)| kept.end());
    }
}

impl View {
    /// As a table.
    pub fn table(&self) -> Arc<dyn TableProvider> {
        Arc::new(EventsTable::new(Arc::clone(&self.snapshot), self.tail.clone(), Arc::clone(&self.footers)))
    }

    /// The files that the table may read.
    pub fn files(&self) -> Option<Arc<Files>> {
        match &self.snapshot.rows {
            Rows::Files(data) => Some(Arc::clone(&data.store)),
            Rows::None | Rows::Iceberg(_) => None,
        }
    }

    /// The archive's snapshot.
    pub fn snapshot(&self) -> &str {
        &self.snapshot.id
    }
}

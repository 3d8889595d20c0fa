//! All stores of a process: their folder, their thread, their share of memory.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::background::Background;
use super::folder::{self, Folder};
use super::plan::{self, Limits};
use super::run::Run;
use super::{SeenError, SeenStore};

/// Stores to which nothing was written for so long are nobody's any more.
const OLD: Duration = Duration::from_secs(7 * 86_400);

/// Whose sightings: a partition of one incarnation of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoreKey {
    /// The topic's name.
    pub topic: String,
    /// Kafka's id of the topic.
    pub incarnation: String,
    /// The partition.
    pub partition: i32,
}

impl StoreKey {
    /// Its place within a folder, or within a bucket.
    pub fn place(&self) -> String {
        // Ids are base64, in which "/" and "+" occur.
        let id = self.incarnation.replace('/', "_").replace('+', "-");
        format!("{}/{}-{id}", self.topic, self.partition)
    }
}

/// All stores of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SeenStores(Arc<Shared>);

/// What stores have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub limits: Limits,
    pub background: Background,
    root: PathBuf,
    folder: Arc<Folder>,
    /// Sightings in all buffers, and in how many.
    buffered: AtomicUsize,
    filled: AtomicUsize,
    /// What is on disk of each store that is in use.
    runs: Mutex<HashMap<StoreKey, Vec<Arc<Run>>>>,
}

impl SeenStores {
    /// Takes a folder of `root` that no other process uses.
    pub fn open(root: &Path, limits: Limits) -> Result<Self, SeenError> {
        let folder = Arc::new(Folder::take(root)?);
        let background = Background::start(Arc::clone(&folder)).map_err(SeenError::disk(root))?;
        let (buffered, filled, runs) = Default::default();
        Ok(Self(Arc::new(Shared { limits, background, root: root.to_owned(), folder, buffered, filled, runs })))
    }

    /// The store of a partition, as it is on disk. Blocks.
    pub fn load(&self, key: &StoreKey, window_ms: i64) -> Result<SeenStore, SeenError> {
        let (folder, limits) = (self.folder_of(key), self.0.limits);
        let cold = move |run: &_, now_ms| plan::cold(run, now_ms, window_ms, &limits);
        // In the background, behind what the store's last user may have left there to be written.
        let opened = self.0.background.run(move || folder::open_runs(&folder, cold)).recv();
        let runs = opened.unwrap_or_else(|_| Err(self.gone()))?;
        Ok(SeenStore::new(Arc::clone(&self.0), key.clone(), window_ms, runs))
    }

    /// Where a partition's store is.
    pub fn folder_of(&self, key: &StoreKey) -> PathBuf {
        self.0.folder_of(key)
    }

    /// Waits until everything that stores have left to be written is on disk. Blocks.
    pub fn settle(&self) -> Result<(), SeenError> {
        self.0.background.run(|| Ok(())).recv().unwrap_or_else(|_| Err(self.gone()))
    }

    /// The same, and then gives the folder up: the stores must be gone. Blocks.
    pub fn close(&self) -> Result<(), SeenError> {
        let folder = Arc::clone(&self.0.folder);
        let unlocked = self.0.background.run(move || folder.unlock().map_err(SeenError::disk(&folder.path)));
        unlocked.recv().unwrap_or_else(|_| Err(self.gone()))
    }

    /// What is on disk of the stores in use.
    pub(super) fn runs(&self) -> HashMap<StoreKey, Vec<Arc<Run>>> {
        self.0.runs().clone()
    }

    /// Sets the metrics of all stores together; the label tells one process' views apart.
    pub fn report(&self, view: &'static str) {
        let (mut files, mut sightings, mut disk, mut memory) = (0, 0, 0, 0);
        for run in self.0.runs().values().flatten() {
            files += 1;
            sightings += run.about.len;
            disk += run.about.file_bytes();
            memory += run.memory();
        }
        let set = |name, value: f64| metrics::gauge!(name, "view" => view).set(value);
        set("tidemill_seen_files", f64::from(files));
        set("tidemill_seen_sightings", sightings as f64);
        set("tidemill_seen_disk_bytes", disk as f64);
        set("tidemill_seen_memory_bytes", memory as f64);
        set("tidemill_seen_buffered_sightings", self.0.buffered.load(Ordering::Relaxed) as f64);
    }

    /// Removes what is old and nobody's. Blocks.
    pub fn clean(&self) {
        let used: Vec<PathBuf> = self.0.runs().keys().map(|key| self.folder_of(key)).collect();
        let keep = |path: &Path| used.iter().any(|used| used == path);
        if let Err(error) = folder::clean(&self.0.root, &self.0.folder, OLD, &keep) {
            tracing::warn!(%error, path = %self.0.root.display(), "old seen stores cannot be removed");
        }
    }

    fn gone(&self) -> SeenError {
        SeenError::disk(&self.0.root)(std::io::Error::other("its thread has ended"))
    }
}

impl Shared {
    pub fn folder_of(&self, key: &StoreKey) -> PathBuf {
        self.folder.path.join(key.place())
    }

    /// A store's buffer has another length now.
    pub fn count(&self, before: usize, now: usize) {
        self.buffered.fetch_add(now, Ordering::Relaxed);
        self.buffered.fetch_sub(before, Ordering::Relaxed);
        self.filled.fetch_add(usize::from(now > 0), Ordering::Relaxed);
        self.filled.fetch_sub(usize::from(before > 0), Ordering::Relaxed);
    }

    /// Whether a store with so much in its buffer should write it: there is too much in all of them, and it has
    /// no less than others.
    pub fn is_full(&self, len: usize) -> bool {
        let (buffered, filled) = (self.buffered.load(Ordering::Relaxed), self.filled.load(Ordering::Relaxed));
        buffered >= self.limits.buffered && len >= buffered / filled.max(1)
    }

    pub fn publish(&self, key: &StoreKey, runs: &[Arc<Run>]) {
        self.runs().insert(key.clone(), runs.to_vec());
    }

    pub fn withdraw(&self, key: &StoreKey) {
        self.runs().remove(key);
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<StoreKey, Vec<Arc<Run>>>> {
        self.runs.lock().expect("no holder panics")
    }
}

//! The spool: where accepted events wait on disk while Kafka is down.
//!
//! An event is safe once [`Spool::append`] returns: written with its checksum and fsynced. [`drain`](drain()) brings
//! what is here to Kafka, at least once; the workers' dedupe makes it once. A project's records leave in the order
//! in which they came, and projects take turns. Events that come while the spool is not empty need not queue behind
//! it: nothing depends on the order of events in the log, so they go straight to Kafka as soon as it takes them.
//!
//! `books` decides (pure), `record` is the form of a record (pure), `files` touches the disk, `writer` is the
//! thread that writes, `drain` sends, `operator` is for people.

mod books;
mod drain;
mod files;
mod operator;
mod record;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use tidemill_common::names::ProjectId;
use tokio::sync::{Notify, mpsc, oneshot};

use books::{Books, Taken};
pub use books::{FRESH_MS, Status};
pub use drain::{Drained, drain};
use files::Folder;
pub use files::look;
pub use operator::{Listed, discard, list, release};
pub use record::Record;
use writer::Append;

/// A size that holds a few minutes of a busy gateway's events.
pub const DEFAULT_BYTES: u64 = 1024 * 1024 * 1024;

/// Why events are not in the spool.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SpoolError {
    /// Its share of the room is used up.
    #[error("the spool has no more room for this project; it empties as soon as Kafka takes events again")]
    Full,
    /// The disk said no. Nothing of the call is in the spool.
    #[error("cannot write to the spool, its disk may be full or broken: {0}")]
    Io(Arc<io::Error>),
    /// Another process has it.
    #[error("the spool {} is in use by another gateway; give each gateway a folder of its own", .0.display())]
    Shared(PathBuf),
    /// An operator named a project that is not there.
    #[error("the spool {} has nothing of project {project}; `tidemill spool list` shows what there is", .folder.display())]
    Unknown {
        /// The spool.
        folder: PathBuf,
        /// The project.
        project: String,
    },
    /// The folder cannot be used.
    #[error("the spool {:?} cannot be used; check that SPOOL_DIR names a folder that is there and can be written to: {error}", .folder)]
    Unusable {
        /// Which.
        folder: PathBuf,
        /// Why.
        error: Arc<io::Error>,
    },
}

impl SpoolError {
    fn unusable(folder: &Path, error: io::Error) -> Self {
        Self::Unusable { folder: folder.to_owned(), error: Arc::new(error) }
    }
}

/// A spool on disk. Cheap to clone; the last one dropped waits until nothing is being written.
#[derive(Clone)]
pub struct Spool {
    writer: Arc<Writer>,
}

struct Writer {
    shared: Arc<Shared>,
    queue: Option<mpsc::UnboundedSender<Append>>,
    thread: Option<JoinHandle<()>>,
}

/// What the writer's thread and everybody else share.
struct Shared {
    folder: Folder,
    books: Mutex<Books>,
    appended: Notify,
}

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().expect("no holder panics")
    }

    /// There is more than before, or less.
    fn changed(&self) {
        self.measure();
        self.appended.notify_one();
    }

    fn measure(&self) {
        let status = self.books().status(now_ms());
        metrics::gauge!("tidemill_spool_bytes").set(status.bytes as f64);
        metrics::gauge!("tidemill_spool_records").set(status.records as f64);
        metrics::gauge!("tidemill_spool_kept_bytes").set(status.kept as f64);
        metrics::gauge!("tidemill_spool_waiting_projects").set(status.waiting.len() as f64);
    }
}

impl Spool {
    /// Opens a folder, made if need be, for at most `limit` bytes. Cuts what a crash left half written.
    /// Reads all that is there: for a start, not for a running runtime's thread.
    pub fn open(folder: &Path, limit: u64) -> Result<Self, SpoolError> {
        let files = Folder::lock(folder)?;
        let books = Mutex::new(files.load(limit)?);
        let shared = Arc::new(Shared { folder: files, books, appended: Notify::new() });
        let (queue, appends) = mpsc::unbounded_channel();
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("spool".to_owned())
            .spawn(move || writer::run(&own, appends))
            .map_err(|error| SpoolError::unusable(folder, error))?;
        shared.changed();
        Ok(Self { writer: Arc::new(Writer { shared, queue: Some(queue), thread: Some(thread) }) })
    }

    /// Puts records of one project on disk. They are safe, all of them, when this returns `Ok`; after an error
    /// none of them will be drained. Giving up waiting does not undo it.
    pub async fn append(&self, project: &str, records: &[Record<'_>]) -> Result<(), SpoolError> {
        if records.is_empty() {
            return Ok(());
        }
        if let Err(error) = ProjectId::parse(project) {
            return Err(SpoolError::Io(Arc::new(io::Error::new(io::ErrorKind::InvalidInput, error))));
        }
        let mut bytes = Vec::new();
        records.iter().for_each(|record| record.write(&mut bytes));
        if !self.shared().books().reserve(project, bytes.len() as u64) {
            metrics::counter!("tidemill_spool_full_total").increment(records.len() as u64);
            return Err(SpoolError::Full);
        }
        let (answer, answered) = oneshot::channel();
        let oldest = records.iter().map(|record| record.spooled_at).min().unwrap_or(i64::MAX);
        let append = Append { project: project.to_owned(), bytes, records: records.len() as u64, oldest, answer };
        let gone =
            || SpoolError::Io(Arc::new(io::Error::other("the spool's thread has ended, start the gateway anew")));
        let queue = self.writer.queue.as_ref().ok_or_else(gone)?;
        queue.send(append).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// What there is, for health.
    pub fn status(&self) -> Status {
        self.shared().books().status(now_ms())
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.writer.shared
    }

    fn take(&self) -> Option<Taken> {
        self.shared().books().take(now_ms())
    }

    /// Runs something that waits for the disk.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let shared = Arc::clone(self.shared());
        tokio::task::spawn_blocking(move || work(&shared)).await.map_err(io::Error::other)?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

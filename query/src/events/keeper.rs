//! Keeps a project's snapshot new and its tail cut at it, as long as somebody asks.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use tidemill_archiver::declared::Declared;
use tidemill_common::projects::Project;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Shared;
use super::reader::{Read, Source};
use super::rows::Maker;
use super::snapshot::Snapshot;
use super::tail::Tail;

/// How often the table is looked at. A snapshot that is older by this is no loss where there is a tail: what it
/// lacks is there.
const LOOK: Duration = Duration::from_secs(2);
/// Nobody asks for so long: it ends.
const IDLE: Duration = Duration::from_secs(60);
const KAFKA: Duration = Duration::from_secs(5);

/// What is kept of a project.
pub struct Kept {
    /// How its events are spread over topics: another one has other partitions.
    pub layout: i32,
    state: Mutex<State>,
    phase: watch::Sender<Phase>,
    asked: Mutex<Instant>,
    stop: CancellationToken,
}

/// A snapshot and the rows behind it.
pub struct Taken {
    pub snapshot: Arc<Snapshot>,
    pub tail: Vec<RecordBatch>,
    /// The tail's.
    pub fingerprint: u64,
    /// All that there was of the tail has been read.
    pub is_whole: bool,
}

#[derive(Default)]
struct State {
    snapshot: Option<Arc<Snapshot>>,
    tail: Option<Following>,
}

/// A tail and its reader, which ends when this is dropped.
struct Following {
    /// Of the topics whose records it holds.
    incarnations: Vec<String>,
    tail: Tail,
    done: oneshot::Receiver<()>,
    _stop: DropGuard,
}

impl Following {
    fn is_over(&mut self) -> bool {
        !matches!(self.done.try_recv(), Err(TryRecvError::Empty))
    }
}

/// How far the keeper has got.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Phase {
    /// There is a snapshot.
    pub loaded: bool,
    /// Why there is none yet.
    pub failure: Option<String>,
    /// How much of the tail has been read.
    pub tail: Reach,
}

/// How much of a tail has been read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It is being read.
    #[default]
    Starting,
    /// All there is.
    Whole,
    /// There is more, which cannot be read now.
    Behind,
}

impl Kept {
    /// Nothing so far.
    pub fn new(layout: i32) -> Self {
        let (state, phase, asked) = (Mutex::default(), watch::Sender::default(), Mutex::new(Instant::now()));
        Self { layout, state, phase, asked, stop: CancellationToken::new() }
    }

    /// Somebody asks.
    pub fn touch(&self) {
        *self.asked.lock().expect("no holder panics") = Instant::now();
    }

    /// How far it is, from now on.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// The snapshot and the rows behind it, all of one moment.
    pub fn take(&self, with_tail: bool) -> Option<Taken> {
        let state = self.state();
        let snapshot = Arc::clone(state.snapshot.as_ref()?);
        let (tail, fingerprint) = match &state.tail {
            Some(Following { tail, .. }) if with_tail => (tail.batches(), tail.fingerprint()),
            _ => (Vec::new(), 0),
        };
        // What changes it has the state's lock.
        let is_whole = self.phase.borrow().tail == Reach::Whole;
        Some(Taken { snapshot, tail, fingerprint, is_whole })
    }

    /// Ends the keeper and its reader.
    pub fn end(&self) {
        self.stop.cancel();
    }

    fn is_idle(&self) -> bool {
        self.asked.lock().expect("no holder panics").elapsed() > IDLE
    }

    fn set(&self, change: impl FnOnce(&mut Phase)) {
        self.phase.send_if_modified(|phase| {
            let before = phase.clone();
            change(phase);
            *phase != before
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

/// A project's keeper.
pub struct Keeper {
    pub shared: Arc<Shared>,
    pub project: Project,
    pub kept: Arc<Kept>,
    /// Which columns its events have beside those that all have.
    pub declared: Declared,
}

impl Keeper {
    /// Works until it is ended, or nobody has asked for a minute.
    pub async fn run(mut self) {
        let _ended = self.kept.stop.clone().drop_guard(); // its reader's, too, however this ends
        while !self.kept.stop.is_cancelled() && !self.is_over() {
            match self.look().await {
                Ok(()) => self.kept.set(|phase| (phase.loaded, phase.failure) = (true, None)),
                Err(error) => {
                    tracing::warn!(project = self.project.id, error, "the archive's table cannot be loaded");
                    self.kept.set(|phase| phase.failure = Some(error));
                }
            }
            let wanted = self.shared.most > 0 && self.kept.phase.borrow().loaded;
            if wanted && !self.is_reading() && !self.start_reading().await {
                self.kept.set(|phase| phase.tail = Reach::Behind);
            }
            tokio::select! {
                () = self.kept.stop.cancelled() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Ends the keeping if nobody asks; nobody can begin to at the same time.
    fn is_over(&self) -> bool {
        let mut all = self.shared.kept.lock().expect("no holder panics");
        let ours = all.get(&self.project.id).is_some_and(|kept| Arc::ptr_eq(kept, &self.kept));
        if ours && self.kept.is_idle() {
            all.remove(&self.project.id);
        }
        !ours || self.kept.is_idle()
    }

    /// Takes the table's newest snapshot. The tail goes where it has to be read anew, for other columns.
    async fn look(&mut self) -> Result<(), String> {
        let declared = self.declared.clone().renewed(&self.shared.pool, &self.project.id).await;
        let mut same_columns = declared.promotions == self.declared.promotions;
        self.declared = declared;
        let before = self.kept.state().snapshot.clone();
        let loaded = Snapshot::load(&self.shared.tables, &self.project.id, before.as_deref()).await;
        let (newer, failure) = loaded.map_or_else(|error| (None, Some(error.to_string())), |newer| (newer, None));
        let mut state = self.kept.state();
        if let Some(snapshot) = newer {
            same_columns &= before.is_none_or(|before| before.schema == snapshot.schema);
            if let Some(following) = state.tail.as_mut().filter(|_| same_columns) {
                let cut = snapshot.cut(&following.incarnations);
                following.tail.advance(cut).map_err(|error| error.to_string())?;
            }
            state.snapshot = Some(Arc::new(snapshot));
        }
        if !same_columns {
            state.tail = None;
            self.kept.set(|phase| phase.tail = Reach::Starting);
        }
        failure.map_or(Ok(()), Err)
    }

    /// Whether the tail is being read.
    fn is_reading(&self) -> bool {
        self.kept.state().tail.as_mut().is_some_and(|following| !following.is_over())
    }

    /// Starts to read the tail from where the snapshot ends. False: Kafka does not answer; later, then.
    async fn start_reading(&self) -> bool {
        let (history, topics) = (self.shared.history.clone(), self.project.topics());
        let ask =
            move || history.incarnations(&topics, KAFKA).map(|found| (found.len() == topics.len()).then_some(found));
        let incarnations = match tokio::task::spawn_blocking(ask).await {
            Ok(Ok(found)) => found.map(|found| found.into_values().collect::<Vec<_>>()),
            Ok(Err(error)) => {
                tracing::warn!(project = self.project.id, %error, "the tail cannot be read");
                None
            }
            Err(_) => None, // the runtime is shutting down
        };
        let Some(incarnations) = incarnations else { return false };
        // Held until the tail is there: the reader waits for it with its first rows.
        let mut state = self.kept.state();
        let Some(snapshot) = state.snapshot.clone() else { return false };
        let cut = snapshot.cut(&incarnations);
        let maker = Maker::new(Arc::clone(&snapshot.schema), Arc::clone(&self.declared.promotions));
        let tail = Tail::new(maker, cut.clone(), &self.shared.held);
        let source = Source {
            kafka: self.shared.kafka.clone(),
            history: self.shared.history.clone(),
            project: self.project.clone(),
            cut,
            held: Arc::clone(&self.shared.held),
            most: self.shared.most,
        };
        let (stop, kept, (done, is_done)) = (self.kept.stop.child_token(), Arc::clone(&self.kept), oneshot::channel());
        let cancel = stop.clone();
        // Not on the runtime's threads: it would wait for this one when it ends.
        let reading = move || {
            let project = source.project.id.clone();
            if let Err(error) = source.read(&cancel, |read| hand_over(&kept, &cancel, read)) {
                tracing::warn!(project, %error, "the tail is read again from where the archive ends");
                hand_over(&kept, &cancel, Read::Behind);
            }
            let _ = done.send(());
        };
        if let Err(error) = std::thread::Builder::new().name("tail".to_owned()).spawn(reading) {
            tracing::warn!(project = self.project.id, %error, "the tail cannot be read");
            return false;
        }
        state.tail = Some(Following { incarnations, tail, done: is_done, _stop: stop.drop_guard() });
        self.kept.set(|phase| phase.tail = Reach::Starting);
        true
    }
}

fn hand_over(kept: &Kept, cancel: &CancellationToken, read: Read) {
    let mut state = kept.state();
    // Under the lock: a reader that was replaced meanwhile must not add to its successor's tail.
    if cancel.is_cancelled() {
        return;
    }
    let rows = match read {
        Read::Rows(rows) => rows,
        Read::Whole => return kept.set(|phase| phase.tail = Reach::Whole),
        Read::Behind => return kept.set(|phase| phase.tail = Reach::Behind),
    };
    if let Some(Following { tail, .. }) = &mut state.tail
        && let Err(error) = tail.add(rows)
    {
        tracing::error!(%error, "rows of the tail do not fit into the table's columns");
        kept.set(|phase| phase.tail = Reach::Behind);
        cancel.cancel();
    }
}

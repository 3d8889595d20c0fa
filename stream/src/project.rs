//! Projection into Redis: absolute values of what has changed, read from Postgres after the commit.
//!
//! Each value carries `(epoch, generation, version)` of the rows it stands for, and an older one never overwrites a
//! newer one, whoever writes last. It runs beside the worker: what cannot be written stays noted and is tried again,
//! and no batch waits for it.

mod again;
mod audit;
pub(crate) mod compare;
pub(crate) mod copies;
mod guard;
pub(crate) mod list;
pub(crate) mod lost;
pub(crate) mod marks;
mod mutant;
pub(crate) mod pending;
pub(crate) mod read;
mod task;
pub(crate) mod walk;
pub(crate) mod write;
mod writer;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tidemill_common::names::project_of;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::ledger::{Place, Position};
use crate::store::Touched;
use pending::Positions;
use task::Projection;
pub use writer::{ProjectError, Writer};

/// How often what happens.
#[derive(Debug, Clone, Copy)]
pub struct Intervals {
    /// Between two rounds of writes, so between two writes of one key, at least.
    pub round: Duration,
    /// Between two audits.
    pub audit: Duration,
}

/// Between two writes of windows while the worker is behind, and between two rounds with [`MANY_KEYS`].
const WINDOWS_BEHIND: Duration = Duration::from_secs(2);
/// Between two rounds of everything else while the worker is behind: what is read now is as old at least, most of it will
/// have changed again, and the time is better spent on what is newer.
const ROUND_BEHIND: Duration = Duration::from_secs(5);
/// So many keys do not wait for so long: they take memory.
const MANY_KEYS: usize = 100_000;

impl Intervals {
    /// Between two writes of windows.
    fn windows(&self, behind: bool) -> Duration {
        if behind { self.round.max(WINDOWS_BEHIND) } else { self.round }
    }

    /// Between two rounds of everything else, while so many keys wait.
    fn rounds(&self, behind: bool, waiting: usize) -> Duration {
        let patient = behind && waiting < MANY_KEYS;
        if patient { self.round.max(ROUND_BEHIND) } else { self.windows(behind) }
    }
}

/// The worker's end of the projection. It ends with this.
pub struct Projector {
    notes: mpsc::UnboundedSender<Note>,
    progress: Arc<Progress>,
    task: JoinHandle<()>,
}

/// What the worker asks after.
#[derive(Default)]
struct Progress {
    epoch: AtomicI64,
    shown: Mutex<Positions>,
}

impl Progress {
    fn shown(&self) -> MutexGuard<'_, Positions> {
        self.shown.lock().expect("no holder panics")
    }
}

enum Note {
    Live { epoch: i64, partitions: Vec<(Place, Position)>, touched: Touched, all_of: BTreeSet<String> },
    Batch { epoch: i64, touched: Touched, ends: Vec<(Place, i64)>, behind: bool },
    Gone(Vec<Place>),
    Finish(oneshot::Sender<()>),
}

impl Projector {
    /// Starts it, with nothing to project. Needs a tokio runtime.
    pub fn start(writer: Writer, intervals: Intervals) -> Self {
        let (notes, received) = mpsc::unbounded_channel();
        let progress = Arc::<Progress>::default();
        let projection = Projection::new(writer, intervals, Arc::clone(&progress));
        Self { notes, progress, task: tokio::spawn(projection.run(received)) }
    }

    /// These partitions are ours, from these positions of this epoch on. `touched` has what Redis may not show of
    /// them yet; of the projects `all_of` it may miss anything.
    pub fn live(&self, epoch: i64, partitions: Vec<(Place, Position)>, touched: Touched, all_of: BTreeSet<String>) {
        self.send(Note::Live { epoch, partitions, touched, all_of });
    }

    /// A batch was committed that ends here. `behind`: what it has is old.
    pub fn batch(&self, epoch: i64, touched: Touched, ends: Vec<(Place, i64)>, behind: bool) {
        self.send(Note::Batch { epoch, touched, ends, behind });
    }

    /// These partitions are not ours any more, or not live.
    pub fn gone(&self, places: Vec<Place>) {
        self.send(Note::Gone(places));
    }

    /// The epoch; above the worker's own, Postgres has come back older, and the ledger has to be read anew.
    pub fn epoch(&self) -> i64 {
        self.progress.epoch.load(Ordering::Relaxed)
    }

    /// Up to where Redis shows everything of a partition.
    pub fn shown(&self, place: &Place) -> Option<i64> {
        self.progress.shown().get(place).copied()
    }

    /// Writes what is left, if that goes quickly.
    pub async fn finish(&self) {
        let (done, finished) = oneshot::channel();
        self.send(Note::Finish(done));
        let _ = finished.await; // or it has ended
    }

    fn send(&self, note: Note) {
        let _ = self.notes.send(note); // it lives as long as we do
    }
}

impl Drop for Projector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The project of a place.
fn project(place: &Place) -> Option<String> {
    project_of(&place.topic).map(str::to_owned)
}

/// By place.
type ByPlace<T> = HashMap<Place, T>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_behind_shows_less_often_unless_much_waits() {
        let intervals = Intervals { round: Duration::from_millis(400), audit: Duration::MAX };
        let rounds = |behind, waiting| intervals.rounds(behind, waiting).as_millis();
        assert_eq!([rounds(false, 1), rounds(false, MANY_KEYS)], [400, 400]);
        assert_eq!([rounds(true, 1), rounds(true, MANY_KEYS)], [5_000, 2_000]);
        assert_eq!([intervals.windows(false).as_millis(), intervals.windows(true).as_millis()], [400, 2_000]);
        let slow = Intervals { round: Duration::from_secs(9), ..intervals };
        assert_eq!([slow.rounds(true, 1), slow.windows(true)], [slow.round; 2], "as it is set");
    }
}

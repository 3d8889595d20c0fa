//! The rows: each breaks something in one way. To add one, write a function that takes [`Options`] and gives an
//! [`Outcome`], and name it in the list of its file.

mod archive;
mod archive_store;
mod kafka;
mod operators;
mod postgres;
mod processes;
mod producers;
mod redis;
mod redis_modes;
mod redis_move;
mod redrive;
mod replay;
mod spread;
mod steps;
mod store;

use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use crate::drill::{Options, Outcome};

pub use archive::ARCHIVE;
pub use operators::OPERATORS;

/// A row that takes longer counts as failed: several times what it needs, so that a busy machine does not matter, and
/// little enough for a whole run to end within the hour whatever happens. Longer than any one wait in a row, whose
/// message says more.
const LIMIT: Duration = Duration::from_secs(100);

type Run = Box<dyn Fn(Options) -> LocalBoxFuture<'static, anyhow::Result<Outcome>>>;

/// A drill of one kind.
pub struct Row {
    /// What it is picked by.
    pub name: String,
    /// Whether it belongs to the short selection.
    pub short: bool,
    /// The longest it may take.
    pub limit: Duration,
    /// Runs it.
    pub run: Run,
}

/// A fault in the code that a row has to notice.
pub struct Mutant {
    /// `TIDEMILL_MUTANT`
    pub name: &'static str,
    /// The row that must find differences with it.
    pub row: &'static str,
    /// Whether it belongs to the short selection.
    pub short: bool,
}

/// The planted mutants.
pub const MUTANTS: [Mutant; 9] = [
    // The ledger is committed before what it stands for.
    Mutant { name: "commit-first", row: "abort:stream.folded", short: false },
    // Dedupe takes whatever was seen for a copy, wherever it stood.
    Mutant { name: "existence", row: "errors", short: true },
    // Redis is counted up.
    Mutant { name: "increments", row: "abort:stream.projected", short: false },
    // One window of each round is not published.
    Mutant { name: "unpublished", row: "clean", short: false },
    // The ledger is moved on wherever it stands.
    Mutant { name: "no-fencing", row: "stopped", short: false },
    // The archiver takes what it has archived for a copy, wherever it stood.
    Mutant { name: "archive-existence", row: "archive:errors", short: false },
    // Rows go into the table wherever its positions stand.
    Mutant { name: "no-archive-fencing", row: "archive:racing", short: false },
    // Batches are sent on and counted by however many partitions there were.
    Mutant { name: "old-layout", row: "partition-growth", short: false },
    // The same of the archiver.
    Mutant { name: "old-archive-layout", row: "partition-growth", short: false },
];

/// All rows, in the order in which they are run.
pub fn all() -> Vec<Row> {
    let mut rows = steps::rows();
    rows.extend(processes::rows());
    rows.extend(producers::rows());
    rows.extend(store::rows());
    rows.extend(postgres::rows());
    rows.extend(redis::rows());
    rows.extend(redis_move::rows());
    rows.extend(redrive::rows());
    rows.extend(kafka::rows());
    rows.extend(replay::rows());
    rows.extend(spread::rows());
    rows.extend(archive::rows());
    rows.extend(archive_store::rows());
    rows.extend(operators::rows());
    rows.extend(redis_modes::rows());
    rows
}

impl Row {
    fn new<F>(name: impl Into<String>, run: impl Fn(Options) -> F + 'static) -> Self
    where
        F: Future<Output = anyhow::Result<Outcome>> + 'static,
    {
        let run: Run = Box::new(move |options| run(options).boxed_local());
        Self { name: name.into(), short: false, limit: LIMIT, run }
    }

    /// For the short selection.
    fn short(self) -> Self {
        Self { short: true, ..self }
    }

    fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }
}

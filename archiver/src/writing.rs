//! A commit as it comes about: rows are written to files while more of them arrive, then files and positions go into
//! the table in one step. It is a task of its own, so that nothing waits for storage or catalog until memory is full.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use iceberg::spec::DataFile;
use iceberg::table::Table;
use metrics::{counter, gauge, histogram};
use tidemill_common::failpoint::hit;
use tidemill_common::kafka::Reached;
use tokio::sync::{Notify, mpsc};
use tokio_util::task::AbortOnDropHandle;

use crate::commit::commit;
use crate::declared::Declared;
use crate::error::ArchiveError;
use crate::evolve::evolve;
use crate::files::Files;
use crate::maintain::LEAST_ORPHAN_AGE;
use crate::positions::{Position, Positions};
use crate::prepare::Shared;
use crate::rows::Rows;

/// Kafka has to answer within this time, and is asked again after that one.
const ANSWER: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Files this old may be taken for orphans soon: their rows are read again. An archiver that was stopped for a day has them.
const OLDEST: Duration = Duration::from_secs(LEAST_ORPHAN_AGE.as_secs() / 2);
/// Files that may be open at a time: what senders say is when their events occurred may be any number of days.
const MOST_OPEN: usize = 4;

/// What a commit is made of.
pub struct Batch {
    pub project: String,
    pub topic: Arc<str>,
    pub incarnation: String,
    /// The table, as it was last seen.
    pub table: Table,
    /// The positions that the rows follow.
    pub start: Positions,
    /// Promoted columns, as they were last read.
    pub declared: Declared,
}

/// A commit that went through.
pub struct Committed {
    /// The table with all of it in.
    pub table: Table,
    pub declared: Declared,
    /// The positions of the partitions that have moved.
    pub end: Positions,
}

/// A commit on its way. Dropping it ends the work; what was written is never seen.
pub struct Writing {
    steps: mpsc::UnboundedSender<Step>,
    task: AbortOnDropHandle<Result<Committed, ArchiveError>>,
    progress: Arc<Progress>,
    /// Whose files are open.
    days: BTreeSet<i64>,
    ending: bool,
}

enum Step {
    /// Rows of a day; its last ones close its file.
    Rows { day: i64, rows: Rows, last: bool },
    /// That was all.
    End(BTreeMap<i32, Reached>),
}

/// How far it is, and whom to tell.
struct Progress {
    waiting: AtomicUsize,
    written: AtomicUsize,
    /// Kafka does not say whose records it has.
    unconfirmed: AtomicBool,
    tell: Arc<Notify>,
}

impl Writing {
    /// Begins a commit.
    pub fn begin(batch: Batch, shared: &Shared) -> Self {
        let (steps, receiver) = mpsc::unbounded_channel();
        let tell = shared.progress.clone();
        let (waiting, written, unconfirmed) = Default::default();
        let progress = Arc::new(Progress { waiting, written, unconfirmed, tell });
        let (shared, about) = (shared.clone(), progress.clone());
        let task = tokio::spawn(async move {
            let outcome = write_batch(batch, shared, receiver, &about).await;
            about.tell.notify_one();
            outcome
        });
        let task = AbortOnDropHandle::new(task);
        Self { steps, task, progress, days: BTreeSet::new(), ending: false }
    }

    /// Whether a day's file is open or can be opened.
    pub fn takes(&self, day: i64) -> bool {
        self.days.contains(&day) || self.days.len() < MOST_OPEN
    }

    /// Writes rows of a day; more of them may come.
    pub fn write(&mut self, day: i64, rows: Rows) {
        self.days.insert(day);
        self.send(day, rows, false);
    }

    /// Writes the last rows, and commits.
    pub fn end(&mut self, rows: BTreeMap<i64, Rows>, moved: BTreeMap<i32, Reached>) {
        for (day, rows) in rows {
            self.send(day, rows, true);
        }
        self.ending = true;
        // When the task has ended, so says its result.
        let _ = self.steps.send(Step::End(moved));
    }

    fn send(&self, day: i64, rows: Rows, last: bool) {
        self.progress.waiting.fetch_add(rows.bytes(), Ordering::Relaxed);
        let _ = self.steps.send(Step::Rows { day, rows, last });
    }

    /// How many bytes of rows are not written yet.
    pub fn waiting(&self) -> usize {
        self.progress.waiting.load(Ordering::Relaxed)
    }

    /// How many bytes the files have.
    pub fn written(&self) -> usize {
        self.progress.written.load(Ordering::Relaxed)
    }

    /// Whether it waits for Kafka.
    pub fn unconfirmed(&self) -> bool {
        self.progress.unconfirmed.load(Ordering::Relaxed)
    }

    /// Whether no more rows are taken.
    pub fn ending(&self) -> bool {
        self.ending
    }

    /// Whether the outcome is there.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// The outcome, once it is there.
    pub async fn outcome(self) -> Result<Committed, ArchiveError> {
        self.task.await?
    }
}

/// Writes rows to new files as they come, and commits them with the positions behind them, once.
async fn write_batch(
    batch: Batch,
    shared: Shared,
    mut steps: mpsc::UnboundedReceiver<Step>,
    progress: &Progress,
) -> Result<Committed, ArchiveError> {
    let Batch { project, topic, incarnation, table: known, start, declared } = batch;
    let begun = Instant::now();
    hit("archive.polled").await?;
    let catalog = shared.tables.catalog().await?;
    let declared = declared.renewed(&shared.pool, &project).await;
    let table = evolve(catalog, &known, &declared.promotions).await;
    let mut files = Files::new(&table, declared.promotions.clone(), shared.config.file_bytes)?;
    let mut count = 0;
    let moved = loop {
        match steps.recv().await {
            Some(Step::Rows { day, rows, last }) => {
                let bytes = rows.bytes();
                count += rows.len();
                let _permit = shared.writers.acquire().await;
                files.write(day, rows, last).await?;
                progress.written.store(files.bytes(), Ordering::Relaxed);
                progress.waiting.fetch_sub(bytes, Ordering::Relaxed);
                progress.tell.notify_one();
            }
            Some(Step::End(moved)) => break moved,
            None => return Err(ArchiveError::Abandoned),
        }
    };
    let started = Instant::now();
    confirm_topic(&shared, &topic, &incarnation, count, progress).await?;
    let _permit = shared.writers.acquire().await;
    let files = files.close().await?;
    if begun.elapsed() > OLDEST {
        return Err(ArchiveError::Slow("writing a commit's files", OLDEST.as_secs()));
    }
    let end: Positions = moved
        .iter()
        .map(|(&partition, reached)| {
            let before = start.get(&partition).filter(|position| position.incarnation == incarnation);
            let newest_ms = before.map_or(0, |position| position.newest_ms).max(reached.newest_ms);
            (partition, Position { incarnation: incarnation.clone(), next: reached.next, newest_ms })
        })
        .collect();
    let table = commit(catalog, known.identifier(), &topic, &start, &end, &files).await?;
    tracing::debug!(%topic, rows = count, files = files.len(), seconds = started.elapsed().as_secs_f64(), "committed");
    histogram!("tidemill_archiver_commit_seconds").record(started.elapsed());
    report(&project, count, &files, &table);
    Ok(Committed { table, declared, end })
}

/// Makes sure that what was read is of the topic that there is, asked after all of it was read: one that was deleted and
/// made again in between is another log, whose offsets may go on as if it were the same. Of one that is only deleted, what
/// was read is all that is left. As long as Kafka does not answer, the commit waits, and nothing else does until memory is
/// full.
async fn confirm_topic(
    shared: &Shared,
    topic: &str,
    incarnation: &str,
    rows: usize,
    progress: &Progress,
) -> Result<(), ArchiveError> {
    loop {
        let (history, asked) = (shared.history.clone(), topic.to_owned());
        match tokio::task::spawn_blocking(move || history.incarnations([asked], ANSWER)).await? {
            Ok(now) if now.get(topic).is_some_and(|now| now != incarnation) => {
                return Err(ArchiveError::MadeAgain { topic: topic.to_owned(), rows });
            }
            Ok(_) => {
                progress.unconfirmed.store(false, Ordering::Relaxed);
                return Ok(());
            }
            Err(error) => tracing::warn!(%topic, rows, %error, "a commit waits until kafka says whose records it has"),
        }
        progress.unconfirmed.store(true, Ordering::Relaxed);
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn report(project: &str, rows: usize, files: &[DataFile], table: &Table) {
    let project = || project.to_owned();
    let bytes: u64 = files.iter().map(DataFile::file_size_in_bytes).sum();
    counter!("tidemill_archiver_rows_total", "project" => project()).increment(rows as u64);
    counter!("tidemill_archiver_commits_total", "project" => project()).increment(1);
    counter!("tidemill_archiver_files_total", "project" => project()).increment(files.len() as u64);
    counter!("tidemill_archiver_file_bytes_total", "project" => project()).increment(bytes);
    show(&project(), table);
}

/// Shows how many files a table has.
pub fn show(project: &str, table: &Table) {
    // The summary counts on from snapshot to snapshot, those of other engines too.
    let summary = table.metadata().current_snapshot().map(|snapshot| &snapshot.summary().additional_properties);
    let total = |name| summary.and_then(|summary| summary.get(name)?.parse::<f64>().ok());
    if let (Some(files), Some(bytes)) = (total("total-data-files"), total("total-files-size")) {
        gauge!("tidemill_archiver_table_files", "project" => project.to_owned()).set(files);
        gauge!("tidemill_archiver_table_bytes", "project" => project.to_owned()).set(bytes);
    }
}

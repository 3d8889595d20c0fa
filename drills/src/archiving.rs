//! What rows about the archive start from: archivers to break, without stream workers, and a reader that looks on.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use anyhow::ensure;
use tidemill_archiver::positions;
use tidemill_archiver::table::Tables;
use tidemill_common::config::Connections;

use crate::drill::{Drill, Options, Outcome};
use crate::onlooker::Onlooker;
use crate::oracle::Expected;
use crate::process::Process;
use crate::settle::until;
use crate::{log, reconcile, views};

/// A table that has not passed the log by then counts as stuck.
const SETTLED: Duration = Duration::from_secs(90);
/// Small commits, so that there are many of them to be hit, in milliseconds.
const COMMIT_MS: &str = "300";
/// What an archiver shows of the rows that it has committed.
pub const ROWS: &str = "tidemill_archiver_rows_total";

/// One row about the archive at work.
pub struct Archiving {
    drill: Drill,
    tables: Tables,
    onlooker: Onlooker,
}

impl Deref for Archiving {
    type Target = Drill;

    fn deref(&self) -> &Drill {
        &self.drill
    }
}

impl DerefMut for Archiving {
    fn deref_mut(&mut self) -> &mut Drill {
        &mut self.drill
    }
}

impl Archiving {
    /// A project on the components that the environment names.
    pub async fn start(options: &Options) -> anyhow::Result<Self> {
        Self::with(options, |_| {}).await
    }

    /// The same with some components elsewhere. What is broken is given to archivers, as a setting, and not here: the
    /// reader looks on past it.
    pub async fn with(options: &Options, change: impl FnOnce(&mut Connections)) -> anyhow::Result<Self> {
        let mut drill = Drill::start(options).await?;
        change(&mut drill.stack.connections);
        let tables = Tables::new(&drill.stack.connections);
        let onlooker = Onlooker::start(&drill.stack.connections, &drill.stack.project);
        Ok(Self { drill, tables, onlooker })
    }

    /// Starts an archiver of one of the row's groups, with more settings.
    pub fn archiver(&mut self, group: &str, settings: &[(&str, &str)]) -> anyhow::Result<Process> {
        let mut more: Vec<(&str, &str)> = self.drill.planted();
        more.push(("TIDEMILL_ARCHIVER__COMMIT_INTERVAL_MS", COMMIT_MS));
        more.extend(settings);
        self.drill.service("archiver", group, &more)
    }

    /// Starts an archiver and waits until it has committed something.
    pub async fn live_archiver(&mut self, group: &str, settings: &[(&str, &str)]) -> anyhow::Result<Process> {
        let mut archiver = self.archiver(group, settings)?;
        archiver.reaches(ROWS, 1.0).await?;
        Ok(archiver)
    }

    /// Waits until the table has passed what the log holds now. Gives the time since `fault`.
    pub async fn recovered(&self, fault: Instant) -> anyhow::Result<Duration> {
        let ends = self.ends().await?;
        until(SETTLED, &format!("the table passes {ends:?}"), async || {
            // The catalog may be what was broken.
            let Ok(next) = self.positions().await else { return Ok(false) };
            Ok(ends.iter().all(|(partition, end)| *end == 0 || next.get(partition).is_some_and(|next| next >= end)))
        })
        .await?;
        Ok(fault.elapsed())
    }

    /// The table's positions.
    pub async fn positions(&self) -> anyhow::Result<BTreeMap<i32, i64>> {
        let Some(table) = self.tables.load(&self.stack.project).await? else { return Ok(BTreeMap::new()) };
        let positions = positions::read_all(table.metadata().properties(), &self.stack.project)?;
        Ok(positions.into_iter().map(|(partition, position)| (partition, position.next)).collect())
    }

    /// How many offsets the table has passed.
    pub async fn passed(&self) -> anyhow::Result<i64> {
        Ok(self.positions().await?.values().sum())
    }

    /// Waits until the table has passed all of the log, compares it and everything that the reader has seen, and gives
    /// the outcome.
    pub async fn finish(self, recovery: Duration) -> anyhow::Result<Outcome> {
        let mut differences = Vec::new();
        if let Err(error) = self.recovered(Instant::now()).await {
            differences.push(format!("{error:#}"));
        }
        let (log, entries) = (log::read(&self.stack).await?, self.journal.entries()?);
        let expected = Expected::of(&log, &self.stack.layout().await, self.stack.project().await.dedupe_window_ms);
        ensure!(!expected.first_sights.is_empty(), "the log holds no events, so the row shows nothing");
        differences.extend(reconcile::journal(&entries, &log));
        differences.extend(reconcile::archive(&expected, &views::archived(&self.stack).await?));
        let (halves, seen) = self.onlooker.verdict(&expected.first_sights.keys().copied().collect());
        differences.extend(halves);
        let (count, dead) = (expected.first_sights.len(), expected.dead.len());
        let copies = log.len() - count - dead - expected.strays.len();
        Ok(Outcome { differences, recovery, facts: vec![format!("{count} rows, {copies} copies, {dead} dead"), seen] })
    }
}

//! The end of a row: waiting until the views have caught up, and the comparison of all of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::drill::{Drill, Outcome};
use crate::oracle::Expected;
use crate::{log, reconcile, views};

/// Views that have not passed the log by then count as stuck.
const SETTLED: Duration = Duration::from_secs(60);
/// A flushed or failed-over Redis has to show everything again within this time.
const REDIS: Duration = Duration::from_secs(10);
/// Brokers that were broken have to answer within this time.
const KAFKA: Duration = Duration::from_secs(60);
/// Metrics are published each second, and again when that fails.
const PUBLISHED: Duration = Duration::from_secs(10);
const ARCHIVE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

impl Drill {
    /// Waits until so many more things were sent.
    pub async fn sent(&mut self, more: usize) -> anyhow::Result<()> {
        let wanted = self.journal.len() + more;
        let sent =
            until(SETTLED, &format!("{more} more records sent"), async || Ok(self.journal.len() >= wanted)).await;
        match sent {
            Ok(()) => Ok(()),
            // Whoever sends waits for those who take.
            Err(error) => Err(error.context(self.services_say().await)),
        }
    }

    /// The offsets behind the last records, of partitions that have some.
    pub async fn ends(&self) -> anyhow::Result<BTreeMap<i32, i64>> {
        let partitions = self.stack.event_partitions().await;
        let deadline = Instant::now() + KAFKA;
        loop {
            let (history, partitions) = (self.history.clone(), partitions.clone());
            match tokio::task::spawn_blocking(move || history.bounds(&partitions)).await? {
                Ok(bounds) => return Ok(bounds.into_iter().map(|(at, (_, end))| (at.number(), end)).collect()),
                // The brokers may be what was broken.
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Waits until the ledger has passed what the log holds now. Gives the time since `fault`.
    pub async fn recovered(&self, fault: Instant) -> anyhow::Result<Duration> {
        let ends = self.ends().await?;
        self.passed(&ends).await?;
        Ok(fault.elapsed())
    }

    /// Sum of the ledger's positions.
    pub async fn position(&self) -> anyhow::Result<i64> {
        Ok(views::ledger(&self.stack).await?.values().map(|(next, _)| next).sum())
    }

    /// Waits until the views have passed all of the log, compares everything, and gives the outcome.
    pub async fn finish(&mut self, recovery: Duration) -> anyhow::Result<Outcome> {
        let mut differences = self.ended_by_themselves();
        if let Err(error) = self.settle().await {
            differences.push(format!("{error:#}"));
        }
        let (found, facts) = self.reconcile().await?;
        differences.extend(found);
        Ok(Outcome { differences, recovery, facts })
    }

    /// Waits until the ledger stands at the log's end. Strays that are sent home move that end.
    pub async fn settle(&self) -> anyhow::Result<()> {
        loop {
            let ends = self.ends().await?;
            self.passed(&ends).await?;
            if self.ends().await? == ends {
                return Ok(());
            }
        }
    }

    async fn passed(&self, ends: &BTreeMap<i32, i64>) -> anyhow::Result<()> {
        until(SETTLED, &format!("the ledger passes {ends:?}"), async || {
            // Postgres may be what was broken.
            let Ok(ledger) = views::ledger(&self.stack).await else { return Ok(false) };
            Ok(ends.iter().all(|(partition, end)| ledger.get(partition).is_some_and(|(next, _)| next >= end)))
        })
        .await
    }

    /// All differences, and what there was to compare.
    async fn reconcile(&self) -> anyhow::Result<(Vec<String>, Vec<String>)> {
        let (log, entries) = (log::read(&self.stack).await?, self.journal.entries()?);
        let expected = Expected::of(&log, &self.stack.layout().await, self.stack.project().await.dedupe_window_ms);
        ensure!(!expected.first_sights.is_empty(), "the log holds no events, so the row shows nothing");
        let mut differences = [
            reconcile::journal(&entries, &log),
            reconcile::strays(&expected, &log),
            reconcile::ledger(&self.ends().await?, &views::ledger(&self.stack).await?),
            reconcile::postgres(&expected, &views::counted(&self.stack).await?),
            reconcile::topics(&expected, &views::sent_on(&self.stack).await?),
        ]
        .concat();
        differences.extend(self.redis(&expected, REDIS).await?);
        differences.extend(self.published(&expected).await?);
        if self.archived {
            differences.extend(self.archive(&expected).await?);
        }
        let (count, strays, dead) = (expected.first_sights.len(), expected.strays.len(), expected.dead.len());
        let copies = log.len() - count - strays - dead;
        let of = format!("{count} events, {copies} copies, {strays} strays, {dead} dead");
        let (sessions, carts, windows) = (expected.sessions.len(), expected.carts.len(), expected.windows.len());
        Ok((differences, vec![of, format!("{sessions} sessions, {carts} carts, {windows} windows")]))
    }

    /// What Redis shows is brought level a little later; what still differs after `limit` counts.
    async fn redis(&self, expected: &Expected, limit: Duration) -> anyhow::Result<Vec<String>> {
        let deadline = Instant::now() + limit;
        loop {
            let differences = match views::shown(&self.stack).await {
                Ok(shown) => reconcile::redis(expected, &shown, chrono::Utc::now().timestamp()),
                Err(error) => vec![format!("redis cannot be read: {error:#}")],
            };
            if differences.is_empty() || Instant::now() > deadline {
                return Ok(differences);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Live readers are told within seconds.
    async fn published(&self, expected: &Expected) -> anyhow::Result<Vec<String>> {
        let deadline = Instant::now() + PUBLISHED;
        loop {
            let found = views::published(&self.stack).await?;
            let now = chrono::Utc::now().timestamp();
            let differences = reconcile::published(expected, &found, self.all_published, now);
            if differences.is_empty() || Instant::now() > deadline {
                return Ok(differences);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn archive(&self, expected: &Expected) -> anyhow::Result<Vec<String>> {
        let deadline = Instant::now() + ARCHIVE;
        loop {
            let differences = reconcile::archive(expected, &views::archived(&self.stack).await?);
            if differences.is_empty() || Instant::now() > deadline {
                return Ok(differences);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Waits until something holds.
pub async fn until(
    limit: Duration,
    what: &str,
    mut holds: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    while !holds().await? {
        ensure!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

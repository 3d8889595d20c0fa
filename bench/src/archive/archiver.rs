//! `tidemill archiver` on a topic.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::ensure;

use super::table::{Holds, Table};
use super::{Archived, LOOK, Moment, STALLED, until};
use crate::process::{Server, cpu_seconds, ended_cpu_seconds, peak_mb, written_back};
use crate::stream::drain::WARM_UP;
use crate::stream::place::{Fresh, Place};
use crate::stream::topic::Topic;

/// Rows that are read and not yet committed.
const BUFFERED: &str = "tidemill_archiver_buffered_rows";

/// Has an archiver drain a topic, and checks how many rows its table holds: every event once.
pub async fn run(place: &Place, topic: &Topic, commit_ms: u64) -> anyhow::Result<Archived> {
    let fresh = place.fresh(topic.project).await?;
    place.empty_warehouse(&fresh).await?;
    written_back().await?;
    let ended = ended_cpu_seconds()?;
    let archiver = Archiver::start(place, &fresh, topic, commit_ms).await?;
    let (table, events) = (table(&fresh, topic), topic.expected.events);
    // What it has read and not yet written is to its disadvantage: writing it comes later.
    let rows = archiver.has_read(&table, (events as f64 * WARM_UP) as u64).await?;
    let warm = Moment { at: Instant::now(), rows, cpu: cpu_seconds(archiver.server.pid())? };
    let (held, at, peak_mb) = archiver.finish(&table, events).await?;
    let done = Moment { at, rows: held.rows, cpu: ended_cpu_seconds()? - ended };
    ensure!(held.rows == events, "the archive holds {} rows instead of {events}", held.rows);
    Ok(Archived::between(&warm, &done, peak_mb, held))
}

/// The table of a topic's project.
pub fn table<'a>(fresh: &'a Fresh, topic: &Topic) -> Table<'a> {
    Table { pool: &fresh.pool, namespace: format!("tidemill.{}", topic.project), name: "events" }
}

/// An archiver at work on a topic.
pub struct Archiver {
    server: Server,
    address: SocketAddr,
}

impl Archiver {
    /// Starts one; it commits at least every `commit_ms`.
    pub async fn start(place: &Place, fresh: &Fresh, topic: &Topic, commit_ms: u64) -> anyhow::Result<Self> {
        let pattern = format!("^{}$", topic.name.replace('.', "\\."));
        let (warehouse, commit_ms) = (place.warehouse(), commit_ms.to_string());
        let settings = [
            ("TIDEMILL_ARCHIVER__TOPICS", &*pattern),
            ("TIDEMILL_ARCHIVER__COMMIT_INTERVAL_MS", &*commit_ms),
            ("WAREHOUSE_URL", &*warehouse),
        ];
        let (server, address) = place.service(fresh, "archiver", 1, &settings).await?;
        Ok(Self { server, address })
    }

    /// Waits until it has read so many rows, committed or not; gives how many it has read then.
    async fn has_read(&self, table: &Table<'_>, rows: u64) -> anyhow::Result<u64> {
        let begun = Instant::now();
        loop {
            let read = table.holds().await?.rows + crate::http::metric(self.address, BUFFERED).await? as u64;
            if read >= rows {
                return Ok(read);
            }
            ensure!(begun.elapsed() < STALLED, "the archiver has read {read} of {rows} rows");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until it has read all rows, then tells it to end, upon which it commits what it has: waiting for an
    /// interval to pass would say nothing about it. Gives what the table holds then, the moment when that showed, and
    /// the most memory in MB.
    pub async fn finish(self, table: &Table<'_>, rows: u64) -> anyhow::Result<(Holds, Instant, f64)> {
        let pid = self.server.pid();
        self.has_read(table, rows).await?;
        let peak = peak_mb(pid)?;
        let shown = async {
            let held = until(table, rows).await?;
            // It may have ended by now.
            anyhow::Ok((held, Instant::now(), peak_mb(pid).unwrap_or(peak)))
        };
        let (ended, shown) = tokio::join!(self.server.terminate(), shown);
        ended.and(shown)
    }
}

//! What a replay counts from the archive: the records before the offsets at which Kafka takes over.
//!
//! The archive is read at one snapshot, file by file in a fixed order, and how far it is read is in the ledger as the
//! position of a partition would be, changed with what is counted. What is counted does not depend on the order in which
//! it comes, so the log's part need not wait for this one.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use futures::stream::BoxStream;
use sqlx::PgPool;
use tidemill_common::event::Event;
use tidemill_common::failpoint::hit;
use tidemill_common::origin::Origin;
use tokio_util::sync::CancellationToken;

use super::{Replay, ReplayError};
use crate::apply::{COMMIT, within};
use crate::enrich::Enricher;
use crate::kept::Keeping;
use crate::ledger::{self, Advance, Place};
use crate::sort::Transient;
use crate::store::{Batch, Store};

/// While another worker is at it, and after a failure.
const PAUSE: Duration = Duration::from_secs(3);

/// Events and where their records stood, some at a time.
pub type Rows = BoxStream<'static, Result<Vec<(Event, Origin)>, ReplayError>>;

/// An archive at a replay's snapshot.
pub struct Source {
    /// How many files it has.
    pub files: i64,
    /// Gives the rows of a file, always in the same order.
    pub open: Box<dyn Fn(i64) -> Result<Rows, ReplayError> + Send + Sync>,
}

/// A position: a file, and how many of its rows are counted.
pub(super) fn position(file: i64, rows: i64) -> i64 {
    file << 32 | rows
}

/// How many files lie between two positions.
pub(super) fn files_between(from: i64, to: i64) -> u64 {
    ((to >> 32) - (from >> 32)).max(0).unsigned_abs()
}

/// Where the archive of a replay stands in the ledger.
pub(super) fn place(replay: &Replay, snapshot: i64) -> Place {
    Place {
        topic: topic(&replay.project),
        partition: 0,
        incarnation: snapshot.to_string(),
        generation: replay.generation,
    }
}

/// What stands in the ledger for a topic.
pub(super) fn topic(project: &str) -> String {
    format!("archive.{project}")
}

/// Counts an archive.
pub(super) struct Archive {
    pub pool: PgPool,
    pub store: Arc<Store>,
    pub enricher: Enricher,
    pub replay: Replay,
    pub source: Source,
    pub place: Place,
    pub stop: CancellationToken,
}

impl Archive {
    /// Until all is counted, or it is stopped, or the replay is over. Of several workers one gets on, the others wait
    /// for as long as it does.
    pub async fn work(mut self) -> Result<(), ReplayError> {
        let (end, mut waited_at) = (position(self.source.files, 0), None);
        while !self.stop.is_cancelled() {
            let standing = ledger::look(&self.pool, std::slice::from_ref(&self.place)).await;
            let at = match standing {
                Ok(standing) => match standing.positions.get(&self.place) {
                    Some(position) if position.next < end => position.next,
                    _ => return Ok(()), // all is counted, or it was aborted
                },
                Err(error) => {
                    tracing::error!(%error, "the archive waits");
                    self.pause().await;
                    continue;
                }
            };
            if waited_at.is_some_and(|before| before != at) {
                waited_at = Some(at);
                self.pause().await;
                continue;
            }
            match self.count_from(at).await {
                Ok(true) => {}
                Ok(false) => waited_at = Some(at),
                Err(error @ ReplayError::Refused(_)) => return Err(error),
                Err(error) => {
                    tracing::error!(%error, "the archive waits");
                    self.pause().await;
                }
            }
        }
        Ok(())
    }

    async fn pause(&self) {
        self.stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
    }

    /// Counts on from here, up to the end or until it is stopped. False: another worker was faster.
    async fn count_from(&mut self, mut at: i64) -> Result<bool, ReplayError> {
        let (first, mut skip) = (at >> 32, at & 0xffff_ffff);
        for file in first..self.source.files {
            let (mut rows, mut counted_rows) = ((self.source.open)(file)?, 0);
            while let Some(some) = rows.try_next().await? {
                let before = counted_rows;
                counted_rows += some.len() as i64;
                if counted_rows <= skip {
                    continue;
                }
                let new = some.into_iter().skip((skip - before).max(0) as usize).collect();
                if !self.commit(&mut at, position(file, counted_rows), new).await? {
                    return Ok(false);
                }
                if self.stop.is_cancelled() {
                    return Ok(true);
                }
            }
            skip = 0;
            if !self.commit(&mut at, position(file + 1, 0), Vec::new()).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Counts rows, and moves the position on with them.
    async fn commit(&mut self, at: &mut i64, next: i64, rows: Vec<(Event, Origin)>) -> Result<bool, ReplayError> {
        let step = Advance { place: self.place.clone(), start: *at, next, projected: next, newest_ms: 0 };
        let (replay, starts, read) = (&self.replay, &self.replay.starts.0, rows.len());
        // From there on, Kafka has them.
        let before = rows
            .into_iter()
            .filter(|(_, origin)| starts.get(&origin.partition).is_some_and(|start| origin.offset < *start));
        let (mut keeping, mut events) = (Keeping::default(), Vec::new());
        for (event, origin) in before {
            let event = event.as_ref();
            keeping.keep(&event, origin, |properties| self.enricher.traits(&event, properties));
        }
        keeping.take(replay.project.as_str().into(), replay.generation, &mut events);
        let batch = Batch { steps: vec![step], events, ..Batch::default() };
        if within(COMMIT, self.store.commit(&batch)).await?.is_none() {
            return Ok(false);
        }
        hit("replay.archived").await.map_err(Transient::from)?;
        *at = next;
        if let Some(rate) = replay.rate {
            let time = Duration::from_secs_f64(read as f64 / f64::from(rate));
            self.stop.run_until_cancelled(tokio::time::sleep(time)).await;
        }
        Ok(true)
    }
}

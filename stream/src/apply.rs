//! Applying a batch: all that has to wait for somebody else.

use std::time::Duration;

use sqlx::PgPool;
use tidemill_common::failpoint::hit;
use tidemill_common::kafka::Producer;

use crate::emit;
use crate::filling::Filled;
use crate::ledger::{self, Place};
use crate::project::Projector;
use crate::sort::Transient;
use crate::store;

/// A transaction without an answer for this long counts as one with an unknown outcome.
const COMMIT: Duration = Duration::from_secs(30);

/// Brings batches to Kafka, Postgres and Redis, one at a time.
pub struct Applier {
    /// The truth of every count.
    pub pool: PgPool,
    /// Sends on.
    pub producer: Producer,
    /// The hot copies.
    pub projector: Projector,
}

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Applied {
    /// It counts.
    Counted {
        /// Whether Redis shows all that counts.
        shown: bool,
    },
    /// The ledger did not stand where the batch starts, so nothing was counted.
    Elsewhere,
}

impl Applier {
    /// The path of a batch, top to bottom.
    pub async fn apply(&mut self, filled: &Filled) -> Result<Applied, Transient> {
        hit("stream.sorted").await?;
        emit::send(&self.producer, &filled.emissions).await?;
        hit("stream.sent").await?;
        let committed = within(COMMIT, store::commit(&self.pool, &filled.batch)).await?;
        let Some(touched) = committed else { return Ok(Applied::Elsewhere) };
        self.projector.add(touched);
        let shown = self.projector.flush().await;
        hit("stream.projected").await?;
        Ok(Applied::Counted { shown })
    }

    /// Has the ledger know up to where Redis shows everything; says whether it does.
    pub async fn mark_projected(&self, marks: &[(Place, i64)]) -> bool {
        if hit("stream.flushed").await.is_err() {
            return false;
        }
        let written = within(COMMIT, ledger::mark_projected(&self.pool, marks)).await;
        // If not, more is projected again than need be.
        written.inspect_err(|error| tracing::debug!(%error, "projection marks not written")).is_ok()
    }
}

/// Postgres' answer, or an error after `limit`: a connection may be gone without a word.
async fn within<T>(limit: Duration, asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Transient> {
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Transient::NotReady(format!("postgres: no answer within {} s", limit.as_secs()))),
    }
}

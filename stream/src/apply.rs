//! Applying a batch: all that has to wait for somebody else.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tidemill_common::failpoint::hit;

use crate::filling::Filled;
use crate::ledger::{self, Place};
use crate::outbox::Post;
use crate::sort::Transient;
use crate::store::{Store, Touched};

/// A transaction without an answer for this long counts as one with an unknown outcome.
pub(crate) const COMMIT: Duration = Duration::from_secs(30);

/// Brings batches to Kafka and Postgres. Cheap to clone.
#[derive(Clone)]
pub struct Applier {
    /// The truth of every count.
    pub store: Arc<Store>,
    /// The ledger's database.
    pub pool: PgPool,
    /// What sends on.
    pub post: Post,
}

impl Applier {
    /// The path of a batch, top to bottom; gives what it has changed. `None`: the ledger did not stand where the batch
    /// starts, or a project has got more partitions or a route since its records were judged, so nothing was counted.
    pub async fn apply(&self, filled: &mut Filled) -> Result<Option<Touched>, Transient> {
        hit("stream.sorted").await?;
        if !filled.outbox.sent().await? {
            tracing::warn!("a project has got more partitions or a route");
            return Ok(None);
        }
        hit("stream.sent").await?;
        within(COMMIT, self.store.commit(&filled.batch)).await
    }

    /// Has the ledger know up to where Redis shows everything.
    pub async fn mark_projected(&self, marks: &[(Place, i64)]) -> Result<(), Transient> {
        hit("stream.flushed").await?;
        within(COMMIT, ledger::mark_projected(&self.pool, marks)).await
    }
}

/// Postgres' answer, or an error after `limit`: a connection may be gone without a word.
pub(crate) async fn within<T>(
    limit: Duration,
    asked: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Transient> {
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Transient::NotReady(format!("postgres: no answer within {} s", limit.as_secs()))),
    }
}

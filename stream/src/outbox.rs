//! What a batch sends on, on its way.
//!
//! A record that is judged by a layout that is over may be sent on as what it is not: a stray as a first sight, which
//! readers of the processed topic would meet again from its home. So nothing leaves before the projects' layouts were
//! asked for behind it ([`layouts_now`]); and the same answer says that the batch may count.

use std::collections::BTreeSet;
use std::sync::Arc;

use sqlx::PgPool;
use tidemill_common::failpoint::mutant;
use tidemill_common::kafka::{Producer, Sending};
use tidemill_common::projects::layouts_now;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::apply::{COMMIT, within};
use crate::emit::Emissions;
use crate::sort::Transient;

/// Projects, and the layouts that records were judged by.
pub type Judged = BTreeSet<(Arc<str>, i32)>;

/// Knows whom to ask and how to send. Cheap to clone.
#[derive(Clone)]
pub struct Post {
    /// Where the projects are.
    pub pool: PgPool,
    /// What sends.
    pub producer: Producer,
}

/// A batch's. Dropping it ends the sending.
pub struct Outbox {
    parcels: mpsc::UnboundedSender<(Emissions, Judged)>,
    task: AbortOnDropHandle<Result<bool, Transient>>,
}

/// One to which nothing is added any more.
pub struct Closed(AbortOnDropHandle<Result<bool, Transient>>);

impl Post {
    /// An outbox for a batch.
    pub fn outbox(&self) -> Outbox {
        let (parcels, received) = mpsc::unbounded_channel();
        Outbox { parcels, task: AbortOnDropHandle::new(tokio::spawn(self.clone().send(received))) }
    }

    async fn send(self, mut parcels: mpsc::UnboundedReceiver<(Emissions, Judged)>) -> Result<bool, Transient> {
        let mut sending = Sending::default();
        while let Some((emissions, judged)) = parcels.recv().await {
            if !self.holds(&judged).await? {
                return Ok(false);
            }
            emissions.send(&self.producer, &mut sending).await?;
        }
        sending.done().await?;
        Ok(true)
    }

    /// Whether these are still the layouts, asked after all that was judged by them was read.
    async fn holds(&self, judged: &Judged) -> Result<bool, Transient> {
        let projects: Vec<&str> = judged.iter().map(|(project, _)| &**project).collect();
        let now = within(COMMIT, layouts_now(&self.pool, &projects)).await?;
        // A project that is gone has no layout; its ledger says no more.
        let is_now = |(project, layout): &(Arc<str>, i32)| now.get(&**project).is_none_or(|now| now == layout);
        Ok(judged.iter().all(is_now) || mutant("old-layout"))
    }
}

impl Outbox {
    /// Sends these once all that was judged so far is known to be judged by the layouts that hold.
    pub fn add(&self, emissions: Emissions, judged: Judged) {
        // Where the task has ended, it says why in the end.
        let _ = self.parcels.send((emissions, judged));
    }

    /// That was all.
    pub fn close(self) -> Closed {
        Closed(self.task)
    }
}

impl Closed {
    /// Waits until all of it is in Kafka. False: it was judged by a layout that is over, and nothing of it counts.
    pub async fn sent(&mut self) -> Result<bool, Transient> {
        let ended = (&mut self.0).await;
        ended.map_err(|error| Transient::NotReady(format!("what was sent on ended abruptly: {error}")))?
    }
}

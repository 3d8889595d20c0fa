//! Projecting all that is live of a project again, stretch by stretch: hot windows first, and what an earlier epoch has
//! left of them, then live sessions, carts, then users; and then the same of the generation that was live before, if it
//! is kept, to remove what that had and this has not. One worker does it at a time; its lease lies in Redis, at each node,
//! so a flush takes that, too. What has lost something is a node, what is projected again is everything: slots may have
//! moved from that node since, as empty as they were.

use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use futures::future::join_all;

use super::list::Of;
use super::lost::{self, Missed};
use super::marks::{self, Shard};
use super::pending::Key;
use super::walk::Walk;
use super::{ProjectError, Writer};

/// A worker that has not been heard of for this long does not go on with it, in milliseconds.
const LEASE: u64 = 5_000;

/// A project that is being projected again.
pub struct Again {
    /// Which.
    pub project: String,
    /// Something has been forgotten since it began, so it has to be done once more.
    pub stale: bool,
    token: String,
    epoch: i64,
    generation: i32,
    /// The nodes at which the lease is ours, and what each will be whole for. One that is lost on the way is out.
    shards: Vec<(Arc<Shard>, String)>,
    walk: Walk,
    started: Instant,
    keys: usize,
}

/// How far it has got.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// There is more to do.
    More,
    /// Everything is shown.
    Done,
    /// Redis has lost the lease, and so perhaps what was written.
    Lost,
}

impl Again {
    /// Begins, unless another worker is at it, for those of these nodes that answer.
    pub async fn begin(
        shards: Vec<(Arc<Shard>, String)>,
        project: &str,
        (epoch, generation): (i64, i32),
    ) -> Result<Option<Self>, ProjectError> {
        // Two workers never use one token: it is a name of this very moment in this very process.
        let token = format!("{}-{}", std::process::id(), Utc::now().timestamp_nanos_opt().unwrap_or_default());
        let mut taken = Vec::with_capacity(shards.len());
        for (shard, whole) in shards {
            match marks::take(&shard, project, &token, LEASE).await {
                Ok(true) => taken.push((shard, whole)),
                Ok(false) => return Ok(None), // what we have taken runs out
                Err(error) => tracing::debug!(%error, node = shard.name(), "it is projected again without this node"),
            }
        }
        if taken.is_empty() {
            return Ok(None);
        }
        metrics::counter!("tidemill_stream_reprojections_total").increment(1);
        let walk = Walk::new(project, Of::Live, Utc::now());
        let (project, started) = (project.to_owned(), Instant::now());
        let (stale, shards) = (false, taken);
        Ok(Some(Self { project, stale, token, epoch, generation, shards, walk, started, keys: 0 }))
    }

    /// Writes the next stretch.
    pub async fn step(&mut self, writer: &Writer) -> Result<Step, ProjectError> {
        let kept = self.shards.iter().map(|(shard, _)| marks::keep(shard, &self.project, &self.token, LEASE));
        let mut kept = join_all(kept).await.into_iter();
        self.shards.retain(|_| matches!(kept.next(), Some(Ok(true))));
        if self.shards.is_empty() {
            return Ok(Step::Lost);
        }
        let (stretch, next) = self.walk.next(&writer.pool, &writer.definitions).await?;
        let mut missed = match self.walk.of {
            Of::Live => {
                let unwritten = writer.write(&stretch.keys).await?;
                Missed { keys: unwritten.keys.iter().map(Key::name).collect(), why: unwritten.why }
            }
            Of::Kept => writer.forget(&stretch.keys, self.epoch, self.generation).await?,
        };
        if let Some(granularity) = stretch.ended {
            // What this epoch has is written by now.
            let (now, stamp) = (Utc::now().timestamp(), (self.epoch, self.generation));
            missed = missed.with(lost::of_sessions(&writer.redis, &self.project, granularity, stamp, now).await);
        }
        // At other nodes it will be missed, and projected, when they are there again.
        if let Some(why) = missed.why
            && missed.keys.iter().any(|key| self.is_at_ours(writer, key))
        {
            return Err(why.into());
        }
        self.keys += stretch.keys.len();
        self.walk = next;
        if self.walk.is_done() && self.walk.of == Of::Live {
            self.walk = Walk::new(&self.project, Of::Kept, Utc::now());
        }
        if !self.walk.is_done() {
            return Ok(Step::More);
        }
        let mut is_whole_somewhere = false;
        for (shard, whole) in &self.shards {
            is_whole_somewhere |= marks::finish(shard, &self.project, &self.token, whole).await.unwrap_or(false);
        }
        if !is_whole_somewhere {
            return Ok(Step::Lost);
        }
        let seconds = self.started.elapsed().as_secs_f64();
        tracing::info!(project = self.project, keys = self.keys, nodes = self.shards.len(), seconds, "projected again");
        Ok(Step::Done)
    }

    fn is_at_ours(&self, writer: &Writer, key: &str) -> bool {
        let node = writer.redis.node_of(key.as_bytes());
        node.is_none_or(|node| self.shards.iter().any(|(shard, _)| shard.name() == node))
    }
}

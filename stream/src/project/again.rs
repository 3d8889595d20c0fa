//! Projecting all that is live of a project again, stretch by stretch: hot windows first, and what an earlier epoch has
//! left of them, then live sessions, carts, then users; and then the same of the generation that was live before, if it
//! is kept, to remove what that had and this has not. One worker does it at a time; its lease lies in Redis, at each node,
//! so a flush takes that, too. What has lost something is a node, what is projected again is everything: slots may have
//! moved from that node since, as empty as they were.

use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, Utc};
use futures::future::join_all;

use super::list::{self, Of, WindowCursor};
use super::lost::{self, Missed};
use super::marks::{self, Shard};
use super::pending::Key;
use super::write::redis_key;
use super::{ProjectError, Writer};
use crate::window::Granularity;

/// Keys per stretch.
const SESSIONS: i64 = 1_000;
const WINDOWS: i64 = 200;
const USERS: i64 = 5_000;
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
    of: Of,
    next: Stage,
    started: Instant,
    keys: usize,
}

enum Stage {
    Windows(usize, WindowCursor),
    /// Of an epoch that is lost.
    Lost(usize),
    Sessions((i32, String)),
    Carts(String),
    Users(String),
    Done,
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
        let next = first_windows(0, Utc::now());
        let (project, started) = (project.to_owned(), Instant::now());
        let (stale, shards) = (false, taken);
        Ok(Some(Self { project, stale, token, epoch, generation, shards, of: Of::Live, next, started, keys: 0 }))
    }

    /// Writes the next stretch.
    pub async fn step(&mut self, writer: &Writer) -> Result<Step, ProjectError> {
        let kept = self.shards.iter().map(|(shard, _)| marks::keep(shard, &self.project, &self.token, LEASE));
        let mut kept = join_all(kept).await.into_iter();
        self.shards.retain(|_| matches!(kept.next(), Some(Ok(true))));
        if self.shards.is_empty() {
            return Ok(Step::Lost);
        }
        let (keys, missed, next) = self.stretch(writer).await?;
        let missed = missed.with(match self.of {
            Of::Live => {
                let unwritten = writer.write(&keys).await?;
                Missed { keys: unwritten.keys.iter().map(redis_key).collect(), why: unwritten.why }
            }
            Of::Kept => writer.forget(&keys, self.epoch, self.generation).await?,
        });
        // At other nodes it will be missed, and projected, when they are there again.
        if let Some(why) = missed.why
            && missed.keys.iter().any(|key| self.is_at_ours(writer, key))
        {
            return Err(why.into());
        }
        self.keys += keys.len();
        self.next = next;
        if matches!(self.next, Stage::Done) && self.of == Of::Live {
            (self.of, self.next) = (Of::Kept, first_windows(0, Utc::now()));
        }
        if !matches!(self.next, Stage::Done) {
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

    /// The keys of the next stretch, those that could not be removed on the way, and where the one behind it begins.
    async fn stretch(&self, writer: &Writer) -> Result<(Vec<Key>, Missed, Stage), ProjectError> {
        let (pool, project, of) = (&writer.pool, &self.project, self.of);
        let of_project = |id: &String| (project.clone(), id.clone());
        let mut missed = Missed::default();
        let (keys, next) = match &self.next {
            Stage::Windows(at, after) => {
                let found = list::windows(pool, of, project, Granularity::ALL[*at], after, WINDOWS).await?;
                let next = match found.last() {
                    Some((last, _)) if found.len() as i64 == WINDOWS => Stage::Windows(*at, last.clone()),
                    _ => Stage::Lost(*at),
                };
                let definitions = writer.definitions.current().await?;
                let copied = found.into_iter().map(|(_, key)| key).filter(|key| key.has_copy(&definitions));
                (copied.map(Key::Window).collect(), next)
            }
            // What this epoch has was written before.
            Stage::Lost(at) => {
                let now = Utc::now();
                let stamp = (self.epoch, self.generation);
                missed = lost::of_sessions(&writer.redis, project, Granularity::ALL[*at], stamp, now.timestamp()).await;
                (Vec::new(), first_windows(at + 1, now))
            }
            Stage::Sessions(after) => {
                let found = list::sessions(pool, of, project, after, SESSIONS).await?;
                let next = match found.last() {
                    Some(last) if found.len() as i64 == SESSIONS => Stage::Sessions(last.clone()),
                    _ => Stage::Carts(String::new()),
                };
                (found.iter().map(|(_, id)| Key::Session(of_project(id))).collect(), next)
            }
            Stage::Carts(after) => {
                let found = list::carts(pool, of, project, after, SESSIONS).await?;
                let next = match found.last() {
                    Some(last) if found.len() as i64 == SESSIONS => Stage::Carts(last.clone()),
                    _ => Stage::Users(String::new()),
                };
                (found.iter().map(|id| Key::Cart(of_project(id))).collect(), next)
            }
            Stage::Users(after) => {
                let found = list::users(pool, of, project, after, USERS).await?;
                let next = match found.last() {
                    Some(last) if found.len() as i64 == USERS => Stage::Users(last.clone()),
                    _ => Stage::Done,
                };
                (found.iter().map(|id| Key::User(of_project(id))).collect(), next)
            }
            Stage::Done => (Vec::new(), Stage::Done),
        };
        Ok((keys, missed, next))
    }
}

fn first_windows(at: usize, now: DateTime<Utc>) -> Stage {
    match Granularity::ALL.get(at) {
        Some(&granularity) => Stage::Windows(at, list::first_window(granularity, now)),
        None => Stage::Sessions(list::first_session(now)),
    }
}

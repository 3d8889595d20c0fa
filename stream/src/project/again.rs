//! Projecting all that is live of a project again, stretch by stretch: hot windows first, and what an earlier epoch has
//! left of them, then live sessions, carts, then users; and then the same of the generation that was live before, if it
//! is kept, to remove what that had and this has not. One worker does it at a time; its lease lies in Redis, so a flush
//! takes that, too.

use std::time::Instant;

use chrono::{DateTime, Utc};
use tidemill_common::redis::Redis;

use super::list::{self, Of, WindowCursor};
use super::pending::Key;
use super::{ProjectError, Writer, lost, marks};
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
    /// What it will be whole for.
    whole: String,
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
    /// Begins, unless another worker is at it.
    pub async fn begin(
        redis: &Redis,
        project: &str,
        (epoch, generation): (i64, i32),
        whole: String,
    ) -> Result<Option<Self>, ProjectError> {
        // Two workers never use one token: it is a name of this very moment in this very process.
        let token = format!("{}-{}", std::process::id(), Utc::now().timestamp_nanos_opt().unwrap_or_default());
        if !marks::take(redis, project, &token, LEASE).await? {
            return Ok(None);
        }
        metrics::counter!("tidemill_stream_reprojections_total").increment(1);
        let next = first_windows(0, Utc::now());
        let (project, started) = (project.to_owned(), Instant::now());
        let stale = false;
        Ok(Some(Self { project, stale, token, epoch, generation, whole, of: Of::Live, next, started, keys: 0 }))
    }

    /// Writes the next stretch.
    pub async fn step(&mut self, writer: &Writer) -> Result<Step, ProjectError> {
        if !marks::keep(&writer.redis, &self.project, &self.token, LEASE).await? {
            return Ok(Step::Lost);
        }
        let (keys, next) = self.stretch(writer).await?;
        match self.of {
            Of::Live => writer.write(&keys).await?,
            Of::Kept => writer.forget(&keys, self.epoch, self.generation).await?,
        }
        self.keys += keys.len();
        self.next = next;
        if matches!(self.next, Stage::Done) && self.of == Of::Live {
            (self.of, self.next) = (Of::Kept, first_windows(0, Utc::now()));
        }
        if !matches!(self.next, Stage::Done) {
            return Ok(Step::More);
        }
        if !marks::finish(&writer.redis, &self.project, &self.token, &self.whole).await? {
            return Ok(Step::Lost);
        }
        let seconds = self.started.elapsed().as_secs_f64();
        tracing::info!(project = self.project, keys = self.keys, seconds, "projected again");
        Ok(Step::Done)
    }

    /// The keys of the next stretch, and where the one behind it begins.
    async fn stretch(&self, writer: &Writer) -> Result<(Vec<Key>, Stage), ProjectError> {
        let (pool, project, of) = (&writer.pool, &self.project, self.of);
        let of_project = |id: &String| (project.clone(), id.clone());
        Ok(match &self.next {
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
                lost::of_sessions(&writer.redis, project, Granularity::ALL[*at], stamp, now.timestamp()).await?;
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
        })
    }
}

fn first_windows(at: usize, now: DateTime<Utc>) -> Stage {
    match Granularity::ALL.get(at) {
        Some(&granularity) => Stage::Windows(at, list::first_window(granularity, now)),
        None => Stage::Sessions(list::first_session(now)),
    }
}

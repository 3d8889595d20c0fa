//! Workers of replays, as those see them who want one at work.

use std::path::PathBuf;

use tidemill_common::config::Connections;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::archive::Source;
use super::worker::Worker;
use super::{Replay, ReplayError, refused};
use crate::config::Config;

/// What a worker of a replay needs.
pub struct Setup {
    /// Where everything is.
    pub connections: Connections,
    /// The settings of the stream workers: it has to count as they do.
    pub config: Config,
}

impl Setup {
    /// Where a replay's workers on this machine keep what they have seen.
    pub fn folder(&self, replay: &Replay) -> PathBuf {
        self.config.seen_dir.with_file_name(format!("replay-{}", replay.id))
    }
}

/// A worker at work, until this is dropped.
pub struct Rebuilding {
    task: Option<JoinHandle<Result<(), ReplayError>>>,
    stop: CancellationToken,
}

impl Rebuilding {
    /// Starts a worker of this replay; it works until it is stopped, or the replay is over. `archive` is at the replay's
    /// snapshot, where it has one.
    pub async fn start(setup: &Setup, replay: &Replay, archive: Option<Source>) -> Result<Self, ReplayError> {
        let stop = CancellationToken::new();
        let worker = Worker::new(setup, replay.clone(), stop.clone())?;
        let archive = match (replay.archive_snapshot, archive) {
            (None, _) => None,
            (Some(snapshot), Some(source)) => Some(worker.archive(setup, snapshot, source)?),
            (Some(snapshot), None) => {
                return refused(format!(
                    "the archive's snapshot {snapshot}, which replay {} reads, is gone",
                    replay.id
                ));
            }
        };
        sqlx::query("UPDATE replays SET state = 'running', started_at = now() WHERE id = $1 AND state = 'planned'")
            .bind(replay.id)
            .execute(&worker.log.pool)
            .await?;
        Ok(Self { task: Some(tokio::spawn(worker.run(archive))), stop })
    }

    /// When it ends by itself: with the replay, or with an error that it cannot get over.
    pub async fn ended(&mut self) -> Result<(), ReplayError> {
        let Some(task) = &mut self.task else { return Ok(()) };
        let ended = task.await;
        self.task = None;
        ended.unwrap_or_else(|error| refused(format!("the replay's worker ended abruptly: {error}")))
    }

    /// What comes of `waiting`, unless the worker ends before.
    pub async fn during<T>(&mut self, waiting: impl Future<Output = Result<T, ReplayError>>) -> Result<T, ReplayError> {
        tokio::select! {
            done = waiting => done,
            ended = self.ended() => {
                ended?;
                refused("the replay is over; see 'tidemill replay status'")
            }
        }
    }

    /// Ends it after the batch in hand.
    pub async fn stop(mut self) -> Result<(), ReplayError> {
        self.stop.cancel();
        self.ended().await
    }
}

impl Drop for Rebuilding {
    fn drop(&mut self) {
        self.task.iter().for_each(JoinHandle::abort);
    }
}

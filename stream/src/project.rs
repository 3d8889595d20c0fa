//! Projection into Redis: absolute values of what has changed, read from Postgres after the commit.
//!
//! Each value carries `(generation, epoch, version)` of the rows it stands for, and an older one never
//! overwrites a newer one, whoever writes last. What cannot be written stays noted and is tried again.

mod mutant;
mod read;
mod write;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use chrono::Utc;
use sqlx::PgPool;
use tidemill_common::redis::{Redis, RedisFailure};

use crate::fold::rollups::RollupKey;
use crate::metric;
use crate::store::Touched;

/// After a failure Redis is left alone this long.
const PAUSE: Duration = Duration::from_secs(1);

/// What Redis does not show yet.
pub struct Projector {
    pool: PgPool,
    redis: Redis,
    sessions: BTreeSet<(String, String)>,
    windows: BTreeSet<RollupKey>,
    users: BTreeSet<(String, String)>,
    retry_at: Instant,
}

/// Why Redis does not show it yet.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// Postgres cannot be read.
    #[error("postgres: {0}")]
    Postgres(#[from] sqlx::Error),
    /// Redis cannot be written.
    #[error(transparent)]
    Redis(#[from] RedisFailure),
}

impl Projector {
    /// Nothing to project yet.
    pub fn new(pool: PgPool, redis: Redis) -> Self {
        let (sessions, windows, users) = Default::default();
        Self { pool, redis, sessions, windows, users, retry_at: Instant::now() }
    }

    /// Notes what has changed.
    pub fn add(&mut self, touched: Touched) {
        self.sessions.extend(touched.sessions);
        self.users.extend(touched.users);
        // An event type with a built-in metric's name has no copy of its own, so that it cannot overwrite that.
        let has_copy = |key: &RollupKey| {
            key.metric == metric::EVENTS && !key.event_type.as_deref().is_some_and(metric::is_reserved)
        };
        self.windows.extend(touched.windows.into_iter().filter(has_copy));
    }

    /// Writes all that is noted. True when Redis shows everything; false when it has to wait.
    pub async fn flush(&mut self) -> bool {
        if Instant::now() < self.retry_at {
            return false;
        }
        match self.write_all().await {
            Ok(()) => {
                self.sessions.clear();
                self.windows.clear();
                self.users.clear();
                true
            }
            Err(error) => {
                tracing::warn!(%error, sessions = self.sessions.len(), windows = self.windows.len(), "redis lags behind");
                self.retry_at = Instant::now() + PAUSE;
                false
            }
        }
    }

    async fn write_all(&mut self) -> Result<(), ProjectError> {
        let now = Utc::now();
        // Only hot windows have a copy in Redis; so a long outage costs no more memory than what is hot.
        self.windows.retain(|key| key.granularity.hot_until(key.window_start) > now.timestamp());
        let mut sessions: Vec<_> = self.sessions.iter().collect();
        let mut windows: Vec<_> = self.windows.iter().collect();
        write::users(&self.redis, &self.users).await?;
        // A key that was absent may have been written newer and have expired or been evicted meanwhile, so
        // Postgres is looked at once more after the write.
        for _ in 0..2 {
            let live = read::sessions(&self.pool, &sessions, now).await?;
            let absent = write::sessions(&self.redis, &live).await?;
            sessions.retain(|key| absent.contains(*key));
            let hot = mutant::incremented(&self.redis, read::windows(&self.pool, &windows).await?).await?;
            let absent = write::windows(&self.redis, &hot).await?;
            windows.retain(|key| absent.contains(key));
        }
        Ok(())
    }
}

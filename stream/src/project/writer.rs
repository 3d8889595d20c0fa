//! Writes what Postgres has into Redis.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use chrono::Utc;
use sqlx::PgPool;
use tidemill_common::redis::{Redis, RedisFailure};

use super::pending::Key;
use super::{list, lost, mutant, read, write};
use crate::fold::carts::KEPT;
use crate::fold::rollups::RollupKey;
use crate::keys;
use crate::live_session::LiveSession;
use crate::metric::Definitions;
use crate::store::carts;

/// Windows per statement.
const WINDOWS: usize = 200;
/// Sessions or carts per statement.
const SESSIONS: usize = 2_000;

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

/// Writes what Postgres has into Redis.
pub struct Writer {
    pub(super) pool: PgPool,
    pub(super) redis: Redis,
    pub(super) definitions: Definitions,
}

impl Writer {
    /// Has Redis show the present state of these keys, so far as they are live.
    pub(super) async fn write<'a>(&self, keys: impl IntoIterator<Item = &'a Key>) -> Result<(), ProjectError> {
        let now = Utc::now();
        let (mut sessions, mut carts, mut windows, mut users) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for key in keys {
            match key {
                Key::Session(key) => sessions.push(key),
                Key::Cart(key) => carts.push(key),
                // Only hot windows have a copy.
                Key::Window(key) if key.granularity.hot_until(key.window_start) <= now.timestamp() => {}
                Key::Window(key) => windows.push(key),
                Key::User(key) => users.push(key),
            }
        }
        write::users(&self.redis, &users).await?;
        tokio::try_join!(self.windows(&windows), self.sessions(&sessions), self.carts(&carts)).map(drop)
    }

    /// Has Redis show these sessions, which are the latest that we know of. Gives those that have to be read all the
    /// same, since they are of another epoch or generation than the present one, or were absent.
    pub(super) async fn show(&self, mut latest: Vec<LiveSession>) -> Result<Vec<Key>, ProjectError> {
        if latest.is_empty() {
            return Ok(Vec::new());
        }
        let projects: BTreeSet<&str> = latest.iter().map(|session| &*session.key.0).collect();
        let (epoch, generations) = read::times(&self.pool, &Vec::from_iter(projects)).await?;
        let is_present = |LiveSession { key, stamp, .. }: &LiveSession| {
            stamp.epoch == epoch && generations.get(&key.0) == Some(&stamp.generation)
        };
        let now = Utc::now().timestamp_millis();
        latest.retain(|session| session.expires_ms > now);
        let (present, past): (Vec<_>, Vec<_>) = latest.into_iter().partition(is_present);
        let absent = write::sessions(&self.redis, &present).await?;
        Ok(past.into_iter().map(|session| session.key).chain(absent).map(Key::Session).collect())
    }

    /// Has Redis lose what is older than this epoch and generation under these keys, which an earlier generation had.
    pub(super) async fn forget(&self, keys: &[Key], epoch: i64, generation: i32) -> Result<(), ProjectError> {
        let (mut windows, mut hashes) = (Vec::new(), Vec::new());
        let mut users = BTreeMap::<&str, Vec<&str>>::new();
        for key in keys {
            match key {
                Key::Window(key) => windows.push(write::window_key(key)),
                Key::Session((project, key)) => hashes.push(keys::session(project, key)),
                Key::Cart((project, key)) => hashes.push(keys::cart(project, key)),
                Key::User((project, user)) => users.entry(project).or_default().push(user),
            }
        }
        lost::windows(&self.redis, &windows, (epoch, generation)).await?;
        lost::hashes(&self.redis, &hashes, (epoch, generation)).await?;
        for (project, users) in users {
            lost::users(&self.redis, project, &users).await?;
            // Who has come meanwhile may have been added before that.
            let known = list::known(&self.pool, project, &users).await?;
            let known: Vec<(String, String)> = known.into_iter().map(|user| (project.to_owned(), user)).collect();
            write::users(&self.redis, &known.iter().collect::<Vec<_>>()).await?;
        }
        Ok(())
    }

    /// A key that was absent may have been written newer and have expired or been evicted meanwhile, so Postgres is
    /// looked at once more after the write.
    async fn windows(&self, keys: &[&RollupKey]) -> Result<(), ProjectError> {
        for chunk in keys.chunks(WINDOWS) {
            let mut keys = chunk.to_vec();
            for _ in 0..2 {
                let hot = mutant::incremented(&self.redis, read::windows(&self.pool, &keys).await?).await?;
                let absent = write::windows(&self.redis, &hot).await?;
                keys.retain(|key| absent.contains(key));
            }
        }
        Ok(())
    }

    async fn sessions(&self, keys: &[&(String, String)]) -> Result<(), ProjectError> {
        for chunk in keys.chunks(SESSIONS) {
            let mut keys = chunk.to_vec();
            for _ in 0..2 {
                let live = read::sessions(&self.pool, &keys, Utc::now()).await?;
                let absent: HashSet<_> = write::sessions(&self.redis, &live).await?;
                keys.retain(|key| absent.contains(*key));
            }
        }
        Ok(())
    }

    /// Carts are shown for a day.
    async fn carts(&self, keys: &[&(String, String)]) -> Result<(), ProjectError> {
        for chunk in keys.chunks(SESSIONS) {
            let mut keys = chunk.to_vec();
            for _ in 0..2 {
                let columns: Vec<(&str, &str)> = keys.iter().map(|(project, key)| (&**project, &**key)).collect();
                let mut stored = carts::load(&self.pool, &columns).await?;
                stored.retain(|stored| stored.cart.changed_at > Utc::now().timestamp_micros() - KEPT);
                let absent: HashSet<_> = write::carts(&self.redis, &stored).await?;
                keys.retain(|key| absent.contains(*key));
            }
        }
        Ok(())
    }
}

//! Writes what Postgres has into Redis.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use chrono::Utc;
use sqlx::PgPool;
use tidemill_common::failpoint::hit;
use tidemill_common::redis::{Redis, RedisFailure};

use super::lost::{self, Missed};
use super::pending::Key;
use super::{list, mutant, read, write};
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
    /// Postgres.
    pub pool: PgPool,
    /// Redis.
    pub redis: Redis,
    /// Which metrics have copies.
    pub definitions: Definitions,
    /// Copies of sessions with more bytes of text than this are compressed.
    pub compress_above: Option<usize>,
}

/// Keys that could not be written, since their part of Redis gives no answer, and why the last of them could not.
#[derive(Default)]
pub struct Unwritten {
    pub keys: HashSet<Key>,
    pub why: Option<RedisFailure>,
}

impl Unwritten {
    fn add<K>(&mut self, missed: Vec<K>, why: Option<RedisFailure>, key: impl Fn(K) -> Key) {
        self.keys.extend(missed.into_iter().map(key));
        self.why = why.or(self.why.take());
    }

    /// Both.
    pub(super) fn with(mut self, other: Self) -> Self {
        self.keys.extend(other.keys);
        Self { keys: self.keys, why: other.why.or(self.why) }
    }
}

impl Writer {
    /// Has Redis show the present state of these keys, so far as they are live. Gives those that it cannot.
    pub async fn write<'a>(&self, keys: impl IntoIterator<Item = &'a Key>) -> Result<Unwritten, ProjectError> {
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
        let mut unwritten = Unwritten::default();
        let seen = write::users(&self.redis, &users).await;
        unwritten.add(seen.missed, seen.why, Key::User);
        let (windows, sessions, carts) =
            tokio::try_join!(self.windows(&windows), self.sessions(&sessions), self.carts(&carts))?;
        Ok(unwritten.with(windows).with(sessions).with(carts))
    }

    /// Has Redis show these sessions, which are the latest that we know of. Gives those that have to be read all the
    /// same, since they are of another epoch or generation than the present one, or were absent and have changed; and
    /// those that it cannot show.
    pub(super) async fn show(&self, mut latest: Vec<LiveSession>) -> Result<(Vec<Key>, Unwritten), ProjectError> {
        if latest.is_empty() {
            return Ok(Default::default());
        }
        let projects: BTreeSet<&str> = latest.iter().map(|session| &*session.key.0).collect();
        let (epoch, generations) = read::times(&self.pool, &Vec::from_iter(projects)).await?;
        let is_present = |LiveSession { key, stamp, .. }: &LiveSession| {
            stamp.epoch == epoch && generations.get(&key.0) == Some(&stamp.generation)
        };
        let now = Utc::now().timestamp_millis();
        latest.retain(|session| session.expires_ms > now);
        let (present, past): (Vec<_>, Vec<_>) = latest.into_iter().partition(is_present);
        let mut unwritten = Unwritten::default();
        let passed = self.write_sessions(&present, &mut unwritten).await?;
        let past = past.into_iter().map(|session| session.key);
        Ok((past.chain(passed).map(Key::Session).collect(), unwritten))
    }

    /// Has Redis lose what is older than this epoch and generation under these keys, which an earlier generation had.
    pub async fn forget(&self, keys: &[Key], epoch: i64, generation: i32) -> Result<Missed, ProjectError> {
        let (mut windows, mut hashes) = (Vec::new(), Vec::new());
        let mut users = BTreeMap::<&str, Vec<&str>>::new();
        for key in keys {
            match key {
                Key::Window(_) => windows.push(key.name()),
                Key::Session(_) | Key::Cart(_) => hashes.push(key.name()),
                Key::User((project, user)) => users.entry(project).or_default().push(user),
            }
        }
        let mut missed = lost::windows(&self.redis, &windows, (epoch, generation)).await;
        missed = missed.with(lost::hashes(&self.redis, &hashes, (epoch, generation)).await);
        for (project, users) in users {
            missed = missed.with(lost::users(&self.redis, project, &users).await);
            // Who has come meanwhile may have been added before that.
            let known = list::known(&self.pool, project, &users).await?;
            let known: Vec<(String, String)> = known.into_iter().map(|user| (project.to_owned(), user)).collect();
            if let Some(why) = write::users(&self.redis, &known.iter().collect::<Vec<_>>()).await.why {
                missed.add(keys::seen_users(project), why);
            }
        }
        Ok(missed)
    }

    /// A key that was absent may have been written newer and have expired or been evicted meanwhile, so Postgres is
    /// looked at once more after the write.
    async fn windows(&self, keys: &[&RollupKey]) -> Result<Unwritten, ProjectError> {
        let mut unwritten = Unwritten::default();
        for chunk in keys.chunks(WINDOWS) {
            let mut keys = chunk.to_vec();
            for _ in 0..2 {
                let hot = mutant::incremented(&self.redis, read::windows(&self.pool, &keys).await?).await?;
                let written = write::windows(&self.redis, &hot).await;
                keys.retain(|key| written.absent.contains(key));
                unwritten.add(written.missed, written.why, |key| Key::Window(key.clone()));
            }
        }
        Ok(unwritten)
    }

    async fn sessions(&self, keys: &[&(String, String)]) -> Result<Unwritten, ProjectError> {
        let mut unwritten = Unwritten::default();
        for chunk in keys.chunks(SESSIONS) {
            let mut keys = chunk.to_vec();
            for _ in 0..2 {
                let live = read::sessions(&self.pool, &keys, Utc::now()).await?;
                let _ = hit("cache.read").await; // only to pause
                let passed = self.write_sessions(&live, &mut unwritten).await?;
                keys.retain(|key| passed.contains(*key));
            }
        }
        Ok(unwritten)
    }

    /// Writes these sessions, all of one epoch. Gives the keys that were absent, as [`Self::windows`] says, and have
    /// another version by now.
    async fn write_sessions(
        &self,
        sessions: &[LiveSession],
        unwritten: &mut Unwritten,
    ) -> Result<HashSet<(String, String)>, sqlx::Error> {
        let written = write::sessions(&self.redis, sessions, self.compress_above).await;
        unwritten.add(written.missed, written.why, Key::Session);
        read::passed(&self.pool, sessions.iter().filter(|session| written.absent.contains(&session.key))).await
    }

    /// Carts are shown for a day.
    async fn carts(&self, keys: &[&(String, String)]) -> Result<Unwritten, ProjectError> {
        let mut unwritten = Unwritten::default();
        for chunk in keys.chunks(SESSIONS) {
            let mut keys = chunk.to_vec();
            for _ in 0..2 {
                let columns: Vec<(&str, &str)> = keys.iter().map(|(project, key)| (&**project, &**key)).collect();
                let mut stored = carts::load(&self.pool, &columns).await?;
                stored.retain(|stored| stored.cart.changed_at > Utc::now().timestamp_micros() - KEPT);
                let written = write::carts(&self.redis, &stored).await;
                keys.retain(|key| written.absent.contains(*key));
                unwritten.add(written.missed, written.why, Key::Cart);
            }
        }
        Ok(unwritten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live_session::Stamp;
    use tidemill_testkit::Stack;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_absent_is_read_once_more_if_it_has_changed() {
        let stack = Stack::new().await;
        let rows = "INSERT INTO session_keys (generation, project, session_id, version)
                    VALUES (0, $1, 'a', 1), (0, $1, 'b', 2)";
        sqlx::query(rows).bind(&stack.project).execute(&stack.pool).await.expect("rows");
        let epoch = sqlx::query_scalar("SELECT epoch FROM timeline").fetch_one(&stack.pool).await.expect("an epoch");
        let writer = Writer {
            pool: stack.pool.clone(),
            redis: Redis::new(&stack.connections.redis_url).expect("a client"),
            definitions: Definitions::new(stack.pool.clone(), None).expect("metrics"),
            compress_above: None,
        };
        let first = |key: &str| LiveSession {
            key: (stack.project.clone(), key.to_owned()),
            stamp: Stamp { epoch, generation: 0, version: 1 },
            fields: vec![("totalEvents", "1".to_owned())],
            expires_ms: Utc::now().timestamp_millis() + 60_000,
        };
        let again = async |sessions| {
            let (mut again, unwritten) = writer.show(sessions).await.expect("shown");
            assert!(unwritten.keys.is_empty());
            again.sort();
            again
        };
        let key = |key: &str| Key::Session((stack.project.clone(), key.to_owned()));
        assert_eq!(again(vec![first("a"), first("b"), first("gone")]).await, [key("b"), key("gone")]);
        assert_eq!(again(vec![first("b")]).await, [], "it is not absent any more");
        let stamp = Stamp { generation: 7, ..first("a").stamp };
        assert_eq!(again(vec![LiveSession { stamp, ..first("a") }]).await, [key("a")], "of another generation");
    }
}

//! What a future that is lost, or another generation, has left in Redis, and the present one never writes.
//!
//! A Postgres that has come back older counts the same events again, but in other batches. All that events name comes
//! about again and is written over; but of what sessions count for, windows come and go with the order of events: a
//! session that was one event long at the end of a batch was a bounce until the next. Such a window may never have a
//! row now, so nobody would write over its copy. Without one, it is read from Postgres. Another generation may have had
//! anything that this one has not.

use std::sync::LazyLock;

use redis::Script;
use tidemill_common::redis::{Redis, RedisFailure};

use super::marks::loaded;
use super::write::behind_the_script;
use crate::keys;
use crate::metric;
use crate::window::Granularity;

/// Commands per round trip.
const CHUNK: usize = 500;
/// How far ahead of now an event can lie, in seconds: what is valid, and some slack.
const AHEAD: i64 = 26 * 3_600;

/// Whether what is held is older, in Lua: of an epoch before this one, or in it of a generation before this one.
macro_rules! forget {
    ($held:literal) => {
        concat!(
            "local epoch, generation = ",
            $held,
            "
             epoch, generation = tonumber(epoch), tonumber(generation)
             local than = tonumber(ARGV[1])
             if epoch and (epoch < than or epoch == than and (generation or -1) < tonumber(ARGV[2])) then
                 redis.call('DEL', KEYS[1])
             end
             return 0"
        )
    };
}

/// ARGV: epoch and generation.
static FORGET_WINDOW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(forget!(
        "(function()
             local readable, value = pcall(cjson.decode, redis.call('GET', KEYS[1]) or '')
             if readable and type(value) == 'table' then return value.epoch or -1, value.generation end
         end)()"
    ))
});

/// The same of sessions and carts.
static FORGET_HASH: LazyLock<Script> =
    LazyLock::new(|| Script::new(forget!("unpack(redis.call('HMGET', KEYS[1], 'epoch', 'generation'))")));

/// Keys that got no answer, and why the last of them did not.
#[derive(Default)]
pub struct Missed {
    /// As they stand in Redis.
    pub keys: Vec<String>,
    /// Why.
    pub why: Option<RedisFailure>,
}

impl Missed {
    /// Notes one.
    pub fn add(&mut self, key: String, why: RedisFailure) {
        self.keys.push(key);
        self.why = Some(why);
    }

    /// Both.
    pub fn with(mut self, other: Self) -> Self {
        self.keys.extend(other.keys);
        Self { keys: self.keys, why: other.why.or(self.why) }
    }
}

/// Removes copies of windows of what sessions count for that are older than this epoch and generation, at `now` in
/// seconds since 1970. Safe to run twice.
pub async fn of_sessions(
    redis: &Redis,
    project: &str,
    granularity: Granularity,
    stamp: (i64, i32),
    now: i64,
) -> Missed {
    windows(redis, &hot(project, granularity, now), stamp).await
}

/// Removes the copies of windows under these keys that are older than this epoch and generation. Safe to run twice.
pub async fn windows(redis: &Redis, keys: &[String], stamp: (i64, i32)) -> Missed {
    forget(redis, &FORGET_WINDOW, keys, stamp).await
}

/// The same of sessions and carts.
pub async fn hashes(redis: &Redis, keys: &[String], stamp: (i64, i32)) -> Missed {
    forget(redis, &FORGET_HASH, keys, stamp).await
}

/// Removes users from those that a project has seen.
pub async fn users(redis: &Redis, project: &str, users: &[&str]) -> Missed {
    let mut missed = Missed::default();
    for chunk in users.chunks(CHUNK) {
        let key = keys::seen_users(project);
        if let Err(error) = redis.run::<()>(redis::pipe().srem(&key, chunk).ignore()).await {
            missed.add(key, error);
        }
    }
    missed
}

async fn forget(redis: &Redis, script: &Script, keys: &[String], (epoch, generation): (i64, i32)) -> Missed {
    let mut missed = Missed::default();
    for chunk in keys.chunks(CHUNK) {
        let mut pipeline = loaded(script);
        for key in chunk {
            pipeline.cmd("EVALSHA").arg(script.get_hash()).arg(1).arg(key).arg(epoch).arg(generation);
        }
        for (key, answer) in chunk.iter().zip(behind_the_script(redis, &pipeline).await) {
            if let Err(error) = answer {
                missed.add(key.clone(), error);
            }
        }
    }
    missed
}

/// The keys of all such windows that can have a copy.
fn hot(project: &str, granularity: Granularity, now: i64) -> Vec<String> {
    let length = granularity.seconds();
    let first = (now - granularity.hot_until(0)).div_euclid(length);
    let last = (now + AHEAD).div_euclid(length);
    let key = |start: i64, name| keys::metric(project, name, granularity, start * length);
    (first..=last).flat_map(|start| metric::OF_SESSIONS.map(|name| key(start, name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hot_window_is_looked_at() {
        let now = 1_800_000_030;
        for (granularity, windows) in [(Granularity::Minute, 1_621), (Granularity::Hour, 29), (Granularity::Day, 5)] {
            let keys = hot("p", granularity, now);
            assert!(keys.len() <= windows * metric::OF_SESSIONS.len(), "{granularity}: {}", keys.len());
            for at in [now, now + 25 * 3_600] {
                let key = keys::metric("p", metric::BOUNCES, granularity, granularity.window(at * 1_000_000));
                assert!(keys.contains(&key), "{key}");
            }
            let oldest = now - granularity.hot_until(0) + 1;
            let key = keys::metric("p", metric::SESSIONS, granularity, granularity.window(oldest * 1_000_000));
            assert!(keys.contains(&key), "{key}");
        }
    }
}

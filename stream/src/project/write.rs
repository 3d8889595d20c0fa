//! Writes to Redis. Every script is safe to run twice, and says whether its key was absent.

use std::collections::HashSet;
use std::sync::LazyLock;

use redis::{Pipeline, Script, Value};
use serde_json::json;
use tidemill_common::redis::{Redis, RedisFailure};

use super::marks::loaded;
use super::read::HotWindow;
use crate::fold::carts::{KEPT, hash};
use crate::fold::rollups::RollupKey;
use crate::keys;
use crate::live_session::{LiveSession, Stamp};
use crate::metric;
use crate::packed;
use crate::store::carts::Stored;

/// Commands per round trip.
const CHUNK: usize = 500;
const ABSENT: i64 = 2;

/// ARGV: epoch, generation, version, expiry in ms since 1970, then fields and values. What is no hash gives way.
static WRITE_HASH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local held = redis.pcall('HMGET', KEYS[1], 'epoch', 'generation', 'version')
         if held[1] then
             for i = 1, 3 do
                 local old, new = tonumber(held[i]) or -1, tonumber(ARGV[i])
                 if old > new then return 0 end
                 if old < new then break end
             end
         end
         redis.call('DEL', KEYS[1])
         redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'generation', ARGV[2], 'version', ARGV[3], unpack(ARGV, 5))
         redis.call('PEXPIREAT', KEYS[1], ARGV[4])
         return held[1] and 1 or 2",
    )
});

/// ARGV: epoch, generation, version, expiry in ms since 1970, the JSON value.
static WRITE_WINDOW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local held = redis.pcall('GET', KEYS[1])
         local readable, value = pcall(cjson.decode, held or '')
         if readable and type(value) == 'table' then
             for i, name in ipairs({'epoch', 'generation', 'version'}) do
                 local old, new = tonumber(value[name]) or -1, tonumber(ARGV[i])
                 if old > new then return 0 end
                 if old < new then break end
             end
         end
         redis.call('SET', KEYS[1], ARGV[5], 'PXAT', ARGV[4])
         return held and 1 or 2",
    )
});

/// What became of writes.
pub struct Written<K> {
    /// Keys that were absent.
    pub absent: HashSet<K>,
    /// Keys that got no answer,
    pub missed: Vec<K>,
    /// and why the last of them did not.
    pub why: Option<RedisFailure>,
}

impl<K: Eq + std::hash::Hash> Written<K> {
    fn nothing() -> Self {
        Self { absent: HashSet::new(), missed: Vec::new(), why: None }
    }

    fn take(&mut self, key: K, answer: Result<Value, RedisFailure>) {
        match answer {
            Ok(Value::Int(ABSENT)) => drop(self.absent.insert(key)),
            Ok(_) => {}
            Err(error) => {
                self.why = Some(error);
                self.missed.push(key);
            }
        }
    }
}

/// Adds users to their projects' sets.
pub async fn users(redis: &Redis, users: &[&(String, String)]) -> Written<(String, String)> {
    let mut written = Written::nothing();
    for chunk in users.chunks(CHUNK) {
        let mut pipeline = redis::pipe();
        for (project, user_id) in chunk {
            pipeline.sadd(keys::seen_users(project), user_id);
        }
        for (user, answer) in chunk.iter().zip(redis.run_each(&pipeline).await) {
            written.take((*user).clone(), answer);
        }
        written.absent.clear();
    }
    written
}

/// Writes sessions, compressed above so many bytes.
pub async fn sessions(
    redis: &Redis,
    sessions: &[LiveSession],
    compress_above: Option<usize>,
) -> Written<(String, String)> {
    let mut written = Written::nothing();
    for chunk in sessions.chunks(CHUNK) {
        let mut pipeline = loaded(&WRITE_HASH);
        for session in chunk {
            let command =
                call(&mut pipeline, &WRITE_HASH, keys::session(&session.key.0, &session.key.1), session.stamp);
            command.arg(session.expires_ms);
            if let Some(packed) = packed::pack(&session.fields, compress_above) {
                command.arg(packed::FIELD).arg(packed);
                continue;
            }
            for (field, value) in &session.fields {
                command.arg(*field).arg(value);
            }
        }
        for (session, answer) in chunk.iter().zip(behind_the_script(redis, &pipeline).await) {
            written.take(session.key.clone(), answer);
        }
    }
    written
}

/// Writes carts.
pub async fn carts(redis: &Redis, carts: &[Stored]) -> Written<(String, String)> {
    let mut written = Written::nothing();
    for chunk in carts.chunks(CHUNK) {
        let mut pipeline = loaded(&WRITE_HASH);
        for Stored { key, epoch, generation, version, cart } in chunk {
            let stamp = Stamp { epoch: *epoch, generation: *generation, version: *version };
            let command = call(&mut pipeline, &WRITE_HASH, keys::cart(&key.0, &key.1), stamp);
            command.arg((cart.changed_at + KEPT) / 1_000);
            for (field, value) in hash::fields(cart) {
                command.arg(field).arg(value);
            }
        }
        for (cart, answer) in chunk.iter().zip(behind_the_script(redis, &pipeline).await) {
            written.take(cart.key.clone(), answer);
        }
    }
    written
}

/// Writes windows.
pub async fn windows<'a>(redis: &Redis, windows: &[HotWindow<'a>]) -> Written<&'a RollupKey> {
    let mut written = Written::nothing();
    for chunk in windows.chunks(CHUNK) {
        let mut pipeline = loaded(&WRITE_WINDOW);
        for window in chunk {
            call(&mut pipeline, &WRITE_WINDOW, window_key(window.key), window.stamp)
                .arg(window.key.granularity.hot_until(window.key.window_start) * 1_000)
                .arg(value(window).to_string());
        }
        for (window, answer) in chunk.iter().zip(behind_the_script(redis, &pipeline).await) {
            written.take(window.key, answer);
        }
    }
    written
}

/// The answers to what stands behind the script in a pipeline.
pub async fn behind_the_script(
    redis: &Redis,
    pipeline: &Pipeline,
) -> impl Iterator<Item = Result<Value, RedisFailure>> + use<> {
    redis.run_each(pipeline).await.into_iter().skip(1)
}

/// Where a window's copy stands.
pub fn window_key(key: &RollupKey) -> String {
    keys::metric(&key.series.project, key.shown_name(), key.granularity, key.window_start)
}

/// A window's copy: of events with their users, of other metrics with what they compute.
pub fn value(HotWindow { key, stamp, totals }: &HotWindow<'_>) -> serde_json::Value {
    let mut value = json!({
        "count": totals.count,
        "generation": stamp.generation, "epoch": stamp.epoch, "version": stamp.version,
    });
    if totals.users.is_some() || *key.series.metric == *metric::EVENTS {
        value["unique_users"] = totals.unique().into();
    }
    if *key.series.metric != *metric::EVENTS {
        value["aggregation"] = key.series.aggregation.as_str().into();
        // As text, since it is exact.
        value["value"] = totals.value(key.series.aggregation).map(|value| value.to_string()).into();
    }
    value
}

fn call<'p>(pipeline: &'p mut Pipeline, script: &Script, key: String, stamp: Stamp) -> &'p mut Pipeline {
    pipeline.cmd("EVALSHA").arg(script.get_hash()).arg(1).arg(key);
    pipeline.arg(stamp.epoch).arg(stamp.generation).arg(stamp.version)
}

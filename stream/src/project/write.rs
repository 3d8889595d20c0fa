//! Writes to Redis. Every script is safe to run twice, and says whether its key was absent.

use std::collections::HashSet;
use std::sync::LazyLock;

use redis::{Pipeline, Script};
use serde_json::json;
use tidemill_common::redis::{Redis, RedisFailure};

use super::marks::loaded;
use super::read::HotWindow;
use crate::fold::carts::{KEPT, hash};
use crate::fold::rollups::RollupKey;
use crate::keys;
use crate::live_session::{LiveSession, Stamp};
use crate::metric;
use crate::store::carts::Stored;

/// Commands per round trip.
const CHUNK: usize = 500;
const ABSENT: i64 = 2;

/// ARGV: epoch, generation, version, expiry in ms since 1970, then fields and values.
static WRITE_HASH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local held = redis.call('HMGET', KEYS[1], 'epoch', 'generation', 'version')
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
        "local held = redis.call('GET', KEYS[1])
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

/// Adds users to their projects' sets.
pub async fn users(redis: &Redis, users: &[&(String, String)]) -> Result<(), RedisFailure> {
    for chunk in users.chunks(CHUNK) {
        let mut pipeline = redis::pipe();
        for (project, user_id) in chunk {
            pipeline.sadd(keys::seen_users(project), user_id).ignore();
        }
        redis.run::<()>(&pipeline).await?;
    }
    Ok(())
}

/// Writes sessions; gives the keys that were absent.
pub async fn sessions(redis: &Redis, sessions: &[LiveSession]) -> Result<HashSet<(String, String)>, RedisFailure> {
    let mut absent = HashSet::new();
    for chunk in sessions.chunks(CHUNK) {
        let mut pipeline = loaded(&WRITE_HASH);
        for session in chunk {
            let command =
                call(&mut pipeline, &WRITE_HASH, keys::session(&session.key.0, &session.key.1), session.stamp);
            command.arg(session.expires_ms);
            for (field, value) in &session.fields {
                command.arg(*field).arg(value);
            }
        }
        let answers: Vec<i64> = redis.run(&pipeline).await?;
        absent.extend(chunk.iter().zip(answers).filter(|(_, a)| *a == ABSENT).map(|(session, _)| session.key.clone()));
    }
    Ok(absent)
}

/// Writes carts; gives the keys that were absent.
pub async fn carts(redis: &Redis, carts: &[Stored]) -> Result<HashSet<(String, String)>, RedisFailure> {
    let mut absent = HashSet::new();
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
        let answers: Vec<i64> = redis.run(&pipeline).await?;
        absent.extend(chunk.iter().zip(answers).filter(|(_, a)| *a == ABSENT).map(|(cart, _)| cart.key.clone()));
    }
    Ok(absent)
}

/// Writes windows; gives the keys that were absent.
pub async fn windows<'a>(redis: &Redis, windows: &[HotWindow<'a>]) -> Result<HashSet<&'a RollupKey>, RedisFailure> {
    let mut absent = HashSet::new();
    for chunk in windows.chunks(CHUNK) {
        let mut pipeline = loaded(&WRITE_WINDOW);
        for window in chunk {
            call(&mut pipeline, &WRITE_WINDOW, window_key(window.key), window.stamp)
                .arg(window.key.granularity.hot_until(window.key.window_start) * 1_000)
                .arg(value(window).to_string());
        }
        let answers: Vec<i64> = redis.run(&pipeline).await?;
        absent.extend(chunk.iter().zip(answers).filter(|(_, a)| *a == ABSENT).map(|(window, _)| window.key));
    }
    Ok(absent)
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

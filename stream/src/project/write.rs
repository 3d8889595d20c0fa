//! Writes to Redis. Every script is safe to run twice, and says whether its key was absent.

use std::collections::{BTreeSet, HashSet};
use std::sync::LazyLock;

use redis::{Pipeline, Script};
use serde_json::json;
use tidemill_common::redis::{Redis, RedisFailure};

use super::read::{HotWindow, LiveSession, Stamp};
use crate::fold::rollups::RollupKey;
use crate::keys;
use crate::metric;

/// Commands per round trip.
const CHUNK: usize = 500;
const ABSENT: i64 = 2;

/// ARGV: generation, epoch, version, expiry in ms since 1970, then fields and values.
static WRITE_SESSION: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local held = redis.call('HMGET', KEYS[1], 'generation', 'epoch', 'version')
         if held[1] then
             for i = 1, 3 do
                 local old, new = tonumber(held[i]), tonumber(ARGV[i])
                 if old > new then return 0 end
                 if old < new then break end
             end
         end
         redis.call('DEL', KEYS[1])
         redis.call('HSET', KEYS[1], 'generation', ARGV[1], 'epoch', ARGV[2], 'version', ARGV[3], unpack(ARGV, 5))
         redis.call('PEXPIREAT', KEYS[1], ARGV[4])
         return held[1] and 1 or 2",
    )
});

/// ARGV: generation, epoch, version, expiry in ms since 1970, the JSON value.
static WRITE_WINDOW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local held = redis.call('GET', KEYS[1])
         if held then
             local value = cjson.decode(held)
             for i, name in ipairs({'generation', 'epoch', 'version'}) do
                 local old, new = value[name], tonumber(ARGV[i])
                 if old > new then return 0 end
                 if old < new then break end
             end
         end
         redis.call('SET', KEYS[1], ARGV[5], 'PXAT', ARGV[4])
         return held and 1 or 2",
    )
});

/// Adds users to their projects' sets.
pub async fn users(redis: &Redis, users: &BTreeSet<(String, String)>) -> Result<(), RedisFailure> {
    let users: Vec<_> = users.iter().collect();
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
        let mut pipeline = load(&WRITE_SESSION);
        for session in chunk {
            let command =
                call(&mut pipeline, &WRITE_SESSION, keys::session(&session.key.0, &session.key.1), session.stamp);
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

/// Writes windows; gives the keys that were absent.
pub async fn windows<'a>(redis: &Redis, windows: &[HotWindow<'a>]) -> Result<HashSet<&'a RollupKey>, RedisFailure> {
    let mut absent = HashSet::new();
    for chunk in windows.chunks(CHUNK) {
        let mut pipeline = load(&WRITE_WINDOW);
        for HotWindow { key, stamp, count, unique_users } in chunk {
            let name = key.event_type.as_deref().unwrap_or(metric::EVENTS);
            let value = json!({
                "count": count, "unique_users": unique_users,
                "generation": stamp.generation, "epoch": stamp.epoch, "version": stamp.version,
            });
            call(
                &mut pipeline,
                &WRITE_WINDOW,
                keys::metric(&key.project, name, key.granularity, key.window_start),
                *stamp,
            )
            .arg(key.granularity.hot_until(key.window_start) * 1_000)
            .arg(value.to_string());
        }
        let answers: Vec<i64> = redis.run(&pipeline).await?;
        absent.extend(chunk.iter().zip(answers).filter(|(_, a)| *a == ABSENT).map(|(window, _)| window.key));
    }
    Ok(absent)
}

/// A pipeline whose first command makes sure that Redis has the script: it may have restarted since.
fn load(script: &Script) -> Pipeline {
    let mut pipeline = redis::pipe();
    pipeline.load_script(script).ignore();
    pipeline
}

fn call<'p>(pipeline: &'p mut Pipeline, script: &Script, key: String, stamp: Stamp) -> &'p mut Pipeline {
    pipeline.cmd("EVALSHA").arg(script.get_hash()).arg(1).arg(key);
    pipeline.arg(stamp.generation).arg(stamp.epoch).arg(stamp.version)
}

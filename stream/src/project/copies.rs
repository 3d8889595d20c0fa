//! Copies: what Redis holds under a key, and what it should hold.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;

use chrono::Utc;
use redis::Script;
use serde_json::Value;
use tidemill_common::redis::{Redis, RedisFailure};

use super::pending::Key;
use super::{ProjectError, Writer, marks, read, write};
use crate::fold::carts::{KEPT, hash};
use crate::live_session::Stamp;
use crate::packed;
use crate::store::carts;

/// Keys per round trip to Redis.
const CHUNK: usize = 500;
/// Windows per statement.
const WINDOWS: usize = 200;

/// A value and the state it stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct Copy {
    /// The state.
    pub stamp: Stamp,
    /// What it shows, its stamp included.
    pub value: Value,
}

impl Copy {
    /// Whether both say the same, of whatever version. Carts bear the versions of their sessions, which rise without
    /// them.
    pub fn shows(&self, other: &Self) -> bool {
        let state = |copy: &Self| (copy.stamp.epoch, copy.stamp.generation);
        let without_version = |copy: &Self| {
            let mut value = copy.value.clone();
            value.as_object_mut().map(|fields| fields.remove("version"));
            value
        };
        state(self) == state(other) && self.stamp <= other.stamp && without_version(self) == without_version(other)
    }
}

/// Gives a hash or a text, whatever it is; a number for anything else.
static READ: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local kind = redis.call('TYPE', KEYS[1]).ok
         if kind == 'hash' then return redis.call('HGETALL', KEYS[1]) end
         if kind == 'string' then return redis.call('GET', KEYS[1]) end
         if kind == 'none' then return false end
         return 0",
    )
});

/// What Redis holds.
#[derive(Default)]
pub struct Held {
    /// Where it holds anything; none: it cannot be read.
    pub copies: BTreeMap<Key, Option<Copy>>,
    /// Why a part of it gave no answer.
    pub why: Option<RedisFailure>,
}

/// What Redis holds under these keys. What cannot be asked for now is not there.
pub async fn held(redis: &Redis, keys: &[&Key]) -> Held {
    let mut held = Held::default();
    for chunk in keys.chunks(CHUNK) {
        let mut pipeline = marks::loaded(&READ);
        for key in chunk {
            pipeline.cmd("EVALSHA").arg(READ.get_hash()).arg(1).arg(key.name());
        }
        let answers = redis.run_each(&pipeline).await.into_iter().skip(1); // the script's own
        for (key, answer) in chunk.iter().zip(answers) {
            match answer {
                Ok(redis::Value::Nil) => {}
                Ok(answer) => drop(held.copies.insert((*key).clone(), read_held(key, answer))),
                Err(error) => held.why = Some(error),
            }
        }
    }
    held
}

fn read_held(key: &Key, answer: redis::Value) -> Option<Copy> {
    let value = match (key, answer) {
        (Key::Window(_), redis::Value::BulkString(text)) => serde_json::from_slice(&text).ok()?,
        (Key::Session(_) | Key::Cart(_), hash @ redis::Value::Array(_)) => {
            let fields = packed::unpack(redis::from_redis_value::<HashMap<String, Vec<u8>>>(hash).ok()?)?;
            Value::from_iter(fields)
        }
        _ => return None,
    };
    Some(Copy { stamp: stamp(&value)?, value })
}

/// A hash has its numbers as text.
fn stamp(value: &Value) -> Option<Stamp> {
    let number = |name: &str| match value.get(name)? {
        Value::String(text) => text.parse().ok(),
        other => other.as_i64(),
    };
    let generation = i32::try_from(number("generation")?).ok()?;
    Some(Stamp { epoch: number("epoch")?, generation, version: number("version")? })
}

/// What Redis should show under these keys. `users` are those whom live sessions name.
pub async fn stored(
    writer: &Writer,
    sample: &BTreeSet<Key>,
    users: &mut BTreeSet<Key>,
) -> Result<BTreeMap<Key, Copy>, ProjectError> {
    let (mut sessions, mut windows, mut carts) = (Vec::new(), Vec::new(), Vec::new());
    for key in sample {
        match key {
            Key::Session(key) => sessions.push(key),
            Key::Window(key) => windows.push(key),
            Key::Cart((project, id)) => carts.push((project.as_str(), id.as_str())),
            Key::User(_) => {}
        }
    }
    let mut copies = BTreeMap::new();
    for session in read::sessions(&writer.pool, &sessions, Utc::now()).await? {
        let user = session.fields.iter().find(|(name, _)| *name == "userId");
        users.extend(user.map(|(_, id)| Key::User((session.key.0.clone(), id.clone()))));
        let fields = session.fields.into_iter().map(|(name, value)| (name.to_owned(), value));
        copies.insert(Key::Session(session.key), of_hash(session.stamp, fields));
    }
    for chunk in windows.chunks(WINDOWS) {
        for window in read::windows(&writer.pool, chunk).await? {
            let copy = Copy { stamp: window.stamp, value: write::value(&window) };
            copies.insert(Key::Window(window.key.clone()), copy);
        }
    }
    let shown_from = Utc::now().timestamp_micros() - KEPT;
    for stored in carts::load(&writer.pool, &carts).await?.into_iter().filter(|s| s.cart.changed_at > shown_from) {
        let stamp = Stamp { epoch: stored.epoch, generation: stored.generation, version: stored.version };
        copies.insert(Key::Cart(stored.key), of_hash(stamp, hash::fields(&stored.cart).into_iter()));
    }
    Ok(copies)
}

fn of_hash(stamp: Stamp, fields: impl Iterator<Item = (String, String)>) -> Copy {
    let Stamp { epoch, generation, version } = stamp;
    let stamped =
        [("epoch", epoch.to_string()), ("generation", generation.to_string()), ("version", version.to_string())];
    let value = Value::from_iter(fields.chain(stamped.map(|(name, value)| (name.to_owned(), value))));
    Copy { stamp, value }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cart_may_be_older_than_its_session() {
        let cart = |version: i64, items: i64| Copy {
            stamp: Stamp { epoch: 0, generation: 1, version },
            value: json!({ "total_items": items.to_string(), "version": version.to_string() }),
        };
        assert!(cart(5, 2).shows(&cart(6, 2)) && cart(6, 2).shows(&cart(6, 2)));
        assert!(!cart(5, 1).shows(&cart(6, 2)) && !cart(7, 2).shows(&cart(6, 2)));
    }

    #[test]
    fn stamps_are_read_from_hashes_and_from_json() {
        let stamp_of = |epoch| Some(Stamp { epoch, generation: 2, version: 3 });
        assert_eq!(stamp(&json!({"epoch": "7", "generation": "2", "version": "3"})), stamp_of(7));
        assert_eq!(stamp(&json!({"epoch": 7, "generation": 2, "version": 3, "count": 1})), stamp_of(7));
        assert_eq!(stamp(&json!({"epoch": 7, "generation": 2})), None);
        assert_eq!(stamp(&json!("text")), None);
    }
}

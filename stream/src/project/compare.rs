//! Comparing keys of Redis with Postgres. Redis is read first, so Postgres can only be ahead: then the value is
//! being changed, and looked at once more a few seconds later. At equal stamps both must say the same. A key that is
//! not there is no difference: readers ask Postgres.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use redis::Script;
use serde_json::Value;
use tidemill_common::redis::{Redis, RedisFailure};

use super::list::{self, Of};
use super::pending::Key;
use super::read;
use super::{ProjectError, Writer, marks, write};
use crate::fold::carts::{KEPT, hash};
use crate::fold::sessions::GAP;
use crate::keys;
use crate::live_session::Stamp;
use crate::packed;
use crate::store::carts;
use crate::window::Granularity;

/// A value that is being changed is the same again after this time.
pub const GRACE: Duration = Duration::from_secs(5);
/// Keys of a kind per project.
const SAMPLE: i64 = 50;
/// Keys per round trip to Redis.
const CHUNK: usize = 500;
/// Windows per statement.
const WINDOWS: usize = 200;

/// A value and the state it stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct Copy {
    /// The state.
    pub stamp: Stamp,
    value: Value,
}

impl Copy {
    /// Whether both say the same, of whatever version. Carts bear the versions of their sessions, which rise without
    /// them.
    fn shows(&self, other: &Self) -> bool {
        let state = |copy: &Self| (copy.stamp.epoch, copy.stamp.generation);
        let without_version = |copy: &Self| {
            let mut value = copy.value.clone();
            value.as_object_mut().map(|fields| fields.remove("version"));
            value
        };
        state(self) == state(other) && self.stamp <= other.stamp && without_version(self) == without_version(other)
    }
}

/// What a comparison says.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// Nothing to object to.
    Same,
    /// Redis is behind, which may be for a moment only: what it holds.
    Behind(Option<Copy>),
    /// Redis says something else of the same state, or nothing that can be read.
    Differs(Option<Stamp>),
    /// Redis shows a state that Postgres, asked later, has not come to: it must have come back older.
    Ahead(Stamp, Stamp),
    /// Only Postgres has it; readers ask there.
    Absent,
    /// Only Redis has it, of this state if it can be read.
    Alone(Option<Stamp>),
    /// Neither has it.
    Nowhere,
}

/// Findings by key, and how many keys were compared.
#[derive(Debug, Default)]
pub struct Findings {
    /// How many keys both had.
    pub compared: u64,
    /// All but the same.
    pub odd: BTreeMap<Key, Finding>,
}

/// What was behind, and what Redis held then.
pub type Suspects = BTreeMap<Key, Option<Copy>>;

/// Which keys to compare: some of each kind, from a place that `random` (from 0 to 1) names.
pub async fn sample(
    writer: &Writer,
    project: &str,
    random: f64,
    now: DateTime<Utc>,
) -> Result<BTreeSet<Key>, ProjectError> {
    let mut keys = BTreeSet::new();
    let back = TimeDelta::microseconds((GAP as f64 * random) as i64);
    let found = list::sample(&writer.pool, project, now - back, SAMPLE).await?;
    keys.extend(found.into_iter().map(|key| Key::Session((project.to_owned(), key))));
    for granularity in Granularity::ALL {
        let (first, ..) = list::first_window(granularity, now);
        let start = first + (now - first) * (random * 1_000.0) as i32 / 1_000;
        let from = (start, String::new(), String::new());
        let found = list::windows(&writer.pool, Of::Live, project, granularity, &from, SAMPLE / 3).await?;
        let definitions = writer.definitions.current().await?;
        let hot = |key: &crate::fold::rollups::RollupKey| {
            granularity.hot_until(key.window_start) > now.timestamp() && key.has_copy(&definitions)
        };
        keys.extend(found.into_iter().map(|(_, key)| key).filter(hot).map(Key::Window));
    }
    Ok(keys)
}

/// Compares these keys, and whether the users of these sessions are among the seen. What only one of both has is left
/// out, but for users.
pub async fn compare(writer: &Writer, sample: BTreeSet<Key>) -> Result<Findings, ProjectError> {
    let Looked { found, named, .. } = looked(writer, &sample).await?;
    let mut findings = Findings::default();
    let (users, _) = look_at_users(writer, &named.difference(&sample).collect::<Vec<_>>()).await?;
    for (key, finding) in found.into_iter().chain(users) {
        let finding = match finding {
            Finding::Absent if matches!(key, Key::User(_)) => Finding::Behind(None),
            Finding::Absent | Finding::Alone(_) | Finding::Nowhere => continue,
            finding => finding,
        };
        findings.compared += 1;
        if finding != Finding::Same {
            findings.odd.insert(key, finding);
        }
    }
    Ok(findings)
}

/// What both have under each of these keys. Every part of Redis has to answer.
pub async fn look(writer: &Writer, keys: &BTreeSet<Key>) -> Result<BTreeMap<Key, Finding>, ProjectError> {
    let Looked { found, why, .. } = looked(writer, keys).await?;
    why.map_or(Ok(found), |why| Err(why.into()))
}

/// A look at some keys.
struct Looked {
    found: BTreeMap<Key, Finding>,
    /// The users whom live sessions among them name.
    named: BTreeSet<Key>,
    why: Option<RedisFailure>,
}

async fn looked(writer: &Writer, keys: &BTreeSet<Key>) -> Result<Looked, ProjectError> {
    let (users, copies): (Vec<&Key>, Vec<&Key>) = keys.iter().partition(|key| matches!(key, Key::User(_)));
    let mut held = held(&writer.redis, &copies).await;
    let mut named = BTreeSet::new();
    let mut stored = stored(writer, keys, &mut named).await?;
    let (mut found, why) = look_at_users(writer, &users).await?;
    for key in copies {
        let finding = match (held.copies.remove(key), stored.remove(key)) {
            (None, None) => Finding::Nowhere,
            (None, Some(_)) => Finding::Absent,
            (Some(held), None) => Finding::Alone(held.map(|copy| copy.stamp)),
            (Some(None), Some(_)) => Finding::Differs(None),
            (Some(Some(held)), Some(stored)) if matches!(key, Key::Cart(_)) && held.shows(&stored) => Finding::Same,
            (Some(Some(held)), Some(stored)) => judge(held, &stored),
        };
        found.insert(key.clone(), finding);
    }
    Ok(Looked { found, named, why: why.or(held.why) })
}

fn judge(held: Copy, stored: &Copy) -> Finding {
    match held.stamp.cmp(&stored.stamp) {
        std::cmp::Ordering::Less => Finding::Behind(Some(held)),
        std::cmp::Ordering::Greater => Finding::Ahead(held.stamp, stored.stamp),
        std::cmp::Ordering::Equal if held.value == stored.value => Finding::Same,
        std::cmp::Ordering::Equal => Finding::Differs(Some(held.stamp)),
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
async fn stored(
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

/// Findings, and why a part of Redis gave no answer.
type Users = (BTreeMap<Key, Finding>, Option<RedisFailure>);

/// Whether both have these users: Redis among the seen. Of whom Redis says nothing now, nothing is said.
async fn look_at_users(writer: &Writer, users: &[&Key]) -> Result<Users, ProjectError> {
    let mut by_project = BTreeMap::<&str, Vec<&str>>::new();
    for key in users {
        let Key::User((project, id)) = key else { continue };
        by_project.entry(project).or_default().push(id);
    }
    let (mut found, mut why) = (BTreeMap::new(), None);
    for (project, ids) in by_project {
        for ids in ids.chunks(CHUNK) {
            let mut pipeline = redis::pipe();
            for id in ids {
                pipeline.cmd("SISMEMBER").arg(keys::seen_users(project)).arg(id);
            }
            let answers = writer.redis.run_each(&pipeline).await;
            let known: BTreeSet<String> = list::known(&writer.pool, project, ids).await?.into_iter().collect();
            for (id, answer) in ids.iter().zip(answers) {
                let finding = match (answer, known.contains(*id)) {
                    (Ok(redis::Value::Int(1)), true) => Finding::Same,
                    (Ok(redis::Value::Int(1)), false) => Finding::Alone(None),
                    (Ok(_), true) => Finding::Absent,
                    (Ok(_), false) => Finding::Nowhere,
                    (Err(error), _) => {
                        why = Some(error);
                        continue;
                    }
                };
                found.insert(Key::User((project.to_owned(), (*id).to_owned())), finding);
            }
        }
    }
    Ok((found, why))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn copy(epoch: i64, generation: i32, version: i64, count: i64) -> Copy {
        Copy { stamp: Stamp { epoch, generation, version }, value: json!({ "count": count }) }
    }

    #[test]
    fn values_are_compared_at_equal_stamps_only() {
        let held = copy(0, 1, 5, 10);
        assert_eq!(judge(held.clone(), &copy(0, 1, 5, 10)), Finding::Same);
        assert_eq!(judge(held.clone(), &copy(0, 1, 5, 11)), Finding::Differs(Some(held.stamp)));
        assert_eq!(judge(held.clone(), &copy(0, 1, 6, 11)), Finding::Behind(Some(held.clone())));
        assert_eq!(
            judge(held.clone(), &copy(1, 0, 1, 9)),
            Finding::Behind(Some(held.clone())),
            "an epoch is above all"
        );
        assert!(matches!(judge(held.clone(), &copy(0, 1, 4, 9)), Finding::Ahead(..)));
        assert!(matches!(judge(held.clone(), &copy(0, 0, 9, 9)), Finding::Ahead(..)));
    }

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

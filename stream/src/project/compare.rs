//! Comparing a sample of Redis with Postgres. Redis is read first, so Postgres can only be ahead: then the value is
//! being changed, and looked at once more a few seconds later. At equal stamps both must say the same. A key that is
//! not there is no difference: readers ask Postgres.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use tidemill_common::redis::Redis;

use super::list::{self, Of};
use super::pending::Key;
use super::read;
use super::{ProjectError, Writer, write};
use crate::fold::carts::KEPT;
use crate::fold::sessions::GAP;
use crate::live_session::Stamp;
use crate::store::carts;
use crate::window::Granularity;
use crate::{fold, keys};

/// A value that is being changed is the same again after this time.
pub const GRACE: Duration = Duration::from_secs(5);
/// Keys of a kind per project.
const SAMPLE: i64 = 50;

/// A value and the state it stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct Copy {
    stamp: Stamp,
    value: Value,
}

/// What a comparison says.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// Nothing to object to.
    Same,
    /// Redis is behind, which may be for a moment only: what it holds.
    Behind(Option<Copy>),
    /// Redis says something else of the same state, or nothing that can be read.
    Differs,
    /// Redis shows a state that Postgres, asked later, has not come to: it must have come back older.
    Ahead(Stamp, Stamp),
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

/// The next carts behind `behind`, which moves on; round and round, since ids of sessions are of any form.
pub async fn some_carts(writer: &Writer, project: &str, behind: &mut String) -> Result<Vec<Key>, ProjectError> {
    let found = list::carts(&writer.pool, Of::Live, project, behind, SAMPLE).await?;
    let all = found.len() < SAMPLE as usize;
    *behind = found.last().filter(|_| !all).cloned().unwrap_or_default();
    Ok(found.into_iter().map(|key| Key::Cart((project.to_owned(), key))).collect())
}

/// Compares these keys, and whether the users of these sessions are among the seen.
pub async fn compare(writer: &Writer, sample: BTreeSet<Key>) -> Result<Findings, ProjectError> {
    let held = held(&writer.redis, &sample).await?;
    let mut findings = Findings::default();
    let mut users = BTreeSet::new();
    for (key, copy) in stored(writer, &sample, &mut users).await? {
        let finding = match held.get(&key).unwrap_or(&Held::Absent) {
            Held::Absent => continue,
            Held::Unreadable => Finding::Differs,
            Held::Copy(held) => judge(&key, held, &copy),
        };
        findings.compared += 1;
        if finding != Finding::Same {
            findings.odd.insert(key, finding);
        }
    }
    users.extend(sample.into_iter().filter(|key| matches!(key, Key::User(_))));
    findings.compared += users.len() as u64;
    let missing = unseen(&writer.redis, users).await?;
    findings.odd.extend(missing.into_iter().map(|key| (key, Finding::Behind(None))));
    Ok(findings)
}

/// What Redis holds under a key.
enum Held {
    Absent,
    Unreadable,
    Copy(Copy),
}

fn judge(key: &Key, held: &Copy, stored: &Copy) -> Finding {
    match held.stamp.cmp(&stored.stamp) {
        // A cart is stamped with the version of its session, which moves on without it.
        std::cmp::Ordering::Less if matches!(key, Key::Cart(_)) && unstamped(held) == unstamped(stored) => {
            Finding::Same
        }
        std::cmp::Ordering::Less => Finding::Behind(Some(held.clone())),
        std::cmp::Ordering::Greater => Finding::Ahead(held.stamp, stored.stamp),
        std::cmp::Ordering::Equal if held.value == stored.value => Finding::Same,
        std::cmp::Ordering::Equal => Finding::Differs,
    }
}

fn unstamped(copy: &Copy) -> Value {
    let mut value = copy.value.clone();
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|name, _| !["epoch", "generation", "version"].contains(&name.as_str()));
    }
    value
}

async fn held(redis: &Redis, sample: &BTreeSet<Key>) -> Result<BTreeMap<Key, Held>, ProjectError> {
    let copies: Vec<&Key> = sample.iter().filter(|key| !matches!(key, Key::User(_))).collect();
    if copies.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut pipeline = redis::pipe();
    for key in &copies {
        match key {
            Key::Session((project, id)) => pipeline.cmd("HGETALL").arg(keys::session(project, id)),
            Key::Cart((project, key)) => pipeline.cmd("HGETALL").arg(keys::cart(project, key)),
            Key::Window(key) => pipeline.cmd("GET").arg(write::window_key(key)),
            Key::User(_) => continue,
        };
    }
    let answers: Vec<redis::Value> = redis.run(&pipeline).await?;
    Ok(copies.into_iter().zip(answers).map(|(key, answer)| (key.clone(), read_held(key, answer))).collect())
}

fn read_held(key: &Key, answer: redis::Value) -> Held {
    let value = match key {
        Key::Session(_) | Key::Cart(_) => match redis::from_redis_value::<BTreeMap<String, String>>(answer) {
            Ok(fields) if fields.is_empty() => return Held::Absent,
            Ok(fields) => Some(Value::from_iter(fields)),
            Err(_) => None,
        },
        _ => match redis::from_redis_value::<Option<String>>(answer) {
            Ok(None) => return Held::Absent,
            Ok(Some(text)) => serde_json::from_str(&text).ok(),
            Err(_) => None,
        },
    };
    let copy = value.and_then(|value| Some(Copy { stamp: stamp(&value)?, value }));
    copy.map_or(Held::Unreadable, Held::Copy)
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
) -> Result<Vec<(Key, Copy)>, ProjectError> {
    let (mut sessions, mut carts, mut windows) = (Vec::new(), Vec::new(), Vec::new());
    for key in sample {
        match key {
            Key::Session(key) => sessions.push(key),
            Key::Cart((project, key)) => carts.push((&**project, &**key)),
            Key::Window(key) => windows.push(key),
            Key::User(_) => {}
        }
    }
    let mut copies = Vec::new();
    for session in read::sessions(&writer.pool, &sessions, Utc::now()).await? {
        let user = session.fields.iter().find(|(name, _)| *name == "userId");
        users.extend(user.map(|(_, id)| Key::User((session.key.0.clone(), id.clone()))));
        let fields = session.fields.into_iter().map(|(name, value)| (name.to_owned(), value));
        copies.push((Key::Session(session.key), hash(session.stamp, fields)));
    }
    for stored in carts::load(&writer.pool, &carts).await? {
        let carts::Stored { key, epoch, generation, version, cart } = stored;
        if cart.changed_at > Utc::now().timestamp_micros() - KEPT {
            let stamp = Stamp { epoch, generation, version };
            copies.push((Key::Cart(key), hash(stamp, fold::carts::hash::fields(&cart).into_iter())));
        }
    }
    for window in read::windows(&writer.pool, &windows).await? {
        let copy = Copy { stamp: window.stamp, value: write::value(&window) };
        copies.push((Key::Window(window.key.clone()), copy));
    }
    Ok(copies)
}

/// A hash as Redis has it.
fn hash(stamp: Stamp, fields: impl Iterator<Item = (String, String)>) -> Copy {
    let Stamp { epoch, generation, version } = stamp;
    let stamped =
        [("epoch", epoch.to_string()), ("generation", generation.to_string()), ("version", version.to_string())];
    let stamped = stamped.map(|(name, value)| (name.to_owned(), value));
    Copy { stamp, value: Value::from_iter(fields.chain(stamped)) }
}

/// The users that Redis has not among the seen, where it has such a set at all.
async fn unseen(redis: &Redis, users: BTreeSet<Key>) -> Result<Vec<Key>, ProjectError> {
    if users.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipeline = redis::pipe();
    for key in &users {
        let Key::User((project, id)) = key else { continue };
        pipeline.cmd("SISMEMBER").arg(keys::seen_users(project)).arg(id);
    }
    let answers: Vec<bool> = redis.run(&pipeline).await?;
    Ok(users.into_iter().zip(answers).filter(|(_, seen)| !seen).map(|(key, _)| key).collect())
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
        let judge = |held: &Copy, stored: &Copy| judge(&Key::User(Default::default()), held, stored);
        assert_eq!(judge(&held, &copy(0, 1, 5, 10)), Finding::Same);
        assert_eq!(judge(&held, &copy(0, 1, 5, 11)), Finding::Differs);
        assert_eq!(judge(&held, &copy(0, 1, 6, 11)), Finding::Behind(Some(held.clone())));
        assert_eq!(judge(&held, &copy(1, 0, 1, 9)), Finding::Behind(Some(held.clone())), "an epoch is above all");
        assert!(matches!(judge(&held, &copy(0, 1, 4, 9)), Finding::Ahead(..)));
        assert!(matches!(judge(&held, &copy(0, 0, 9, 9)), Finding::Ahead(..)));
    }

    #[test]
    fn a_cart_that_is_as_it_was_is_not_behind() {
        let judge = |held: &Copy, stored: &Copy| judge(&Key::Cart(Default::default()), held, stored);
        assert_eq!(judge(&copy(0, 1, 5, 10), &copy(0, 1, 6, 10)), Finding::Same);
        assert!(matches!(judge(&copy(0, 1, 5, 10), &copy(0, 1, 6, 11)), Finding::Behind(_)));
        assert_eq!(judge(&copy(0, 1, 6, 10), &copy(0, 1, 6, 11)), Finding::Differs);
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

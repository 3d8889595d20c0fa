//! Comparing keys of Redis with Postgres. Redis is read first, so Postgres can only be ahead: then the value is
//! being changed, and looked at once more a few seconds later. At equal stamps both must say the same. A key that is
//! not there is no difference: readers ask Postgres.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta};
use tidemill_common::redis::RedisFailure;

use super::copies::{Copy, held, stored};
use super::list::{self, Of};
use super::pending::Key;
use super::{ProjectError, Writer};
use crate::fold::sessions::GAP;
use crate::keys;
use crate::live_session::Stamp;
use crate::window::Granularity;

/// A value that is being changed is the same again after this time.
pub const GRACE: Duration = Duration::from_secs(5);
/// Keys of a kind per project.
const SAMPLE: i64 = 50;
/// Users per round trip.
const CHUNK: usize = 500;

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
    now: DateTime<chrono::Utc>,
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

/// The next carts behind `behind`, which moves on; round and round.
pub async fn some_carts(
    writer: &Writer,
    project: &str,
    behind: &mut (i32, String),
    now: DateTime<chrono::Utc>,
) -> Result<Vec<Key>, ProjectError> {
    let from = list::first_cart(now).max(std::mem::take(behind));
    let found = list::carts(&writer.pool, Of::Live, project, &from, SAMPLE).await?;
    let all = found.len() < SAMPLE as usize;
    *behind = found.last().filter(|_| !all).cloned().unwrap_or_default();
    Ok(found.into_iter().map(|(_, key)| Key::Cart((project.to_owned(), key))).collect())
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
}

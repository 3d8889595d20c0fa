//! Answers kept in Redis, `query:{project}:{hash}`. An answer bears the identity of what it was made from: the
//! table's snapshot and the tail behind it. It is given again only for the very same, or, where the caller says how
//! old it may be, when it is no older. Without Redis there is just no cache.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tidemill_common::redis::{Redis, RedisFailure};
use tidemill_stream::cache::scan::Scan;

use super::format::Format;
use super::response::MadeFrom;
use crate::keys;

const TTL_S: u64 = 3_600;
/// Machines' clocks differ by less than this, in milliseconds.
const CLOCKS_MS: i64 = 60_000;
/// Keys per round trip.
const CHUNK: usize = 500;

/// Answers that were given before.
pub struct Cache {
    redis: Redis,
}

/// What an answer depends on beside its query.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Of the data that would be read now; None: it cannot be told, like for rows in Postgres.
    pub identity: Option<&'a str>,
    /// How old an answer may be, whatever it was made from.
    pub max_age: Option<Duration>,
    /// Milliseconds since 1970.
    pub now_ms: i64,
}

/// A kept answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Kept {
    pub body: Bytes,
    pub truncated: bool,
    /// Where that is other data than would be read now.
    pub made_from: Option<MadeFrom>,
    /// Since it was made.
    pub age: Duration,
}

/// The first line of a value; the body follows.
#[derive(Serialize, Deserialize)]
struct Head {
    identity: Option<String>,
    made_ms: i64,
    truncated: bool,
    made_from: MadeFrom,
}

impl Cache {
    /// A cache in this Redis.
    pub fn new(redis: Redis) -> Self {
        Self { redis }
    }

    /// The answer that was kept, if it will do.
    pub async fn get(&self, key: &str, wanted: Wanted<'_>) -> Option<Kept> {
        if wanted.identity.is_none() && wanted.max_age.is_none() {
            return None;
        }
        match self.redis.run::<(Option<Vec<u8>>,)>(redis::pipe().cmd("GET").arg(key)).await {
            Ok((value,)) => fitting(value?.into(), wanted),
            Err(error) => {
                tracing::debug!(%error, "an answer is computed anew");
                None
            }
        }
    }

    /// Keeps an answer, unless answers have been dropped since it began to be made.
    pub async fn put(
        &self,
        (project, key): (&str, &str),
        identity: Option<String>,
        made_from: &MadeFrom,
        made_ms: i64,
        body: &[u8],
        truncated: bool,
    ) {
        let head = Head { identity, made_ms, truncated, made_from: made_from.clone() };
        let Ok(mut value) = serde_json::to_vec(&head) else { return };
        value.push(b'\n');
        value.extend_from_slice(body);
        let mut set = redis::pipe();
        set.cmd("SET").arg(key).arg(value).arg("EX").arg(TTL_S).ignore();
        if let Err(error) = self.redis.run::<()>(&set).await {
            tracing::debug!(%error, "an answer is not kept");
            return;
        }
        // Asked only now: who drops answers says so before he looks for them, so one of us takes this one away.
        let dropped = self.redis.run::<(Option<i64>,)>(redis::pipe().cmd("GET").arg(keys::dropped(project))).await;
        if dropped.is_ok_and(|(at,)| at.is_none_or(|at| made_ms > at + CLOCKS_MS)) {
            return;
        }
        if let Err(error) = self.redis.run::<()>(redis::pipe().cmd("UNLINK").arg(key).ignore()).await {
            tracing::warn!(%error, project, "an answer is kept, and answers may just have been dropped");
        }
    }
}

/// Drops all answers that a project was given before, and those that are being made.
pub async fn drop_answers(redis: &Redis, project: &str) -> Result<(), RedisFailure> {
    let (mut say, now_ms) = (redis::pipe(), chrono::Utc::now().timestamp_millis());
    say.cmd("SET").arg(keys::dropped(project)).arg(now_ms).arg("EX").arg(TTL_S).ignore();
    redis.run::<()>(&say).await?;
    for node in redis.masters().await? {
        let node = redis.on(&node)?;
        let mut answers = Scan::matching(&node, &keys::query(project, "*"));
        while let Some(keys) = answers.next().await? {
            for keys in keys.chunks(CHUNK) {
                let mut unlink = redis::pipe();
                for key in keys {
                    unlink.cmd("UNLINK").arg(key).ignore(); // each alone: a cluster takes no keys of several slots
                }
                node.run::<()>(&unlink).await?;
            }
        }
    }
    Ok(())
}

/// The key of a query: what is asked, in which form and within which limits, by whom.
pub fn key(
    project: &str,
    generation: i32,
    sql: &str,
    format: Format,
    with_tail: bool,
    rows: usize,
    bytes: usize,
) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let asked = format!("{version}\n{generation}\n{format:?}\n{with_tail}\n{rows}\n{bytes}\n{sql}");
    keys::query(project, &format!("{:x}", Sha256::digest(asked)))
}

fn fitting(value: Bytes, wanted: Wanted<'_>) -> Option<Kept> {
    let end = memchr::memchr(b'\n', &value)?;
    let head: Head = serde_json::from_slice(&value[..end]).ok()?;
    let age = Duration::from_millis(u64::try_from(wanted.now_ms - head.made_ms).unwrap_or(0));
    let is_same = wanted.identity.is_some() && head.identity.as_deref() == wanted.identity;
    let is_young = wanted.max_age.is_some_and(|most| age <= most);
    let (truncated, made_from) = (head.truncated, (!is_same).then_some(head.made_from));
    (is_same || is_young).then(|| Kept { body: value.slice(end + 1..), truncated, made_from, age })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_given_again_for_the_same_data_or_to_who_allows_its_age() {
        let made_from = || MadeFrom { snapshot: Some("1".to_owned()), tail: None };
        let kept = |identity: Option<&str>| {
            let identity = identity.map(str::to_owned);
            let head = Head { identity, made_ms: 1_000, truncated: true, made_from: made_from() };
            Bytes::from([serde_json::to_vec(&head).expect("JSON"), b"\nbody\n".to_vec()].concat())
        };
        let value = kept(Some("1.0"));
        let at = |identity, max_age: Option<u64>, now_ms| {
            fitting(value.clone(), Wanted { identity, max_age: max_age.map(Duration::from_millis), now_ms })
        };
        let age = Duration::from_millis(500);
        assert_eq!(
            at(Some("1.0"), None, 1_500),
            Some(Kept { body: Bytes::from_static(b"body\n"), truncated: true, made_from: None, age })
        );
        assert_eq!(at(Some("2.0"), None, 1_500), None);
        assert_eq!(at(None, None, 1_500), None);
        assert!(at(None, Some(500), 1_500).is_some());
        assert_eq!(at(Some("2.0"), Some(500), 1_500).expect("young").made_from, Some(made_from()));
        assert_eq!(at(None, Some(499), 1_500), None);
        assert!(at(None, Some(0), 900).is_some(), "clocks may differ");
        assert_eq!(fitting(kept(None), Wanted { identity: None, max_age: None, now_ms: 0 }), None);
        assert_eq!(
            fitting(Bytes::from_static(b"nonsense"), Wanted { identity: None, max_age: Some(age), now_ms: 0 }),
            None
        );
    }

    #[test]
    fn keys_differ_by_project_and_by_what_is_asked() {
        let key = |project, sql, format| key(project, 0, sql, format, true, 1, 1);
        let keys = [
            key("a", "SELECT 1", Format::Json),
            key("b", "SELECT 1", Format::Json),
            key("a", "SELECT 2", Format::Json),
            key("a", "SELECT 1", Format::Csv),
        ];
        let different: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(different.len(), keys.len());
        assert!(keys[0].starts_with("query:a:"));
    }
}

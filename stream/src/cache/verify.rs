//! Whether what was written is there: each value is read back and compared, by its version, with what Postgres has then.

use std::collections::{BTreeMap, BTreeSet};

use tidemill_common::redis::RedisFailure;

use super::{Cache, Plain};
use crate::project::ProjectError;
use crate::project::compare::{Finding, look};
use crate::project::pending::Key;

/// A value that goes on changing is looked at so often.
const LOOKS: usize = 5;

impl Cache {
    /// Those of these keys that do not show what Postgres has, and why. What is behind, since somebody counts on
    /// meanwhile, is written again and looked at again: it is right if it has come forward.
    pub(super) async fn verify(&self, keys: &[Key]) -> Result<BTreeMap<Key, Finding>, ProjectError> {
        let (mut open, mut odd): (BTreeSet<Key>, _) = (keys.iter().cloned().collect(), BTreeMap::new());
        let mut before = BTreeMap::new();
        for looks in 1.. {
            let mut behind = Vec::new();
            for (key, finding) in look(&self.writer, &open).await? {
                match finding {
                    Finding::Same | Finding::Nowhere => {}
                    Finding::Behind(Some(held)) if before.get(&key).is_some_and(|stamp| *stamp < held.stamp) => {}
                    Finding::Behind(Some(held)) if looks < LOOKS => {
                        before.insert(key.clone(), held.stamp);
                        behind.push(key);
                    }
                    Finding::Absent if looks < LOOKS => behind.push(key),
                    finding => drop(odd.insert(key, finding)),
                }
            }
            if behind.is_empty() {
                break;
            }
            self.write(&behind).await?;
            open = behind.into_iter().collect();
        }
        Ok(odd)
    }

    /// The same of texts.
    pub(super) async fn verify_plain<'a>(&self, plain: &[&'a Plain]) -> Result<Vec<&'a Plain>, RedisFailure> {
        Ok(self
            .plain(plain)
            .await?
            .into_iter()
            .filter(|(_, held)| *held != Some(true))
            .map(|(plain, _)| plain)
            .collect())
    }

    /// Whether the texts are there as they should be; none: not at all.
    pub(super) async fn plain<'a>(&self, plain: &[&'a Plain]) -> Result<Vec<(&'a Plain, Option<bool>)>, RedisFailure> {
        if plain.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for plain in plain {
            pipeline.cmd("GET").arg(&plain.key);
        }
        let held: Vec<Option<Vec<u8>>> = self.writer.redis.run(&pipeline).await?;
        let same = |plain: &Plain, held: Vec<u8>| held == plain.value.as_bytes();
        Ok(plain.iter().zip(held).map(|(plain, held)| (*plain, held.map(|held| same(plain, held)))).collect())
    }
}

/// For people.
pub(super) fn explain(key: &Key, finding: &Finding) -> String {
    let name = match key {
        Key::User((_, id)) => format!("{} {id}", key.name()),
        key => key.name(),
    };
    let what = match finding {
        Finding::Same => "equal".to_owned(),
        Finding::Behind(Some(held)) => format!("behind, at version {}", held.stamp.version),
        Finding::Behind(None) => "behind".to_owned(),
        Finding::Differs(Some(stamp)) => format!("another value of version {}", stamp.version),
        Finding::Differs(None) => "unreadable".to_owned(),
        Finding::Ahead(held, stored) => format!("ahead: {held:?}, Postgres has {stored:?}"),
        Finding::Absent => "missing".to_owned(),
        Finding::Alone(_) => "Postgres has no such thing".to_owned(),
        Finding::Nowhere => "gone".to_owned(),
    };
    format!("{name}: {what}")
}

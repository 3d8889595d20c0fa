//! Taking away what is wrong. It is always safe: what is missing is read from Postgres.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use redis::Script;
use serde::Serialize;
use tidemill_common::redis::RedisFailure;

use super::report::{Audit, Odd};
use super::{Cache, verify};
use crate::live_session::Stamp;
use crate::project::compare::Finding;
use crate::project::pending::Key;
use crate::project::{ProjectError, lost, marks};

/// Commands per round trip.
const CHUNK: usize = 500;

/// ARGV: epoch, generation and version; or nothing. Deletes what is still of this state, since somebody may have written
/// a newer one.
static DROP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local kind, held = redis.call('TYPE', KEYS[1]).ok, {}
         if kind == 'hash' then held = redis.call('HMGET', KEYS[1], 'epoch', 'generation', 'version') end
         if kind == 'string' then
             local readable, value = pcall(cjson.decode, redis.call('GET', KEYS[1]))
             if readable and type(value) == 'table' then held = {value.epoch, value.generation, value.version} end
         end
         for i = 1, #ARGV do
             if tonumber(held[i] or '') ~= tonumber(ARGV[i]) then return 0 end
         end
         return redis.call('DEL', KEYS[1])",
    )
});

/// What was mended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Mended {
    /// Copies written from Postgres.
    pub written: u64,
    /// Copies deleted: of what Postgres has not, or has not come to.
    pub deleted: u64,
    /// What is not right now either.
    pub left: Vec<String>,
}

impl Cache {
    /// Mends what an audit has found: the newest state that Postgres has wins. What is foreign is deleted; what is ahead
    /// or unreadable is deleted, then written, since an older version never overwrites a newer one.
    pub async fn repair(&self, audit: &Audit) -> Result<Mended, ProjectError> {
        let mut mended = Mended::default();
        let Odd { keys, foreign, plain } = &audit.odd;
        mended.deleted += self.unlink(foreign).await?;
        let keys: Vec<(&Key, &Finding)> = keys.iter().collect();
        for chunk in keys.chunks(CHUNK) {
            let gives_way =
                |finding: &Finding| matches!(finding, Finding::Ahead(..) | Finding::Alone(_) | Finding::Differs(None));
            let wrong = chunk.iter().filter(|(_, finding)| gives_way(finding));
            mended.deleted +=
                self.delete(&wrong.map(|(key, finding)| ((*key).clone(), (*finding).clone())).collect()).await?;
            let known = chunk.iter().filter(|(_, finding)| !matches!(finding, Finding::Alone(_)));
            let known: Vec<Key> = known.map(|(key, _)| (*key).clone()).collect();
            self.write(&known).await?;
            mended.written += known.len() as u64;
            mended.left.extend(self.verify(&known).await?.iter().map(|(key, finding)| verify::explain(key, finding)));
        }
        for chunk in plain.chunks(CHUNK / 10) {
            self.write_plain(&chunk.iter().collect::<Vec<_>>()).await?;
            mended.written += chunk.len() as u64;
        }
        Ok(mended)
    }

    /// Deletes the copies among these that cannot stay: all but those that are merely behind or missing. Gives how many
    /// have gone.
    pub(super) async fn delete(&self, odd: &BTreeMap<Key, Finding>) -> Result<u64, ProjectError> {
        let (mut copies, mut users) = (Vec::new(), BTreeMap::<&str, Vec<&str>>::new());
        for (key, finding) in odd {
            match (key, finding) {
                (_, Finding::Same | Finding::Absent | Finding::Nowhere | Finding::Behind(None)) => {}
                (Key::User((project, id)), Finding::Alone(_)) => users.entry(project).or_default().push(id),
                (Key::User(_), _) => {}
                (key, Finding::Behind(Some(held))) => copies.push((key.name(), Some(held.stamp))),
                (key, Finding::Ahead(held, _)) => copies.push((key.name(), Some(*held))),
                (key, Finding::Differs(held) | Finding::Alone(held)) => copies.push((key.name(), *held)),
            }
        }
        let mut deleted = self.drop_copies(&copies).await?;
        for (project, users) in users {
            if let Some(why) = lost::users(&self.writer.redis, project, &users).await.why {
                return Err(why.into());
            }
            deleted += users.len() as u64;
            // Who has come meanwhile may have been added before that.
            let known = crate::project::list::known(&self.writer.pool, project, &users).await?;
            let known: Vec<Key> = known.into_iter().map(|user| Key::User((project.to_owned(), user))).collect();
            self.write(&known).await?;
        }
        Ok(deleted)
    }

    async fn drop_copies(&self, copies: &[(String, Option<Stamp>)]) -> Result<u64, RedisFailure> {
        let mut deleted = 0;
        for chunk in copies.chunks(CHUNK) {
            let mut pipeline = marks::loaded(&DROP);
            for (key, stamp) in chunk {
                let command = pipeline.cmd("EVALSHA").arg(DROP.get_hash()).arg(1).arg(key);
                if let Some(Stamp { epoch, generation, version }) = stamp {
                    command.arg(epoch).arg(generation).arg(version);
                }
            }
            deleted += self.writer.redis.run::<Vec<u64>>(&pipeline).await?.into_iter().sum::<u64>();
        }
        Ok(deleted)
    }

    /// Deletes keys, whatever they hold.
    pub(super) async fn unlink(&self, keys: &[String]) -> Result<u64, RedisFailure> {
        let mut deleted = 0;
        for chunk in keys.chunks(CHUNK) {
            let mut pipeline = redis::pipe();
            for key in chunk {
                pipeline.cmd("UNLINK").arg(key);
            }
            deleted += self.writer.redis.run::<Vec<u64>>(&pipeline).await?.into_iter().sum::<u64>();
        }
        Ok(deleted)
    }
}

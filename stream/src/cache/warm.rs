//! Filling a Redis with all that is live, part by part: each is written, then all of it is read back and compared, and
//! what does not show what Postgres has is deleted again.

use chrono::Utc;
use futures::{StreamExt, stream};
use serde::Serialize;
use tidemill_common::failpoint::hit;

use super::{Cache, Contents, Plain, Shards, verify};
use crate::keys;
use crate::project::ProjectError;
use crate::project::list::Of;
use crate::project::pending::Key;
use crate::project::walk::Walk;

/// Parts that are filled at a time.
pub const CONCURRENT: usize = 3;
/// Texts per round trip.
const PLAIN: usize = 100;
/// Most examples of what went wrong that are kept of a part.
const EXAMPLES: usize = 5;

/// A part that was filled.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Warmed {
    /// Its number, from 1.
    pub shard: usize,
    /// Which it is.
    pub name: String,
    /// Keys and members of sets that it has now.
    pub keys: u64,
    /// Those that were read back and show what Postgres has.
    pub verified: u64,
    /// Those that did not, and were deleted.
    pub rolled_back: u64,
    /// Some of those that did not, and why; or why it was not finished.
    pub problems: Vec<String>,
}

/// What has happened to how many keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// They were written.
    Written(u64),
    /// They were read back.
    Verified(u64),
    /// The part with this number, from 0, is done, and all is right with it.
    Done(usize),
}

/// What is being done to a part.
#[derive(Clone, Copy)]
enum Pass {
    Write,
    Verify,
}

impl Cache {
    /// Fills the parts with these numbers (from 0), three at a time, with what the projects have. A part that cannot be
    /// finished does not keep the others from it.
    pub async fn warm(
        &self,
        contents: &[Contents],
        shards: &Shards,
        parts: &[usize],
        said: &(dyn Fn(Said) + Sync),
    ) -> Vec<Warmed> {
        let part = |number: usize| async move {
            let name = shards.names()[number].clone();
            let mut warmed = Warmed { shard: number + 1, name, ..Warmed::default() };
            if let Err(error) = self.part(contents, shards, number, said, &mut warmed).await {
                warmed.problems.push(format!("not finished: {error}"));
            }
            if warmed.problems.is_empty() {
                said(Said::Done(number));
            }
            warmed
        };
        let mut all: Vec<Warmed> =
            stream::iter(parts.iter().copied()).map(part).buffer_unordered(CONCURRENT).collect().await;
        all.sort_by_key(|warmed| warmed.shard);
        all
    }

    async fn part(
        &self,
        contents: &[Contents],
        shards: &Shards,
        number: usize,
        said: &(dyn Fn(Said) + Sync),
        warmed: &mut Warmed,
    ) -> Result<(), ProjectError> {
        for pass in [Pass::Write, Pass::Verify] {
            for Contents { project, schemas } in contents {
                let has_users = shards.part(&keys::seen_users(project)) == number;
                let mut walk = Walk::new(project, Of::Live, Utc::now());
                while !(walk.is_done() || walk.is_at_users() && !has_users) {
                    let (stretch, next) = walk.next(&self.writer.pool, &self.writer.definitions).await?;
                    let mut keys = stretch.keys;
                    keys.retain(|key| shards.part(&key.name()) == number);
                    self.some(pass, &keys, said, warmed).await?;
                    walk = next;
                }
                let plain: Vec<&Plain> = schemas.iter().filter(|plain| shards.part(&plain.key) == number).collect();
                for plain in plain.chunks(PLAIN) {
                    self.some_plain(pass, plain, said, warmed).await?;
                }
            }
            if let Pass::Write = pass {
                let _ = hit("cache.written").await; // only to pause
            }
        }
        Ok(())
    }

    async fn some(
        &self,
        pass: Pass,
        keys: &[Key],
        said: &(dyn Fn(Said) + Sync),
        warmed: &mut Warmed,
    ) -> Result<(), ProjectError> {
        let count = keys.len() as u64;
        match pass {
            Pass::Write => {
                self.write(keys).await?;
                said(Said::Written(count));
            }
            Pass::Verify => {
                let odd = self.verify(keys).await?;
                let deleted = self.delete(&odd).await?;
                let examples = odd.iter().map(|(key, finding)| verify::explain(key, finding));
                warmed.add(count, odd.len() as u64, deleted, examples);
                said(Said::Verified(count));
            }
        }
        Ok(())
    }

    async fn some_plain(
        &self,
        pass: Pass,
        plain: &[&Plain],
        said: &(dyn Fn(Said) + Sync),
        warmed: &mut Warmed,
    ) -> Result<(), ProjectError> {
        let count = plain.len() as u64;
        match pass {
            Pass::Write => {
                self.write_plain(plain).await?;
                said(Said::Written(count));
            }
            Pass::Verify => {
                let odd = self.verify_plain(plain).await?;
                let names: Vec<String> = odd.iter().map(|plain| plain.key.clone()).collect();
                let deleted = self.unlink(&names).await?;
                let examples = names.iter().map(|name| format!("{name}: another text"));
                warmed.add(count, odd.len() as u64, deleted, examples);
                said(Said::Verified(count));
            }
        }
        Ok(())
    }

    /// Writes texts as the gateway does.
    pub(super) async fn write_plain(&self, plain: &[&Plain]) -> Result<(), ProjectError> {
        if plain.is_empty() {
            return Ok(());
        }
        let mut pipeline = redis::pipe();
        for Plain { key, value, seconds } in plain {
            pipeline.cmd("SET").arg(key).arg(value).arg("EX").arg(seconds).ignore();
        }
        Ok(self.writer.redis.run::<()>(&pipeline).await?)
    }
}

impl Warmed {
    fn add(&mut self, count: u64, odd: u64, deleted: u64, examples: impl Iterator<Item = String>) {
        self.keys += count;
        self.verified += count - odd;
        self.rolled_back += deleted;
        let room = EXAMPLES.saturating_sub(self.problems.len());
        self.problems.extend(examples.take(room));
    }
}

//! Every hot value against Postgres, by the version it carries: what Redis holds is gone through by its own cursor, then
//! what Postgres has is gone through for what Redis lacks. A value that is not as it should be is looked at again later,
//! and once more while it changes, before it is called different.

use std::collections::{BTreeMap, BTreeSet};

use chrono::Utc;
use tidemill_common::redis::{Redis, RedisFailure};

use super::report::{Audit, MOST_ODD, Tally};
use super::scan::{Found, Scan, members, parse};
use super::{Cache, Contents, Kind, Node, Plain};
use crate::keys;
use crate::project::ProjectError;
use crate::project::compare::{Finding, GRACE, look};
use crate::project::list::{self, Asked, Of};
use crate::project::pending::Key;
use crate::project::walk::Walk;

/// Keys that are looked at together.
const CHUNK: usize = 1_000;
/// A value that goes on changing is looked at so often.
const LOOKS: usize = 3;

/// How many keys have been looked at.
pub type Said<'a> = &'a (dyn Fn(u64) + Sync);

/// An audit under way.
struct Auditor<'a> {
    cache: &'a Cache,
    projects: BTreeSet<&'a str>,
    /// Whether keys of other projects are nobody's.
    all: bool,
    audit: Audit,
    suspects: BTreeMap<Key, Finding>,
    said: Said<'a>,
}

impl Cache {
    /// Compares everything of these projects; `all`: there are no others. `nodes` are all nodes of this Redis.
    pub async fn audit(
        &self,
        contents: &[Contents],
        all: bool,
        nodes: &[Node],
        said: Said<'_>,
    ) -> Result<Audit, ProjectError> {
        let projects = contents.iter().map(|contents| &*contents.project).collect();
        let (audit, suspects) = (Audit::default(), BTreeMap::new());
        let mut auditor = Auditor { cache: self, projects, all, audit, suspects, said };
        for kind in Kind::ALL {
            auditor.audit.tallies.insert(kind, Tally::default());
        }
        let alone = nodes.len() == 1; // a replica, too
        for node in nodes.iter().filter(|node| alone || node.is_master()) {
            auditor.what_redis_has(node).await?;
        }
        for Contents { project, schemas } in contents {
            auditor.what_redis_lacks(project).await?;
            auditor.schemas(schemas).await?;
        }
        auditor.again().await?;
        let mut audit = auditor.audit;
        let stale = self.stale_replicas(nodes, |found| all || contents.iter().any(|c| c.project == found.project()));
        for (kind, key, text) in stale.await? {
            audit.tallies.entry(kind).or_default().replica_behind += 1;
            audit.example(text);
            if let Some(key) = key {
                // What is written to the master goes on to its replicas.
                audit.odd.keys.entry(key).or_insert(Finding::Behind(None));
            }
        }
        Ok(audit)
    }
}

impl Auditor<'_> {
    async fn what_redis_has(&mut self, node: &Node) -> Result<(), ProjectError> {
        let mut scan = Scan::copies(&node.client);
        while let Some(names) = scan.next().await? {
            let (mut copies, mut windows) = (BTreeSet::new(), Vec::new());
            for name in &names {
                // A node of a ring may have keys that are another's since that has come, and nobody reads them here.
                let elsewhere =
                    self.cache.writer.redis.node_of(name.as_bytes()).is_some_and(|at| at != node.at.address);
                let Some(found) = parse(name).filter(|_| !elsewhere) else { continue };
                if !self.projects.contains(found.project()) {
                    if self.all {
                        self.audit.foreign(kind(&found), name.clone());
                    }
                    continue;
                }
                match found {
                    Found::Session(project, id) => drop(copies.insert(Key::Session((project.into(), id.into())))),
                    Found::Cart(project, id) => drop(copies.insert(Key::Cart((project.into(), id.into())))),
                    Found::Window(project, asked, granularity, start) => {
                        windows.push((name, (project, asked, granularity, start)));
                    }
                    Found::Users(project) => self.users(project).await?,
                }
            }
            copies.extend(self.windows(&windows).await?);
            self.look(&copies).await?;
        }
        Ok(())
    }

    /// The windows that keys stand for; those that stand for none are foreign.
    async fn windows(&mut self, found: &[(&String, Asked<'_>)]) -> Result<Vec<Key>, ProjectError> {
        let writer = &self.cache.writer;
        let definitions = writer.definitions.current().await?;
        let mut windows = Vec::new();
        for chunk in found.chunks(CHUNK) {
            let asked: Vec<_> = chunk.iter().map(|(_, asked)| *asked).collect();
            let known = list::identify(&writer.pool, &asked).await?;
            for ((name, _), known) in chunk.iter().zip(known) {
                match known.into_iter().find(|key| key.has_copy(&definitions)) {
                    Some(key) => windows.push(Key::Window(key)),
                    None => self.audit.foreign(Kind::Windows, (*name).clone()),
                }
            }
        }
        Ok(windows)
    }

    async fn users(&mut self, project: &str) -> Result<(), ProjectError> {
        let (key, mut cursor) = (keys::seen_users(project), 0);
        loop {
            let (users, next) = members(&self.cache.writer.redis, &key, cursor).await?;
            let users = users.into_iter().map(|user| Key::User((project.to_owned(), user)));
            self.look(&users.collect()).await?;
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
    }

    async fn look(&mut self, keys: &BTreeSet<Key>) -> Result<(), ProjectError> {
        let all: Vec<&Key> = keys.iter().collect();
        for chunk in all.chunks(CHUNK) {
            let chunk: BTreeSet<Key> = chunk.iter().map(|key| (*key).clone()).collect();
            for (key, finding) in look(&self.cache.writer, &chunk).await? {
                match finding {
                    Finding::Same => self.audit.count(Kind::of(&key), &finding),
                    Finding::Absent | Finding::Nowhere => {} // gone meanwhile
                    finding => self.suspect(key, finding),
                }
            }
            (self.said)(chunk.len() as u64);
        }
        Ok(())
    }

    /// There is no room for all that could be wrong, and no need to look again at more than can be mended.
    fn suspect(&mut self, key: Key, finding: Finding) {
        if self.suspects.len() < MOST_ODD {
            self.suspects.insert(key, finding);
        } else {
            self.audit.last(key, finding);
        }
    }

    async fn what_redis_lacks(&mut self, project: &str) -> Result<(), ProjectError> {
        let writer = &self.cache.writer;
        let mut walk = Walk::new(project, Of::Live, Utc::now());
        while !walk.is_done() {
            let (stretch, next) = walk.next(&writer.pool, &writer.definitions).await?;
            for chunk in stretch.keys.chunks(CHUNK) {
                for key in absent(&writer.redis, chunk).await? {
                    self.suspect(key.clone(), Finding::Absent);
                }
                (self.said)(chunk.len() as u64);
            }
            walk = next;
        }
        Ok(())
    }

    async fn schemas(&mut self, schemas: &[Plain]) -> Result<(), ProjectError> {
        for chunk in schemas.chunks(CHUNK / 10) {
            for (plain, held) in self.cache.plain(&chunk.iter().collect::<Vec<_>>()).await? {
                let finding = match held {
                    Some(true) => Finding::Same,
                    Some(false) => Finding::Differs(None),
                    None => Finding::Absent,
                };
                self.audit.count(Kind::Schemas, &finding);
                if finding == Finding::Differs(None) {
                    self.audit.example(format!("{}: another text", plain.key));
                }
                if finding != Finding::Same {
                    self.audit.odd.plain.push(plain.clone());
                }
            }
        }
        Ok(())
    }

    /// Looks again at what was not as it should be.
    async fn again(&mut self) -> Result<(), ProjectError> {
        for looks in 1..=LOOKS {
            if self.suspects.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(GRACE).await;
            let before: Vec<(Key, Finding)> = std::mem::take(&mut self.suspects).into_iter().collect();
            for chunk in before.chunks(CHUNK) {
                let keys = chunk.iter().map(|(key, _)| key.clone()).collect();
                let mut found = look(&self.cache.writer, &keys).await?;
                for (key, before) in chunk {
                    let finding = found.remove(key).unwrap_or(Finding::Nowhere);
                    if looks < LOOKS && has_moved(before, &finding) {
                        self.suspects.insert(key.clone(), finding);
                    } else {
                        self.audit.last(key.clone(), finding);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether somebody has written it since, and it is not right yet.
fn has_moved(before: &Finding, now: &Finding) -> bool {
    match (before, now) {
        (_, Finding::Same | Finding::Absent | Finding::Nowhere) => false,
        (Finding::Behind(before), Finding::Behind(now)) => before != now,
        (before, now) => before != now,
    }
}

fn kind(found: &Found<'_>) -> Kind {
    match found {
        Found::Session(..) => Kind::Sessions,
        Found::Cart(..) => Kind::Carts,
        Found::Window(..) => Kind::Windows,
        Found::Users(_) => Kind::SeenUsers,
    }
}

/// Those of these keys that Redis does not have.
async fn absent<'a>(redis: &Redis, keys: &'a [Key]) -> Result<Vec<&'a Key>, RedisFailure> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipeline = redis::pipe();
    for key in keys {
        match key {
            Key::User((_, id)) => pipeline.cmd("SISMEMBER").arg(key.name()).arg(id),
            key => pipeline.cmd("EXISTS").arg(key.name()),
        };
    }
    let there: Vec<bool> = redis.run(&pipeline).await?;
    Ok(keys.iter().zip(there).filter(|(_, there)| !there).map(|(key, _)| key).collect())
}

//! What the projection leaves of itself in Redis, to notice when Redis or Postgres come back with less than they had.
//!
//! One hash per project and node that has keys, so that each node tells of its own loss. `began:<place>` says how far the
//! ledger had got when the latest writes began: a ledger behind it has come back older. `shown:<place>` says up to where everything is in Redis: behind what was left there, Redis
//! has come back older. `whole` names the Redis process and the epoch for which all that is live was projected: it is
//! missing after a flush, and names another process after a restart or a fail-over, which may have lost what the mark
//! could not tell of. And it names the live generation, since what an earlier one has left is to be written over.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use futures::future::join_all;
use redis::{Pipeline, Script};
use tidemill_common::names::project_of;
use tidemill_common::redis::{Node, Redis, RedisFailure};

use crate::keys;
use crate::ledger::Place;

const WHOLE: &str = "whole";

/// An offset in an epoch, ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// The epoch.
    pub epoch: i64,
    /// The offset.
    pub offset: i64,
}

/// A node that has keys.
pub struct Shard {
    node: Node,
    redis: Redis,
}

impl Shard {
    /// Its address.
    pub fn name(&self) -> &str {
        &self.node.address
    }

    fn projection(&self, project: &str) -> String {
        keys::projection(project, &self.node.tag)
    }

    fn projecting(&self, project: &str) -> String {
        keys::projecting(project, &self.node.tag)
    }

    /// Which process it is, as one of which nodes: where those change, so do the keys that each of them has.
    fn server(&self, info: &str) -> String {
        match &*self.node.ring {
            "" => process(info),
            ring => format!("{}@{ring}", process(info)),
        }
    }
}

/// All nodes that have keys now.
pub async fn shards(redis: &Redis) -> Result<Vec<Arc<Shard>>, RedisFailure> {
    let nodes = redis.masters().await?;
    nodes.into_iter().map(|node| Ok(Arc::new(Shard { redis: redis.on(&node)?, node }))).collect()
}

/// What Redis says of some places.
#[derive(Debug, Default)]
pub struct Held {
    /// What each node says that answered, by its name.
    pub on: BTreeMap<String, OnNode>,
    /// How far the ledger had got when writes began, as the node says that knows most.
    pub began: HashMap<Place, Mark>,
    /// Places of which some node that answered does not know that.
    pub unbegun: HashSet<Place>,
}

/// What a node says of some places, all of it after one connection's order.
#[derive(Debug, Default, Clone)]
pub struct OnNode {
    /// Which process answered.
    pub server: String,
    /// For which server, epoch and generation each project is whole.
    pub whole: HashMap<String, String>,
    /// How far the ledger had got when writes began.
    pub began: HashMap<Place, Mark>,
    /// Up to where everything was shown.
    pub shown: HashMap<Place, Mark>,
}

impl Held {
    /// What the nodes say together.
    pub fn of(on: BTreeMap<String, OnNode>, places: &[Place]) -> Self {
        let mut held = Self::default();
        for place in places {
            let marks = on.values().filter_map(|node| node.began.get(place));
            held.began.extend(marks.max().map(|mark| (place.clone(), *mark)));
            if on.values().any(|node| !node.began.contains_key(place)) {
                held.unbegun.insert(place.clone());
            }
        }
        Self { on, ..held }
    }
}

/// ARGV: field, epoch, offset; and so on. A mark only goes forward.
static RAISE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "for i = 1, #ARGV, 3 do
             local epoch, offset = string.match(redis.call('HGET', KEYS[1], ARGV[i]) or '', '^(%d+):(%d+)$')
             epoch, offset = tonumber(epoch or -1), tonumber(offset or -1)
             local to_epoch, to_offset = tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
             if to_epoch > epoch or (to_epoch == epoch and to_offset > offset) then
                 redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1] .. ':' .. ARGV[i + 2])
             end
         end",
    )
});

/// KEYS: the marks, the lease. ARGV: our token, what `whole` becomes. Only while the lease is ours: it is lost with
/// the rest when Redis is.
static FINISH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
         redis.call('HSET', KEYS[1], 'whole', ARGV[2])
         redis.call('DEL', KEYS[2])
         return 1",
    )
});

/// ARGV: our token, for how long in ms.
static KEEP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
         return redis.call('PEXPIRE', KEYS[1], ARGV[2])",
    )
});

/// What `whole` says where nothing of a project's live generation is missing.
pub fn whole(server: &str, epoch: i64, generation: i32) -> String {
    format!("{server}:{epoch}:{generation}")
}

/// Whether it says so. Somebody may have noticed a newer generation before us.
pub fn is_whole(held: &str, server: &str, epoch: i64, generation: i32) -> bool {
    held.rsplit_once(':').is_some_and(|(kept, newest)| {
        kept == format!("{server}:{epoch}") && newest.parse().is_ok_and(|newest: i32| newest >= generation)
    })
}

/// Reads what the nodes hold for these places; those that do not answer are left out, unless none does.
pub async fn read(shards: &[Arc<Shard>], places: &[Place]) -> Result<Held, RedisFailure> {
    let answers = join_all(shards.iter().map(|shard| read_one(shard, places))).await;
    let (mut on, mut failure) = (BTreeMap::new(), None);
    for (shard, answer) in shards.iter().zip(answers) {
        match answer {
            Ok(node) => drop(on.insert(shard.name().to_owned(), node)),
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(failure) if on.is_empty() => Err(failure),
        _ => Ok(Held::of(on, places)),
    }
}

async fn read_one(shard: &Shard, places: &[Place]) -> Result<OnNode, RedisFailure> {
    let by_project = by_project(places.iter().map(|place| (place, ())));
    let mut pipeline = redis::pipe();
    pipeline.cmd("INFO").arg("server");
    for (project, places) in &by_project {
        pipeline.cmd("HMGET").arg(shard.projection(project)).arg(WHOLE);
        for (place, ()) in places {
            pipeline.arg(field("began", place)).arg(field("shown", place));
        }
    }
    let answers: Vec<redis::Value> = shard.redis.run(&pipeline).await?;
    let mut node = OnNode::default();
    let mut answers = answers.into_iter();
    node.server = answers.next().map(|info| shard.server(&text(info).unwrap_or_default())).unwrap_or_default();
    for ((project, places), answer) in by_project.into_iter().zip(answers) {
        let redis::Value::Array(values) = answer else { continue };
        let mut values = values.into_iter().map(text);
        node.whole.extend(values.next().flatten().map(|whole| (project.to_owned(), whole)));
        for (place, ()) in places {
            node.began.extend(values.next().flatten().and_then(|mark| Some((place.clone(), parse(&mark)?))));
            node.shown.extend(values.next().flatten().and_then(|mark| Some((place.clone(), parse(&mark)?))));
        }
    }
    Ok(node)
}

/// Says, before anything is written, how far the ledger has got. One node that knows it is enough: which one it is
/// does not matter to who looks, and where it cannot be said nothing is written either.
pub async fn begin(shards: &[Arc<Shard>], epoch: i64, positions: &HashMap<Place, i64>) -> Result<(), RedisFailure> {
    let mut said = join_all(shards.iter().map(|shard| raise(shard, "began", epoch, positions))).await;
    if said.iter().any(Result::is_ok) { Ok(()) } else { said.pop().unwrap_or(Ok(())) }
}

/// Says, once it is written, up to where everything is. Every node has to know.
pub async fn show(shards: &[Arc<Shard>], epoch: i64, positions: &HashMap<Place, i64>) -> Result<(), RedisFailure> {
    let said = join_all(shards.iter().map(|shard| raise(shard, "shown", epoch, positions))).await;
    said.into_iter().collect()
}

async fn raise(shard: &Shard, what: &str, epoch: i64, positions: &HashMap<Place, i64>) -> Result<(), RedisFailure> {
    if positions.is_empty() {
        return Ok(());
    }
    let mut pipeline = redis::pipe();
    pipeline.load_script(&RAISE).ignore();
    for (project, marks) in by_project(positions.iter().map(|(place, offset)| (place, *offset))) {
        pipeline.cmd("EVALSHA").arg(RAISE.get_hash()).arg(1).arg(shard.projection(project));
        for (place, offset) in marks {
            pipeline.arg(field(what, place)).arg(epoch).arg(offset);
        }
        pipeline.ignore();
    }
    shard.redis.run::<()>(&pipeline).await
}

/// Says that a project is not whole anywhere, though Redis is the same process and not empty. Who is projecting it again
/// begins anew: what is missing may lie behind him.
pub async fn broken(shards: &[Arc<Shard>], project: &str) -> Result<(), RedisFailure> {
    let said = shards.iter().map(|shard| async move {
        let mut pipeline = redis::pipe();
        pipeline.cmd("DEL").arg(shard.projecting(project)).ignore();
        pipeline.cmd("HDEL").arg(shard.projection(project)).arg(WHOLE).ignore();
        shard.redis.run::<()>(&pipeline).await
    });
    join_all(said).await.into_iter().collect()
}

/// Takes a project's lease for `ms`, if nobody has it.
pub async fn take(shard: &Shard, project: &str, token: &str, ms: u64) -> Result<bool, RedisFailure> {
    let mut pipeline = redis::pipe();
    pipeline.cmd("SET").arg(shard.projecting(project)).arg(token).arg("NX").arg("PX").arg(ms);
    let (taken,): (Option<String>,) = shard.redis.run(&pipeline).await?;
    Ok(taken.is_some())
}

/// Keeps our lease for another `ms`; false when it is not ours any more.
pub async fn keep(shard: &Shard, project: &str, token: &str, ms: u64) -> Result<bool, RedisFailure> {
    let mut pipeline = loaded(&KEEP);
    pipeline.cmd("EVALSHA").arg(KEEP.get_hash()).arg(1).arg(shard.projecting(project)).arg(token).arg(ms);
    let (kept,): (i64,) = shard.redis.run(&pipeline).await?;
    Ok(kept == 1)
}

/// Says that a project is whole, and gives the lease back; false when that is not ours any more.
pub async fn finish(shard: &Shard, project: &str, token: &str, whole: &str) -> Result<bool, RedisFailure> {
    let mut pipeline = loaded(&FINISH);
    pipeline.cmd("EVALSHA").arg(FINISH.get_hash()).arg(2).arg(shard.projection(project)).arg(shard.projecting(project));
    pipeline.arg(token).arg(whole);
    let (finished,): (i64,) = shard.redis.run(&pipeline).await?;
    Ok(finished == 1)
}

/// A pipeline whose first command makes sure that Redis has the script: it may have restarted since.
pub fn loaded(script: &Script) -> Pipeline {
    let mut pipeline = redis::pipe();
    pipeline.load_script(script).ignore();
    pipeline
}

fn by_project<'a, T>(places: impl Iterator<Item = (&'a Place, T)>) -> BTreeMap<&'a str, Vec<(&'a Place, T)>> {
    let mut by_project = BTreeMap::<&str, Vec<(&Place, T)>>::new();
    for (place, value) in places {
        if let Some(project) = project_of(&place.topic) {
            by_project.entry(project).or_default().push((place, value));
        }
    }
    by_project
}

fn field(what: &str, place: &Place) -> String {
    format!("{what}:{}:{}:{}", place.generation, place.incarnation, place.partition)
}

fn parse(mark: &str) -> Option<Mark> {
    let (epoch, offset) = mark.split_once(':')?;
    Some(Mark { epoch: epoch.parse().ok()?, offset: offset.parse().ok()? })
}

/// Which process it is: another one after every start, and after a fail-over.
fn process(info: &str) -> String {
    info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap_or_default().trim().to_owned()
}

fn text(value: redis::Value) -> Option<String> {
    redis::from_redis_value::<Option<String>>(value).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_as_they_are_written() {
        assert_eq!(parse("3:17"), Some(Mark { epoch: 3, offset: 17 }));
        assert_eq!([parse(""), parse("3"), parse("3:x"), parse("a:1")], [None; 4]);
        assert!(Mark { epoch: 4, offset: 1 } > Mark { epoch: 3, offset: 17 });
    }

    #[test]
    fn a_project_is_whole_for_a_generation_and_those_before_it() {
        let held = whole("8f2a", 3, 2);
        assert!(is_whole(&held, "8f2a", 3, 2) && is_whole(&held, "8f2a", 3, 1));
        assert!(!is_whole(&held, "8f2a", 3, 3), "an earlier one has left it");
        assert!(!is_whole(&held, "8f2a", 4, 2) && !is_whole(&held, "8f2b", 3, 2) && !is_whole("", "8f2a", 3, 2));
    }

    #[test]
    fn the_process_has_a_name() {
        assert_eq!(process("# Server\r\nredis_version:7.0.15\r\nrun_id:8f2a\r\ntcp_port:6379\r\n"), "8f2a");
        assert_eq!(process("# Server\r\n"), "");
    }
}

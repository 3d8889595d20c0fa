//! What the projection leaves of itself in Redis, to notice when Redis or Postgres come back with less than they had.
//!
//! One hash per project. `began:<place>` says how far the ledger had got when the latest writes began: a ledger behind
//! it has come back older. `shown:<place>` says up to where everything is in Redis: behind what was left there, Redis
//! has come back older. `whole` names the Redis process and the epoch for which all that is live was projected: it is
//! missing after a flush, and names another process after a restart or a fail-over, which may have lost what the mark
//! could not tell of. And it names the live generation, since what an earlier one has left is to be written over.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use redis::{Pipeline, Script};
use tidemill_common::names::project_of;
use tidemill_common::redis::{Redis, RedisFailure};

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

/// What Redis says of some places, all of it after one connection's order.
#[derive(Debug, Default)]
pub struct Held {
    /// Which process answered.
    pub server: String,
    /// For which server, epoch and generation each project is whole.
    pub whole: HashMap<String, String>,
    /// How far the ledger had got when writes began.
    pub began: HashMap<Place, Mark>,
    /// Up to where everything was shown.
    pub shown: HashMap<Place, Mark>,
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

/// Reads what Redis holds for these places.
pub async fn read(redis: &Redis, places: &[Place]) -> Result<Held, RedisFailure> {
    let by_project = by_project(places.iter().map(|place| (place, ())));
    let mut pipeline = redis::pipe();
    pipeline.cmd("INFO").arg("server");
    for (project, places) in &by_project {
        pipeline.cmd("HMGET").arg(keys::projection(project)).arg(WHOLE);
        for (place, ()) in places {
            pipeline.arg(field("began", place)).arg(field("shown", place));
        }
    }
    let answers: Vec<redis::Value> = redis.run(&pipeline).await?;
    let mut held = Held::default();
    let mut answers = answers.into_iter();
    held.server = answers.next().map(|info| process(&text(info).unwrap_or_default())).unwrap_or_default();
    for ((project, places), answer) in by_project.into_iter().zip(answers) {
        let redis::Value::Array(values) = answer else { continue };
        let mut values = values.into_iter().map(text);
        held.whole.extend(values.next().flatten().map(|whole| (project.to_owned(), whole)));
        for (place, ()) in places {
            held.began.extend(values.next().flatten().and_then(|mark| Some((place.clone(), parse(&mark)?))));
            held.shown.extend(values.next().flatten().and_then(|mark| Some((place.clone(), parse(&mark)?))));
        }
    }
    Ok(held)
}

/// Says, before anything is written, how far the ledger has got.
pub async fn begin(redis: &Redis, epoch: i64, positions: &HashMap<Place, i64>) -> Result<(), RedisFailure> {
    raise(redis, "began", epoch, positions).await
}

/// Says, once it is written, up to where everything is.
pub async fn show(redis: &Redis, epoch: i64, positions: &HashMap<Place, i64>) -> Result<(), RedisFailure> {
    raise(redis, "shown", epoch, positions).await
}

async fn raise(redis: &Redis, what: &str, epoch: i64, positions: &HashMap<Place, i64>) -> Result<(), RedisFailure> {
    if positions.is_empty() {
        return Ok(());
    }
    let mut pipeline = redis::pipe();
    pipeline.load_script(&RAISE).ignore();
    for (project, marks) in by_project(positions.iter().map(|(place, offset)| (place, *offset))) {
        pipeline.cmd("EVALSHA").arg(RAISE.get_hash()).arg(1).arg(keys::projection(project));
        for (place, offset) in marks {
            pipeline.arg(field(what, place)).arg(epoch).arg(offset);
        }
        pipeline.ignore();
    }
    redis.run::<()>(&pipeline).await
}

/// Says that a project is not whole, since Redis has come back older without being another process.
pub async fn broken(redis: &Redis, project: &str) -> Result<(), RedisFailure> {
    redis.run::<()>(redis::pipe().cmd("HDEL").arg(keys::projection(project)).arg(WHOLE).ignore()).await
}

/// Takes a project's lease for `ms`, if nobody has it.
pub async fn take(redis: &Redis, project: &str, token: &str, ms: u64) -> Result<bool, RedisFailure> {
    let mut pipeline = redis::pipe();
    pipeline.cmd("SET").arg(keys::projecting(project)).arg(token).arg("NX").arg("PX").arg(ms);
    let (taken,): (Option<String>,) = redis.run(&pipeline).await?;
    Ok(taken.is_some())
}

/// Keeps our lease for another `ms`; false when it is not ours any more.
pub async fn keep(redis: &Redis, project: &str, token: &str, ms: u64) -> Result<bool, RedisFailure> {
    let mut pipeline = loaded(&KEEP);
    pipeline.cmd("EVALSHA").arg(KEEP.get_hash()).arg(1).arg(keys::projecting(project)).arg(token).arg(ms);
    let (kept,): (i64,) = redis.run(&pipeline).await?;
    Ok(kept == 1)
}

/// Says that a project is whole, and gives the lease back; false when that is not ours any more.
pub async fn finish(redis: &Redis, project: &str, token: &str, whole: &str) -> Result<bool, RedisFailure> {
    let mut pipeline = loaded(&FINISH);
    pipeline.cmd("EVALSHA").arg(FINISH.get_hash()).arg(2).arg(keys::projection(project)).arg(keys::projecting(project));
    pipeline.arg(token).arg(whole);
    let (finished,): (i64,) = redis.run(&pipeline).await?;
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

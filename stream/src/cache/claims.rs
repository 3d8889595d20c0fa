//! Taking the gateway's hints along to another Redis: which events are in the log (`event:…`) and what was answered to
//! requests (`idempotency:…`). Without them a copy of an earlier event is taken once more (202 instead of 409) and counts
//! once all the same, since the workers know it.

use tidemill_common::redis::{Redis, RedisFailure};

use super::scan::Scan;

/// What the hints' keys begin with.
const HINTS: [&str; 2] = ["event:", "idempotency:"];
/// Keys per round trip.
const CHUNK: usize = 500;
/// A claim of an event in flight; it stands for some seconds.
const IN_FLIGHT: &[u8] = b"P:";

/// Copies the hints of a project, or of all, from the node `from`; calls `each` with how many more have been looked at.
/// What stands there already is newer, and stays. Gives how many were copied.
pub async fn copy(
    from: &Redis,
    to: &Redis,
    project: Option<&str>,
    each: &(dyn Fn(u64) + Sync),
) -> Result<u64, RedisFailure> {
    let mut copied = 0;
    for hints in HINTS {
        let pattern = project.map_or_else(|| format!("{hints}*"), |project| format!("{hints}{project}:*"));
        let mut scan = Scan::matching(from, &pattern);
        while let Some(keys) = scan.next().await? {
            for keys in keys.chunks(CHUNK) {
                copied += some(from, to, keys).await?;
                each(keys.len() as u64);
            }
        }
    }
    Ok(copied)
}

async fn some(from: &Redis, to: &Redis, keys: &[String]) -> Result<u64, RedisFailure> {
    let mut read = redis::pipe();
    for key in keys {
        read.cmd("GET").arg(key).cmd("PTTL").arg(key);
    }
    let answers: Vec<redis::Value> = from.run(&read).await?;
    let mut write = redis::pipe();
    let mut wanted = 0;
    for (key, answer) in keys.iter().zip(answers.chunks_exact(2)) {
        let (redis::Value::BulkString(value), redis::Value::Int(left @ 1..)) = (&answer[0], &answer[1]) else {
            continue;
        };
        if !value.starts_with(IN_FLIGHT) {
            write.cmd("SET").arg(key).arg(value).arg("NX").arg("PX").arg(*left);
            wanted += 1;
        }
    }
    if wanted == 0 {
        return Ok(0);
    }
    let answers: Vec<Option<String>> = to.run(&write).await?;
    Ok(answers.iter().flatten().count() as u64)
}

//! `tidemill cache warm`

use std::sync::Mutex;

use anyhow::{bail, ensure};
use serde::Serialize;
use tidemill_common::config::Settings;
use tidemill_common::failpoint;
use tidemill_common::redis::Redis;
use tidemill_stream::cache::{self, Cache, Contents, Said, Shards, Warmed, claims};

use super::{Desk, bar};
use crate::audit;
use crate::consent::Consent;
use crate::output::{Output, json_line, spinner};
use crate::signals::Signals;

const PLAN: [&str; 5] = ["redis", "projects", "parts", "keys", "claims"];
const WARMED: [&str; 6] = ["shard", "name", "keys", "verified", "rolled_back", "problems"];

#[derive(clap::Args)]
pub struct Args {
    /// Only this project's
    #[arg(long)]
    project: Option<String>,
    /// Another Redis than REDIS_URL names: the one to move to
    #[arg(long, value_name = "URL")]
    to: Option<String>,
    /// Only these parts, e.g. 2,5, of those that the plan counts [default: all]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    shard: Vec<usize>,
    /// Take along which events the gateways know to be in the log, and what they answered, so that copies sent after the
    /// move are still told from new events (409)
    #[arg(long, requires = "to")]
    claims: bool,
    #[command(flatten)]
    consent: Consent,
}

/// What is planned, and what has become of it.
#[derive(Serialize)]
struct Plan {
    redis: String,
    projects: Vec<String>,
    parts: Vec<usize>,
    /// About how many there are, in all parts.
    keys: u64,
    claims: bool,
    applied: bool,
    shards: Vec<Warmed>,
    claims_copied: Option<u64>,
}

pub async fn run(args: Args, settings: &Settings, output: Output) -> anyhow::Result<()> {
    failpoint::arm()?;
    let from = settings.connections().redis_url;
    let url = args.to.clone().unwrap_or_else(|| from.clone());
    let looking = spinner("looking");
    let mut desk = Desk::open(&url, args.project.as_deref(), settings).await?;
    let masters = cache::nodes(&desk.redis).await?.iter().any(cache::Node::is_master);
    ensure!(masters, "{} is a replica, which takes no writes; name its master", cache::place(&url));
    let shards = Shards::of(&desk.redis).await?;
    let mut plan = Plan {
        redis: cache::place(&url),
        projects: desk.projects(),
        parts: parts(&args.shard, shards.names().len())?,
        keys: desk.cache.count(&desk.projects()).await.map_err(crate::store::explain)?,
        claims: args.claims,
        applied: false,
        shards: Vec::new(),
        claims_copied: None,
    };
    looking.finish_and_clear();
    output.plan(&plan, &PLAN)?;
    if args.consent.given(&format!(
        "Write what is live of {} projects into Redis at {}?",
        plan.projects.len(),
        plan.redis
    ))? {
        let entry = audit::begin(&mut desk.db, "cache warm", args.project.as_deref(), &plan).await?;
        let done = async {
            plan.shards = warm(&desk.cache, &desk.contents, &shards, &plan.parts, plan.keys).await?;
            plan.applied = true;
            if args.claims {
                plan.claims_copied = Some(take_along(&from, &url, args.project.as_deref()).await?);
            }
            finished(&plan.shards)
        };
        let done = done.await;
        // What was done is told, whatever became of it.
        let told = match output {
            Output::Json => json_line(&plan),
            Output::Table => output.things(&plan.shards, &WARMED),
        };
        return entry.end(&mut desk.db, done.and(told)).await;
    }
    output.ended(&plan, false)
}

/// Numbers from 1, all that there are if none is given.
fn parts(given: &[usize], count: usize) -> anyhow::Result<Vec<usize>> {
    if let Some(wrong) = given.iter().find(|number| !(1..=count).contains(*number)) {
        bail!("there is no part {wrong}; they are numbered from 1 to {count}");
    }
    Ok(if given.is_empty() { (1..=count).collect() } else { given.to_vec() })
}

async fn warm(
    cache: &Cache,
    contents: &[Contents],
    shards: &Shards,
    parts: &[usize],
    keys: u64,
) -> anyhow::Result<Vec<Warmed>> {
    let mut signals = Signals::new()?;
    // Everything is written, then read back.
    let length = 2 * keys * parts.len() as u64 / shards.names().len() as u64;
    let bar = bar("{bar:30} {human_pos}/{human_len}  {elapsed_precise}  {msg}", length);
    let done = Mutex::new(Vec::new());
    let said = |said: Said| match said {
        Said::Written(count) | Said::Verified(count) => bar.inc(count),
        Said::Done(part) => {
            let mut done = done.lock().expect("no holder panics");
            done.push(part + 1);
            bar.set_message(format!("{} of {} parts done", done.len(), parts.len()));
        }
    };
    let numbers: Vec<usize> = parts.iter().map(|number| number - 1).collect();
    let warmed = tokio::select! {
        warmed = cache.warm(contents, shards, &numbers, &said) => Ok(warmed),
        signal = signals.next() => {
            let done = done.lock().expect("no holder panics");
            Err(anyhow::anyhow!("ended by {signal}; run it again{}", again(parts, |part| !done.contains(&part))))
        }
    };
    bar.finish_and_clear();
    warmed
}

fn finished(shards: &[Warmed]) -> anyhow::Result<()> {
    let failed: Vec<usize> = shards.iter().filter(|part| !part.problems.is_empty()).map(|part| part.shard).collect();
    ensure!(
        failed.is_empty(),
        "{} of {} parts are not as they should be; what was wrong has been deleted and is read from Postgres: look at the \
         problems and at 'tidemill cache status', then run it again{}",
        failed.len(),
        shards.len(),
        again(&failed, |_| true)
    );
    Ok(())
}

fn again(parts: &[usize], open: impl Fn(usize) -> bool) -> String {
    let open: Vec<String> = parts.iter().filter(|part| open(**part)).map(usize::to_string).collect();
    format!(" with --shard {}", open.join(","))
}

async fn take_along(from: &str, to: &str, project: Option<&str>) -> anyhow::Result<u64> {
    let bar = bar("{spinner} {human_pos} claims  {elapsed_precise}", 0);
    let (from, to) = (Redis::background(from)?, Redis::background(to)?);
    let mut copied = 0;
    for node in cache::nodes(&from).await?.iter().filter(|node| node.is_master()) {
        copied += claims::copy(&node.client, &to, project, &|more| bar.inc(more)).await?;
    }
    bar.finish_and_clear();
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_numbered_from_one() {
        assert_eq!(parts(&[], 3).expect("all"), [1, 2, 3]);
        assert_eq!(parts(&[3, 1], 3).expect("two"), [3, 1]);
        assert!(parts(&[0], 3).is_err() && parts(&[4], 3).is_err());
        assert_eq!(again(&[1, 2, 5], |part| part != 2), " with --shard 1,5");
    }
}

//! `tidemill cache audit`

use anyhow::ensure;
use serde::Serialize;
use tidemill_common::config::Settings;
use tidemill_stream::cache::{self, Audit, Kind, Mended, Tally};

use super::{Desk, bar, failure};
use crate::audit;
use crate::consent::Consent;
use crate::output::{Output, json_line, print_line};

const FIELDS: [&str; 9] =
    ["kind", "compared", "equal", "behind", "missing", "ahead", "corrupt", "foreign", "replica_behind"];
const MENDED: [&str; 3] = ["written", "deleted", "left"];

#[derive(clap::Args)]
pub struct Args {
    /// Only this project's
    #[arg(long)]
    project: Option<String>,
    /// Another Redis than REDIS_URL names
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Mend what is found: the newest state that Postgres has wins, and what it does not know is deleted
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    consent: Consent,
}

/// Redis says something that Postgres does not: exit code 4.
#[derive(Debug, thiserror::Error)]
#[error(
    "Redis is not as it should be; look at 'tidemill cache status', and mend it with 'tidemill cache audit --repair'"
)]
pub struct Wrong;

#[derive(Serialize)]
struct Row {
    kind: Kind,
    #[serde(flatten)]
    tally: Tally,
}

#[derive(Serialize)]
struct Report {
    redis: String,
    kinds: Vec<Row>,
    examples: Vec<String>,
    /// How many values a repair writes or deletes.
    to_mend: usize,
    applied: bool,
    mended: Option<Mended>,
}

pub async fn run(args: Args, settings: &Settings, output: Output) -> anyhow::Result<()> {
    let url = args.url.clone().unwrap_or_else(|| settings.connections().redis_url);
    let mut desk = Desk::open(&url, args.project.as_deref(), settings).await?;
    let nodes = cache::nodes(&desk.redis).await?;
    // What Redis has is gone through, then what Postgres has.
    let length = 2 * desk.cache.count(&desk.projects()).await.map_err(crate::store::explain)?;
    let bar = bar("{bar:30} {human_pos}/{human_len} keys  {elapsed_precise}", length);
    let found = desk.cache.audit(&desk.contents, args.project.is_none(), &nodes, &|more| bar.inc(more)).await;
    bar.finish_and_clear();
    let found = found.map_err(failure)?;
    let mut report = report(cache::place(&url), &found);
    if matches!(output, Output::Table) {
        output.things(&report.kinds, &FIELDS)?;
        report.examples.iter().try_for_each(|example| print_line(example))?;
    }
    let mut left = Ok(());
    if args.repair && found.to_mend() > 0 && args.consent.given(&question(&report))? {
        let entry = audit::begin(&mut desk.db, "cache audit --repair", args.project.as_deref(), &report).await?;
        let mended = entry.end(&mut desk.db, desk_repair(&desk.cache, &found).await).await?;
        if matches!(output, Output::Table) {
            output.thing(&mended, &MENDED)?;
        }
        left = mended_all(&mended);
        (report.applied, report.mended) = (true, Some(mended));
    }
    if matches!(output, Output::Json) {
        json_line(&report)?;
    }
    ensure!(args.repair || !found.is_wrong(), Wrong);
    left
}

async fn desk_repair(cache: &cache::Cache, found: &Audit) -> anyhow::Result<Mended> {
    cache.repair(found).await.map_err(failure)
}

fn question(report: &Report) -> String {
    format!("Write or delete {} values in Redis at {}, as Postgres has them?", report.to_mend, report.redis)
}

fn mended_all(mended: &Mended) -> anyhow::Result<()> {
    ensure!(
        mended.left.is_empty(),
        "{} values are not right after the repair either: {}; look at 'tidemill cache status', then run it again",
        mended.left.len(),
        mended.left[0]
    );
    Ok(())
}

fn report(redis: String, found: &Audit) -> Report {
    let kinds = found.tallies.iter().map(|(kind, tally)| Row { kind: *kind, tally: *tally }).collect();
    let examples = found.examples.clone();
    Report { redis, kinds, examples, to_mend: found.to_mend(), applied: false, mended: None }
}

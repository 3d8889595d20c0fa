//! SQL over an archive, beside DuckDB on the same files: the archive is made here, `bench/query/compare.py` asks both.

use anyhow::{Context, ensure};
use clap::Args;

use super::PROJECT;
use super::archiver::{Archiver, table};
use super::tail;
use crate::process::written_back;
use crate::stream::place::Place;
use crate::stream::topic;
use crate::stream::traffic::{Sessions, Shape};

const DAY_MS: u32 = 86_400_000;
/// Files as an archiver makes them by default.
const COMMIT_MS: u64 = 60_000;

/// What is measured.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    place: Place,
    /// Records; one in a hundred is a copy
    #[arg(long, default_value_t = 5_000_000, value_parser = clap::value_parser!(u64).range(10_000..))]
    rows: u64,
    /// The days that they spread over
    #[arg(long, default_value_t = 28, value_parser = clap::value_parser!(u32).range(1..=45))]
    days: u32,
    /// How often each query is asked, cold and warm; the medians count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Ask Tidemill once more with so many events behind the archive; 0: not at all
    #[arg(long, default_value_t = 100_000)]
    tail: u64,
    /// Measure only these queries
    #[arg(long)]
    only: Vec<String>,
    /// The Python with PyIceberg and DuckDB
    #[arg(long, env = "TIDEMILL_PYTHON")]
    python: std::path::PathBuf,
    /// The program that asks
    #[arg(long, env = "TIDEMILL_BENCH_COMPARE", default_value = "bench/query/compare.py")]
    compare: std::path::PathBuf,
    /// Other seeds give other events
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Makes the archive, then has both answer all queries.
pub async fn run(options: &Options) -> anyhow::Result<bool> {
    let place = &options.place;
    let dense = Shape::dense(options.rows, Sessions::Visits, options.seed);
    let shape = Shape { span_ms: options.days * DAY_MS, countries: true, ..dense };
    let topic = topic::fill(&place.brokers, &place.registry, PROJECT, place.partitions, shape).await?;
    let fresh = place.fresh(topic.project).await?;
    place.empty_warehouse(&fresh).await?;
    let archiver = Archiver::start(place, &fresh, &topic, COMMIT_MS).await?;
    let (held, _, _) = archiver.finish(&table(&fresh, &topic), topic.expected.events).await?;
    eprintln!("the archive holds {} rows in {} files of {} bytes", held.rows, held.files, held.bytes);
    ensure!(held.rows == topic.expected.events, "it should hold {} rows", topic.expected.events);
    let behind = if options.tail > 0 { tail::add(place, &topic, options.tail, options.seed + 1).await? } else { 0 };
    written_back().await?;
    let warehouse = place.warehouse();
    let (_query, address) = place.query_with(&fresh, &[("WAREHOUSE_URL", &warehouse)]).await?;
    let status = tokio::process::Command::new(&options.python)
        .arg(&options.compare)
        .args(["--url", &format!("http://{address}"), "--database", &fresh.url, "--warehouse", &warehouse])
        .args(["--project", topic.project, "--redis", &place.redis, "--rounds", &options.rounds.to_string()])
        .args(["--tail", &behind.to_string()])
        .args(options.only.iter().flat_map(|name| ["--only", name]))
        .env("TIDEMILL_BENCH_KEY", place.key.as_deref().context("--key names no key that may read the project")?)
        .kill_on_drop(true)
        .status()
        .await
        .with_context(|| format!("cannot start {}", options.python.display()))?;
    Ok(status.success())
}

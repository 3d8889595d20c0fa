//! The archiver beside the bare limit (decoding, and writing Parquet) and Kafka Connect with the Iceberg sink.

mod archiver;
mod connect;
pub mod limit;
pub mod query;
mod report;
mod table;
mod tail;

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use crate::figures::{self, Figures};
use crate::process::written_back;
use crate::stream::place::Place;
use crate::stream::topic::{self, Topic};
use crate::stream::traffic::{Sessions, Shape};
use table::{Holds, Table};

/// The project, which `dev/bench` has made.
const PROJECT: &str = "bench";
/// How often a table is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// A table that stands still for this long is an error.
const STALLED: Duration = Duration::from_secs(120);

/// What is measured.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    place: Place,
    /// Records in the topic; one in a hundred is a copy
    #[arg(long, default_value_t = 3_000_000, value_parser = clap::value_parser!(u64).range(10_000..))]
    rows: u64,
    /// How often each measurement is made; the medians count
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measure only this
    #[arg(long, value_enum)]
    only: Vec<Subject>,
    /// How often is committed at least, in milliseconds
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(500..))]
    commit_ms: u64,
    /// Kafka Connect's heap where its CPU is measured
    #[arg(long, default_value = "2g")]
    heap: String,
    /// Kafka Connect's heap where its memory is measured: the smallest it runs in
    #[arg(long, default_value = "256m")]
    smallest_heap: String,
    /// Other seeds give other events
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Decoding and writing alone
    Limit,
    /// Kafka Connect's CPU
    Connect,
    /// Kafka Connect's memory, in the smallest heap
    ConnectMemory,
    /// The archiver
    Archive,
}

/// What was measured from the end of the warm-up to the end.
#[derive(Debug, Clone, Copy)]
struct Archived {
    /// Rows per second.
    per_second: f64,
    /// CPU of the process per row, in microseconds.
    cpu_us: f64,
    /// The most memory that was resident, in MB.
    peak_mb: f64,
    /// Bytes of data files per row.
    bytes_per_row: f64,
    /// Data files.
    files: u64,
}

/// How far it was at a moment.
struct Moment {
    at: Instant,
    rows: u64,
    /// CPU so far, in seconds.
    cpu: f64,
}

impl Archived {
    fn between(warm: &Moment, done: &Moment, peak_mb: f64, held: Holds) -> Self {
        let rows = (done.rows - warm.rows) as f64;
        Self {
            per_second: rows / (done.at - warm.at).as_secs_f64(),
            cpu_us: (done.cpu - warm.cpu) * 1e6 / rows,
            peak_mb,
            bytes_per_row: held.bytes as f64 / held.rows as f64,
            files: held.files,
        }
    }
}

/// Writes the topic, runs all rounds and prints the figures.
pub async fn run(options: &Options) -> anyhow::Result<bool> {
    let mut figures = Figures::default();
    let topic = options.topic().await?;
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for subject in Subject::value_variants() {
            if options.wants(*subject) {
                let before = figures.clone();
                options.measure(*subject, topic.as_ref(), round, &mut figures).await?;
                eprintln!("  {:14} {}", format!("{subject:?}").to_lowercase(), figures.added_since(&before));
            }
        }
    }
    let medians = figures.medians();
    print!("{}", report::table(&medians));
    println!("{}", figures::json(&medians));
    Ok(true)
}

impl Options {
    fn wants(&self, subject: Subject) -> bool {
        self.only.is_empty() || self.only.contains(&subject)
    }

    /// The topic, if anybody reads one.
    async fn topic(&self) -> anyhow::Result<Option<Topic>> {
        if self.only == [Subject::Limit] {
            return Ok(None);
        }
        let Place { brokers, registry, partitions, .. } = &self.place;
        let shape = Shape::dense(self.rows, Sessions::Visits, self.seed);
        topic::fill(brokers, registry, PROJECT, *partitions, shape).await.map(Some)
    }

    async fn measure(
        &self,
        subject: Subject,
        topic: Option<&Topic>,
        round: u32,
        figures: &mut Figures,
    ) -> anyhow::Result<()> {
        let topic = || topic.context("all but the limit read a topic");
        let connect = |heap, poll| connect::Settings { heap, poll, commit_ms: self.commit_ms };
        match subject {
            Subject::Limit => {
                let limit = self.limit().await?;
                figures.add("limit_us", limit.cpu_us);
                figures.add("limit_eps", limit.per_second);
                figures.add("limit_bytes_per_row", limit.bytes_per_row);
            }
            Subject::Connect => {
                let archived = connect::run(&self.place, topic()?, &connect(&self.heap, 50_000), round).await?;
                figures.add("connect_us", archived.cpu_us);
                figures.add("connect_eps", archived.per_second);
                figures.add("connect_bytes_per_row", archived.bytes_per_row);
                figures.add("connect_files", archived.files as f64);
            }
            Subject::ConnectMemory => {
                let archived = connect::run(&self.place, topic()?, &connect(&self.smallest_heap, 5_000), round).await?;
                figures.add("connect_rss_mb", archived.peak_mb);
            }
            Subject::Archive => {
                let archived = archiver::run(&self.place, topic()?, self.commit_ms).await?;
                figures.add("archive_us", archived.cpu_us);
                figures.add("archive_eps", archived.per_second);
                figures.add("rss_mb", archived.peak_mb);
                figures.add("bytes_per_row", archived.bytes_per_row);
                figures.add("files", archived.files as f64);
            }
        }
        Ok(())
    }

    /// The limit program, in a process of its own.
    async fn limit(&self) -> anyhow::Result<limit::Limit> {
        written_back().await?;
        let file = self.place.logs.join("limit.parquet");
        let output = tokio::process::Command::new(std::env::current_exe()?)
            .arg("archive-limit")
            .args(["--rows", &self.rows.to_string(), "--seed", &self.seed.to_string(), "--file"])
            .arg(&file)
            .stderr(std::process::Stdio::inherit())
            .kill_on_drop(true)
            .output()
            .await?;
        let limit = serde_json::from_slice(&output.stdout).context("the limit program failed")?;
        std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        Ok(limit)
    }
}

/// Waits until a table holds so many rows; gives what it holds.
async fn until(table: &Table<'_>, rows: u64) -> anyhow::Result<Holds> {
    let (mut held, mut moved) = (Holds::default(), Instant::now());
    loop {
        let now = table.holds().await?;
        if now.rows >= rows {
            return Ok(now);
        }
        if now != held {
            (held, moved) = (now, Instant::now());
        }
        if moved.elapsed() > STALLED {
            bail!("the table stands still at {} of {rows} rows", held.rows);
        }
        tokio::time::sleep(LOOK).await;
    }
}

//! The rounds: limit, peer and gateway one after the other, several times, so that what disturbs the machine
//! for a while disturbs all of them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::load::Plan;
use super::measure::{Lengths, Measured, measure};
use super::report;
use super::request::Target;
use super::subjects::Place;
use crate::figures::{self, Figures};
use crate::process::written_back;

/// Share of the capacity that the open loop offers.
const OPEN_SHARE: f64 = 0.6;
/// Events of a request in the batch measurements.
const BATCH: usize = 100;

/// What is measured, and for how long.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    place: Place,
    /// How often each measurement is made; the medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Length of each measurement
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// Load before each measurement, not measured
    #[arg(long, default_value_t = 3.0)]
    warmup: f64,
    /// Measure only this
    #[arg(long, value_enum)]
    only: Vec<Subject>,
    /// Kept-alive connections for single events
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Connections for batches
    #[arg(long, default_value_t = 64)]
    batch_connections: usize,
    /// A file whose last line is the JSON of an earlier run: fail when a ratio to the limit is more than 15 % worse
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    Limit,
    Peer,
    Gateway,
}

/// Runs all rounds and prints the figures; whether they pass the comparison.
pub async fn run(options: &Options) -> anyhow::Result<bool> {
    let earlier = options.against.as_deref().map(figures::read).transpose()?;
    let mut figures = Figures::default();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for (subject, name) in [(Subject::Limit, "limit"), (Subject::Peer, "peer"), (Subject::Gateway, "gateway")] {
            if options.only.is_empty() || options.only.contains(&subject) {
                let before = figures.clone();
                match subject {
                    Subject::Limit => options.limit(&mut figures).await?,
                    Subject::Peer => options.peer(&mut figures).await?,
                    Subject::Gateway => options.gateway(&mut figures).await?,
                }
                eprintln!("  {name:8} {}", figures.added_since(&before));
            }
        }
    }
    let medians = figures.medians();
    print!("{}", report::table(&medians));
    let passed = earlier.is_none_or(|earlier| {
        let worse = figures::regressions(&medians, &earlier, &report::PAIRS);
        worse.iter().for_each(|line| println!("worse: {line}"));
        worse.is_empty()
    });
    println!("{}", figures::json(&medians));
    Ok(passed)
}

impl Options {
    async fn limit(&self, figures: &mut Figures) -> anyhow::Result<()> {
        written_back().await?;
        let limit = self.place.limit(self.lengths()).await?;
        figures.add("limit_us", limit.cpu_us);
        figures.add("limit_eps", limit.per_second);
        Ok(())
    }

    async fn peer(&self, figures: &mut Figures) -> anyhow::Result<()> {
        let (server, target) = self.place.peer().await?;
        let batch = self.capacity(server.pid(), &target, BATCH).await?;
        figures.add("peer100_us", batch.cpu_us);
        figures.add("peer100_eps", batch.per_second);
        figures.add("peer100_p99_ms", batch.p99_ms);
        let single = self.capacity(server.pid(), &target, 1).await?;
        figures.add("peer_single_us", single.cpu_us);
        figures.add("peer_single_eps", single.per_second);
        figures.add("peer_single_p99_ms", single.p99_ms);
        figures.add("peer_rss_mb", batch.resident_mb.max(single.resident_mb));
        server.stop().await
    }

    async fn gateway(&self, figures: &mut Figures) -> anyhow::Result<()> {
        let (server, target) = self.place.gateway().await?;
        let batch = self.capacity(server.pid(), &target, BATCH).await?;
        figures.add("batch100_us", batch.cpu_us);
        figures.add("batch100_eps", batch.per_second);
        figures.add("batch100_p99_ms", batch.p99_ms);
        let single = self.capacity(server.pid(), &target, 1).await?;
        figures.add("single_us", single.cpu_us);
        figures.add("single_eps", single.per_second);
        figures.add("single_p99_ms", single.p99_ms);
        figures.add("generator_cpus", single.generator_cpus);
        let rate = OPEN_SHARE * single.per_second;
        let plan = Plan { target, connections: self.connections, batch: 1, rate: Some(rate), overload: false };
        let open = self.measure(server.pid(), plan).await?;
        figures.add("open_eps", open.per_second);
        figures.add("open_us", open.cpu_us);
        figures.add("p50_ms", open.p50_ms);
        figures.add("p99_ms", open.p99_ms);
        figures.add("rss_mb", batch.resident_mb.max(single.resident_mb).max(open.resident_mb));
        server.stop().await
    }

    /// What a server does when every connection sends as soon as it has its answer.
    async fn capacity(&self, pid: u32, target: &Target, batch: usize) -> anyhow::Result<Measured> {
        let connections = if batch == 1 { self.connections } else { self.batch_connections };
        let plan = Plan { target: target.clone(), connections, batch, rate: None, overload: false };
        self.measure(pid, plan).await
    }

    async fn measure(&self, pid: u32, plan: Plan) -> anyhow::Result<Measured> {
        let topic = if plan.target.verdicts { &self.place.topic } else { &self.place.peer_topic };
        measure(pid, plan, self.lengths(), &self.place.log(topic)).await
    }

    fn lengths(&self) -> Lengths {
        Lengths { warmup: self.warmup, seconds: self.seconds }
    }
}

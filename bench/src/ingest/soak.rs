//! The long run: does memory stay flat at capacity, or with twice as much offered?

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::load::{Load, Plan};
use super::measure::{Lengths, measure};
use super::subjects::Place;
use super::tally::Tally;
use crate::process;

/// Memory is flat when it stays this near to its median.
const FLAT: f64 = 0.1;
/// What is offered in overload, as a multiple of the capacity.
const OVERLOAD: f64 = 2.0;
/// A 503 has to come within this time.
const REFUSAL_MS: f64 = 10.0;
/// Before overload, to find the capacity.
const CAPACITY: Lengths = Lengths { warmup: 5.0, seconds: 10.0 };
/// Connections: enough for capacity; for overload, more than the gateway takes requests at once.
const CONNECTIONS: usize = 64;
const OVERLOAD_CONNECTIONS: usize = 2_048;

/// What to run for how long.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    place: Place,
    /// How long
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Offer twice the capacity instead of just what is answered
    #[arg(long)]
    overload: bool,
    /// Events per request
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    batch: u16,
    /// Connections [default: 64; in overload 2048, more than the gateway takes requests at once]
    #[arg(long)]
    connections: Option<usize>,
}

/// The last line of the output.
#[derive(Debug, Serialize)]
struct Result {
    minutes: f64,
    batch: u16,
    offered_eps: Option<f64>,
    accepted_eps: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Requests answered 503, how many of them without `Retry-After`, and how long they took.
    unavailable: u64,
    unavailable_silent: u64,
    unavailable_p99_ms: f64,
    /// Requests refused otherwise, and connections lost.
    refused: u64,
    broken: u64,
    rss_min_mb: f64,
    rss_median_mb: f64,
    rss_max_mb: f64,
    passed: bool,
}

/// Runs it and prints what happened; whether it is as it should be.
pub async fn run(options: &Options) -> anyhow::Result<bool> {
    let (server, target) = options.place.gateway().await?;
    let log = options.place.log(&options.place.topic);
    let batch = usize::from(options.batch);
    let mut plan = Plan { target, connections: CONNECTIONS, batch, rate: None, overload: false };
    let mut offered = None;
    if options.overload {
        let capacity = measure(server.pid(), plan.clone(), CAPACITY, &log).await?.per_second;
        eprintln!("capacity {capacity:.0} events/s, offering {:.0}", OVERLOAD * capacity);
        offered = Some(OVERLOAD * capacity);
        plan = Plan { connections: OVERLOAD_CONNECTIONS, overload: true, ..plan };
        plan.rate = offered.map(|events| events / batch as f64);
    }
    plan.connections = options.connections.unwrap_or(plan.connections);
    let records = log.records()?;
    let mut load = Load::start(plan).await?;
    let (resident, accepted_eps) = watch(&mut load, server.pid(), options.minutes * 60.0).await?;
    let result = Result::new(options, offered, accepted_eps, load.tally(), &resident);
    log.holds(records, load.stop().await?.accepted)?;
    server.stop().await?;
    println!("{}", serde_json::to_string(&result)?);
    Ok(result.passed)
}

/// Looks at the memory each second; gives the samples after the warm-up, and the events per second since.
async fn watch(load: &mut Load, pid: u32, seconds: f64) -> anyhow::Result<(Vec<f64>, f64)> {
    let warmup = (seconds / 3.0).min(60.0);
    load.run_for(Duration::from_secs_f64(warmup)).await?;
    load.tally().forget_latencies();
    let (begin, before) = (Instant::now(), load.tally().counts().accepted);
    let mut samples = Vec::new();
    while begin.elapsed().as_secs_f64() < seconds - warmup {
        load.run_for(Duration::from_secs(1)).await?;
        samples.push(process::resident_mb(pid)?);
        if samples.len() % 30 == 1 {
            let counts = load.tally().counts();
            eprintln!("{:5} s  {:6.1} MB  {counts:?}", begin.elapsed().as_secs(), samples[samples.len() - 1]);
        }
    }
    let accepted = (load.tally().counts().accepted - before) as f64;
    Ok((samples, accepted / begin.elapsed().as_secs_f64()))
}

impl Result {
    fn new(options: &Options, offered_eps: Option<f64>, accepted_eps: f64, tally: &Tally, resident: &[f64]) -> Self {
        let counts = tally.counts();
        let mut sorted = resident.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted.get((sorted.len() as f64 * share) as usize).or(sorted.last()).copied();
        let [min, median, max] = [at(0.0), at(0.5), at(1.0)].map(Option::unwrap_or_default);
        let unavailable_p99_ms = tally.refusal_ms(0.99);
        let refusals_fine = counts.silent == 0 && unavailable_p99_ms <= REFUSAL_MS;
        Self {
            minutes: options.minutes,
            batch: options.batch,
            offered_eps,
            accepted_eps,
            p50_ms: tally.latency_ms(0.5),
            p99_ms: tally.latency_ms(0.99),
            unavailable: counts.unavailable,
            unavailable_silent: counts.silent,
            unavailable_p99_ms,
            refused: counts.refused,
            broken: counts.broken,
            rss_min_mb: min,
            rss_median_mb: median,
            rss_max_mb: max,
            passed: flat(min, median, max) && refusals_fine && counts.refused == 0,
        }
    }
}

fn flat(min: f64, median: f64, max: f64) -> bool {
    min >= median * (1.0 - FLAT) && max <= median * (1.0 + FLAT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_is_within_a_tenth_of_the_median() {
        assert!(flat(91.0, 100.0, 109.0));
        assert!(!flat(89.0, 100.0, 100.0));
        assert!(!flat(100.0, 100.0, 111.0));
    }
}

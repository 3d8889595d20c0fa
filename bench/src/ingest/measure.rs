//! One measurement: load on a server, its CPU and memory meanwhile, and the log as a witness.

use std::time::{Duration, Instant};

use super::load::{Load, Plan};
use crate::log::Log;
use crate::process::{cpu_seconds, resident_mb, written_back};

/// How long to measure.
#[derive(Clone, Copy)]
pub struct Lengths {
    /// Load that is not measured, in seconds.
    pub warmup: f64,
    /// Load that is, in seconds.
    pub seconds: f64,
}

/// What was measured.
pub struct Measured {
    /// Events accepted per second.
    pub per_second: f64,
    /// CPU of the server per event, in microseconds.
    pub cpu_us: f64,
    /// Median latency: from when a request was due to its answer.
    pub p50_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// The server's memory at the end.
    pub resident_mb: f64,
    /// CPUs that the load generator itself kept busy.
    pub generator_cpus: f64,
}

/// Loads a server and measures it; `log` must hold every event that was accepted.
pub async fn measure(pid: u32, plan: Plan, lengths: Lengths, log: &Log<'_>) -> anyhow::Result<Measured> {
    written_back().await?;
    let records = log.records()?;
    let own = std::process::id();
    let mut load = Load::start(plan).await?;
    load.run_for(Duration::from_secs_f64(lengths.warmup)).await?;
    load.tally().forget_latencies();
    let (cpu, own_cpu) = (cpu_seconds(pid)?, cpu_seconds(own)?);
    let (before, begin) = (load.tally().counts(), Instant::now());
    load.run_for(Duration::from_secs_f64(lengths.seconds)).await?;
    let seconds = begin.elapsed().as_secs_f64();
    let events = (load.tally().counts().accepted - before.accepted) as f64;
    let measured = Measured {
        per_second: events / seconds,
        cpu_us: (cpu_seconds(pid)? - cpu) * 1e6 / events,
        p50_ms: load.tally().latency_ms(0.5),
        p99_ms: load.tally().latency_ms(0.99),
        resident_mb: resident_mb(pid)?,
        generator_cpus: (cpu_seconds(own)? - own_cpu) / seconds,
    };
    let accepted = load.stop().await?.accepted;
    log.holds(records, accepted)?;
    Ok(measured)
}

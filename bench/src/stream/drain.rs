//! Draining a topic: CPU per event of everything that takes part, after a warm-up, and the answers checked.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sqlx::PgPool;

use super::place::{Fresh, Place, processed};
use super::topic::Topic;
use crate::log::Log;
use crate::process::{Server, cpu_seconds, peak_mb, tree_cpu_seconds, written_back};

/// Share of the records that warm up whoever drains them: code is compiled, caches fill, partitions are assigned.
pub const WARM_UP: f64 = 1.0 / 6.0;
/// How often the ledger is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// A ledger that stands still for this long is an error.
const STALLED: Duration = Duration::from_secs(120);

/// What was measured from the end of the warm-up to the end.
#[derive(Debug, Default, Clone, Copy)]
pub struct Drained {
    /// Records per second.
    pub per_second: f64,
    /// CPU of the subject per record, in microseconds.
    pub subject_us: f64,
    /// The same of the broker.
    pub broker_us: f64,
    /// The same of Postgres.
    pub postgres_us: f64,
    /// The same of Redis.
    pub redis_us: f64,
    /// The subject's largest peak of resident memory, in MB.
    pub peak_mb: f64,
}

/// Processes whose CPU time is taken together.
pub struct Meter<'a> {
    place: &'a Place,
    subject: Vec<u32>,
}

/// What has been used up to a moment.
pub struct Sample {
    at: Instant,
    records: u64,
    subject: f64,
    broker: f64,
    postgres: f64,
    redis: f64,
}

impl<'a> Meter<'a> {
    /// A meter for these processes and the components.
    pub fn new(place: &'a Place, subject: Vec<u32>) -> Self {
        Self { place, subject }
    }

    /// What has been used now that `records` are drained.
    pub fn sample(&self, records: u64) -> anyhow::Result<Sample> {
        Ok(Sample {
            at: Instant::now(),
            records,
            subject: self.subject.iter().map(|pid| cpu_seconds(*pid)).sum::<anyhow::Result<f64>>()?,
            broker: cpu_seconds(self.place.kafka_pid)?,
            postgres: tree_cpu_seconds(self.place.postgres_pid)?,
            redis: cpu_seconds(self.place.redis_pid)?,
        })
    }

    /// What was used between two samples.
    pub fn between(&self, from: &Sample, to: &Sample) -> anyhow::Result<Drained> {
        let records = (to.records - from.records) as f64;
        let us = |part: fn(&Sample) -> f64| (part(to) - part(from)) * 1e6 / records;
        let peaks: Vec<f64> = self.subject.iter().map(|pid| peak_mb(*pid)).collect::<anyhow::Result<_>>()?;
        Ok(Drained {
            per_second: records / (to.at - from.at).as_secs_f64(),
            subject_us: us(|sample| sample.subject),
            broker_us: us(|sample| sample.broker),
            postgres_us: us(|sample| sample.postgres),
            redis_us: us(|sample| sample.redis),
            peak_mb: peaks.into_iter().fold(0.0, f64::max),
        })
    }
}

/// Has workers drain a topic, and checks what they counted.
pub async fn workers(place: &Place, topic: &Topic, workers: usize) -> anyhow::Result<Drained> {
    let fresh = place.fresh(topic.project).await?;
    let processed_before = log(place, &processed(topic.project)).records()?;
    written_back().await?;
    let mut servers = Vec::new();
    for number in 1..=workers {
        servers.push(place.worker(&fresh, &topic.name, number).await?);
    }
    let meter = Meter::new(place, servers.iter().map(Server::pid).collect());
    let warm_up = (topic.records() as f64 * WARM_UP) as u64;
    let warm = meter.sample(until(&fresh.pool, topic, warm_up).await?)?;
    let done = meter.sample(until(&fresh.pool, topic, topic.records()).await?)?;
    let drained = meter.between(&warm, &done)?;
    check(place, &fresh, topic, processed_before).await?;
    for server in servers {
        server.stop().await?;
    }
    Ok(drained)
}

/// Waits until so many records are counted, by the ledger; gives how many are.
async fn until(pool: &PgPool, topic: &Topic, records: u64) -> anyhow::Result<u64> {
    let (mut counted, mut moved) = (0, Instant::now());
    loop {
        let now: i64 = sqlx::query_scalar(
            "SELECT coalesce(sum(next_offset), 0)::bigint FROM ledger WHERE view = 'stream' AND topic = $1",
        )
        .bind(&topic.name)
        .fetch_one(pool)
        .await?;
        if now as u64 >= records {
            return Ok(now as u64);
        }
        if now != counted {
            (counted, moved) = (now, Instant::now());
        }
        if moved.elapsed() > STALLED {
            bail!("the ledger stands still at {counted} of {} records", topic.records());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Every event counted once, in the rollups, in sessions and in the processed topic; every session there.
async fn check(place: &Place, fresh: &Fresh, topic: &Topic, processed_before: u64) -> anyhow::Result<()> {
    let (sessions, in_sessions): (i64, i64) =
        sqlx::query_as("SELECT count(*), coalesce(sum(total_events), 0)::bigint FROM sessions WHERE project = $1")
            .bind(topic.project)
            .fetch_one(&fresh.pool)
            .await?;
    let counted: i64 = sqlx::query_scalar(
        "SELECT coalesce(sum(value), 0)::bigint FROM daily_metrics
         WHERE project = $1 AND metric_name = 'events' AND dimension_key = ''",
    )
    .bind(topic.project)
    .fetch_one(&fresh.pool)
    .await?;
    let dead: i64 = sqlx::query_scalar("SELECT count(*) FROM dead_letters").fetch_one(&fresh.pool).await?;
    let processed = log(place, &processed(topic.project)).records()? - processed_before;
    let events = topic.expected.events;
    let wrong: Vec<String> = [
        ("events counted", counted as u64, events),
        ("events in sessions", in_sessions as u64, events),
        ("sessions", sessions as u64, topic.expected.sessions),
        // After a batch that was dropped (another worker, a pause) they stand there twice; readers tell by the source.
        ("processed records", processed.min(events), events),
        ("dead letters", dead as u64, 0),
    ]
    .into_iter()
    .filter(|(_, found, wanted)| found != wanted)
    .map(|(what, found, wanted)| format!("{found} {what} instead of {wanted}"))
    .collect();
    anyhow::ensure!(wrong.is_empty(), "the worker's answers are wrong: {}", wrong.join(", "));
    Ok(())
}

fn log<'a>(place: &'a Place, topic: &'a str) -> Log<'a> {
    Log { brokers: &place.brokers, topic, partitions: place.partitions }
}

/// The limit program, in a process of its own.
pub async fn limit(place: &Place, topic: &Topic) -> anyhow::Result<super::limit::Limit> {
    written_back().await?;
    let output = tokio::process::Command::new(std::env::current_exe()?)
        .arg("stream-limit")
        .args(["--brokers", &place.brokers, "--registry", &place.registry, "--topic", &topic.name])
        .arg("--ends")
        .arg(topic.ends.iter().map(i64::to_string).collect::<Vec<_>>().join(","))
        .stderr(std::process::Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await?;
    serde_json::from_slice(&output.stdout).context("the limit program failed")
}

//! Workers that are killed, stopped, started and ended.

use std::time::{Duration, Instant};

use rand::Rng;
use rand::seq::IndexedRandom;

use super::Row;
use crate::drill::{Drill, Options, Outcome};
use crate::flow::Stream;
use crate::process::Process;

const KILLS: usize = 50;
const FAILPOINTS: &str = "TIDEMILL_FAILPOINTS";
const FENCED: &str = "tidemill_stream_batches_dropped_total";
const FENCED_FACT: &str = "fenced";
const FAILED: &str = "tidemill_stream_failures_total";
/// What becomes of its batch shows soon after a process goes on.
const AWAKE_WITHIN: Duration = Duration::from_secs(20);

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("kill-9", kill_9).within(Duration::from_secs(300)),
        Row::new("stopped", stopped),
        Row::new("stopped-in-transaction", stopped_in_transaction),
        Row::new("members", members).within(Duration::from_secs(180)),
    ]
}

/// kill -9 at random moments, 50 times, under traffic. Each life has a group of its own, so that it need not wait
/// until Kafka misses the one before.
async fn kill_9(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    drill.gateway().await?;
    let flow = drill.flow(Stream { rate: 200, ..Stream::default() })?;
    for life in 0..KILLS {
        let mut worker = drill.worker(&format!("life-{life}"), &[])?;
        // Most die at work, some while they get ready.
        if drill.random.random_bool(0.8) {
            worker.reaches("analytics_events_processed_total", 1.0).await?;
        }
        tokio::time::sleep(Duration::from_millis(drill.random.random_range(0..700))).await;
        worker.kill()?;
    }
    let fault = Instant::now();
    let _last = drill.worker("last", &[])?;
    let recovery = drill.recovered(fault).await?;
    flow.stop().await?;
    let mut outcome = drill.finish(recovery).await?;
    outcome.facts.push(format!("{KILLS} kills"));
    Ok(outcome)
}

/// A worker with a batch in hand is stopped for longer than its session; another takes over and counts the batch;
/// then the first goes on where it stood.
async fn stopped(options: Options) -> anyhow::Result<Outcome> {
    let mut outcome = stop_at(options, "stream.sent").await?;
    if !outcome.facts.iter().any(|fact| fact.ends_with(FENCED_FACT)) {
        outcome.differences.push("no fenced write was seen".to_owned());
    }
    Ok(outcome)
}

/// The same in the middle of a transaction, which must not keep its locks for as long as the process is stopped.
async fn stopped_in_transaction(options: Options) -> anyhow::Result<Outcome> {
    stop_at(options, "stream.folded").await
}

async fn stop_at(options: Options, step: &str) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    let flow = drill.flow(Stream::default())?;
    let passage = drill.random.random_range(2..=6);
    let mut zombie = drill.worker("a", &[(FAILPOINTS, &format!("{step}=pause:1500@{passage}"))])?;
    zombie.reaches("tidemill_failpoint_hits_total", 1.0).await?;
    zombie.signal("STOP")?;
    let fault = Instant::now();
    let _heir = drill.worker("a", &[])?;
    let recovery = drill.recovered(fault).await?;
    zombie.signal("CONT")?;
    let awake = came_to_grief(&zombie).await;
    drill.sent(200).await?;
    flow.stop().await?;
    let mut outcome = drill.finish(recovery).await?;
    outcome.facts.extend(awake);
    Ok(outcome)
}

/// What became of the batch in hand of a process that goes on: the ledger refused it, or its transaction had ended.
async fn came_to_grief(zombie: &Process) -> Option<String> {
    let deadline = Instant::now() + AWAKE_WITHIN;
    while Instant::now() < deadline {
        for (metric, fact) in [(FENCED, FENCED_FACT), (FAILED, "failed")] {
            let count = zombie.metric(metric).await;
            if count > 0.0 {
                return Some(format!("{count} {fact}"));
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    None
}

/// For a minute, a member of the group joins or leaves every two seconds, told to or killed.
async fn members(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    let flow = drill.flow(Stream { rate: 250, ..Stream::default() })?;
    let mut workers = vec![drill.worker("a", &[])?];
    let end = Instant::now() + Duration::from_secs(60);
    let mut changes = 0;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let join = workers.len() < 2 || workers.len() < 4 && drill.random.random_bool(0.5);
        if join {
            workers.push(drill.worker("a", &[])?);
        } else {
            let leaver = workers.remove(drill.random.random_range(0..workers.len()));
            match ["told", "killed"].choose(&mut drill.random) {
                Some(&"told") => leaver.stop().await?,
                _ => drop(leaver),
            }
        }
        changes += 1;
    }
    let recovery = drill.recovered(Instant::now()).await?;
    flow.stop().await?;
    let mut outcome = drill.finish(recovery).await?;
    outcome.facts.push(format!("{changes} changes"));
    Ok(outcome)
}

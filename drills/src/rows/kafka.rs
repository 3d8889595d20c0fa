//! Brokers that go away.

use std::time::{Duration, Instant};

use anyhow::ensure;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tidemill_common::names::events_topic;
use tidemill_testkit::{Cluster, Own};

use super::Row;
use crate::drill::{Drill, Options, Outcome};
use crate::flow::Stream;
use crate::process::signal;

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(200);

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("broker-restart", restart).within(Duration::from_secs(240)),
        Row::new("leader-change", leader_change).within(Duration::from_secs(300)),
    ]
}

/// The one broker is stopped and started, twice, then killed and started. One that is told to stop answers, on its way,
/// that there are no brokers at all.
async fn restart(options: Options) -> anyhow::Result<Outcome> {
    let own = Own::start(&["kafka"]).await;
    let brokers = own.value("KAFKA_BROKERS");
    let mut drill = Drill::with(&options, 1, |connections| connections.kafka.brokers = brokers).await?;
    drill.gateway().await?;
    let flow = drill.flow(Stream::default())?;
    let _worker = drill.live_worker("a", &[]).await?;
    let mut recovery = Duration::ZERO;
    for told in [true, true, false] {
        drill.sent(500).await?;
        if told {
            own.services("stop").await;
        } else {
            signal("KILL", &[own.pid("kafka")])?;
        }
        own.services("start").await;
        recovery = recovery.max(drill.recovered(Instant::now()).await?);
    }
    drill.sent(500).await?;
    flow.stop().await?;
    drill.finish(recovery).await
}

/// Of three brokers one after the other is killed, so that every partition changes its leader, and started again.
async fn leader_change(options: Options) -> anyhow::Result<Outcome> {
    let cluster = Cluster::start().await;
    let brokers = cluster.addresses();
    let mut drill = Drill::with(&options, 3, |connections| connections.kafka.brokers = brokers).await?;
    let flow = drill.flow(Stream::default())?;
    let _worker = drill.live_worker("a", &[]).await?;
    let (mut recovery, mut changes) = (Duration::ZERO, 0);
    for id in 1..=3 {
        drill.sent(500).await?;
        let before = leaders(&drill).await?;
        let broker = cluster.broker(id);
        signal("KILL", &[broker.pid("kafka")])?;
        let fault = Instant::now();
        drill.sent(500).await?;
        recovery = recovery.max(drill.recovered(fault).await?);
        let after = leaders(&drill).await?;
        changes += before.iter().zip(&after).filter(|(before, after)| before.0 != after.0).count();
        broker.services("start").await;
        in_sync(&drill).await?;
    }
    flow.stop().await?;
    let told = told_leader_changes(&drill).await?;
    let mut outcome = drill.finish(recovery).await?;
    outcome.facts.push(format!("{changes} leader changes"));
    ensure!(changes > 0, "no partition changed its leader, so the row shows nothing");
    if told < changes as i64 {
        outcome.differences.push(format!("`tidemill lag` tells of {told} leader changes, and {changes} were seen"));
    }
    Ok(outcome)
}

/// How often `tidemill lag` says that leaders have changed. They also may have changed back, which nobody else has seen.
async fn told_leader_changes(drill: &Drill) -> anyhow::Result<i64> {
    let rows = drill.operator(&["lag", "--view", "stream", "--measure", "0"]).await?;
    let changes = rows.as_array().into_iter().flatten().filter_map(|row| row["leader_changes"].as_i64());
    Ok(changes.sum())
}

/// Leaders of the partitions, from whichever broker answers: the first one asked may be the one that is gone.
async fn leaders(drill: &Drill) -> anyhow::Result<Vec<(i32, usize)>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match partitions(drill).await {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(LOOK).await,
            found => return found,
        }
    }
}

/// Leader and number of brokers in sync of each partition.
async fn partitions(drill: &Drill) -> anyhow::Result<Vec<(i32, usize)>> {
    let (kafka, topic) = (drill.stack.connections.kafka.clone(), events_topic(&drill.stack.project));
    let ask = move || -> anyhow::Result<Vec<(i32, usize)>> {
        let consumer: BaseConsumer = kafka.client().set("group.id", "tidemill.drills").create()?;
        let metadata = consumer.fetch_metadata(Some(&topic), Duration::from_secs(10))?;
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        Ok(partitions.map(|partition| (partition.leader(), partition.isr().len())).collect())
    };
    tokio::task::spawn_blocking(ask).await?
}

/// Waits until every partition has all its brokers again, before the next one goes.
async fn in_sync(drill: &Drill) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !partitions(drill).await.is_ok_and(|partitions| partitions.iter().all(|(_, in_sync)| *in_sync == 3)) {
        ensure!(Instant::now() < deadline, "the brokers are not in sync within a minute");
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

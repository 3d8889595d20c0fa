//! Redis that loses what it had.

use std::time::{Duration, Instant};

use tidemill_testkit::{Own, eventually};

use super::Row;
use crate::drill::{Drill, Options, Outcome};
use crate::flow::Stream;
use crate::proxy::Proxy;
use crate::traffic::Style;
use crate::views;

pub fn rows() -> Vec<Row> {
    vec![Row::new("redis-flushed", flushed), Row::new("redis-failover", failover)]
}

/// FLUSHALL, once under traffic and once when nothing comes any more.
async fn flushed(options: Options) -> anyhow::Result<Outcome> {
    let own = Own::start(&["redis"]).await;
    let mut drill = Drill::with(&options, 1, |connections| connections.redis_url = own.value("REDIS_URL")).await?;
    drill.gateway().await?;
    let flow = drill.flow(Stream::default())?;
    let _worker = drill.live_worker("a", &[]).await?;
    drill.sent(1_000).await?;
    run(&own, &["FLUSHALL"]).await?;
    drill.sent(1_000).await?;
    flow.stop().await?;
    drill.settle().await?;
    run(&own, &["FLUSHALL"]).await?;
    let fault = Instant::now();
    let outcome = drill.finish(Duration::ZERO).await?;
    Ok(Outcome { recovery: fault.elapsed(), ..outcome })
}

/// The address leads to a replica that has missed the last while; then old events are sent again.
async fn failover(options: Options) -> anyhow::Result<Outcome> {
    let (master, replica) = (Own::start(&["redis"]).await, Own::start(&["redis"]).await);
    let (proxy, through) = Proxy::before(&master.value("REDIS_URL")).await?;
    let mut drill = Drill::with(&options, 1, |connections| connections.redis_url = through).await?;
    drill.gateway().await?;
    let _worker = drill.live_worker("a", &[]).await?;
    let mut traffic = drill.traffic("failover", Style::default());
    let mut batch = || traffic.events(400, chrono::Utc::now().timestamp_micros());
    let (before, after) = (batch(), batch());

    let url = master.value("REDIS_URL");
    let authority = url.trim_start_matches("redis://").trim_end_matches("/0");
    let (host, port) = authority.split_once(':').unwrap_or((authority, "6379"));
    run(&master, &["CONFIG", "SET", "repl-diskless-sync-delay", "0"]).await?;
    run(&replica, &["REPLICAOF", host, port]).await?;
    drill.http()?.send(&before).await?;
    drill.settle().await?;
    eventually("the replica has followed", || async { follows(&master, &replica).await.unwrap_or_default() }).await;
    run(&replica, &["REPLICAOF", "NO", "ONE"]).await?;
    drill.http()?.send(&after).await?;
    drill.settle().await?;
    proxy.lead_to(&replica.value("REDIS_URL"))?;
    let fault = Instant::now();
    // The replica knows of the first that they are in the log, and of the others nothing.
    drill.http()?.send(&before[..200]).await?;
    drill.http()?.send(&after[..200]).await?;
    let outcome = drill.finish(Duration::ZERO).await?;
    Ok(Outcome { recovery: fault.elapsed(), ..outcome })
}

/// Whether the replica has all that the master holds.
async fn follows(master: &Own, replica: &Own) -> anyhow::Result<bool> {
    let offset = async |redis: &Own, name: &str| -> anyhow::Result<String> {
        let mut connection = views::connect(&redis.value("REDIS_URL")).await?;
        let info: String = redis::cmd("INFO").arg("replication").query_async(&mut connection).await?;
        let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Ok(value.unwrap_or_default().to_owned())
    };
    let up = offset(replica, "master_link_status").await? == "up";
    Ok(up && offset(master, "master_repl_offset").await? == offset(replica, "slave_repl_offset").await?)
}

async fn run(redis: &Own, command: &[&str]) -> anyhow::Result<()> {
    let mut connection = views::connect(&redis.value("REDIS_URL")).await?;
    redis::cmd(command[0]).arg(&command[1..]).exec_async(&mut connection).await?;
    Ok(())
}

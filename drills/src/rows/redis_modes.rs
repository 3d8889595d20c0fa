//! Redis behind sentinels, as a cluster and as a ring, losing nodes and moving keys under load.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use sqlx::Row as _;
use tidemill_common::redis::Redis;
use tidemill_testkit::Redises;

use super::Row;
use crate::drill::{Drill, Options, Outcome};
use crate::load::Load;
use crate::process::Process;

/// Events a second that are asked for, unless `TIDEMILL_DRILL_RATE` says otherwise.
const RATE: usize = 10_000;
/// Before and after what happens.
const WHILE: Duration = Duration::from_secs(4);
/// Each half of a request's way may wait for Redis for a second.
const ANSWERED: Duration = Duration::from_millis(2_500);
/// What is read in Postgres has to be in Redis by then, else it has not healed yet.
const LAG: Duration = Duration::from_secs(4);
const LIMIT: Duration = Duration::from_secs(300);

/// Within which everything hot has to be in Redis again, under a load that this machine may not hold.
const SENTINEL: Duration = Duration::from_secs(10);
const CLUSTER: Duration = Duration::from_secs(30);

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("redis-sentinel", sentinel).within(LIMIT),
        Row::new("redis-cluster", cluster).within(LIMIT),
        Row::new("redis-reshard", reshard).within(LIMIT),
        Row::new("redis-ring", ring).within(LIMIT),
    ]
}

/// The master is killed.
async fn sentinel(options: Options) -> anyhow::Result<Outcome> {
    killed(options, Redises::sentinel().await, SENTINEL).await
}

/// One of three masters is killed.
async fn cluster(options: Options) -> anyhow::Result<Outcome> {
    killed(options, Redises::cluster().await, CLUSTER).await
}

async fn killed(options: Options, mut own: Redises, limit: Duration) -> anyhow::Result<Outcome> {
    let (mut drill, _worker) = begin(&options, &own.url).await?;
    let load = Load::start(&drill, rate())?;
    tokio::time::sleep(WHILE).await;
    let masters = own.masters().await;
    let master = masters.last().context("no node is a master")?.clone();
    own.kill(&master);
    let healed = healed(&drill, Instant::now(), limit).await?;
    tokio::time::sleep(WHILE).await;
    // It comes back, and is somebody's replica.
    own.start_again(&master).await;
    tokio::time::sleep(WHILE).await;
    let loaded = load.stop().await?;
    let mut outcome = drill.finish(healed).await?;
    outcome.facts.push(loaded.judged(rate(), ANSWERED)?);
    outcome.facts.push(format!(
        "{} masters, one killed; all hot values again after {:.1} s",
        masters.len(),
        healed.as_secs_f64()
    ));
    Ok(outcome)
}

/// Slots go from one master of a cluster to another.
async fn reshard(options: Options) -> anyhow::Result<Outcome> {
    let own = Redises::cluster().await;
    let (mut drill, _worker) = begin(&options, &own.url).await?;
    let load = Load::start(&drill, rate())?;
    tokio::time::sleep(WHILE).await;
    let masters = own.masters().await;
    let [from, to, ..] = &masters[..] else { anyhow::bail!("there are {masters:?}") };
    let (from_id, to_id) = (id(&own, from).await?, id(&own, to).await?);
    let began = Instant::now();
    let wanted = ["--cluster-from", &from_id, "--cluster-to", &to_id, "--cluster-slots", "1000", "--cluster-yes"];
    own.redis_cli(&[&["--cluster", "reshard", from.as_str()], &wanted[..]].concat()).await;
    let moved = began.elapsed();
    let healed = healed(&drill, Instant::now(), CLUSTER).await?;
    let loaded = load.stop().await?;
    let mut outcome = drill.finish(healed).await?;
    outcome.facts.push(loaded.judged(rate(), ANSWERED)?);
    outcome.facts.push(format!("1,000 slots moved in {:.1} s", moved.as_secs_f64()));
    Ok(outcome)
}

/// A node of a ring is killed and comes back empty; then another joins, which gateway and worker are told one after the
/// other.
async fn ring(options: Options) -> anyhow::Result<Outcome> {
    let mut own = Redises::ring().await;
    let (mut drill, worker) = begin(&options, &own.url).await?;
    let load = Load::start(&drill, rate())?;
    tokio::time::sleep(WHILE).await;
    let dead = own.nodes[1].clone();
    own.kill(&dead);
    tokio::time::sleep(WHILE).await;
    own.start_again(&dead).await;
    let back = healed(&drill, Instant::now(), CLUSTER).await?;
    let with_a_dead_node = load.stop().await?;

    own.join().await;
    let before = Redis::background(&drill.stack.connections.redis_url)?;
    drill.stack.connections.redis_url = own.ring_url();
    let after = Redis::background(&drill.stack.connections.redis_url)?;
    drill.gateway().await?;
    let load = Load::start(&drill, rate())?;
    worker.stop().await?;
    let _worker = drill.live_worker("a", &FAST).await?;
    let joined = healed(&drill, Instant::now(), CLUSTER).await?;
    let keys: Vec<String> = versions(&drill).await?.into_keys().collect();
    let moved = keys.iter().filter(|key| before.node_of(key.as_bytes()) != after.node_of(key.as_bytes())).count();
    tokio::time::sleep(WHILE).await;
    let with_another = load.stop().await?;

    let mut outcome = drill.finish(back.max(joined)).await?;
    for loaded in [with_a_dead_node, with_another] {
        outcome.facts.push(loaded.judged(rate(), ANSWERED)?);
    }
    let (back, joined, all) = (back.as_secs_f64(), joined.as_secs_f64(), keys.len());
    outcome.facts.push(format!("a node was back, empty, and all hot values {back:.1} s later"));
    let of = format!("{moved} of {all} sessions moved, all there {joined:.1} s after the worker was");
    outcome.facts.push(format!("a fourth joined: {of}"));
    Ok(outcome)
}

/// A row with a gateway and a worker on this Redis.
async fn begin(options: &Options, url: &str) -> anyhow::Result<(Drill, Process)> {
    let mut drill = Drill::with(options, 1, |connections| connections.redis_url = url.to_owned()).await?;
    drill.gateway().await?;
    let worker = drill.live_worker("a", &FAST).await?;
    Ok((drill, worker))
}

/// Batches as they are outside of drills, for the sake of the rate.
const FAST: [(&str, &str); 2] = [("TIDEMILL_STREAM__BATCH_SIZE", "5000"), ("TIDEMILL_STREAM__BATCH_WAIT_MS", "200")];

fn rate() -> usize {
    std::env::var("TIDEMILL_DRILL_RATE").ok().and_then(|rate| rate.parse().ok()).unwrap_or(RATE)
}

async fn id(own: &Redises, node: &str) -> anyhow::Result<String> {
    Ok(own.ask(node, &["CLUSTER", "MYID"]).await?)
}

/// Waits until Redis shows every live session in the state that Postgres had a moment before, or a later one. Gives the
/// time since `fault`.
async fn healed(drill: &Drill, fault: Instant, limit: Duration) -> anyhow::Result<Duration> {
    let redis = Redis::background(&drill.stack.connections.redis_url)?;
    loop {
        let (stored, looked) = (versions(drill).await?, Instant::now());
        ensure!(!stored.is_empty(), "no session is live, so nothing is shown");
        let mut behind = stored.len();
        while behind > 0 && looked.elapsed() < LAG {
            behind = count_behind(&redis, &stored).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if behind == 0 {
            return Ok(fault.elapsed());
        }
        ensure!(fault.elapsed() < limit, "{behind} of {} sessions are not in Redis after {limit:?}", stored.len());
    }
}

/// Of each live session, its key in Redis and its version in Postgres.
async fn versions(drill: &Drill) -> anyhow::Result<BTreeMap<String, i64>> {
    let project = &drill.stack.project;
    let rows = sqlx::query(
        "SELECT k.session_id, max(k.version) FROM sessions s
         JOIN session_keys k USING (generation, project, session_id)
         WHERE project = $1 AND s.last_event_at > now() - interval '29 minutes' GROUP BY 1",
    )
    .bind(project)
    .fetch_all(&drill.stack.pool)
    .await?;
    let version = |row: sqlx::postgres::PgRow| {
        Ok((format!("analytics:session:{project}:{}", row.try_get::<String, _>(0)?), row.try_get(1)?))
    };
    rows.into_iter().map(version).collect()
}

async fn count_behind(redis: &Redis, stored: &BTreeMap<String, i64>) -> usize {
    let stored: Vec<(&String, &i64)> = stored.iter().collect();
    let mut behind = 0;
    for chunk in stored.chunks(500) {
        let mut pipeline = redis::pipe();
        for (key, _) in chunk {
            pipeline.cmd("HGET").arg(key).arg("version");
        }
        let answers =
            redis.run_each(&pipeline).await.into_iter().map(|answer| {
                answer.ok().and_then(|value| redis::from_redis_value::<Option<i64>>(value).ok().flatten())
            });
        behind +=
            chunk.iter().zip(answers).filter(|((_, stored), shown)| shown.is_none_or(|shown| shown < **stored)).count();
    }
    behind
}

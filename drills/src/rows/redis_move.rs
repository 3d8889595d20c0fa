//! All services go over to another Redis, one after the other, while events arrive and questions are asked.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use tidemill_testkit::Own;
use tokio_util::task::AbortOnDropHandle;

use super::Row;
use crate::drill::{Drill, Options, Outcome};
use crate::flow::Stream;
use crate::process::Process;
use crate::proxy::Proxy;
use crate::traffic::Style;

const RATE: usize = 600;
const COPIES: usize = 200;
const LIVE: &str = "tidemill_stream_live_partitions";

pub fn rows() -> Vec<Row> {
    vec![Row::new("redis-move", redis_move).within(Duration::from_secs(240))]
}

/// Warm, audit, switch: two workers, two query services and two gateways are replaced one after the other. What was sent
/// before is sent again afterwards, and the gateway still knows it.
async fn redis_move(options: Options) -> anyhow::Result<Outcome> {
    let (from, to) = (Own::start(&["redis"]).await, Own::start(&["redis"]).await);
    let (old, new) = (from.value("REDIS_URL"), to.value("REDIS_URL"));
    let mut drill = Drill::with(&options, 1, |connections| connections.redis_url.clone_from(&old)).await?;
    let mut gateway = service(&mut drill, "ingest").await?;
    let (proxy, through) = Proxy::before(gateway.url()).await?;
    drill.send_through(&through).await?;
    let first = drill.live_worker("a", &[]).await?;
    let second = worker(&mut drill).await?;
    let query = service(&mut drill, "query").await?;
    let key = drill.stack.create_key(&drill.stack.project, &["read"], None).await;
    let asker = Asker::start(query.url(), &key);
    let flow = drill.flow(Stream { rate: RATE, ..Stream::default() })?;
    let copied = drill.traffic("copied", Style::default()).events(COPIES, chrono::Utc::now().timestamp_micros());
    drill.http()?.send(&copied).await?;
    drill.sent(2_000).await?;

    let began = Instant::now();
    let warmed = drill.operator(&["cache", "warm", "--to", &new, "--claims", "--yes"]).await?;
    let keys = warmed["shards"].as_array().context("no parts")?.iter().filter_map(|part| part["verified"].as_u64());
    let keys: u64 = keys.sum();
    let audited = audit(&drill, &new).await?;
    // What has changed since is behind or missing, and nothing else is wrong.
    let wrong = ["ahead", "corrupt", "foreign"].map(|how| count(&audited, how));
    ensure!(wrong == [0; 3], "the new Redis is not as it was filled: {audited}");

    let switched = Instant::now();
    drill.stack.connections.redis_url.clone_from(&new);
    first.stop().await?;
    let _first = worker(&mut drill).await?;
    second.stop().await?;
    let _second = worker(&mut drill).await?;
    let next = service(&mut drill, "query").await?;
    asker.ask(next.url());
    query.stop().await?;
    let next_gateway = service(&mut drill, "ingest").await?;
    proxy.lead_to(next_gateway.url())?;
    gateway.signal("TERM")?;
    gateway.ended().await?;
    // Claims that were made at the old one since.
    let claims = drill.command(&["cache", "warm", "--to", &new, "--claims", "--yes"]).env("REDIS_URL", &old).output();
    ensure!(claims.await?.status.success(), "the claims could not be taken along again");
    let took = switched.elapsed();
    drill.sent(2_000).await?;
    let fault = Instant::now();
    let recovery = drill.recovered(fault).await?;
    let duplicates = drill.http()?.offer_again(&copied).await?;
    flow.stop().await?;
    let (answers, failed, fell) = asker.stop();

    let mut outcome = drill.finish(recovery).await?;
    let audited = audit(&drill, &new).await?;
    for how in ["behind", "ahead", "corrupt", "foreign"].iter().filter(|how| count(&audited, how) > 0) {
        outcome.differences.push(format!("{} values are {how} in the new Redis: {audited}", count(&audited, how)));
    }
    if duplicates != COPIES {
        outcome.differences.push(format!("only {duplicates} of {COPIES} copies were known after the move"));
    }
    if failed > 0 {
        outcome.differences.push(format!("{failed} of {answers} questions had no answer"));
    }
    outcome.facts.push(format!("{keys} values warmed, {:.1} s until the switch", (switched - began).as_secs_f64()));
    outcome.facts.push(format!("all switched in {:.1} s", took.as_secs_f64()));
    outcome.facts.push(format!("{answers} questions answered, the count fell by {fell} at most"));
    outcome.facts.push(format!("{duplicates} of {COPIES} copies known"));
    Ok(outcome)
}

async fn service(drill: &mut Drill, name: &str) -> anyhow::Result<Process> {
    let mut service = drill.service(name, "", &[])?;
    service.ready().await?;
    Ok(service)
}

/// A worker that has some of the partitions.
async fn worker(drill: &mut Drill) -> anyhow::Result<Process> {
    let mut worker = drill.worker("a", &[])?;
    worker.reaches(LIVE, 1.0).await?;
    Ok(worker)
}

/// What `tidemill cache audit` says, whether or not something is wrong.
async fn audit(drill: &Drill, url: &str) -> anyhow::Result<Value> {
    let output = drill.command(&["cache", "audit", "--url", url, "--project", &drill.stack.project]).output().await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).context(said)
}

fn count(audited: &Value, how: &str) -> u64 {
    audited["kinds"].as_array().into_iter().flatten().filter_map(|kind| kind[how].as_u64()).sum()
}

/// Asks for the number of events again and again.
struct Asker {
    url: Arc<Mutex<String>>,
    counts: Arc<[AtomicUsize; 2]>,
    fell: Arc<AtomicI64>,
    _task: AbortOnDropHandle<()>,
}

impl Asker {
    const BEAT: Duration = Duration::from_millis(50);

    fn start(url: &str, key: &str) -> Self {
        let (url, key) = (Arc::new(Mutex::new(url.to_owned())), key.to_owned());
        let (counts, fell) = (Arc::<[AtomicUsize; 2]>::default(), Arc::<AtomicI64>::default());
        let (asked, counted, fallen) = (Arc::clone(&url), Arc::clone(&counts), Arc::clone(&fell));
        let task = tokio::spawn(async move {
            let client = reqwest::Client::new();
            let (mut beat, mut most) = (tokio::time::interval(Self::BEAT), 0);
            loop {
                beat.tick().await;
                let url = asked.lock().expect("no holder panics").clone();
                counted[0].fetch_add(1, Ordering::Relaxed);
                match total(&client, &url, &key).await {
                    Ok(total) => {
                        fallen.fetch_max(most - total, Ordering::Relaxed);
                        most = most.max(total);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a question has no answer");
                        counted[1].fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        Self { url, counts, fell, _task: AbortOnDropHandle::new(task) }
    }

    /// From the next question on there.
    fn ask(&self, url: &str) {
        url.clone_into(&mut self.url.lock().expect("no holder panics"));
    }

    /// How many questions were asked, how many had no answer, and by how many events a later answer was below an
    /// earlier one.
    fn stop(self) -> (usize, usize, i64) {
        let [asked, failed] = [0, 1].map(|at| self.counts[at].load(Ordering::Relaxed));
        (asked, failed, self.fell.load(Ordering::Relaxed))
    }
}

/// The events of the last two hours.
async fn total(client: &reqwest::Client, url: &str, key: &str) -> anyhow::Result<i64> {
    let from = (chrono::Utc::now() - chrono::TimeDelta::hours(2)).format("%Y-%m-%dT%H:00:00Z").to_string();
    let request = client.get(format!("{url}/v1/metrics/events?startTime={from}&granularity=1h")).bearer_auth(key);
    let answer = request.send().await?;
    let answer: Value = answer.error_for_status()?.json().await?;
    let values = answer["data"].as_array().context("no data")?.iter().filter_map(|row| row["value"].as_i64());
    Ok(values.sum())
}

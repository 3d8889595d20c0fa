//! What operators are to find out, and can do about it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use tidemill_common::event::Event;
use tidemill_common::home::home_partition;
use tidemill_testkit::PARTITIONS;
use tokio_util::task::AbortOnDropHandle;

use super::Row;
use crate::drill::{Drill, Options, Outcome};
use crate::flow::Stream;
use crate::send::Http;
use crate::settle::until;

/// The rows of `make drill-operators`.
pub const OPERATORS: [&str; 10] = [
    "redrive",
    "hot-partition",
    "replay",
    "partition-growth",
    "type-route",
    "redis-sentinel",
    "redis-cluster",
    "redis-reshard",
    "redis-ring",
    "redis-move",
];

const LOUD: &str = "loud";
const HOT: i32 = 1;
/// Each step of an operator's way has this long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Gateways know of a limit within this time.
const KNOWN: Duration = Duration::from_secs(6);
/// A worker that can take some 400 records a second, and calls a partition hot after three seconds.
const SLOW: [(&str, &str); 4] = [
    ("TIDEMILL_FAILPOINTS", "stream.sorted=pause:450"),
    ("TIDEMILL_STREAM__HOT_AFTER_MS", "3000"),
    ("TIDEMILL_STREAM__HOT_MIN_RECORDS", "500"),
    ("TIDEMILL_STREAM__LAG_INTERVAL_MS", "500"),
];

pub fn rows() -> Vec<Row> {
    vec![Row::new("hot-partition", hot_partition).within(Duration::from_secs(240))]
}

/// One user sends more to one partition than the worker can take. An operator learns which and who, and does what is
/// offered: the gateway limits that user, and the lag goes while the user tries on.
async fn hot_partition(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    drill.gateway().await?;
    let _worker = drill.live_worker("a", &SLOW).await?;
    let flow = drill.flow(Stream { rate: 80, ..Stream::default() })?;
    let loud = Loud::start(drill.http()?.clone(), &drill.stack.project);
    let began = Instant::now();

    let finding = found(&drill).await?;
    let detected = began.elapsed();
    ensure!(finding["partition"] == HOT, "partition {} was found, not {HOT}", finding["partition"]);
    let user = &finding["explanation"]["why"]["users"][0];
    ensure!(user["name"] == LOUD, "the reason was not found: {finding}");
    let offered = finding["explanation"]["remedies"][0]["command"].as_str().context("no command is offered")?;
    let lag = finding["lag"].as_i64().unwrap_or_default();

    let mut command: Vec<&str> = offered.split(' ').skip(1).collect();
    command.push("--yes");
    let limited = drill.operator(&command).await?;
    ensure!(limited["applied"] == true, "the limit was not set: {limited}");
    let set = Instant::now();
    until(KNOWN, "the gateway limits the user", async || Ok(loud.limited() > 0)).await?;
    let lag_gone =
        async || Ok(behind(&drill).await? < 100 && drill.operator(&["lag", "hot"]).await? == Value::Array(vec![]));
    until(PATIENCE, "the lag is gone, and the partition not hot any more", lag_gone).await?;
    let recovery = set.elapsed();
    let (accepted, refused) = loud.stop().await?;
    flow.stop().await?;

    let mut outcome = drill.finish(recovery).await?;
    let share = user["share"].as_f64().unwrap_or_default() * 100.0;
    outcome.facts.push(format!(
        "hot after {:.1} s with {lag} records behind, {share:.0} % of user {LOUD}; '{offered}': {refused} refused, {accepted} accepted",
        detected.as_secs_f64()
    ));
    Ok(outcome)
}

/// What `tidemill lag hot` says, once it says something.
async fn found(drill: &Drill) -> anyhow::Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = drill.operator(&["lag", "hot"]).await?;
        if let Some(first) = found.as_array().and_then(|found| found.first()) {
            return Ok(first.clone());
        }
        ensure!(Instant::now() < deadline, "no partition was hot within {PATIENCE:?}");
    }
}

/// Records that the stream is behind in the hot partition.
async fn behind(drill: &Drill) -> anyhow::Result<i64> {
    let rows = drill.operator(&["lag", "--view", "stream", "--measure", "0"]).await?;
    let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["partition"] == HOT));
    row.and_then(|row| row["lag"].as_i64()).context("`tidemill lag` does not tell of the partition")
}

/// A user that sends 700 events a second, all of whose home is one partition, whatever the gateway answers.
struct Loud {
    counts: Arc<[AtomicUsize; 2]>,
    stop: tokio_util::sync::CancellationToken,
    task: AbortOnDropHandle<anyhow::Result<()>>,
}

impl Loud {
    const BEAT: Duration = Duration::from_millis(100);
    const EVENTS: usize = 70;

    fn start(http: Http, project: &str) -> Self {
        let (counts, stop) = (Arc::<[AtomicUsize; 2]>::default(), tokio_util::sync::CancellationToken::new());
        let (counted, stopped) = (Arc::clone(&counts), stop.clone());
        let ids = (0u64..).map({
            let project = project.to_owned();
            move |number| format!("{project}-{LOUD}-{number}")
        });
        let mut ids = ids.filter(|id| home_partition(id.as_bytes(), PARTITIONS) == HOT);
        let task = tokio::spawn(async move {
            let mut beat = tokio::time::interval(Self::BEAT);
            while !stopped.is_cancelled() {
                beat.tick().await;
                let now = chrono::Utc::now().timestamp_micros();
                let event = |id: String| Event {
                    user_id: Some(LOUD.to_owned()),
                    properties: Some(r#"{"depth":1}"#.to_owned()),
                    ..Event::new(id, "scroll", now)
                };
                let events: Vec<Event> = ids.by_ref().take(Self::EVENTS).map(event).collect();
                let (accepted, limited) = http.offer(&events).await?;
                counted[0].fetch_add(accepted, Ordering::Relaxed);
                counted[1].fetch_add(limited, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { counts, stop, task: AbortOnDropHandle::new(task) }
    }

    fn limited(&self) -> usize {
        self.counts[1].load(Ordering::Relaxed)
    }

    /// How many of its events were accepted, and how many limited.
    async fn stop(self) -> anyhow::Result<(usize, usize)> {
        self.stop.cancel();
        self.task.await??;
        Ok((self.counts[0].load(Ordering::Relaxed), self.counts[1].load(Ordering::Relaxed)))
    }
}

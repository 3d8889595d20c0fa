//! A rebuild while thousands of events arrive: its workers are killed, wrong numbers are found and replaced, and
//! nobody who counts stops for it.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::Row;
use crate::drill::{Drill, Options, Outcome};
use crate::flow::Stream;

/// Records per second that go on arriving.
const RATE: usize = 5_000;
const KILLS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);
/// A worker that counts wrong, as it were.
const BUG: &str = "UPDATE metric_rollups SET count = count + 3, version = version + 1
                   WHERE project = $1 AND metric_name = 'events' AND granularity = '1d'";

pub fn rows() -> Vec<Row> {
    vec![Row::new("replay", replay).within(Duration::from_secs(400))]
}

async fn replay(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    let settings = [("TIDEMILL_STREAM__BATCH_SIZE", "20000"), ("TIDEMILL_STREAM__BATCH_WAIT_MS", "100")];
    let _live = drill.live_worker("live", &settings).await?;
    let (flow, began, before) =
        (drill.flow(Stream { rate: RATE, ..Stream::default() })?, Instant::now(), drill.journal.len());
    drill.sent(2 * RATE).await?;
    drill.recovered(Instant::now()).await?;
    sqlx::query(BUG).bind(&drill.stack.project).execute(&drill.stack.pool).await?;

    let project = drill.stack.project.clone();
    let planned = replays(&drill, &["plan", "--project", &project, "--yes"]).await?;
    let id = planned[0]["id"].to_string();
    let mut done = 0;
    for _ in 0..KILLS {
        let mut running = drill.command(&["replay", "run", &id]).spawn().context("tidemill replay run")?;
        let got_on = moved(&drill, &id, done).await;
        running.start_kill()?;
        running.wait().await?;
        done = got_on?;
    }
    let ran = replays(&drill, &["run", &id]).await?;
    let found = ran[0]["differences"].as_u64().unwrap_or_default();
    let fault = Instant::now();
    replays(&drill, &["switch", &id, "--yes"]).await?;
    let recovery = drill.recovered(fault).await?;
    let (sent, time) = (drill.journal.len() - before, began.elapsed());
    flow.stop().await?;
    // The comparison below knows nothing of generations.
    replays(&drill, &["drop", &id, "--yes"]).await?;
    let mut outcome = drill.finish(recovery).await?;
    if found == 0 {
        outcome.differences.push("the wrong numbers were not found by the replay".to_owned());
    }
    outcome.facts.push(format!("{KILLS} kills"));
    outcome.facts.push(format!("{found} metrics and days differed"));
    outcome.facts.push(format!("{:.0} records/s meanwhile", sent as f64 / time.as_secs_f64()));
    Ok(outcome)
}

/// Waits until more records are done, and gives how many.
async fn moved(drill: &Drill, id: &str, before: u64) -> anyhow::Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let done = replays(drill, &["status", id]).await?["done"].as_u64().unwrap_or_default();
        if done > before {
            return Ok(done);
        }
        ensure!(Instant::now() < deadline, "the replay does not get on from {before} within {PATIENCE:?}");
        tokio::time::sleep(LOOK).await;
    }
}

/// What `tidemill replay` says.
async fn replays(drill: &Drill, arguments: &[&str]) -> anyhow::Result<Value> {
    drill.operator(&[&["replay"], arguments].concat()).await
}

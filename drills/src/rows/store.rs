//! The seen store.

use std::time::{Duration, Instant};

use super::Row;
use crate::drill::{Drill, Options, Outcome};
use crate::send::Partitioner;
use crate::traffic::Style;

pub fn rows() -> Vec<Row> {
    vec![Row::new("seen-deleted", seen_deleted)]
}

/// The store's disk is deleted, once between two lives and once under a worker; each time old events come again.
async fn seen_deleted(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    let native = drill.native(Partitioner::Murmur2)?;
    let folder = options.logs.join(format!("{}-seen", drill.stack.project));
    let seen = folder.display().to_string();
    let settings = [("TIDEMILL_STREAM__SEEN_DIR", seen.as_str())];
    let mut traffic = drill.traffic("seen", Style::default());
    let old = traffic.events(1_000, chrono::Utc::now().timestamp_micros());
    let mut recovery = Duration::ZERO;

    let worker = drill.live_worker("a", &settings).await?;
    native.send_events(&old).await?;
    drill.settle().await?;
    worker.stop().await?;
    let _ = std::fs::remove_dir_all(&folder); // before there is a store on disk, there is nothing to delete

    let fault = Instant::now();
    let mut worker = drill.live_worker("b", &settings).await?;
    recovery = recovery.max(fault.elapsed());
    native.send_events(&old[..500]).await?;
    drill.settle().await?;
    let _ = std::fs::remove_dir_all(&folder);
    native.send_events(&old[500..]).await?;
    native.send_events(&traffic.events(500, chrono::Utc::now().timestamp_micros())).await?;
    drill.settle().await?;
    worker.kill()?;

    let fault = Instant::now();
    let _worker = drill.live_worker("c", &settings).await?;
    recovery = recovery.max(fault.elapsed());
    native.send_events(&old).await?;
    let outcome = drill.finish(recovery).await;
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

//! The seen store.

use std::time::{Duration, Instant};

use super::Row;
use crate::drill::{CHECKPOINTS, Drill, Options, Outcome, SEEN};
use crate::send::Partitioner;
use crate::traffic::Style;

pub fn rows() -> Vec<Row> {
    vec![Row::new("seen-deleted", seen_deleted)]
}

/// The store's disk is deleted, once between two lives and once, with its checkpoints, under a worker that is killed
/// then; each time old events come again.
async fn seen_deleted(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    let native = drill.native(Partitioner::Murmur2)?;
    let mut traffic = drill.traffic("seen", Style::default());
    let old = traffic.events(1_000, chrono::Utc::now().timestamp_micros());
    let mut recovery = Duration::ZERO;

    let worker = drill.live_worker("a", &[]).await?;
    native.send_events(&old).await?;
    drill.settle().await?;
    worker.stop().await?;
    delete(&drill, SEEN, "stream")?;

    let fault = Instant::now();
    let mut worker = drill.live_worker("b", &[]).await?;
    recovery = recovery.max(fault.elapsed());
    native.send_events(&old[..500]).await?;
    drill.settle().await?;
    delete(&drill, SEEN, "stream")?;
    delete(&drill, CHECKPOINTS, "stream")?;
    native.send_events(&old[500..]).await?;
    native.send_events(&traffic.events(500, chrono::Utc::now().timestamp_micros())).await?;
    drill.settle().await?;
    worker.kill()?;

    let fault = Instant::now();
    let _worker = drill.live_worker("c", &[]).await?;
    recovery = recovery.max(fault.elapsed());
    native.send_events(&old).await?;
    drill.finish(recovery).await
}

/// Deletes one of a service's folders; there need not be one yet.
pub fn delete(drill: &Drill, folder: &str, service: &str) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(drill.stack.folder(&format!("{folder}-{service}"))) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

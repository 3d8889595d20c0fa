//! The archiver: every event once in an Iceberg table per project, for SQL by any engine.
//!
//! A table's positions are properties of the table, changed in the same commit as its files. So an archiver
//! that dies, is late or is doubled leaves files that nobody sees, and never a row twice or a gap.

mod archive;
mod buffer;
mod catalog;
pub mod columns;
pub mod commit;
mod config;
mod data_file;
pub mod declared;
mod encoders;
mod error;
mod evolve;
pub mod files;
pub mod forget;
mod given_up;
mod https;
pub mod lag;
mod live;
pub mod maintain;
pub mod positions;
mod prepare;
pub mod promotions;
pub mod read_back;
pub mod rows;
mod sql;
pub mod table;
mod worker;
mod writing;

use std::sync::Arc;
use std::time::Duration;

use tidemill_common::config::Connections;
use tidemill_common::http::{Health, Listener, serve};
use tidemill_common::progress::{Positions, Watch};
use tidemill_common::seen::keep_checkpoints;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use config::{Config, OnGap};
pub use error::ArchiveError;

/// A position may stand still this much longer than it takes to commit.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked how far the tables are behind.
const LAG: Duration = Duration::from_secs(5);

/// Archives until shutdown, or until a person has to decide something. Serves health and metrics meanwhile.
pub async fn run(
    config: Config,
    connections: Connections,
    listener: Listener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let stop = shutdown.child_token();
    // What was spawned ends with us, however we end.
    let _guard = stop.clone().drop_guard();
    let health = Health::new();
    let shared = prepare::Shared::new(config, &connections, &health)?;
    let positions = Positions::default();
    let worker = worker::Worker::new(shared.clone(), positions.clone(), health.clone())?;
    let tables = shared.tables.clone();
    health.watch("catalog", true, &stop, move || {
        let tables = tables.clone();
        async move { tables.catalog().await?.namespace_exists(&table::namespace("any")).await.map(drop) }
    });
    let filler = shared.filler.clone();
    let every = Duration::from_millis(shared.config.checkpoint_interval_ms);
    let keeping = keep_checkpoints(filler.stores.clone(), filler.checkpoints, "archiver", every, stop.clone());
    let kept = tokio::spawn(keeping);
    let patience = Duration::from_millis(shared.config.commit_interval_ms) + PATIENCE;
    let watching = Watch { name: "archiver", history: filler.history, health: health.clone(), patience, every: LAG };
    tokio::spawn(watching.run(positions, watch::Sender::new(Arc::default()), stop.clone()));
    let work = async {
        let worked = worker.run(stop.clone()).await;
        stop.cancel();
        worked
    };
    let (worked, served) = tokio::join!(work, serve(listener, health.routes(), stop.clone()));
    kept.await?;
    // The worker is gone, and what it had not written yet is on its way to disk.
    tokio::task::spawn_blocking(move || filler.stores.close()).await??;
    Ok(worked.and(served.map_err(ArchiveError::from))?)
}

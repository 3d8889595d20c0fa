//! The gateway: takes events over HTTP and answers for each of them once its fate is known.
//!
//! The path of a request: `routes` (authenticate, read the body) → `formats` → `admit` (limit → validate → encode →
//! claim → produce → confirm or release) → `answer`.

mod admit;
mod answer;
mod around;
mod auth;
mod batches;
mod body;
mod body_hash;
mod claims;
mod config;
mod cors;
mod decompress;
mod docs;
pub mod event_limits;
mod event_types;
mod flight;
mod formats;
mod gateway;
mod idempotency;
mod incarnations;
pub mod json_schemas;
mod keys;
mod limits;
mod meters;
mod openapi;
mod outages;
mod outcome;
mod overload;
mod parse;
mod receipt;
mod routes;
mod schemas;
pub mod spool;
mod spooling;
mod sql;
mod stages;
mod streamed;

use std::sync::Arc;

use tidemill_common::config::Connections;
use tidemill_common::http::{Health, Listener, serve};
use tidemill_common::telemetry;
use tokio_util::sync::CancellationToken;

pub use config::{ClientAddress, Config};
use gateway::Gateway;

/// Serves until shutdown, or until nothing can be sent to Kafka ever again; then stops accepting, finishes the
/// requests under way and returns once nothing is in flight to Kafka.
pub async fn run(
    config: Config,
    connections: Connections,
    listener: Listener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    telemetry::metrics(); // whoever looks up a meter before it is installed gets one that counts nothing
    let (health, shutdown) = (Health::new(), shutdown.child_token());
    let gateway = Gateway::new(config, &connections).await?;
    gateway.start(&health, &shutdown);
    tracing::info!(address = %listener.local_addr()?, "ingest is listening");
    serve(listener, routes::routes(Arc::clone(&gateway), &health)?, shutdown).await?;
    gateway.drain().await
}

//! The query service: metrics, sessions and SQL over HTTP, each only for the caller's own project.

mod carts;
mod config;
mod events;
mod freshness;
mod hot;
mod keys;
mod metrics;
mod money;
mod postgres;

mod routes;
mod sessions;
pub mod setup;
mod sql;

use std::sync::Arc;

use tidemill_common::auth::Keys;
use tidemill_common::config::Connections;
use tidemill_common::http::{Health, Listener, serve};
use tidemill_common::postgres as pg;
use tidemill_common::redis::Redis;
use tidemill_stream::metric::Definitions;
use tokio_util::sync::CancellationToken;

pub use config::{Address, Config, Engine, Kind, SettingsError};
pub use sql::drop_answers;

/// Serves until shutdown.
pub async fn run(
    config: Config,
    connections: Connections,
    listener: Listener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let pool = postgres::limited(pg::pool(&connections.database_url, config.postgres_connections)?);
    let redis = Redis::new(&connections.redis_url)?;
    let health = Health::new();
    let (checked_pool, checked_redis) = (pool.clone(), redis.clone());
    health.watch("postgres", true, &shutdown, move || postgres::ping(checked_pool.clone()));
    health.watch("redis", false, &shutdown, move || {
        let redis = checked_redis.clone();
        async move { redis.ping().await }
    });
    let definitions = Definitions::new(pool.clone(), config.metrics_dir.as_deref())?;
    definitions.watch(shutdown.clone());
    let service = routes::Service {
        definitions,
        keys: Keys::new(pool.clone()).with_environment(connections.api_keys.as_deref())?,
        freshness: freshness::Freshness::new(connections.kafka.clone(), pool.clone()),
        sql: sql::Engine::new(&config, &connections, redis.clone())?,
        pool,
        redis,
    };
    let app = routes::routes(Arc::new(service)).merge(health.routes());
    tracing::info!(address = %listener.local_addr()?, "query service is up");
    serve(listener, app, shutdown).await?;
    Ok(())
}

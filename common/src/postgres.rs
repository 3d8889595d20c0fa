//! Postgres connections.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

/// The schema, forward only.
pub static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// A pool that connects when it is first used, so that a service can start before its database.
///
/// Statements are planned for the values they are given. Ours join tables with arrays of very different
/// lengths, and Postgres' generic plans, which assume short ones, took a hundred times longer on a new table.
///
/// A transaction whose client stands still ends: a process that was stopped inside one would keep its locks, and so
/// everybody who is to take over from it, for as long as it is stopped.
pub fn pool(url: &str, connections: u32) -> Result<PgPool, sqlx::Error> {
    let options: PgConnectOptions = url.parse()?;
    let settings = [("plan_cache_mode", "force_custom_plan"), ("idle_in_transaction_session_timeout", "10s")];
    let options = options.options(settings).application_name("tidemill");
    Ok(PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(5))
        .idle_timeout(Duration::from_secs(300))
        .connect_lazy_with(options))
}

//! All SQL of the query service on Postgres.

mod ledger;
mod rollups;
mod sessions;

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tidemill_common::problem::Problem;

pub use ledger::{Entry, ledger};
pub use rollups::{Rollup, Series, event_types, rollups};
pub use sessions::{COLUMNS, Comparison, Condition, Interval, Kind, Scan, Value, intervals};

/// Why Postgres gave no answer, for the caller.
pub fn problem(error: sqlx::Error) -> Problem {
    Problem::unavailable("Postgres", error)
}

/// Whether Postgres answers.
pub async fn ping(pool: PgPool) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT 1").execute(&pool).await.map(drop)
}

/// A pool for SQL queries: read-only whatever is sent, and no statement outlives its query.
pub fn read_only_pool(url: &str, connections: u32, timeout: Duration) -> Result<PgPool, sqlx::Error> {
    let options = url.parse::<PgConnectOptions>()?.options([
        ("default_transaction_read_only", "on".to_owned()),
        ("statement_timeout", timeout.as_millis().to_string()),
    ]);
    Ok(PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(5))
        .idle_timeout(Duration::from_secs(60))
        .connect_lazy_with(options))
}

//! All SQL of the query service on Postgres.

mod definitions;
mod ledger;
mod relations;
mod rollups;
mod sessions;

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tidemill_common::problem::Problem;

pub use definitions::{declare, undeclare};
pub use ledger::{Entry, ledger};
pub use relations::{Comparison, Condition, Kind, RELATIONS, Relation, Scan, Value};
pub use rollups::{Rollup, Series, counts_by_value, event_types, overflowing_days, rollups};
pub use sessions::{Interval, active, intervals, is_known};

/// The reads of one request may take this long.
const READS: Duration = Duration::from_secs(5);

/// The same pool, whose statements Postgres ends after [`READS`], so that none goes on for nobody.
pub fn limited(pool: PgPool) -> PgPool {
    let options = pool.connect_options().as_ref().clone();
    pool.set_connect_options(options.options([("statement_timeout", READS.as_millis().to_string())]));
    pool
}

/// Gives up after [`READS`]: a Postgres that does not answer must not hold requests for ever.
pub async fn in_time<T>(reads: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    let late = |_| Err(Problem::unavailable("Postgres", format!("no answer within {} s", READS.as_secs())));
    tokio::time::timeout(READS, reads).await.unwrap_or_else(late)
}

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

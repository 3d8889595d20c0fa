//! Settings: section `query`.

use std::path::PathBuf;

use serde::Deserialize;

/// Settings of the query service.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Where it listens; 0 is any free port.
    pub port: u16,
    /// Connections to Postgres for metrics and sessions; SQL has its own, one per query under way.
    pub postgres_connections: u32,
    /// SQL queries under way at once.
    pub concurrency: usize,
    /// SQL queries that may wait for their turn; more are turned away.
    pub sql_queue: usize,
    /// Seconds that a query of the priority `batch` may wait; interactive ones wait as long as they may take.
    pub sql_batch_wait_s: u64,
    /// Memory for events that are not archived yet, of all projects, in MiB. With 0 SQL sees archived events only.
    pub sql_tail_mb: usize,
    /// Seconds that a SQL query may take.
    pub sql_timeout_s: u64,
    /// Memory that one SQL query may take for sorts, joins and groups, in MiB.
    pub sql_memory_mb: usize,
    /// Rows that one SQL query gives at most.
    pub sql_max_rows: usize,
    /// Size of one SQL answer, in MiB; what lies beyond is cut off between rows.
    pub sql_max_answer_mb: usize,
    /// Folder with declared metrics for all projects (`*.yaml`), in place of those in the binary; the same as the
    /// stream workers'.
    pub metrics_dir: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            port: 4002,
            postgres_connections: 16,
            concurrency: 4,
            sql_queue: 16,
            sql_batch_wait_s: 300,
            sql_tail_mb: 256,
            sql_timeout_s: 30,
            sql_memory_mb: 512,
            sql_max_rows: 100_000,
            sql_max_answer_mb: 64,
            metrics_dir: None,
        }
    }
}

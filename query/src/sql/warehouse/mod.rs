//! Another engine over the same Iceberg tables that answers queries of `events`: Trino or ClickHouse, for those who run
//! one. The query is checked as ever and then the engine's; what comes back is Arrow, and goes the same way as our own
//! answers. That a project reads its own table only is seen to twice: by [`guard`], and by the engine itself, where each
//! project has a user (Trino) or a role (ClickHouse) that may read nothing else (see [`crate::setup`]).

mod clickhouse;
mod columns;
mod functions;
mod guard;
mod trino;
mod words;

use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::stream::BoxStream;
use reqwest::Client;
use reqwest::redirect::Policy;

use super::answer::Limits;
use super::error::SqlError;
use crate::config::Config;
use clickhouse::ClickHouse;
use trino::Trino;

pub use crate::config::Kind;
pub use guard::{Checked, check, is_theirs};

/// An engine that is away is known to be so after this time.
const CONNECTING: Duration = Duration::from_secs(5);

/// An engine.
#[derive(Clone)]
pub enum Warehouse {
    /// It reads the table by its catalog.
    Trino(Trino),
    /// It reads the table's folder, at the snapshot that it is told.
    ClickHouse(ClickHouse),
}

/// Rows as they come. The query ends when this is dropped.
pub struct Answer {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: BoxStream<'static, Result<RecordBatch, SqlError>>,
}

/// What one query may take.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    /// Seconds.
    pub seconds: u64,
    /// Memory, in bytes, where the engine counts it per query.
    pub memory: usize,
    /// Rows of the answer.
    pub limits: Limits,
}

/// Why an engine gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The query is not one that it can run.
    #[error("{0}")]
    Query(String),
    /// The query takes too much.
    #[error("{0}")]
    TooLarge(String),
    /// A value that has no form here.
    #[error("the answer has the value {0}, which cannot be read; cast it to text, or a time to UTC")]
    Value(String),
    /// It cannot be reached, is not set up for this project, or has failed.
    #[error("{0}")]
    Unavailable(String),
    /// It speaks in a way that we do not know.
    #[error("an answer that cannot be read: {0}")]
    Broken(String),
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        // Without the URL: it says more than callers need.
        let error = error.without_url();
        let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
        Self::Unavailable(format!("{error}{cause}"))
    }
}

impl Warehouse {
    /// The engine that the settings name. None: there is none, DataFusion answers.
    pub fn new(config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(address) = config.warehouse_address()? else { return Ok(None) };
        // Passwords go nowhere else.
        let client = Client::builder().redirect(Policy::none()).connect_timeout(CONNECTING).build()?;
        Ok(Some(match address.kind {
            Kind::Trino => Self::Trino(Trino::new(client, address)),
            Kind::ClickHouse => Self::ClickHouse(ClickHouse::new(client, address)),
        }))
    }

    /// Which one it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Trino(_) => Kind::Trino,
            Self::ClickHouse(_) => Kind::ClickHouse,
        }
    }

    /// Whether it is told which snapshot to read.
    pub fn is_pinned(&self) -> bool {
        matches!(self, Self::ClickHouse(_))
    }

    /// Sends a query for a project, and waits for the columns of its answer.
    pub async fn query(
        &self,
        project: &str,
        text: String,
        snapshot: Option<&str>,
        allowance: Allowance,
    ) -> Result<Answer, Failure> {
        match self {
            Self::Trino(trino) => trino.query(project, text, allowance).await,
            Self::ClickHouse(clickhouse) => clickhouse.query(project, text, snapshot, allowance).await,
        }
    }
}

/// What a project's user, role and database are called there.
pub fn tenant(user: &str, project: &str) -> String {
    format!("{user}_{project}")
}

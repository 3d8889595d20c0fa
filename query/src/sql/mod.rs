//! SQL over the caller's own two tables, `events` and `sessions`. Read-only by construction: what is no query
//! is refused before planning, planning knows nothing but these tables, and neither of them can write.

mod answer;
mod context;
mod error;
mod growth;
mod guard;
mod idents;
mod sessions_table;

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use datafusion::catalog::TableProvider;
use datafusion::error::DataFusionError;
use sqlx::PgPool;
use tidemill_archiver::table::Tables;
use tidemill_common::config::Connections;
use tidemill_common::problem::Problem;
use tidemill_common::projects::Project;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use crate::config::Config;
use crate::{archive, postgres};
use sessions_table::SessionsTable;

use error::SqlError;
pub use error::missing;

/// A query waits this long for another to end.
const QUEUE: Duration = Duration::from_secs(1);
/// Planning recurses along chains like `a OR b OR …`; the guard's limits keep them within this.
const STACK: usize = 128 * 1024 * 1024;

/// Connections per query: each `sessions` in it that is read at the same time takes one.
const SCANS: u32 = 8;

/// Runs queries, a few at a time, on threads of its own, so that they never hold up anything else.
pub struct Engine {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    tables: Tables,
    pool: PgPool,
    running: Arc<Semaphore>,
    timeout: Duration,
    memory: usize,
    limits: answer::Limits,
}

impl Engine {
    /// An engine over the archive and the sessions in Postgres.
    pub fn new(config: &Config, connections: &Connections) -> anyhow::Result<Self> {
        let queries = config.concurrency.max(1);
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            // Planning holds its thread; so one is left for every other query.
            .worker_threads(queries.max(cores))
            .thread_name("sql")
            .thread_stack_size(STACK)
            .enable_all()
            .build()?;
        let timeout = Duration::from_secs(config.sql_timeout_s);
        Ok(Self {
            runtime: Some(runtime),
            tables: Tables::new(connections),
            pool: postgres::read_only_pool(&connections.database_url, queries as u32 * SCANS, timeout)?,
            running: Arc::new(Semaphore::new(queries)),
            timeout,
            memory: config.sql_memory_mb * 1024 * 1024,
            limits: answer::Limits { rows: config.sql_max_rows, bytes: config.sql_max_answer_mb * 1024 * 1024 },
        })
    }

    /// Runs a query and gives the answer's JSON.
    pub async fn run(&self, project: &Project, sql: &str) -> Result<Vec<u8>, Problem> {
        let place = match tokio::time::timeout(QUEUE, Arc::clone(&self.running).acquire_owned()).await {
            Ok(Ok(place)) => place,
            _ => return Err(SqlError::Busy.into()),
        };
        let query = Query {
            tables: self.tables.clone(),
            pool: self.pool.clone(),
            project: project.clone(),
            memory: self.memory,
            limits: self.limits,
        };
        let sql = sql.to_owned();
        let runtime = self.runtime.as_ref().expect("there until the engine is dropped");
        // A caller that hangs up, or the timeout, ends the query at its next await.
        let running = AbortOnDropHandle::new(runtime.spawn(async move {
            let answer = query.run(&sql).await;
            drop(place);
            answer
        }));
        match tokio::time::timeout(self.timeout, running).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(error)) => Err(Problem::internal(error)),
            Err(_) => Err(SqlError::Timeout(self.timeout).into()),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What one query needs.
struct Query {
    tables: Tables,
    pool: PgPool,
    project: Project,
    memory: usize,
    limits: answer::Limits,
}

impl Query {
    async fn run(&self, sql: &str) -> Result<Vec<u8>, SqlError> {
        let mut statement = guard::parse(sql)?;
        let names = idents::rewrite(guard::query(&mut statement)?);
        let context = context::new(self.memory)?;
        for name in guard::tables(&statement)? {
            if let Some(table) = self.table(&name).await? {
                context.register_table(name, table)?;
            }
        }
        let plan = context::plan(&context, statement).await?;
        let stream = context.execute_logical_plan(plan).await?.execute_stream().await?;
        answer::collect(stream, &names, self.limits).await
    }

    /// A table by its name; all others are unknown to the planner.
    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, SqlError> {
        match name {
            "events" => {
                let table = archive::events(&self.tables, &self.project.id).await;
                Ok(Some(table.map_err(|error| DataFusionError::External(Box::new(error)))?))
            }
            "sessions" => Ok(Some(Arc::new(SessionsTable::new(self.pool.clone(), &self.project)))),
            _ => Ok(None),
        }
    }
}

//! SQL over the caller's own tables: `events`, and `sessions`, `metrics` and `daily_metrics` from Postgres. Read-only
//! by construction: what is no query is refused before planning, planning knows nothing but these tables and the
//! files of one snapshot, and none of them can write.

mod answer;
mod cache;
mod context;
mod error;
mod expansion;
mod format;
mod growth;
mod guard;
mod idents;
mod json;
mod json_path;
mod line;
mod postgres_table;
mod request;
mod response;

use std::collections::BTreeSet;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use chrono::Utc;
use datafusion::catalog::TableProvider;
use datafusion::sql::parser::Statement;
use sqlx::PgPool;
use tidemill_common::config::Connections;
use tidemill_common::problem::Problem;
use tidemill_common::projects::Project;
use tidemill_common::redis::Redis;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::mpsc::{self, Sender};
use tokio_util::task::AbortOnDropHandle;

use crate::config::Config;
use crate::events::{Events, View};
use crate::postgres::{self, RELATIONS};
use answer::{Limits, Piece};
use cache::{Cache, Wanted};
use error::SqlError;
use format::Format;
use line::{Line, Place, Priority};
use postgres_table::PostgresTable;
use response::{Head, Started};

pub use request::Request;

/// Planning recurses along chains like `a OR b OR …`; the guard's limits keep them within this.
const STACK: usize = 128 * 1024 * 1024;
/// Connections per query: each table of Postgres that is read at the same time takes one.
const SCANS: u32 = 8;
/// Pieces of an answer that wait for the caller to take them.
const PIECES: usize = 2;
/// Planning cannot be interrupted; the caller does not wait for it longer than this beyond the timeout.
const GRACE: Duration = Duration::from_secs(1);

/// Runs queries, a few at a time, on threads of its own, so that they never hold up anything else.
pub struct Engine {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    events: Events,
    pool: PgPool,
    cache: Cache,
    line: Line,
    timeout: Duration,
    batch_wait: Duration,
    memory: usize,
    limits: Limits,
}

impl Engine {
    /// An engine over the archive, its tail and the tables in Postgres. Needs a tokio runtime.
    pub fn new(config: &Config, connections: &Connections, redis: Redis) -> anyhow::Result<Self> {
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
        let pool = postgres::read_only_pool(&connections.database_url, queries as u32 * SCANS, timeout)?;
        Ok(Self {
            runtime: Some(runtime),
            events: Events::new(connections, pool.clone(), config.sql_tail_mb * 1024 * 1024, Handle::current()),
            pool,
            cache: Cache::new(redis),
            line: Line::new(queries, config.sql_queue),
            timeout,
            batch_wait: Duration::from_secs(config.sql_batch_wait_s),
            memory: config.sql_memory_mb * 1024 * 1024,
            limits: Limits { rows: config.sql_max_rows, bytes: config.sql_max_answer_mb * 1024 * 1024 },
        })
    }

    /// Answers a query.
    pub async fn run(&self, project: &Project, request: Request) -> Result<Response, Problem> {
        let Request { sql, format, priority, max_age, tail } = request;
        let limits = self.limits;
        let key = cache::key(&project.id, project.generation, &sql, format, tail, limits.rows, limits.bytes);
        let length = sql.len();
        let parsed = self.on_threads(async move { Parsed::new(&sql) }).await.map_err(Problem::internal)??;
        let view = match parsed.tables.contains("events") {
            true => Some(self.events.view(project, tail).await.map_err(|e| Problem::unavailable("the archive", e))?),
            false => None,
        };
        let identity = parsed.identity(view.as_ref());
        let now_ms = Utc::now().timestamp_millis();
        let mut head = Head::new(format, view.as_ref());
        let wanted = Wanted { identity: identity.as_deref(), max_age, now_ms };
        if let Some(kept) = self.cache.get(&key, wanted).await {
            head.age = Some(kept.age);
            return Ok(head.whole(kept.body, kept.truncated));
        }
        let place = self.place(project, priority).await?;
        let query = Query {
            parsed,
            view,
            pool: self.pool.clone(),
            project: project.clone(),
            memory: self.memory,
            limits,
            format,
            length,
        };
        let (to, mut pieces) = mpsc::channel(PIECES);
        let timeout = self.timeout;
        // A caller that hangs up ends the query at its next await.
        let running = self.on_threads(async move {
            let is_volatile = query.answer_in(timeout, &to).await;
            drop(place);
            is_volatile
        });
        match tokio::time::timeout(timeout + GRACE, pieces.recv()).await {
            Ok(Some(Ok(Piece::More(first)))) => Ok(head.streamed(Started { first, pieces, running })),
            Ok(Some(Ok(Piece::Last(body, truncated)))) => {
                let identity = if running.await.unwrap_or(true) { None } else { identity };
                if identity.is_some() || max_age.is_some() {
                    self.cache.put(&key, identity, now_ms, &body, truncated).await;
                }
                Ok(head.whole(body, truncated))
            }
            Ok(Some(Err(error))) => Err(error.into()),
            Ok(None) => Err(Problem::internal("a query ended without an answer")),
            Err(_) => Err(SqlError::Timeout(timeout).into()),
        }
    }

    async fn place(&self, project: &Project, priority: Priority) -> Result<Place, SqlError> {
        let wait = match priority {
            Priority::Interactive => self.timeout,
            Priority::Batch => self.batch_wait,
        };
        let place = tokio::time::timeout(wait, self.line.enter(&project.id, priority)).await;
        place.ok().flatten().ok_or(SqlError::Busy)
    }

    fn on_threads<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> AbortOnDropHandle<T> {
        let runtime = self.runtime.as_ref().expect("there until the engine is dropped");
        AbortOnDropHandle::new(runtime.spawn(work))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A query that may be run.
struct Parsed {
    statement: Statement,
    /// The names that the caller wrote.
    names: idents::Written,
    /// The tables that it names.
    tables: BTreeSet<String>,
}

impl Parsed {
    fn new(sql: &str) -> Result<Self, SqlError> {
        let mut statement = guard::parse(sql)?;
        let names = idents::rewrite(guard::query(&mut statement)?);
        let tables = guard::tables(&statement)?;
        Ok(Self { statement, names, tables })
    }

    /// Of the data that it reads, as far as that can be told. A plan is none.
    fn identity(&self, view: Option<&View>) -> Option<String> {
        let is_plan = matches!(self.statement, Statement::Explain(_));
        let known = self.tables.iter().all(|table| table == "events");
        (known && !is_plan).then(|| view.map_or_else(|| "nothing".to_owned(), |view| view.identity.clone()))
    }
}

/// What one query needs.
struct Query {
    parsed: Parsed,
    view: Option<View>,
    pool: PgPool,
    project: Project,
    memory: usize,
    limits: Limits,
    format: Format,
    /// Of its text, in bytes.
    length: usize,
}

impl Query {
    /// Sends the answer, or why there is none. Says whether it may be another one the next time.
    async fn answer_in(self, timeout: Duration, to: &Sender<Result<Piece, SqlError>>) -> bool {
        let (is_volatile, error) = match tokio::time::timeout(timeout, self.answer(to)).await {
            Ok(Ok(is_volatile)) => (is_volatile, None),
            Ok(Err(error)) => (true, Some(error)),
            Err(_) => (true, Some(SqlError::Timeout(timeout))),
        };
        if let Some(error) = error {
            drop(to.send(Err(error)).await);
        }
        is_volatile
    }

    async fn answer(self, to: &Sender<Result<Piece, SqlError>>) -> Result<bool, SqlError> {
        let context = context::new(self.memory, self.view.as_ref().and_then(View::files), self.length)?;
        for name in &self.parsed.tables {
            if let Some(table) = self.table(name) {
                context.register_table(name, table)?;
            }
        }
        let plan = context::plan(&context, self.parsed.statement).await?;
        let is_volatile = context::is_volatile(&plan)?;
        let stream = context.execute_logical_plan(plan).await?.execute_stream().await?;
        answer::send(stream, &self.parsed.names, self.format, self.limits, to).await?;
        Ok(is_volatile)
    }

    /// A table by its name; all others are unknown to the planner.
    fn table(&self, name: &str) -> Option<Arc<dyn TableProvider>> {
        if name == "events" {
            return self.view.as_ref().map(View::table);
        }
        let relation = RELATIONS.into_iter().find(|relation| relation.name == name)?;
        Some(Arc::new(PostgresTable::new(relation, self.pool.clone(), &self.project)))
    }
}

//! SQL over the caller's own tables: `events`, and `sessions`, `metrics` and `daily_metrics` from Postgres. Read-only
//! by construction: what is no query is refused before planning, planning knows nothing but these tables and the
//! files of one snapshot, and none of them can write. By setting, another engine answers queries of `events`.

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
mod query;
mod request;
mod response;
mod warehouse;

use std::num::NonZero;
use std::time::Duration;

use axum::response::Response;
use chrono::Utc;
use sqlx::PgPool;
use tidemill_common::config::Connections;
use tidemill_common::problem::Problem;
use tidemill_common::projects::Project;
use tidemill_common::redis::Redis;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::config::Config;
use crate::events::Events;
use crate::postgres;
use answer::{Limits, Piece};
use cache::{Cache, Wanted};
use error::SqlError;
use format::Format;
use line::{Line, Place, Priority};
use query::{Asked, Ours, Query, Theirs, Work};
use response::{Head, Started};
use warehouse::{Allowance, Warehouse};

pub use cache::drop_answers;
pub use request::Request;
pub use warehouse::tenant;

/// Planning recurses along chains like `a OR b OR …`; the guard's limits keep them within this.
const STACK: usize = 128 * 1024 * 1024;
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
    /// Who answers queries of `events`, where it is not us.
    warehouse: Option<Warehouse>,
}

/// A query that is ready to run, and what is known of its answer.
struct Prepared {
    work: Work,
    head: Head,
    /// Of the data that it reads; None: that cannot be told.
    identity: Option<String>,
}

impl Engine {
    /// An engine over the archive, its tail and the tables in Postgres. Needs a tokio runtime.
    pub fn new(config: &Config, connections: &Connections, redis: Redis) -> anyhow::Result<Self> {
        let warehouse = Warehouse::new(config)?;
        // Another engine knows nothing of what is not archived yet, so nobody keeps it.
        let tail_mb = if warehouse.is_some() { 0 } else { config.sql_tail_mb };
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
        let pool = postgres::read_only_pool(&connections.database_url, queries as u32 * context::MAX_SCANS, timeout)?;
        Ok(Self {
            runtime: Some(runtime),
            events: Events::new(connections, pool.clone(), tail_mb * 1024 * 1024, Handle::current()),
            pool,
            cache: Cache::new(redis),
            line: Line::new(queries, config.sql_queue),
            timeout,
            batch_wait: Duration::from_secs(config.sql_batch_wait_s),
            memory: config.sql_memory_mb * 1024 * 1024,
            limits: Limits { rows: config.sql_max_rows, bytes: config.sql_max_answer_mb * 1024 * 1024 },
            warehouse,
        })
    }

    /// Answers a query.
    pub async fn run(&self, project: &Project, request: Request) -> Result<Response, Problem> {
        let Request { sql, format, priority, max_age, tail } = request;
        let limits = self.limits;
        let kind = self.warehouse.as_ref().map(Warehouse::kind);
        let text = format!("{}\n{sql}", kind.map_or("", warehouse::Kind::word));
        let key = cache::key(&project.id, project.generation, &text, format, tail, limits.rows, limits.bytes);
        let asked = self.on_threads(async move { Asked::new(sql, kind) }).await.map_err(Problem::internal)??;
        let Prepared { work, mut head, identity } = self.prepare(project, asked, format, tail).await?;
        let now_ms = Utc::now().timestamp_millis();
        let wanted = Wanted { identity: identity.as_deref(), max_age, now_ms };
        if let Some(kept) = self.cache.get(&key, wanted).await {
            head.age = Some(kept.age);
            head.made_from = kept.made_from.unwrap_or(head.made_from);
            return Ok(head.whole(kept.body, kept.truncated));
        }
        let place = self.place(project, priority).await?;
        let query = Query { work, format, limits };
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
                    self.cache.put((&project.id, &key), identity, &head.made_from, now_ms, &body, truncated).await;
                }
                Ok(head.whole(body, truncated))
            }
            Ok(Some(Err(error))) => Err(error.into()),
            Ok(None) => Err(Problem::internal("a query ended without an answer")),
            Err(_) => Err(SqlError::Timeout(timeout).into()),
        }
    }

    async fn prepare(&self, project: &Project, asked: Asked, format: Format, tail: bool) -> Result<Prepared, Problem> {
        let events = async |tail| {
            self.events.view(project, tail).await.map_err(|error| Problem::unavailable("the archive", error))
        };
        match (asked, &self.warehouse) {
            (Asked::Theirs(checked), Some(warehouse)) => {
                let view = if warehouse.is_pinned() { Some(events(false).await?) } else { None };
                let snapshot = view.map(|view| view.snapshot().to_owned());
                let head = Head::of_warehouse(format, warehouse.kind().word(), snapshot.clone());
                let allowance = Allowance { seconds: self.timeout.as_secs(), memory: self.memory, limits: self.limits };
                let (warehouse, project) = (warehouse.clone(), project.id.clone());
                let work = Work::Theirs(Theirs { warehouse, checked, project, snapshot, allowance });
                Ok(Prepared { work, head, identity: None })
            }
            (Asked::Theirs(_), None) => Err(Problem::internal("a query for an engine that is not there")),
            (Asked::Ours(parsed), _) => {
                let view = if parsed.tables.contains("events") { Some(events(tail).await?) } else { None };
                let head = Head::new(format, view.as_ref());
                let identity = parsed.identity(view.as_ref());
                let (pool, project) = (self.pool.clone(), project.clone());
                let work = Work::Ours(Ours { parsed, view, pool, project, memory: self.memory });
                Ok(Prepared { work, head, identity })
            }
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

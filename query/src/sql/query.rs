//! One query on its way to an answer: ours to run, or another engine's.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use datafusion::catalog::TableProvider;
use datafusion::sql::parser::Statement;
use sqlx::PgPool;
use tidemill_common::projects::Project;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use super::answer::{self, Limits, Piece};
use super::error::SqlError;
use super::format::Format;
use super::postgres_table::PostgresTable;
use super::warehouse::{self, Allowance, Checked, Kind, Warehouse};
use super::{context, guard, idents};
use crate::events::View;
use crate::postgres::RELATIONS;

/// A text that may be run.
pub enum Asked {
    /// By us.
    Ours(Box<Parsed>),
    /// By another engine.
    Theirs(Checked),
}

/// A query of ours.
pub struct Parsed {
    statement: Statement,
    /// The names that the caller wrote.
    names: idents::Written,
    /// The tables that it names.
    pub tables: BTreeSet<String>,
    /// Of its text, in bytes.
    length: usize,
}

/// What one query needs.
pub struct Query {
    pub work: Work,
    pub format: Format,
    pub limits: Limits,
}

/// Who runs it, on what.
pub enum Work {
    Ours(Ours),
    Theirs(Theirs),
}

/// A query over the snapshot, its tail and Postgres.
pub struct Ours {
    pub parsed: Box<Parsed>,
    pub view: Option<View>,
    pub pool: PgPool,
    pub project: Project,
    pub memory: usize,
}

/// A query that another engine runs.
pub struct Theirs {
    pub warehouse: Warehouse,
    pub checked: Checked,
    pub project: String,
    pub snapshot: Option<String>,
    pub allowance: Allowance,
}

impl Asked {
    /// Refuses what may be run by nobody. Only queries of `events` are for the other engine, if there is one.
    pub fn new(sql: String, engine: Option<Kind>) -> Result<Self, SqlError> {
        match engine {
            Some(kind) if warehouse::is_theirs(&sql) => warehouse::check(&sql, kind).map(Self::Theirs),
            _ => Parsed::new(&sql).map(|parsed| Self::Ours(Box::new(parsed))),
        }
    }
}

impl Parsed {
    fn new(sql: &str) -> Result<Self, SqlError> {
        let mut statement = guard::parse(sql)?;
        let (names, _) = idents::rewrite(guard::query(&mut statement)?);
        let tables = guard::tables(&statement)?;
        Ok(Self { statement, names, tables, length: sql.len() })
    }

    /// Of the data that it reads, as far as that can be told. A plan is none.
    pub fn identity(&self, view: Option<&View>) -> Option<String> {
        let is_plan = matches!(self.statement, Statement::Explain(_));
        let known = self.tables.iter().all(|table| table == "events");
        (known && !is_plan).then(|| view.map_or_else(|| "nothing".to_owned(), |view| view.identity.clone()))
    }
}

impl Query {
    /// Sends the answer, or why there is none. Says whether it may be another one the next time. Waits for the caller no
    /// longer than the timeout: whoever does not read must not hold a place.
    pub async fn answer_in(self, timeout: Duration, to: &Sender<Result<Piece, SqlError>>) -> bool {
        let (is_volatile, error) = match tokio::time::timeout(timeout, self.answer(to)).await {
            Ok(Ok(is_volatile)) => (is_volatile, None),
            Ok(Err(error)) => (true, Some(error)),
            Err(_) => (true, Some(SqlError::Timeout(timeout))),
        };
        if let Some(error) = error {
            // Without a last piece the answer breaks off, too.
            if let Err(TrySendError::Full(Err(error))) = to.try_send(Err(error)) {
                tracing::warn!(%error, "an answer broke off, and the caller did not read");
            }
        }
        is_volatile
    }

    async fn answer(self, to: &Sender<Result<Piece, SqlError>>) -> Result<bool, SqlError> {
        let Self { work, format, limits } = self;
        match work {
            Work::Ours(ours) => ours.answer(format, limits, to).await,
            Work::Theirs(Theirs { warehouse, checked, project, snapshot, allowance }) => {
                // A snapshot's id is followed by its schema's; before there is one nothing is known.
                let id = snapshot.as_deref().and_then(|id| id.split('.').next()).filter(|id| *id != "none");
                let answer = warehouse.query(&project, checked.text, id, allowance).await?;
                answer::send(&answer.schema, answer.batches, &checked.names, format, limits, to).await?;
                Ok(true)
            }
        }
    }
}

impl Ours {
    async fn answer(
        self,
        format: Format,
        limits: Limits,
        to: &Sender<Result<Piece, SqlError>>,
    ) -> Result<bool, SqlError> {
        let context = context::new(self.memory, self.view.as_ref().and_then(View::files))?;
        for name in &self.parsed.tables {
            if let Some(table) = self.table(name) {
                context.register_table(name, table)?;
            }
        }
        let plan = context::plan(&context, self.parsed.statement, self.parsed.length).await?;
        let is_volatile = context::is_volatile(&plan)?;
        let stream = context.execute_logical_plan(plan).await?.execute_stream().await?;
        answer::send(&stream.schema(), stream, &self.parsed.names, format, limits, to).await?;
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

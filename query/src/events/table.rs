//! The table `events`: a snapshot of the archive, and behind it the tail.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::project_schema;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::Result;
use datafusion::execution::cache::cache_manager::FileMetadataCache;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::union::UnionExec;

use super::snapshot::{Rows, Snapshot};

/// A project's events as they were at one moment. It knows the files of one snapshot and cannot write, so no name in
/// a query can lead anywhere else.
pub struct EventsTable {
    snapshot: Arc<Snapshot>,
    tail: Vec<RecordBatch>,
    footers: Arc<dyn FileMetadataCache>,
}

impl EventsTable {
    /// A snapshot and the rows that are not in it. The files' footers are kept in `footers`.
    pub fn new(snapshot: Arc<Snapshot>, tail: Vec<RecordBatch>, footers: Arc<dyn FileMetadataCache>) -> Self {
        Self { snapshot, tail, footers }
    }
}

impl fmt::Debug for EventsTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventsTable").field("snapshot", &self.snapshot.id).finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for EventsTable {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.snapshot.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut inputs: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        match &self.snapshot.rows {
            Rows::None => {}
            Rows::Files(data) => inputs.extend(data.scan(state, projection, filters, limit, &self.footers)?),
            Rows::Iceberg(rows) => inputs.push(rows.scan(state, projection, filters, limit).await?),
        }
        if !self.tail.is_empty() {
            let tail = std::slice::from_ref(&self.tail);
            inputs.push(MemorySourceConfig::try_new_exec(tail, self.schema(), projection.cloned())?);
        }
        match inputs.len() {
            0 => Ok(Arc::new(EmptyExec::new(project_schema(&self.snapshot.schema, projection)?))),
            1 => Ok(inputs.remove(0)),
            _ => UnionExec::try_new(inputs),
        }
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // They tell which files to open. The planner pushes them on into the files' scan by itself.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }
}

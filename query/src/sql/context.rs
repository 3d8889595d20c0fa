//! The planner and its surroundings: made anew for every query, and knowing as little as possible.

use std::sync::Arc;

use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider, MemorySchemaProvider};
use datafusion::error::Result;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SessionStateBuilder, SessionStateDefaults};

use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;

/// Catalog and schema of the tables, as planner messages name them.
const CATALOG: &str = "tidemill";
const SCHEMA: &str = "project";

/// These make large values out of a number, past the memory pool.
const UNBOUNDED: [&str; 8] =
    ["repeat", "lpad", "rpad", "array_repeat", "array_resize", "range", "generate_series", "gen_series"];

/// A context without tables, table functions, file formats or table factories: with them no path or URL means
/// anything. Sorts and groups that outgrow `memory` bytes fail; nothing is spilled to disk.
pub fn new(memory: usize) -> Result<SessionContext> {
    let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(GreedyMemoryPool::new(memory)))
        .with_disk_manager_builder(disk)
        .build_arc()?;
    let config = SessionConfig::new()
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema(CATALOG, SCHEMA)
        .with_information_schema(false);
    let mut scalars = SessionStateDefaults::default_scalar_functions();
    scalars.retain(|function| !UNBOUNDED.contains(&function.name()));
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_expr_planners(SessionStateDefaults::default_expr_planners())
        .with_scalar_functions(scalars)
        .with_aggregate_functions(SessionStateDefaults::default_aggregate_functions())
        .with_window_functions(SessionStateDefaults::default_window_functions())
        .build();
    let context = SessionContext::new_with_state(state);
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema(SCHEMA, Arc::new(MemorySchemaProvider::new()))?;
    context.register_catalog(CATALOG, Arc::new(catalog));
    Ok(context)
}

/// Plans a statement and makes sure once more that it only reads.
pub async fn plan(context: &SessionContext, statement: Statement) -> Result<LogicalPlan> {
    let plan = context.state().statement_to_plan(statement).await?;
    SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false).verify_plan(&plan)?;
    Ok(plan)
}

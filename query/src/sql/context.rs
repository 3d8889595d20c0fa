//! The planner and its surroundings: made anew for every query, and knowing as little as possible.

use std::ops::RangeInclusive;
use std::sync::Arc;

use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider, MemorySchemaProvider};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SessionStateBuilder, SessionStateDefaults};
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::Statement;

use super::error::SqlError;
use super::growth::{JOINING, MAX_TEXT};
use super::json;
use crate::events::store::{Files, Only};

/// Catalog and schema of the tables, as planner messages name them.
pub const CATALOG: &str = "tidemill";
pub const SCHEMA: &str = "project";

/// The functions there are, beside those of [`growth`](super::growth) that join values. What they give is no
/// longer than what they are given, or of a length of its own (to_char: some times its format's). Those that
/// repeat, replace, pad, encode or build lists are missing, and stay missing when DataFusion learns new ones.
const FUNCTIONS: &[&str] = &[
    "abs",
    "acos",
    "acosh",
    "array_element",
    "array_has",
    "array_has_all",
    "array_has_any",
    "array_length",
    "array_max",
    "array_min",
    "array_position",
    "arrow_typeof",
    "ascii",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "bit_length",
    "btrim",
    "cardinality",
    "cbrt",
    "ceil",
    "character_length",
    "chr",
    "coalesce",
    "contains",
    "cos",
    "cosh",
    "cot",
    "current_date",
    "current_time",
    "date_bin",
    "date_part",
    "date_trunc",
    "decode",
    "degrees",
    "digest",
    "empty",
    "ends_with",
    "exp",
    "factorial",
    "find_in_set",
    "floor",
    "from_unixtime",
    "gcd",
    "get_field",
    "greatest",
    "initcap",
    "isnan",
    "iszero",
    "lcm",
    "least",
    "left",
    "levenshtein",
    "ln",
    "log",
    "log10",
    "log2",
    "lower",
    "ltrim",
    "make_date",
    "make_time",
    "md5",
    "nanvl",
    "now",
    "nullif",
    "nvl",
    "nvl2",
    "octet_length",
    "pi",
    "power",
    "radians",
    "random",
    "regexp_count",
    "regexp_instr",
    "regexp_like",
    "reverse",
    "right",
    "round",
    "rtrim",
    "sha224",
    "sha256",
    "sha384",
    "sha512",
    "signum",
    "sin",
    "sinh",
    "split_part",
    "sqrt",
    "starts_with",
    "strpos",
    "substr",
    "substr_index",
    "tan",
    "tanh",
    "to_char",
    "to_date",
    "to_hex",
    "to_local_time",
    "to_time",
    "to_timestamp",
    "to_timestamp_micros",
    "to_timestamp_millis",
    "to_timestamp_nanos",
    "to_timestamp_seconds",
    "to_unixtime",
    "trunc",
    "upper",
    "uuid",
    "version",
];

/// These make one large value of many rows.
const GATHERING: [&str; 2] = ["array_agg", "string_agg"];

/// Rows that are worked on at once.
const BATCH: RangeInclusive<usize> = 1_024..=8_192;
/// Their memory is not in the pool, and each may hold all text of the query in each column, which is at most this many
/// bytes: the longer the query and the wider its widest step, the fewer rows.
const BATCH_TEXT: usize = 800 * 1024 * 1024;
/// Columns of any step of a query. A table has up to 200 that its project declares.
const MAX_COLUMNS: usize = 1_000;
/// Tables in Postgres that a query reads; each takes a connection as long as it is read.
pub const MAX_SCANS: u32 = 8;

/// A context without tables, table functions, file formats or table factories: without them no path or URL means
/// anything. It can read `files` and no others. Sorts and groups that outgrow `memory` bytes fail; nothing is spilled
/// to disk.
pub fn new(memory: usize, files: Option<Arc<Files>>) -> Result<SessionContext> {
    let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(GreedyMemoryPool::new(memory)))
        .with_disk_manager_builder(disk)
        .with_object_store_registry(Arc::new(Only(files)))
        .build_arc()?;
    let config = SessionConfig::new()
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema(CATALOG, SCHEMA)
        .with_information_schema(false);
    let mut scalars = SessionStateDefaults::default_scalar_functions();
    scalars.retain(|function| FUNCTIONS.contains(&function.name()) || JOINING.contains(&function.name()));
    scalars.extend(json::functions());
    let mut planners = SessionStateDefaults::default_expr_planners();
    planners.insert(0, Arc::new(json::Operators));
    let mut aggregates = SessionStateDefaults::default_aggregate_functions();
    aggregates.retain(|function| !GATHERING.contains(&function.name()));
    let state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_expr_planners(planners)
        .with_scalar_functions(scalars)
        .with_aggregate_functions(aggregates)
        .with_window_functions(SessionStateDefaults::default_window_functions())
        .build();
    let context = SessionContext::new_with_state(state);
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema(SCHEMA, Arc::new(MemorySchemaProvider::new()))?;
    context.register_catalog(CATALOG, Arc::new(catalog));
    Ok(context)
}

/// Whether the same query over the same rows may give another answer: it asks for the time, say.
pub fn is_volatile(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            found |= expr.exists(|expr| {
                Ok(matches!(expr, Expr::ScalarFunction(f) if f.func.signature().volatility != Volatility::Immutable))
            })?;
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(found)
}

/// Plans a statement of `length` bytes, makes sure once more that it only reads, and sets how many rows are worked on at
/// once.
pub async fn plan(
    context: &SessionContext,
    statement: Statement,
    length: usize,
) -> std::result::Result<LogicalPlan, SqlError> {
    let plan = context.state().statement_to_plan(statement).await?;
    SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false).verify_plan(&plan)?;
    let (mut columns, mut scans) = (1, 0);
    plan.apply_with_subqueries(|node| {
        columns = columns.max(node.schema().fields().len());
        scans += u32::from(matches!(node, LogicalPlan::TableScan(scan) if scan.table_name.table() != "events"));
        Ok(TreeNodeRecursion::Continue)
    })?;
    if scans > MAX_SCANS {
        return Err(SqlError::Refused(format!(
            "the query reads sessions, metrics and daily_metrics {scans} times, and may do so {MAX_SCANS} times"
        )));
    }
    let text = length.clamp(1, MAX_TEXT);
    let most = MAX_COLUMNS.min(BATCH_TEXT / BATCH.start() / text);
    if columns > most {
        return Err(SqlError::Refused(format!(
            "the query has a step of {columns} columns, and a query of this length may have {most}: make it shorter, or \
             join fewer tables"
        )));
    }
    let batch = (BATCH_TEXT / columns / text).clamp(*BATCH.start(), *BATCH.end());
    context.state_ref().write().config_mut().options_mut().execution.batch_size = batch;
    Ok(plan)
}

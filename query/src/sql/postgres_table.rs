//! A table whose rows lie in Postgres, streamed from there.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, RecordBatch, RecordBatchOptions,
    StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use async_trait::async_trait;
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};
use tidemill_common::projects::Project;

use crate::postgres::{Comparison, Condition, Kind, Relation, Scan, Value};

/// Of money.
const DIGITS: u8 = 38;
const SCALE: i8 = 9;

/// A project's rows of a relation.
#[derive(Debug)]
pub struct PostgresTable {
    relation: &'static Relation,
    pool: PgPool,
    project: String,
    generation: i32,
    schema: SchemaRef,
}

impl PostgresTable {
    /// The rows of one project and no other.
    pub fn new(relation: &'static Relation, pool: PgPool, project: &Project) -> Self {
        let schema = Arc::new(schema(relation, 0..relation.columns.len()));
        Self { relation, pool, project: project.id.clone(), generation: project.generation, schema }
    }
}

fn schema(relation: &Relation, columns: impl IntoIterator<Item = usize>) -> Schema {
    let field = |column: usize| {
        let column = &relation.columns[column];
        let data_type = match column.kind {
            Kind::Text => DataType::Utf8,
            Kind::Time => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
            Kind::Date => DataType::Date32,
            Kind::Integer => DataType::Int64,
            Kind::Float => DataType::Float64,
            Kind::Money => DataType::Decimal128(DIGITS, SCALE),
            Kind::Boolean => DataType::Boolean,
        };
        Field::new(column.name, data_type, column.nullable)
    };
    Schema::new(columns.into_iter().map(field).collect::<Vec<_>>())
}

#[async_trait]
impl TableProvider for PostgresTable {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let relation = self.relation;
        let columns = projection.cloned().unwrap_or_else(|| (0..relation.columns.len()).collect());
        let schema = Arc::new(schema(relation, columns.iter().copied()));
        let conditions = filters.iter().filter_map(|filter| condition(relation, filter)).collect();
        let (generation, project) = (self.generation, self.project.clone());
        let scan = Scan { relation, generation, project, columns, conditions, limit };
        let rows = Rows { pool: self.pool.clone(), scan, schema: Arc::clone(&schema) };
        Ok(Arc::new(StreamingTableExec::try_new(schema, vec![Arc::new(rows)], None, [], false, limit)?))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let support = |filter: &&Expr| match condition(self.relation, filter) {
            Some(_) => TableProviderFilterPushDown::Exact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(support).collect())
    }
}

/// A filter as Postgres can check it, with the very same outcome: text only for equality, since the order of
/// text depends on the collation.
fn condition(relation: &Relation, filter: &Expr) -> Option<Condition> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = filter else { return None };
    // The planner puts the column first.
    let (Expr::Column(column), Expr::Literal(literal, _)) = (left.as_ref(), right.as_ref()) else { return None };
    let comparison = match op {
        Operator::Eq => Comparison::Equal,
        Operator::Lt => Comparison::Less,
        Operator::LtEq => Comparison::LessOrEqual,
        Operator::Gt => Comparison::Greater,
        Operator::GtEq => Comparison::GreaterOrEqual,
        _ => return None,
    };
    let column = relation.columns.iter().position(|there| there.name == column.name)?;
    let value = match relation.columns[column].kind {
        Kind::Text if comparison == Comparison::Equal => Value::Text(text(literal)?),
        Kind::Time => Value::Time(time(literal)?),
        Kind::Date => Value::Date(date(literal)?),
        _ => return None,
    };
    Some(Condition { column, comparison, value })
}

fn text(literal: &ScalarValue) -> Option<String> {
    let text = literal.try_as_str()??;
    // Postgres cannot even be asked about U+0000.
    (!text.contains('\0')).then(|| text.to_owned())
}

fn time(literal: &ScalarValue) -> Option<DateTime<Utc>> {
    match literal {
        ScalarValue::TimestampMicrosecond(Some(micros), Some(_)) => DateTime::from_timestamp_micros(*micros),
        _ => None,
    }
}

fn date(literal: &ScalarValue) -> Option<NaiveDate> {
    match literal {
        ScalarValue::Date32(Some(days)) => {
            NaiveDate::default().checked_add_signed(TimeDelta::try_days((*days).into())?)
        }
        _ => None,
    }
}

/// The rows of one scan.
struct Rows {
    pool: PgPool,
    scan: Scan,
    schema: SchemaRef,
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("scan", &self.scan).finish_non_exhaustive()
    }
}

impl PartitionStream for Rows {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (pool, scan, schema) = (self.pool.clone(), self.scan.clone(), Arc::clone(&self.schema));
        let batches = futures::stream::try_unfold(Reader::Closed(pool), move |reader| {
            let (scan, schema) = (scan.clone(), Arc::clone(&schema));
            async move { next(reader, &scan, &schema).await.map_err(|e| DataFusionError::External(Box::new(e))) }
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches))
    }
}

/// Where a scan stands. When it is dropped its transaction, and so the cursor, ends.
enum Reader {
    Closed(PgPool),
    Open(sqlx::Transaction<'static, sqlx::Postgres>),
}

async fn next(reader: Reader, scan: &Scan, schema: &SchemaRef) -> Result<Option<(RecordBatch, Reader)>, sqlx::Error> {
    let mut transaction = match reader {
        Reader::Closed(pool) => {
            let mut transaction = pool.begin().await?;
            scan.open().build().execute(&mut *transaction).await?;
            transaction
        }
        Reader::Open(transaction) => transaction,
    };
    // Not kept as a prepared statement: its columns are another scan's the next time.
    let rows = sqlx::query(Scan::NEXT).persistent(false).fetch_all(&mut *transaction).await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let columns = scan
        .columns
        .iter()
        .enumerate()
        .map(|(index, column)| array(&rows, index, scan.relation.columns[*column].kind))
        .collect::<Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    let batch = RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
        .map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(Some((batch, Reader::Open(transaction))))
}

fn array(rows: &[PgRow], index: usize, kind: Kind) -> Result<ArrayRef, sqlx::Error> {
    Ok(match kind {
        Kind::Text => Arc::new(values::<String>(rows, index)?.into_iter().collect::<StringArray>()),
        Kind::Integer => Arc::new(values::<i64>(rows, index)?.into_iter().collect::<Int64Array>()),
        Kind::Float => Arc::new(values::<f64>(rows, index)?.into_iter().collect::<Float64Array>()),
        Kind::Money => {
            let units = values::<String>(rows, index)?.into_iter().map(|text| text.and_then(|text| text.parse().ok()));
            let units = units.collect::<Decimal128Array>().with_precision_and_scale(DIGITS, SCALE);
            Arc::new(units.map_err(|error| sqlx::Error::Decode(error.into()))?)
        }
        Kind::Boolean => Arc::new(values::<bool>(rows, index)?.into_iter().collect::<BooleanArray>()),
        Kind::Date => {
            let day = |date: NaiveDate| (date - NaiveDate::default()).num_days() as i32;
            Arc::new(values::<NaiveDate>(rows, index)?.into_iter().map(|date| date.map(day)).collect::<Date32Array>())
        }
        Kind::Time => {
            let micros = values::<DateTime<Utc>>(rows, index)?.into_iter().map(|time| Some(time?.timestamp_micros()));
            Arc::new(micros.collect::<TimestampMicrosecondArray>().with_timezone("+00:00"))
        }
    })
}

fn values<'r, T>(rows: &'r [PgRow], index: usize) -> Result<Vec<Option<T>>, sqlx::Error>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    rows.iter().map(|row| row.try_get(index)).collect()
}

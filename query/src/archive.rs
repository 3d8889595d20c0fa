//! The table `events`: the project's own table of the archive, as it is now.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::datasource::empty::EmptyTable;
use iceberg::arrow::schema_to_arrow_schema;
use iceberg::spec::{NestedField, Schema, Type};
use iceberg_datafusion::IcebergStaticTableProvider;
use tidemill_archiver::table::{COLUMNS, Tables};

/// A project's events. Before the archiver has made the table it is an empty one with the same columns.
///
/// The provider is the static one: it knows one table and one snapshot, so no name in a query can lead to
/// another table, and it cannot write.
pub async fn events(tables: &Tables, project: &str) -> iceberg::Result<Arc<dyn TableProvider>> {
    match tables.load(project).await? {
        Some(table) => Ok(Arc::new(IcebergStaticTableProvider::try_new_from_table(table).await?)),
        None => Ok(Arc::new(EmptyTable::new(columns()?))),
    }
}

/// The columns of a new table.
fn columns() -> iceberg::Result<SchemaRef> {
    let fields = (1..)
        .zip(COLUMNS)
        .map(|(id, column)| Arc::new(NestedField::new(id, column.name, Type::Primitive(column.kind), column.required)));
    Ok(Arc::new(schema_to_arrow_schema(&Schema::builder().with_fields(fields).build()?)?))
}

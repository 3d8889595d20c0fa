//! A table gets the columns that its project declares. That changes only metadata: rows of before are null there.

use iceberg::spec::{PrimitiveType, Type};
use iceberg::table::Table;
use iceberg::transaction::{AddColumn, ApplyTransactionAction, Transaction};
use iceberg::{Catalog, Error, ErrorKind, Result};
use tidemill_common::promoted::Kind;

use crate::promotions::Promotions;

/// Other archivers may add them at the same time.
const ATTEMPTS: u32 = 5;

/// The table with all promoted columns. Where they cannot be added it is the table as it was: columns may wait, rows
/// may not.
pub async fn evolve(catalog: &dyn Catalog, table: &Table, promotions: &Promotions) -> Table {
    match add_columns(catalog, table.clone(), promotions).await {
        Ok(table) => table,
        Err(error) => {
            tracing::warn!(table = %table.identifier(), %error, "promoted columns cannot be added yet");
            table.clone()
        }
    }
}

async fn add_columns(catalog: &dyn Catalog, mut table: Table, promotions: &Promotions) -> Result<Table> {
    let mut refusal = None;
    for _ in 0..ATTEMPTS {
        let schema = table.metadata().current_schema();
        let lacks = |(name, _): &&(String, Kind)| schema.field_by_name_case_insensitive(name).is_none();
        let mut missing: Vec<_> = promotions.columns().iter().filter(lacks).collect();
        missing.dedup_by_key(|(name, _)| name);
        if missing.is_empty() {
            return Ok(table);
        }
        let transaction = Transaction::new(&table);
        let update = missing.iter().fold(transaction.update_schema(), |update, (name, kind)| {
            update.add_column(AddColumn::optional(name, Type::Primitive(type_of(*kind))))
        });
        refusal = update.apply(transaction)?.commit(catalog).await.err();
        tracing::info!(table = %table.identifier(), columns = missing.len(), refused = ?refusal, "added columns");
        // Whatever the answer was: what can be loaded is what counts.
        table = catalog.load_table(table.identifier()).await?;
    }
    Err(refusal.unwrap_or_else(|| Error::new(ErrorKind::Unexpected, "the catalog says it did what it did not")))
}

fn type_of(kind: Kind) -> PrimitiveType {
    match kind {
        Kind::Text => PrimitiveType::String,
        Kind::Time => PrimitiveType::Timestamptz,
        Kind::Long => PrimitiveType::Long,
        Kind::Double => PrimitiveType::Double,
        Kind::Bool => PrimitiveType::Boolean,
    }
}

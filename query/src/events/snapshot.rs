//! A project's table at one moment: what the archive holds, and up to where.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef};
use datafusion::catalog::TableProvider;
use iceberg::Result;
use iceberg::arrow::schema_to_arrow_schema;
use iceberg::spec::{NestedField, Schema, TableMetadata, Type};
use iceberg::table::Table;
use iceberg_datafusion::IcebergStaticTableProvider;
use tidemill_archiver::positions::{self, Positions};
use tidemill_archiver::table::{COLUMNS, Tables};

use super::data::{Data, Manifests, manifests};
use super::tail::Cut;

/// What the archive holds.
#[derive(Debug)]
pub struct Snapshot {
    /// The same for the same rows in the same columns.
    pub id: String,
    /// The columns of `events`.
    pub schema: SchemaRef,
    /// Up to where each partition is archived, by its number.
    pub positions: Positions,
    /// How its rows are read.
    pub rows: Rows,
    /// Where the table's metadata lies: a new place for every change.
    place: Option<String>,
    manifests: Manifests,
}

/// How a snapshot's rows are read.
#[derive(Debug)]
pub enum Rows {
    /// There are none.
    None,
    /// From its data files.
    Files(Data),
    /// By Iceberg's own reader: rows have been deleted, or columns renamed. Slower.
    Iceberg(Arc<dyn TableProvider>),
}

impl Snapshot {
    /// A project's table as it is now. None: as it was in `before`.
    pub async fn load(tables: &Tables, project: &str, before: Option<&Self>) -> Result<Option<Self>> {
        let Some(table) = tables.load(project).await? else {
            let is_same = before.is_some_and(|before| before.place.is_none());
            return if is_same { Ok(None) } else { Self::empty().map(Some) };
        };
        let place = table.metadata_location().map(str::to_owned);
        if place.is_some() && before.is_some_and(|before| before.place == place) {
            return Ok(None);
        }
        let metadata = table.metadata();
        let bad = |error| iceberg::Error::new(iceberg::ErrorKind::DataInvalid, "bad positions").with_source(error);
        let positions = positions::read_all(metadata.properties(), project).map_err(bad)?;
        let id = metadata.current_snapshot_id().map_or_else(|| "none".to_owned(), |id| id.to_string());
        let id = format!("{id}.{}", metadata.current_schema_id());
        let none = Manifests::new();
        let known = before.map_or(&none, |before| &before.manifests);
        let manifests = if are_named_alike(metadata) { manifests(&table, known).await? } else { None };
        let schema = with_views(&schema_to_arrow_schema(metadata.current_schema())?);
        let data = manifests.as_ref().and_then(|manifests| Data::new(&table, &schema, manifests));
        let (rows, schema) = match data {
            Some(data) => (Rows::Files(data), schema),
            None => iceberg_rows(table).await?,
        };
        Ok(Some(Self { id, schema, positions, rows, place, manifests: manifests.unwrap_or_default() }))
    }

    /// Before there is a table.
    fn empty() -> Result<Self> {
        let (id, positions, manifests) = ("none".to_owned(), Positions::new(), Manifests::new());
        Ok(Self { id, schema: empty_schema()?, positions, rows: Rows::None, place: None, manifests })
    }

    /// Where the tail begins in these incarnations of the topics. Positions in others say nothing of them.
    pub fn cut(&self, incarnations: &[String]) -> Cut {
        let ours = self.positions.iter().filter(|(_, position)| incarnations.contains(&position.incarnation));
        ours.map(|(&partition, position)| (partition, position.next)).collect()
    }
}

async fn iceberg_rows(table: Table) -> Result<(Rows, SchemaRef)> {
    let provider = IcebergStaticTableProvider::try_new_from_table(table).await?;
    let schema = provider.schema();
    Ok((Rows::Iceberg(Arc::new(provider)), schema))
}

/// The columns of a table that is not there yet.
pub fn empty_schema() -> Result<SchemaRef> {
    let fields = (1..)
        .zip(COLUMNS)
        .map(|(id, column)| Arc::new(NestedField::new(id, column.name, Type::Primitive(column.kind), column.required)));
    Ok(with_views(&schema_to_arrow_schema(&Schema::builder().with_fields(fields).build()?)?))
}

/// Text as views into the files' pages: nothing is copied that is not looked at.
fn with_views(schema: &ArrowSchema) -> SchemaRef {
    let field = |field: &Arc<Field>| {
        let kind = if field.data_type() == &DataType::Utf8 { &DataType::Utf8View } else { field.data_type() };
        Field::new(field.name(), kind.clone(), field.is_nullable())
    };
    Arc::new(ArrowSchema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

/// Whether every column has had its name at all times, so that it can be found in all files by name. Iceberg goes
/// by numbers, and lets columns be renamed.
fn are_named_alike(metadata: &TableMetadata) -> bool {
    let current = metadata.current_schema();
    let mut fields = metadata.schemas_iter().flat_map(|schema| schema.as_struct().fields());
    fields.all(|field| {
        current.field_by_id(field.id).is_none_or(|now| now.name == field.name)
            && current.field_id_by_name(&field.name).is_none_or(|id| id == field.id)
    })
}

//! The tables: one per project, `tidemill.{project}.events`, in a SQL catalog that lies in Postgres.

use std::collections::HashMap;
use std::sync::Arc;

use futures::TryFutureExt;
use iceberg::spec::{NestedField, PrimitiveType, Schema, Transform, Type, UnboundPartitionSpec};
use iceberg::table::Table;
use iceberg::{Catalog, CatalogBuilder, ErrorKind, NamespaceIdent, Result, TableCreation, TableIdent};
use iceberg_catalog_sql::{SqlBindStyle, SqlCatalogBuilder};
use iceberg_storage_opendal::OpenDalResolvingStorageFactory;
use tidemill_common::config::Connections;
use tokio::sync::OnceCell;

/// The catalog's name, and the first level of every namespace.
pub const CATALOG: &str = "tidemill";
/// Every table's name.
pub const TABLE: &str = "events";

/// A column of a new table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: PrimitiveType,
    /// Whether it always has a value.
    pub required: bool,
}

/// The columns of a new table, in order. A table may get more of them later.
pub const COLUMNS: [Column; 13] = [
    column("event_id", PrimitiveType::String, true),
    column("event_type", PrimitiveType::String, true),
    column("event_action", PrimitiveType::String, false),
    column("user_id", PrimitiveType::String, false),
    column("session_id", PrimitiveType::String, false),
    column("occurred_at", PrimitiveType::Timestamptz, true),
    column("received_at", PrimitiveType::Timestamptz, false),
    column("append_time", PrimitiveType::Timestamptz, true),
    column("properties", PrimitiveType::String, false),
    column("client_address", PrimitiveType::String, false),
    column("user_agent", PrimitiveType::String, false),
    column("kafka_partition", PrimitiveType::Int, true),
    column("kafka_offset", PrimitiveType::Long, true),
];

const fn column(name: &'static str, kind: PrimitiveType, required: bool) -> Column {
    Column { name, kind, required }
}

/// What a table's files are divided by: the day of this column.
const DIVIDED_BY: &str = "occurred_at";

/// A project's namespace.
pub fn namespace(project: &str) -> NamespaceIdent {
    NamespaceIdent::from_vec(vec![CATALOG.to_owned(), project.to_owned()]).expect("two names are not none")
}

/// A project's table.
pub fn identifier(project: &str) -> TableIdent {
    TableIdent::new(namespace(project), TABLE.to_owned())
}

/// The tables of all projects. Connects when it is first asked something. Cheap to clone.
#[derive(Clone)]
pub struct Tables {
    settings: Arc<HashMap<String, String>>,
    catalog: Arc<OnceCell<Arc<dyn Catalog>>>,
}

impl Tables {
    /// The tables in this database's catalog; new ones lie in this warehouse.
    pub fn new(connections: &Connections) -> Self {
        // Settings of the storage (`s3.endpoint`, …) belong here too: the catalog hands them on.
        let settings = [
            ("uri", connections.database_url.as_str()),
            ("warehouse", connections.warehouse_url.trim_end_matches('/')),
            ("pool.max-connections", "4"),
        ];
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { settings: Arc::new(settings), catalog: Arc::default() }
    }

    /// The catalog.
    pub async fn catalog(&self) -> Result<&dyn Catalog> {
        let open = || async {
            let catalog = SqlCatalogBuilder::default()
                .sql_bind_style(SqlBindStyle::DollarNumeric)
                .with_storage_factory(Arc::new(OpenDalResolvingStorageFactory::new()))
                .load(CATALOG, self.settings.as_ref().clone())
                .await?;
            Ok(Arc::new(catalog) as Arc<dyn Catalog>)
        };
        // Postgres' CREATE TABLE IF NOT EXISTS fails when another does the same at the same time. There are two
        // tables, so this may happen twice.
        let open = || async {
            match open().or_else(|_| open()).await {
                Err(_) => open().await,
                opened => opened,
            }
        };
        self.catalog.get_or_try_init(open).await.map(Arc::as_ref)
    }

    /// A project's table as it is now, if there is one.
    pub async fn load(&self, project: &str) -> Result<Option<Table>> {
        match self.catalog().await?.load_table(&identifier(project)).await {
            Ok(table) => Ok(Some(table)),
            Err(error) if error.kind() == ErrorKind::TableNotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A project's table; makes it if there is none.
    pub async fn load_or_create(&self, project: &str) -> Result<Table> {
        if let Some(table) = self.load(project).await? {
            return Ok(table);
        }
        let failed = self.create(project).await.err();
        // Another archiver may have made it meanwhile, and the catalog may say that it did what it did not:
        // what can be loaded is what counts.
        let missing = || iceberg::Error::new(ErrorKind::TableNotFound, "the new table is not in the catalog");
        self.load(project).await?.ok_or_else(|| failed.unwrap_or_else(missing))
    }

    async fn create(&self, project: &str) -> Result<()> {
        let catalog = self.catalog().await?;
        let namespace = namespace(project);
        if !catalog.namespace_exists(&namespace).await? {
            // When this fails, so does what follows, unless another archiver made it.
            if let Err(error) = catalog.create_namespace(&namespace, HashMap::new()).await {
                tracing::debug!(%error, project, "cannot create the namespace");
            }
        }
        catalog.create_table(&namespace, creation()?).await?;
        tracing::info!(project, "created the table");
        Ok(())
    }
}

fn creation() -> Result<TableCreation> {
    let fields = (1..)
        .zip(COLUMNS)
        .map(|(id, column)| Arc::new(NestedField::new(id, column.name, Type::Primitive(column.kind), column.required)));
    let schema = Schema::builder().with_fields(fields).build()?;
    let source = schema.field_id_by_name(DIVIDED_BY).expect("one of COLUMNS");
    let divided = UnboundPartitionSpec::builder()
        .add_partition_field(source, format!("{DIVIDED_BY}_day"), Transform::Day)?
        .build();
    let creation = TableCreation::builder()
        .name(TABLE.to_owned())
        .schema(schema)
        .partition_spec(divided)
        // For the engines that rewrite files; our own writer does not look at it.
        .properties([("write.parquet.compression-codec".to_owned(), "zstd".to_owned())])
        .build();
    Ok(creation)
}

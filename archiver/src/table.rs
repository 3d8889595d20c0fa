//! The tables: one per project, `tidemill.{project}.events`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use iceberg::io::FileIOBuilder;
use iceberg::spec::{
    NestedField, NullOrder, PrimitiveType, Schema, SortDirection, SortField, SortOrder, Transform, Type,
    UnboundPartitionSpec,
};
use iceberg::table::Table;
use iceberg::{Catalog, ErrorKind, NamespaceIdent, Result, TableCreation, TableIdent};
use iceberg_storage_opendal::OpenDalResolvingStorageFactory;
use tidemill_common::config::{CatalogKind, Connections};
use tokio::sync::OnceCell;

use crate::catalog;

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

/// For the engines that rewrite files, so that theirs are like ours; our own writer does not look at them.
const PROPERTIES: [(&str, &str); 7] = [
    ("write.parquet.compression-codec", "zstd"),
    ("write.parquet.bloom-filter-enabled.column.event_id", "true"),
    ("write.parquet.bloom-filter-enabled.column.user_id", "true"),
    ("write.target-file-size-bytes", "134217728"),
    ("write.metadata.metrics.column.properties", "counts"),
    ("write.metadata.delete-after-commit.enabled", "true"),
    ("write.metadata.previous-versions-max", "100"),
];

const fn column(name: &'static str, kind: PrimitiveType, required: bool) -> Column {
    Column { name, kind, required }
}

/// What a table's files are divided by: the day of this column.
pub const DIVIDED_BY: &str = "occurred_at";
/// What rows are sorted by.
pub const SORTED_BY: [&str; 2] = ["event_type", "occurred_at"];
/// Nearly every row has another value here: a dictionary of them would be filled for nothing.
pub const UNIQUE: &[&str] = &["event_id", "occurred_at", "received_at", "properties", "kafka_offset"];
/// Nobody asks for a range of these.
pub const UNSUMMED: &[&str] = &["properties", "user_agent"];
/// Row groups that do not have a value here are mostly known without reading them.
pub const BLOOMED: &[&str] = &["event_id", "user_id"];

const PROBE: &[u8] = b"tidemill doctor";

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
    kind: CatalogKind,
    settings: Arc<HashMap<String, String>>,
    /// Whom a REST catalog is trusted by.
    authorities: Option<PathBuf>,
    catalog: Arc<OnceCell<Arc<dyn Catalog>>>,
}

impl Tables {
    /// The tables in the catalog that the settings name; new ones lie in their warehouse.
    pub fn new(connections: &Connections) -> Self {
        let settings = Arc::new(catalog::settings(connections));
        let authorities = connections.warehouse.catalog_ca.clone();
        Self { kind: connections.warehouse.catalog, settings, authorities, catalog: Arc::default() }
    }

    /// The catalog.
    pub async fn catalog(&self) -> Result<&dyn Catalog> {
        let open = || catalog::open(self.kind, &self.settings, self.authorities.as_deref());
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

    /// Writes a small file into the warehouse, reads it and removes it.
    pub async fn probe(&self, warehouse_url: &str) -> Result<()> {
        let warehouse = warehouse_url.trim_end_matches('/');
        let storage = Arc::new(OpenDalResolvingStorageFactory::new());
        let properties = self.settings.iter().filter(|(name, _)| name.starts_with("s3."));
        let files = FileIOBuilder::new(storage).with_props(properties).build();
        let url = format!("{warehouse}/.tidemill-probe-{}", uuid::Uuid::new_v4().simple());
        files.new_output(&url)?.write(PROBE.into()).await?;
        let read = files.new_input(&url)?.read().await;
        files.delete(&url).await?;
        let differs = || iceberg::Error::new(ErrorKind::DataInvalid, "what was read is not what was written");
        if read? == PROBE { Ok(()) } else { Err(differs()) }
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
        let root = NamespaceIdent::new(CATALOG.to_owned());
        for namespace in [&root, &namespace] {
            if !catalog.namespace_exists(namespace).await? {
                // When this fails, so does what follows, unless another archiver made it.
                if let Err(error) = catalog.create_namespace(namespace, HashMap::new()).await {
                    tracing::debug!(%error, project, "cannot create a namespace");
                }
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
    let source = |name| schema.field_id_by_name(name).expect("one of COLUMNS");
    let divided = UnboundPartitionSpec::builder()
        .with_spec_id(0) // Java's REST server wants one
        .add_partition_field(source(DIVIDED_BY), format!("{DIVIDED_BY}_day"), Transform::Day)?
        .build();
    let ascending = |name| SortField {
        source_id: source(name),
        transform: Transform::Identity,
        direction: SortDirection::Ascending,
        null_order: NullOrder::First,
    };
    let sorted = SortOrder::builder().with_order_id(1).with_fields(SORTED_BY.map(ascending).to_vec()).build(&schema)?;
    let properties = PROPERTIES.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let creation = TableCreation::builder()
        .name(TABLE.to_owned())
        .schema(schema.clone())
        .partition_spec(divided)
        .sort_order(sorted)
        .properties(properties)
        .build();
    Ok(creation)
}

//! The catalogs: a SQL one that lies in the Postgres that is there, or any that speaks Iceberg's REST protocol.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use futures::TryFutureExt;
use iceberg::{Catalog, CatalogBuilder, Result};
use iceberg_catalog_rest::RestCatalogBuilder;
use iceberg_catalog_sql::{SqlBindStyle, SqlCatalogBuilder};
use iceberg_storage_opendal::OpenDalResolvingStorageFactory;
use tidemill_common::config::{CatalogKind, Connections};

use crate::https;
use crate::table::CATALOG;

const SQL_CONNECTIONS: &str = "4";

/// What a catalog is told. It hands what is about storage (`s3.…`) on to it.
pub fn settings(connections: &Connections) -> HashMap<String, String> {
    let warehouse = &connections.warehouse;
    let location = connections.warehouse_url.trim_end_matches('/');
    let path_style = warehouse.s3_path_style.unwrap_or(warehouse.s3_endpoint.is_some()).to_string();
    let region = warehouse.s3_region.clone().or_else(|| std::env::var("AWS_REGION").ok());
    let catalog = match warehouse.catalog {
        CatalogKind::Sql => [
            ("uri", Some(connections.database_url.as_str())),
            ("warehouse", Some(location)),
            ("pool.max-connections", Some(SQL_CONNECTIONS)),
        ],
        CatalogKind::Rest => [
            ("uri", warehouse.catalog_url.as_deref().map(|url| url.trim_end_matches('/'))),
            ("warehouse", Some(warehouse.catalog_warehouse.as_deref().unwrap_or(location))),
            ("token", warehouse.catalog_token.as_deref()),
        ],
    };
    let storage = [
        ("s3.endpoint", warehouse.s3_endpoint.as_deref()),
        ("s3.region", Some(region.as_deref().unwrap_or("us-east-1"))),
        ("s3.access-key-id", warehouse.s3_access_key_id.as_deref()),
        ("s3.secret-access-key", warehouse.s3_secret_access_key.as_deref()),
        ("s3.path-style-access", Some(path_style.as_str())),
    ];
    let named = catalog.into_iter().chain(storage);
    let named = named.filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
    named.chain(warehouse.properties.clone()).collect()
}

/// Connects. A REST catalog is trusted by the authorities in a file, if there is one.
pub async fn open(
    kind: CatalogKind,
    settings: &HashMap<String, String>,
    authorities: Option<&Path>,
) -> Result<Arc<dyn Catalog>> {
    match kind {
        CatalogKind::Sql => open_sql(settings).await,
        CatalogKind::Rest => {
            let storage = Arc::new(OpenDalResolvingStorageFactory::new());
            let catalog =
                RestCatalogBuilder::default().with_client(https::client(authorities)?).with_storage_factory(storage);
            Ok(Arc::new(catalog.load(CATALOG, settings.clone()).await?))
        }
    }
}

async fn open_sql(settings: &HashMap<String, String>) -> Result<Arc<dyn Catalog>> {
    let open = || async {
        let catalog = SqlCatalogBuilder::default()
            .sql_bind_style(SqlBindStyle::DollarNumeric)
            .with_storage_factory(Arc::new(OpenDalResolvingStorageFactory::new()))
            .load(CATALOG, settings.clone())
            .await?;
        Ok(Arc::new(catalog) as Arc<dyn Catalog>)
    };
    // Postgres' CREATE TABLE IF NOT EXISTS fails when another does the same at the same time. There are two tables,
    // so this may happen twice.
    match open().or_else(|_| open()).await {
        Err(_) => open().await,
        opened => opened,
    }
}

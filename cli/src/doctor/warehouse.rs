//! The archive: its catalog, its storage, its tables.

use tidemill_archiver::table::{Tables, namespace};
use tidemill_common::config::{CatalogKind, Connections};

use super::{Finding, Found, ids};
use crate::store::Project;

const CHECK: &str = "warehouse";

pub async fn check(connections: &Connections, projects: &[Project]) -> Found<()> {
    let tables = Tables::new(connections);
    let asked = async { tables.catalog().await?.namespace_exists(&namespace("any")).await };
    let mut findings = Vec::new();
    match asked.await {
        Ok(_) => findings.push(Finding::ok(CHECK, "the catalog answers")),
        Err(error) => {
            let what = format!("the catalog does not answer: {error}");
            findings.push(Finding::failure(CHECK, what, "mend DATABASE_URL or the settings of [warehouse]"));
            return (findings, ());
        }
    }
    findings.push(match tables.probe(&connections.warehouse_url).await {
        Ok(()) => Finding::ok(CHECK, format!("{} can be written, read and cleared", connections.warehouse_url)),
        Err(error) => {
            let what =
                format!("a file in {} could not be written, read and removed: {error}", connections.warehouse_url);
            let what_to_do =
                "mend WAREHOUSE_URL, S3_ENDPOINT and credentials; run this where the archiver runs, as its user";
            Finding::failure(CHECK, what, what_to_do)
        }
    });
    for project in ids(projects) {
        match tables.load(project).await {
            Ok(table) => {
                findings.extend(table.and_then(|table| elsewhere(project, table.metadata().location(), connections)));
            }
            Err(error) => {
                let what = format!("the table of {project} cannot be loaded: {error}");
                findings.push(Finding::failure(CHECK, what, "is its metadata file still in the warehouse?"));
            }
        }
    }
    (findings, ())
}

/// A table stays where it was made. A REST catalog chooses by itself where that is.
fn elsewhere(project: &str, location: &str, connections: &Connections) -> Option<Finding> {
    let warehouse = connections.warehouse_url.trim_end_matches('/');
    let inside = location.strip_prefix(warehouse).is_some_and(|rest| rest.starts_with('/'));
    (connections.warehouse.catalog == CatalogKind::Sql && !inside).then(|| {
        let what = format!("the table of {project} lies in {location}, outside of WAREHOUSE_URL ({warehouse})");
        let what_to_do = "give all services and commands the same WAREHOUSE_URL; tables stay where they were made";
        Finding::warning(CHECK, what, what_to_do)
    })
}

//! `tidemill archive warehouse-setup`

use anyhow::Context;
use serde::Serialize;
use tidemill_archiver::table::Tables;
use tidemill_common::config::{Connections, Settings};
use tidemill_query::setup::{Place, S3, clickhouse_statements, trino_rules};
use tidemill_query::{Address, Config, Kind};

use crate::archive;
use crate::output::{Output, json_line, print_line};

#[derive(Serialize)]
struct Statements {
    statements: Vec<String>,
    /// Projects that have no table yet.
    without_table: Vec<String>,
}

/// Prints rules or statements for the engine that the settings name.
pub async fn setup(connections: &Connections, output: Output) -> anyhow::Result<()> {
    let config: Config = Settings::load("query")?.section("query")?;
    let address = config.warehouse_address()?;
    let address = address.context("query.warehouse is not set; set TIDEMILL_QUERY__WAREHOUSE to trino or clickhouse, and TIDEMILL_QUERY__WAREHOUSE_URL to its address")?;
    let projects = archive::projects(None, connections).await?;
    match address.kind {
        Kind::Trino => {
            let rules = trino_rules(&address, &projects);
            match output {
                Output::Json => json_line(&rules),
                Output::Table => print_line(&serde_json::to_string_pretty(&rules)?),
            }
        }
        Kind::ClickHouse => {
            let statements = statements(&address, projects, connections).await?;
            match output {
                Output::Json => json_line(&statements),
                Output::Table => print_line(&script(&address, &statements)),
            }
        }
    }
}

async fn statements(address: &Address, projects: Vec<String>, connections: &Connections) -> anyhow::Result<Statements> {
    let tables = Tables::new(connections);
    let (mut places, mut without_table) = (Vec::new(), Vec::new());
    for project in projects {
        match tables.load(&project).await? {
            Some(table) => places.push(Place { project, location: table.metadata().location().to_owned() }),
            None => without_table.push(project),
        }
    }
    let region = connections.warehouse.s3_region.clone().or_else(|| std::env::var("AWS_REGION").ok());
    let region = region.unwrap_or_else(|| "us-east-1".to_owned());
    let s3 = S3 { endpoint: connections.warehouse.s3_endpoint.clone(), region };
    Ok(Statements { statements: clickhouse_statements(address, &places, &s3)?, without_table })
}

/// Passwords and keys are not ours to print.
fn script(address: &Address, all: &Statements) -> String {
    let mut lines = vec![
        "-- Once, with a password and the keys of your storage:".to_owned(),
        format!("--   CREATE USER `{}` IDENTIFIED BY '…' SETTINGS readonly = 2;", address.user),
        "--   CREATE NAMED COLLECTION `tidemill_archive` AS access_key_id = '…', secret_access_key = '…';".to_owned(),
    ];
    lines.extend(all.statements.iter().map(|statement| format!("{statement};")));
    lines.extend(all.without_table.iter().map(|project| {
        format!("-- {project} has no table yet: it comes with its first archived event; run this again then")
    }));
    lines.join("\n")
}

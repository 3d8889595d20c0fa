//! `tidemill migrate`

use serde::Serialize;
use sqlx::Postgres;
use sqlx::migrate::MigrateDatabase;
use sqlx::postgres::PgConnectOptions;
use tidemill_common::config::Connections;
use tidemill_common::postgres::MIGRATIONS;

use crate::output::Output;
use crate::store;

#[derive(Serialize)]
struct Migrated {
    database: String,
    /// Whether the database was missing.
    created: bool,
    version: i64,
}

pub async fn run(connections: &Connections, output: Output) -> anyhow::Result<()> {
    let options = store::parse(&connections.database_url)?;
    let created = create_if_missing(&connections.database_url, &options).await?;
    let mut db = store::connect(&connections.database_url).await?;
    // It takes a lock, so that two of us at once do no harm.
    MIGRATIONS.run(&mut db).await.map_err(|error| anyhow::anyhow!("the schema was not brought up to date: {error}"))?;
    let version = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    let migrated = Migrated { database: store::place(&options), created, version };
    output.thing(&migrated, &["database", "created", "version"])
}

async fn create_if_missing(url: &str, options: &PgConnectOptions) -> anyhow::Result<bool> {
    let unreachable = |error| store::unreachable_at(options, error);
    if Postgres::database_exists(url).await.map_err(unreachable)? {
        return Ok(false);
    }
    match Postgres::create_database(url).await {
        Ok(()) => Ok(true),
        // Another one was quicker.
        Err(_) if Postgres::database_exists(url).await.unwrap_or(false) => Ok(false),
        Err(error) => Err(unreachable(error)),
    }
}

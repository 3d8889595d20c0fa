//! `tidemill migrate`

use std::collections::BTreeSet;

use clap::Args;
use serde::Serialize;
use sqlx::migrate::MigrateDatabase;
use sqlx::postgres::PgConnectOptions;
use sqlx::{PgConnection, Postgres};
use tidemill_common::config::Connections;
use tidemill_common::postgres::MIGRATIONS;

use crate::output::Output;
use crate::{audit, store};

const FIELDS: [&str; 4] = ["database", "created", "version", "migrations"];
/// What was applied is in a table, once something was.
const KNOWN: &str = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";

#[derive(Args)]
pub struct Migrate {
    /// Show what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Migrated {
    database: String,
    /// Whether the database was missing.
    created: bool,
    /// What it is brought to.
    version: i64,
    /// What it lacked.
    migrations: Vec<String>,
    applied: bool,
}

pub async fn run(migrate: &Migrate, connections: &Connections, output: Output) -> anyhow::Result<()> {
    let options = store::parse(&connections.database_url)?;
    let unreachable = |error| store::unreachable_at(&options, error);
    let exists = Postgres::database_exists(&connections.database_url).await.map_err(unreachable)?;
    let version = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    let created = !exists && !migrate.dry_run && create(&connections.database_url, &options).await?;
    let migrations = if exists || !migrate.dry_run {
        lacking(&mut store::connect(&connections.database_url).await?).await?
    } else {
        names(&BTreeSet::new())
    };
    let created = created || (migrate.dry_run && !exists);
    let mut migrated = Migrated { database: store::place(&options), created, version, migrations, applied: false };
    if !migrate.dry_run {
        let mut db = store::connect(&connections.database_url).await?;
        // It takes a lock, so that two of us at once do no harm.
        let done = MIGRATIONS.run(&mut db).await;
        done.map_err(|error| anyhow::anyhow!("the schema was not brought up to date: {error}"))?;
        migrated.applied = true;
        if !migrated.migrations.is_empty() {
            // Only now is there a book for certain.
            audit::begin(&mut db, "migrate", None, &migrated).await?.end(&mut db, Ok(())).await?;
        }
    }
    output.thing(&migrated, &FIELDS)
}

async fn lacking(db: &mut PgConnection) -> anyhow::Result<Vec<String>> {
    let mut applied = Vec::new();
    if sqlx::query_scalar(KNOWN).fetch_one(&mut *db).await.map_err(store::explain)? {
        let versions = sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success");
        applied = versions.fetch_all(db).await.map_err(store::explain)?;
    }
    Ok(names(&applied.into_iter().collect()))
}

/// All but those that were applied.
fn names(applied: &BTreeSet<i64>) -> Vec<String> {
    let lacking = MIGRATIONS.iter().filter(|migration| !applied.contains(&migration.version));
    lacking.map(|migration| format!("{:04} {}", migration.version, migration.description)).collect()
}

/// Whether it was us.
async fn create(url: &str, options: &PgConnectOptions) -> anyhow::Result<bool> {
    match Postgres::create_database(url).await {
        Ok(()) => Ok(true),
        // Another one was quicker.
        Err(_) if Postgres::database_exists(url).await.unwrap_or(false) => Ok(false),
        Err(error) => Err(store::unreachable_at(options, error)),
    }
}

//! Postgres: version, migrations, permissions, settings.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use tidemill_common::config::Connections;
use tidemill_common::postgres::MIGRATIONS;

use super::{Finding, Found};
use crate::store::{self, Project};

const CHECK: &str = "postgres";
/// The oldest version that the tests run on.
const OLDEST: i32 = 150_000;
const LACKING: &str = "SELECT format('%s on %s', p.privilege, c.relname) \
     FROM pg_class c CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p(privilege) \
     WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition \
     AND NOT has_table_privilege(c.oid, p.privilege) ORDER BY 1";

/// Findings, and the projects that there are.
pub async fn check(connections: &Connections) -> Found<Vec<Project>> {
    let mut db = match store::connect(&connections.database_url).await {
        Ok(db) => db,
        Err(error) => {
            return (
                vec![Finding::failure(CHECK, format!("{error:#}"), "mend DATABASE_URL, or start Postgres")],
                Vec::new(),
            );
        }
    };
    let mut findings = Vec::new();
    for found in [server(&mut db).await, migrations(&mut db).await, permissions(&mut db).await] {
        match found {
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(unasked(&error)),
        }
    }
    // Without an answer the migrations say why.
    (findings, store::live_projects(&mut db).await.unwrap_or_default())
}

fn unasked(error: &sqlx::Error) -> Finding {
    Finding::failure(CHECK, error.to_string(), "let the user of DATABASE_URL read the catalog and its own tables")
}

async fn server(db: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let version: String = sqlx::query_scalar("SHOW server_version").fetch_one(&mut *db).await?;
    let number: i32 =
        sqlx::query_scalar("SELECT current_setting('server_version_num')::int").fetch_one(&mut *db).await?;
    let mut findings = vec![match number >= OLDEST {
        true => Finding::ok(CHECK, format!("version {version}")),
        false => Finding::warning(CHECK, format!("version {version} is untried"), "upgrade to PostgreSQL 15 or later"),
    }];
    for setting in ["fsync", "full_page_writes"] {
        let value: String = sqlx::query_scalar("SELECT current_setting($1)").bind(setting).fetch_one(&mut *db).await?;
        if value != "on" {
            let what = format!("{setting} is {value}: a crash of its machine may leave a broken database");
            findings.push(Finding::failure(CHECK, what, format!("set {setting} = on, unless this is a test")));
        }
    }
    let standby: bool = sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(db).await?;
    if standby {
        let what = "DATABASE_URL leads to a standby, which takes no writes";
        findings.push(Finding::failure(CHECK, what, "name the primary"));
    }
    Ok(findings)
}

async fn migrations(db: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let there: bool =
        sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(&mut *db).await?;
    let mut applied: BTreeMap<i64, (Vec<u8>, bool)> = BTreeMap::new();
    if there {
        let rows: Vec<(i64, Vec<u8>, bool)> =
            sqlx::query_as("SELECT version, checksum, success FROM _sqlx_migrations").fetch_all(db).await?;
        applied.extend(rows.into_iter().map(|(version, checksum, success)| (version, (checksum, success))));
    }
    let mut findings = Vec::new();
    let declared: Vec<_> = MIGRATIONS.iter().collect();
    let missing = declared.iter().filter(|migration| !applied.contains_key(&migration.version)).count();
    if missing > 0 {
        let what = format!("{missing} of {} migrations are missing", declared.len());
        findings.push(Finding::failure(CHECK, what, "run 'tidemill migrate'"));
    }
    for migration in &declared {
        let Some((checksum, success)) = applied.remove(&migration.version) else { continue };
        if !success || *checksum != *migration.checksum {
            let what = format!("migration {} is not the one that this binary has", migration.version);
            findings.push(Finding::failure(CHECK, what, "run the release that the database was migrated with"));
        }
    }
    if let Some(newest) = applied.keys().last() {
        let what = format!("the database is newer than this binary (migration {newest})");
        findings.push(Finding::warning(CHECK, what, "upgrade the services that are older"));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("all {} migrations are there", declared.len())));
    }
    Ok(findings)
}

async fn permissions(db: &mut PgConnection) -> Result<Vec<Finding>, sqlx::Error> {
    let lacking: Vec<String> = sqlx::query_scalar(LACKING).fetch_all(&mut *db).await?;
    let creates: bool =
        sqlx::query_scalar("SELECT has_schema_privilege(current_schema(), 'CREATE')").fetch_one(db).await?;
    let mut findings = Vec::new();
    if !lacking.is_empty() {
        let what = format!("this user lacks {}", lacking.join(", "));
        findings.push(Finding::failure(CHECK, what, "grant them, or make this user the tables' owner"));
    }
    if !creates {
        let what = "this user cannot create tables, which 'tidemill migrate', raw_events and the SQL catalog need";
        findings.push(Finding::warning(CHECK, what, "GRANT CREATE ON SCHEMA … TO this user"));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "this user may read and write all tables"));
    }
    Ok(findings)
}

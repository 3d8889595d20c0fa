//! `tidemill archive`

mod forget;
mod maintain;

use clap::Subcommand;
use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;
use tidemill_common::config::Connections;

use crate::consent::Consent;
use crate::output::Output;
use crate::setting::Setting;
use crate::{store, warehouse};

const RETENTION: [&str; 2] = ["project", "archive_days"];

#[derive(Subcommand)]
pub enum Command {
    /// Remove old snapshots of the tables, and the files that nobody needs any more
    ///
    /// It is safe beside archivers, queries and other engines, and again at any time; once a day will do. Files are
    /// compacted by Spark: see archiver/maintenance/.
    Maintain(maintain::Maintain),
    /// Delete one user's events from the archive, and what says who he was from Postgres
    ///
    /// Files are rewritten by Spark; the archive's past goes with it, so no older snapshot can be read afterwards.
    /// Counts stay. Kafka keeps the events until its retention has passed. It can be run again at any time, and does
    /// what is left to do.
    Forget(forget::Forget),
    /// Show or change for how many days a project's events stay in the archive
    ///
    /// Without --days it is only shown. Days that are over are deleted by `archiver/maintenance/maintain.py retain`.
    Retention {
        /// The project's id
        #[arg(long)]
        project: String,
        /// Days of the events' own time, or unlimited
        #[arg(long, value_name = "N|unlimited", value_parser = days)]
        days: Option<Days>,
        #[command(flatten)]
        consent: Consent,
    },
    /// Print what lets the engine that query.warehouse names read the archive, each project its own table only
    ///
    /// For Trino the file of rules for its file-based access control; for ClickHouse statements for clickhouse-client.
    /// Nothing is changed. Run it again when there are new projects: until then the engine refuses their queries.
    WarehouseSetup,
}

/// `None` is unlimited.
#[derive(Clone, Copy)]
pub struct Days(Option<i32>);

fn days(text: &str) -> Result<Days, String> {
    match text.parse() {
        _ if text == "unlimited" => Ok(Days(None)),
        Ok(days) if days > 0 => Ok(Days(Some(days))),
        _ => Err("give a number of days from 1, or unlimited".to_owned()),
    }
}

#[derive(Serialize)]
struct Retention {
    project: String,
    archive_days: Option<i32>,
    /// Whether it was changed.
    applied: bool,
}

pub async fn run(command: Command, connections: &Connections, output: Output) -> anyhow::Result<()> {
    match command {
        Command::Maintain(what) => maintain::run(&what, connections, output).await,
        Command::Forget(who) => forget::run(&who, connections, output).await,
        Command::Retention { project, days, consent } => {
            let mut db = store::connect(&connections.database_url).await?;
            let before = store::archive_days(&mut db, &project).await?.ok_or_else(|| store::no_project(&project))?;
            let Some(Days(days)) = days else {
                return output.thing(&Retention { project, archive_days: before, applied: false }, &RETENTION);
            };
            let setting = Setting { project: &project, setting: "archive_days", from: json!(before), to: json!(days) };
            let question = match days {
                Some(days) => format!("Keep archived events of project {project} for {days} days only?"),
                None => format!("Keep archived events of project {project} for ever?"),
            };
            let set = async |db: &mut PgConnection| store::set_archive_days(db, &project, days).await;
            let applied = setting.change("archive retention", &question, (consent, output), &mut db, set).await?;
            let archive_days = if applied { days } else { before };
            output.ended(&Retention { project, archive_days, applied }, applied)
        }
        Command::WarehouseSetup => warehouse::setup(connections, output).await,
    }
}

pub async fn projects(only: Option<&str>, connections: &Connections) -> anyhow::Result<Vec<String>> {
    let mut db = store::connect(&connections.database_url).await?;
    let all = store::live_projects(&mut db).await?.into_iter();
    let chosen: Vec<String> = all.map(|project| project.id).filter(|id| only.is_none_or(|only| only == id)).collect();
    match only {
        Some(only) if chosen.is_empty() => Err(store::no_project(only)),
        _ => Ok(chosen),
    }
}

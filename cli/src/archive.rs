//! `tidemill archive`

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use chrono::Utc;
use clap::{Args, Subcommand};
use serde::Serialize;
use tidemill_archiver::forget;
use tidemill_archiver::maintain::{Maintained, Maintenance, Neighbours, forget_past, maintain};
use tidemill_archiver::table::Tables;
use tidemill_common::config::Connections;
use tidemill_stream::forget::Removed;
use tokio::process;

use crate::output::Output;
use crate::{store, warehouse};

const MAINTAINED: [&str; 6] = ["project", "snapshots", "snapshots_left", "expired_files", "orphans", "bytes"];
const FORGOTTEN: [&str; 7] =
    ["project", "archived", "raw_events", "sessions", "first_seen", "snapshots", "removed_files"];
const RETENTION: [&str; 2] = ["project", "archive_days"];

#[derive(Subcommand)]
pub enum Command {
    /// Remove old snapshots of the tables, and the files that nobody needs any more
    ///
    /// It is safe beside archivers, queries and other engines, and again at any time; once a day will do. Files are
    /// compacted by Spark: see archiver/maintenance/.
    Maintain(Maintain),
    /// Delete one user's events from the archive, and what says who he was from Postgres
    ///
    /// Files are rewritten by Spark; the archive's past goes with it, so no older snapshot can be read afterwards.
    /// Counts stay. Kafka keeps the events until its retention has passed. It can be run again at any time, and does
    /// what is left to do.
    Forget(Forget),
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
    },
    /// Print what lets the engine that query.warehouse names read the archive, each project its own table only
    ///
    /// For Trino the file of rules for its file-based access control; for ClickHouse statements for clickhouse-client.
    /// Nothing is changed. Run it again when there are new projects: until then the engine refuses their queries.
    WarehouseSetup,
}

#[derive(Args)]
pub struct Maintain {
    /// Only this project [default: all]
    #[arg(long)]
    project: Option<String>,
    /// Remove snapshots older than this; no query takes longer
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    snapshot_hours: u64,
    /// Keep so many of the newest snapshots in any case
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    keep_snapshots: u32,
    /// Remove files that no table refers to when they are older than this
    #[arg(long, value_name = "HOURS", default_value_t = 72, value_parser = clap::value_parser!(u64).range(24..))]
    orphan_hours: u64,
    /// Only say what would be removed; snapshots are left as they are
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
pub struct Forget {
    /// The project's id
    #[arg(long)]
    project: String,
    /// The user's id
    #[arg(long)]
    user: String,
    /// How Spark runs `maintain.py`, e.g. "spark-submit … archiver/maintenance/maintain.py"; without it you are told
    /// what to run
    #[arg(long, env = "TIDEMILL_ARCHIVE_SPARK", value_name = "COMMAND")]
    spark: Option<String>,
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
struct Forgotten {
    project: String,
    /// Rows that were in the archive.
    archived: u64,
    #[serde(flatten)]
    rows: Removed,
    snapshots: usize,
    removed_files: usize,
}

#[derive(Serialize)]
struct Retention {
    project: String,
    archive_days: Option<i32>,
}

pub async fn run(command: Command, connections: &Connections, output: Output) -> anyhow::Result<()> {
    match command {
        Command::Maintain(what) => output.things(&maintain_all(&what, connections).await?, &MAINTAINED),
        Command::Forget(who) => output.thing(&forget(&who, connections).await?, &FORGOTTEN),
        Command::Retention { project, days } => {
            let mut db = store::connect(&connections.database_url).await?;
            let archive_days = match days {
                Some(Days(days)) => store::set_archive_days(&mut db, &project, days).await?,
                None => store::archive_days(&mut db, &project).await?,
            };
            let archive_days = archive_days.ok_or_else(|| store::no_project(&project))?;
            output.thing(&Retention { project, archive_days }, &RETENTION)
        }
        Command::WarehouseSetup => warehouse::setup(connections, output).await,
    }
}

/// One table that cannot be maintained does not keep the others from it.
async fn maintain_all(what: &Maintain, connections: &Connections) -> anyhow::Result<Vec<Maintained>> {
    let hours = |hours: u64| Duration::from_secs(hours * 3_600);
    let maintenance = Maintenance {
        snapshots_older_than: hours(what.snapshot_hours),
        keep_snapshots: what.keep_snapshots as usize,
        orphans_older_than: hours(what.orphan_hours),
        dry_run: what.dry_run,
    };
    let tables = Tables::new(connections);
    let neighbours = Neighbours::load(&tables).await?;
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for project in projects(what.project.as_deref(), connections).await? {
        match maintain(&tables, &neighbours, &project, &maintenance, Utc::now().timestamp_millis()).await {
            Ok(maintained) => done.extend(maintained),
            Err(error) => failed.push(format!("{project}: {error}")),
        }
    }
    if !failed.is_empty() {
        bail!("{} of {} tables: {}", failed.len(), failed.len() + done.len(), failed.join("; "));
    }
    Ok(done)
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

async fn forget(who: &Forget, connections: &Connections) -> anyhow::Result<Forgotten> {
    projects(Some(&who.project), connections).await?;
    let mut db = store::connect(&connections.database_url).await?;
    let rows = tidemill_stream::forget::user(&mut db, &who.project, &who.user).await?;
    let tables = Tables::new(connections);
    let archived = forget::archived(&tables, &who.project, &who.user).await?;
    if archived > 0 {
        delete_with_spark(who, archived).await?;
        let left = forget::archived(&tables, &who.project, &who.user).await?;
        anyhow::ensure!(left == 0, "{left} of his events are in the archive still; run this again");
    }
    let past = forget_past(&tables, &who.project, Utc::now().timestamp_millis()).await?.unwrap_or_default();
    let (project, snapshots) = (who.project.clone(), past.snapshots);
    Ok(Forgotten { project, archived, rows, snapshots, removed_files: past.expired_files })
}

async fn delete_with_spark(who: &Forget, archived: u64) -> anyhow::Result<()> {
    let arguments = ["forget", "--project", &who.project, "--user", &who.user];
    let Some(spark) = &who.spark else {
        let quoted = who.user.replace('\'', r"'\''");
        bail!(
            "{archived} of his events are in the archive: delete them with 'maintain.py forget --project {} --user \
             '{quoted}'' (see archiver/maintenance/), then run this again; or let this run it with --spark",
            who.project
        );
    };
    let mut words = spark.split_whitespace();
    let program = words.next().context("--spark is empty; give the command that runs maintain.py")?;
    let status = process::Command::new(program)
        .args(words)
        .args(arguments)
        .stdout(Stdio::null()) // ours is for the result
        .status()
        .await
        .with_context(|| format!("{program} cannot be started; correct --spark"))?;
    anyhow::ensure!(status.success(), "{spark} forget failed ({status}); what it printed says why");
    Ok(())
}

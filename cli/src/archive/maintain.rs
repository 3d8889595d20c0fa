//! `tidemill archive maintain`

use std::time::Duration;

use anyhow::bail;
use chrono::Utc;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use tidemill_archiver::maintain::{Maintained, Maintenance, Neighbours, maintain};
use tidemill_archiver::table::Tables;
use tidemill_common::config::Connections;

use super::projects;
use crate::consent::Consent;
use crate::output::{Output, counted, spinner};
use crate::{audit, store};

const FIELDS: [&str; 6] = ["project", "snapshots", "snapshots_left", "expired_files", "orphans", "bytes"];

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
    #[command(flatten)]
    consent: Consent,
}

/// A table, maintained or looked at.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    table: Maintained,
    applied: bool,
}

pub async fn run(what: &Maintain, connections: &Connections, output: Output) -> anyhow::Result<()> {
    let mut db = store::connect(&connections.database_url).await?;
    let projects = projects(what.project.as_deref(), connections).await?;
    let mut rows = Vec::new();
    // Listing what lies in storage is most of the work: for nobody who looks, it is done once.
    if what.consent.wants_plan() {
        rows = maintain_all(what, true, &projects, connections).await?;
        if matches!(output, Output::Table) {
            output.things(&rows, &FIELDS)?;
        }
    }
    let question = format!(
        "Remove what nobody needs from {}: these files, and snapshots older than {} h with the files that only they have?",
        counted(projects.len(), "table"),
        what.snapshot_hours
    );
    if what.consent.given(&question)? {
        let plan = json!({
            "projects": projects, "snapshot_hours": what.snapshot_hours, "keep_snapshots": what.keep_snapshots,
            "orphan_hours": what.orphan_hours, "looked_at": rows,
        });
        let entry = audit::begin(&mut db, "archive maintain", what.project.as_deref(), &plan).await?;
        let done = maintain_all(what, false, &projects, connections).await;
        rows = entry.end(&mut db, done).await?;
    } else if matches!(output, Output::Table) {
        return output.ended(&rows, false); // they were shown
    }
    output.things(&rows, &FIELDS)
}

/// One table that cannot be maintained does not keep the others from it.
async fn maintain_all(
    what: &Maintain,
    dry_run: bool,
    projects: &[String],
    connections: &Connections,
) -> anyhow::Result<Vec<Row>> {
    let hours = |hours: u64| Duration::from_secs(hours * 3_600);
    let maintenance = Maintenance {
        snapshots_older_than: hours(what.snapshot_hours),
        keep_snapshots: what.keep_snapshots as usize,
        orphans_older_than: hours(what.orphan_hours),
        dry_run,
    };
    let bar = spinner(if dry_run { "looking at the tables" } else { "removing what nobody needs" });
    let tables = Tables::new(connections);
    let neighbours = Neighbours::load(&tables).await?;
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for project in projects {
        match maintain(&tables, &neighbours, project, &maintenance, Utc::now().timestamp_millis()).await {
            Ok(maintained) => done.extend(maintained.map(|table| Row { table, applied: !dry_run })),
            Err(error) => failed.push(format!("{project}: {error}")),
        }
    }
    bar.finish_and_clear();
    if !failed.is_empty() {
        bail!("{} of {} tables: {}", failed.len(), failed.len() + done.len(), failed.join("; "));
    }
    Ok(done)
}

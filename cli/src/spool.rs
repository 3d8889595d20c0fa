//! `tidemill spool`

use std::path::PathBuf;

use anyhow::Context;
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use serde::Serialize;
use tidemill_common::config::Connections;
use tidemill_ingest::spool;

use crate::consent::Consent;
use crate::output::Output;
use crate::{audit, store};

const FIELDS: [&str; 6] = ["project", "records", "bytes", "kept_bytes", "oldest", "state"];

#[derive(Args)]
pub struct Spool {
    /// The gateway's spool
    #[arg(long, env = "SPOOL_DIR", global = true, default_value = "spool")]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the projects that have events in the spool
    List,
    /// Let a project's events go to Kafka though they are older than 12 h
    ///
    /// They wait because their senders may have sent them another way since: what reaches Kafka more than 24 h
    /// after its copy counts twice. A running gateway notices within seconds.
    Release {
        /// The project's id
        project: String,
        #[command(flatten)]
        consent: Consent,
    },
    /// Throw a project's spooled events away; the gateway must be stopped
    Discard {
        /// The project's id
        project: String,
        #[command(flatten)]
        consent: Consent,
    },
}

#[derive(Serialize)]
struct Row {
    project: String,
    records: u64,
    bytes: u64,
    kept_bytes: u64,
    oldest: Option<String>,
    state: &'static str,
}

/// A part of the spool that an operator decides on.
#[derive(Serialize)]
struct Change {
    dir: PathBuf,
    #[serde(flatten)]
    row: Row,
    applied: bool,
}

pub async fn run(spool: Spool, connections: &Connections, output: Output) -> anyhow::Result<()> {
    let mut listed = spool::list(&spool.dir, Utc::now().timestamp_millis())?;
    let (project, consent, release) = match spool.command {
        Command::List => {
            let rows: Vec<Row> = listed.into_iter().map(|(project, listed)| row(project, &listed)).collect();
            return output.things(&rows, &FIELDS);
        }
        Command::Release { project, consent } => (project, consent, true),
        Command::Discard { project, consent } => (project, consent, false),
    };
    let found = listed.remove(&project);
    let found = found.with_context(|| {
        format!("{} has nothing of project {project:?}; see 'tidemill spool list'", spool.dir.display())
    })?;
    let records = found.records;
    let mut change = Change { row: row(project, &found), dir: spool.dir, applied: false };
    output.plan(&change, &FIELDS)?;
    let project = change.row.project.clone();
    let (command, question) = match release {
        true => {
            ("spool release", format!("Let {records} events of project {project} go to Kafka, however old they are?"))
        }
        false => ("spool discard", format!("Throw {records} events of project {project} away for ever?")),
    };
    if consent.given(&question)? {
        let mut db = store::connect(&connections.database_url).await?;
        let entry = audit::begin(&mut db, command, Some(&project), &change).await?;
        let done = match release {
            true => spool::release(&change.dir, &project),
            false => spool::discard(&change.dir, &project),
        };
        entry.end(&mut db, done.map_err(Into::into)).await?;
        change.applied = true;
        change.row.state = if release { "released" } else { "discarded" };
    }
    output.ended(&change, change.applied)
}

fn row(project: String, listed: &spool::Listed) -> Row {
    let time = |ms| DateTime::from_timestamp_millis(ms).map(|at| at.to_rfc3339_opts(SecondsFormat::Secs, true));
    Row {
        project,
        records: listed.records,
        bytes: listed.bytes,
        kept_bytes: listed.kept_bytes,
        oldest: listed.oldest.and_then(time),
        state: if listed.waiting { "waits for release" } else { "drained when Kafka is up" },
    }
}

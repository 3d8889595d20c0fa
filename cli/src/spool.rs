//! `tidemill spool`

use std::path::PathBuf;

use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};
use serde::Serialize;
use tidemill_ingest::spool;

use crate::output::Output;

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
    },
    /// Throw a project's spooled events away; the gateway must be stopped
    Discard {
        /// The project's id
        project: String,
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

#[derive(Serialize)]
struct Done {
    project: String,
    records: u64,
    state: &'static str,
}

pub fn run(spool: Spool, output: Output) -> anyhow::Result<()> {
    let listed = spool::list(&spool.dir, Utc::now().timestamp_millis())?;
    let records = |project: &str| listed.get(project).map_or(0, |listed| listed.records);
    let (project, state) = match spool.command {
        Command::List => {
            let rows: Vec<Row> = listed.into_iter().map(|(project, listed)| row(project, &listed)).collect();
            return output.things(&rows, &FIELDS);
        }
        Command::Release { project } => {
            spool::release(&spool.dir, &project)?;
            (project, "released")
        }
        Command::Discard { project } => {
            spool::discard(&spool.dir, &project)?;
            (project, "discarded")
        }
    };
    let records = records(&project);
    output.thing(&Done { project, records, state }, &["project", "records", "state"])
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

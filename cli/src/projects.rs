//! `tidemill projects`

mod create;
mod delete;
pub mod grow;
mod partitions;

use clap::Subcommand;
use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;
use tidemill_common::config::Connections;

use crate::consent::Consent;
use crate::output::Output;
use crate::setting::Setting;
use crate::store::{self, Project};
use crate::topics::Declared;

const FIELDS: [&str; 8] = [
    "id",
    "partitions",
    "dlq_partitions",
    "quota_per_second",
    "generation",
    "created_at",
    "suspended_at",
    "deleted_at",
];

#[derive(Subcommand)]
pub enum Command {
    /// Make a project: its topics, its schemas in the registry, its table in the archive, its row, and first keys
    ///
    /// What is there already is left as it is, so running it again completes what is missing, wherever it was cut short.
    /// The first keys, one to write and one to read, are made for a project that has never had any; they are shown once
    /// and kept nowhere. The id of a deleted project cannot be used again. Run it with the archiver's WAREHOUSE_URL.
    Create {
        /// 1 to 48 characters of a-z, 0-9 and '-'
        id: String,
        /// Size class of the partition counts: small or standard [default: small where there is one copy, else standard]
        #[arg(long)]
        size: Option<String>,
        /// Events per second that the project may send, over all gateways [default: no limit, or as it is]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
        quota: Option<i32>,
        /// Make no keys
        #[arg(long)]
        no_keys: bool,
        #[command(flatten)]
        declared: Declared,
        #[command(flatten)]
        consent: Consent,
    },
    /// Change how many events per second a project may send, over all gateways; effective within seconds
    Quota {
        /// The project's id
        id: String,
        /// Events per second, or none
        #[arg(value_name = "N|none", value_parser = quota)]
        quota: Quota,
        #[command(flatten)]
        consent: Consent,
    },
    /// Spread a project's events over more partitions
    ///
    /// Growth only, to a multiple, and only once within the dedupe window. Nothing stops for it, and copies sent before
    /// and after count once. Running it again completes what was cut short.
    Grow {
        /// The project's id
        id: String,
        /// How many there are to be
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
        partitions: i32,
        #[command(flatten)]
        consent: Consent,
    },
    /// Take no more events of a project over HTTP, within seconds; what there is stays, and can be read
    Suspend {
        /// The project's id
        id: String,
        #[command(flatten)]
        consent: Consent,
    },
    /// Take events of a suspended project again
    Resume {
        /// The project's id
        id: String,
        #[command(flatten)]
        consent: Consent,
    },
    /// Delete a project for ever: its keys, its topics with all events, its schemas, all it has in Postgres
    ///
    /// Its archive stays: drop the table `tidemill.<id>.events` with any engine. Running it again completes what was
    /// cut short. The id is never used again.
    Delete {
        /// The project's id
        id: String,
        #[command(flatten)]
        consent: Consent,
    },
    /// List all projects
    List,
}

/// `None` is no limit.
#[derive(Clone, Copy)]
pub struct Quota(Option<i32>);

fn quota(text: &str) -> Result<Quota, String> {
    match text.parse() {
        _ if text == "none" => Ok(Quota(None)),
        Ok(quota) if quota > 0 => Ok(Quota(Some(quota))),
        _ => Err("give a number of events per second from 1, or none".to_owned()),
    }
}

/// A project after a change, or as it is without it.
#[derive(Serialize)]
struct Changed {
    #[serde(flatten)]
    project: Project,
    applied: bool,
}

pub async fn run(command: Command, connections: &Connections, output: Output) -> anyhow::Result<()> {
    match command {
        Command::Create { id, size, quota, no_keys, declared, consent } => {
            let wanted = create::Wanted { id, size, quota, keys: !no_keys, declared };
            create::run(&wanted, consent, connections, output).await
        }
        Command::Grow { id, partitions, consent } => grow::run(&id, partitions, consent, connections, output).await,
        Command::Quota { id, quota: Quota(quota), consent } => {
            let mut db = store::connect(&connections.database_url).await?;
            let known = existing(&mut db, &id).await?;
            let (from, to) = (json!(known.quota_per_second), json!(quota));
            let setting = Setting { project: &id, setting: "quota_per_second", from, to };
            let question = match quota {
                Some(quota) => format!("Let project {id} send at most {quota} events a second?"),
                None => format!("Let project {id} send as many events as it likes?"),
            };
            let set = async |db: &mut PgConnection| store::set_quota(db, &id, quota).await;
            let applied = setting.change("projects quota", &question, (consent, output), &mut db, set).await?;
            ended(&id, applied, &mut db, output).await
        }
        Command::Suspend { id, consent } => suspend(&id, true, consent, connections, output).await,
        Command::Resume { id, consent } => suspend(&id, false, consent, connections, output).await,
        Command::Delete { id, consent } => delete::run(&id, consent, connections, output).await,
        Command::List => {
            let mut db = store::connect(&connections.database_url).await?;
            output.things(&store::projects(&mut db).await?, &FIELDS)
        }
    }
}

async fn suspend(
    id: &str,
    suspended: bool,
    consent: Consent,
    connections: &Connections,
    output: Output,
) -> anyhow::Result<()> {
    let mut db = store::connect(&connections.database_url).await?;
    let known = existing(&mut db, id).await?;
    let (from, to) = (json!(known.suspended_at.is_some()), json!(suspended));
    let setting = Setting { project: id, setting: "suspended", from, to };
    let (command, question) = match suspended {
        true => ("projects suspend", format!("Take no more events of {id}?")),
        false => ("projects resume", format!("Take events of {id} again?")),
    };
    let set = async |db: &mut PgConnection| store::suspend(db, id, suspended).await;
    let applied = setting.change(command, &question, (consent, output), &mut db, set).await?;
    ended(id, applied, &mut db, output).await
}

async fn ended(id: &str, applied: bool, db: &mut PgConnection, output: Output) -> anyhow::Result<()> {
    let project = existing(db, id).await?;
    output.ended(&Changed { project, applied }, applied)
}

/// A project that was not deleted.
async fn existing(db: &mut PgConnection, id: &str) -> anyhow::Result<Project> {
    let known = store::project(db, id).await?.filter(|project| project.deleted_at.is_none());
    known.ok_or_else(|| store::no_project(id))
}

//! `tidemill projects`

mod delete;
pub mod grow;

use anyhow::{Context, bail};
use clap::Subcommand;
use serde::Serialize;
use serde_json::json;
use sqlx::PgConnection;
use tidemill_common::codec::EVENT_SCHEMA;
use tidemill_common::config::Connections;
use tidemill_common::names::{ProjectId, events_topic, processed_topic};
use tidemill_common::registry::Registry;
use tidemill_stream::emit::PROCESSED_SCHEMA;
use tidemill_topics::{Change, Partitions};

use crate::audit;
use crate::consent::Consent;
use crate::output::Output;
use crate::store::{self, Project};
use crate::topics::{Applied, Declared, Target};

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
const CREATED: [&str; 7] =
    ["project", "partitions", "dlq_partitions", "quota_per_second", "created", "topics_created", "drift"];

#[derive(Subcommand)]
pub enum Command {
    /// Make a project: its topics, its schemas in the registry, its row in Postgres
    ///
    /// Running it again is fine and completes what is missing. The id of a deleted project cannot be used again.
    Create {
        /// 1 to 48 characters of a-z, 0-9 and '-'
        id: String,
        /// Size class of the partition counts: small or standard [default: small where there is one copy, else standard]
        #[arg(long)]
        size: Option<String>,
        /// Events per second that the project may send, over all gateways [default: no limit, or as it is]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
        quota: Option<i32>,
        #[command(flatten)]
        declared: Declared,
    },
    /// Change how many events per second a project may send, over all gateways; effective within seconds
    Quota {
        /// The project's id
        id: String,
        /// Events per second, or none
        #[arg(value_name = "N|none", value_parser = quota)]
        quota: Quota,
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

#[derive(Serialize)]
struct Created {
    project: String,
    partitions: i32,
    dlq_partitions: i32,
    quota_per_second: Option<i32>,
    /// Whether it is new.
    created: bool,
    #[serde(flatten)]
    applied: Applied,
}

pub async fn run(command: Command, connections: &Connections, output: Output) -> anyhow::Result<()> {
    match command {
        Command::Create { id, size, quota, declared } => {
            let created = create(&id, size.as_deref(), quota, &declared, connections).await?;
            output.thing(&created, &CREATED)
        }
        Command::Quota { id, quota: Quota(quota) } => {
            let mut db = store::connect(&connections.database_url).await?;
            let entry = audit::begin(&mut db, "projects quota", Some(&id), &json!({ "quota": quota })).await?;
            let project = store::set_quota(&mut db, &id, quota)
                .await
                .and_then(|project| project.ok_or_else(|| store::no_project(&id)));
            output.thing(&entry.end(&mut db, project).await?, &FIELDS)
        }
        Command::Grow { id, partitions, consent } => grow::run(&id, partitions, consent, connections, output).await,
        Command::Suspend { id, consent } => {
            let mut db = store::connect(&connections.database_url).await?;
            let known = existing(&mut db, &id).await?;
            if consent.given(&format!("Take no more events of {id}?"))? {
                suspend(&mut db, &id, true).await?;
            }
            output.thing(&store::project(&mut db, &known.id).await?, &FIELDS)
        }
        Command::Resume { id } => {
            let mut db = store::connect(&connections.database_url).await?;
            existing(&mut db, &id).await?;
            suspend(&mut db, &id, false).await?;
            output.thing(&store::project(&mut db, &id).await?, &FIELDS)
        }
        Command::Delete { id, consent } => delete::run(&id, consent, connections, output).await,
        Command::List => {
            let mut db = store::connect(&connections.database_url).await?;
            output.things(&store::projects(&mut db).await?, &FIELDS)
        }
    }
}

async fn suspend(db: &mut PgConnection, id: &str, suspended: bool) -> anyhow::Result<()> {
    let command = if suspended { "projects suspend" } else { "projects resume" };
    let entry = audit::begin(db, command, Some(id), &json!({ "suspended": suspended })).await?;
    let done = store::suspend(db, id, suspended).await;
    entry.end(db, done).await
}

/// A project that was not deleted.
async fn existing(db: &mut PgConnection, id: &str) -> anyhow::Result<Project> {
    let known = store::project(db, id).await?.filter(|project| project.deleted_at.is_none());
    known.ok_or_else(|| store::no_project(id))
}

/// The row comes last: whoever sees it finds everything else in place.
async fn create(
    id: &str,
    size: Option<&str>,
    quota: Option<i32>,
    declared: &Declared,
    connections: &Connections,
) -> anyhow::Result<Created> {
    let id = ProjectId::parse(id)?;
    let mut db = store::connect(&connections.database_url).await?;
    let known = store::project(&mut db, id.as_str()).await?;
    if known.as_ref().is_some_and(|project| project.deleted_at.is_some()) {
        bail!("project {id} was deleted and its id is never used again; choose another id");
    }
    let target = Target::new(declared, connections).await?;
    let partitions = partitions(known.as_ref(), size, &target)?;
    let topics = target.declarations.project(&id, partitions, target.replication);
    let changes = target.plan(&topics).await?;
    let missing: Vec<Change> = changes.iter().filter(|c| matches!(c, Change::Create(_))).cloned().collect();
    if known.is_none() {
        refuse_other_partitions(&changes)?;
    }
    let applied = Applied::new(&changes);
    let entry = audit::begin(&mut db, "projects create", Some(id.as_str()), &applied).await?;
    let made = async {
        target.cluster.apply(&missing).await?;
        register_schemas(&id, connections).await?;
        let created = known.is_none() && store::insert_project(&mut db, id.as_str(), partitions).await?;
        if quota.is_some() {
            store::set_quota(&mut db, id.as_str(), quota).await?;
        }
        let kept = store::project(&mut db, id.as_str()).await?.context("the project's row vanished; try again")?;
        if kept.partitions() != partitions {
            bail!(
                "project {id} was created with other partition counts by someone else just now; run this again to see"
            );
        }
        Ok((created, kept))
    }
    .await;
    let (created, kept) = entry.end(&mut db, made).await?;
    Ok(Created {
        project: kept.id,
        partitions: kept.partitions,
        dlq_partitions: kept.dlq_partitions,
        quota_per_second: kept.quota_per_second,
        created,
        applied,
    })
}

/// What is kept with a project wins; a new one takes what its size class says.
fn partitions(known: Option<&Project>, size: Option<&str>, target: &Target) -> anyhow::Result<Partitions> {
    let default = if target.replication == Some(1) { "small" } else { "standard" };
    let declared = target.declarations.size(size.unwrap_or(default))?;
    let Some(project) = known else { return Ok(declared) };
    let kept = project.partitions();
    if let Some(size) = size.filter(|_| kept != declared) {
        bail!(
            "project {} exists with {} partitions ({} for dead letters), which is not size {size} ({} and {}); \
             leave --size out to keep them",
            project.id,
            kept.events,
            kept.dlq,
            declared.events,
            declared.dlq
        );
    }
    Ok(kept)
}

/// A new project must not be told partition counts that its topics do not have.
fn refuse_other_partitions(changes: &[Change]) -> anyhow::Result<()> {
    for change in changes {
        let (topic, found, declared) = match change {
            Change::Drift { topic, setting, found, declared, .. } if setting == "partitions" => {
                (topic, found.clone(), declared.clone())
            }
            Change::Grow { topic, from, to } => (topic, from.to_string(), to.to_string()),
            _ => continue,
        };
        bail!(
            "topic {topic} exists already, with {found} partitions where {declared} are wanted; choose the --size that \
             fits, another id, or delete the topic"
        );
    }
    Ok(())
}

/// Dead letters are whatever bytes came in, so their topic has no schema.
async fn register_schemas(id: &ProjectId, connections: &Connections) -> anyhow::Result<()> {
    let registry = Registry::new(&connections.registry_url)?;
    let topics = [(events_topic(id.as_str()), EVENT_SCHEMA), (processed_topic(id.as_str()), PROCESSED_SCHEMA)];
    for (topic, schema) in topics {
        let subject = format!("{topic}-value");
        registry.register(&subject, schema).await?;
        registry.keep_backward_compatible(&subject).await?;
    }
    Ok(())
}

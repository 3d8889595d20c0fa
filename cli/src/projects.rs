//! `tidemill projects`

use anyhow::{Context, bail};
use clap::Subcommand;
use serde::Serialize;
use tidemill_common::codec::EVENT_SCHEMA;
use tidemill_common::config::Connections;
use tidemill_common::names::{ProjectId, events_topic, processed_topic};
use tidemill_common::registry::Registry;
use tidemill_topics::{Change, Partitions};

use crate::output::Output;
use crate::store::{self, Project};
use crate::topics::{Applied, Declared, Target};

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
        #[command(flatten)]
        declared: Declared,
    },
    /// List all projects
    List,
}

#[derive(Serialize)]
struct Created {
    project: String,
    partitions: i32,
    dlq_partitions: i32,
    /// Whether it is new.
    created: bool,
    #[serde(flatten)]
    applied: Applied,
}

pub async fn run(command: Command, connections: &Connections, output: Output) -> anyhow::Result<()> {
    match command {
        Command::Create { id, size, declared } => {
            let created = create(&id, size.as_deref(), &declared, connections).await?;
            output.thing(&created, &["project", "partitions", "dlq_partitions", "created", "topics_created", "drift"])
        }
        Command::List => {
            let mut db = store::connect(&connections.database_url).await?;
            let fields = ["id", "partitions", "dlq_partitions", "generation", "created_at", "deleted_at"];
            output.things(&store::projects(&mut db).await?, &fields)
        }
    }
}

/// The row comes last: whoever sees it finds everything else in place.
async fn create(
    id: &str,
    size: Option<&str>,
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
    if known.is_none() {
        refuse_other_partitions(&changes)?;
    }
    target.cluster.apply(&changes).await?;
    register_schemas(&id, connections).await?;
    let created = known.is_none() && store::insert_project(&mut db, id.as_str(), partitions).await?;
    let kept = store::project(&mut db, id.as_str()).await?.context("the project's row vanished; try again")?;
    if kept.partitions() != partitions {
        bail!("project {id} was created with other partition counts by someone else just now; run this again to see");
    }
    let (partitions, dlq_partitions) = (kept.partitions, kept.dlq_partitions);
    Ok(Created { project: kept.id, partitions, dlq_partitions, created, applied: Applied::new(&changes) })
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
        if let Change::Drift { topic, setting, declared, found } = change
            && setting == "partitions"
        {
            bail!(
                "topic {topic} exists already, with {found} partitions where {declared} are wanted; \
                 choose the --size that fits, another id, or delete the topic"
            );
        }
    }
    Ok(())
}

/// Dead letters are whatever bytes came in, so their topic has no schema.
async fn register_schemas(id: &ProjectId, connections: &Connections) -> anyhow::Result<()> {
    let registry = Registry::new(&connections.registry_url)?;
    for topic in [events_topic(id.as_str()), processed_topic(id.as_str())] {
        let subject = format!("{topic}-value");
        registry.register(&subject, EVENT_SCHEMA).await?;
        registry.keep_backward_compatible(&subject).await?;
    }
    Ok(())
}

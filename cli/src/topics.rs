//! `tidemill topics`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use tidemill_common::config::Connections;
use tidemill_common::names::ProjectId;
use tidemill_topics::{Change, Cluster, Declarations, Topic, plan, replication};

use crate::output::Output;
use crate::store;

#[derive(Subcommand)]
pub enum Command {
    /// Create the declared topics that are missing: the metrics' and every project's
    ///
    /// Topics that exist are left as they are; where they differ from their declaration, that is reported.
    /// Running it again changes nothing.
    Apply(Declared),
}

/// Which declarations to use, and how many copies to keep.
#[derive(Args)]
pub struct Declared {
    /// Folder with topic declarations (*.yaml) to use in place of those in the binary
    #[arg(long, value_name = "FOLDER")]
    pub dir: Option<PathBuf>,
    /// Copies of each partition [default: as declared; 1 on a single broker]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    pub replication: Option<i32>,
}

/// What was done, and what was left.
#[derive(Serialize, Default)]
pub struct Applied {
    /// Topics that were created.
    pub topics_created: Vec<String>,
    /// Differences that were only found, in words.
    pub drift: Vec<String>,
}

/// Declarations and the cluster that they are for.
pub struct Target {
    pub declarations: Declarations,
    pub cluster: Cluster,
    pub replication: Option<i32>,
}

pub async fn run(command: Command, connections: &Connections, output: Output) -> anyhow::Result<()> {
    let Command::Apply(declared) = command;
    let mut db = store::connect(&connections.database_url).await?;
    let target = Target::new(&declared, connections).await?;
    let mut topics = target.declarations.shared(target.replication);
    for project in store::projects(&mut db).await?.into_iter().filter(|project| project.deleted_at.is_none()) {
        let id = ProjectId::parse(&project.id)?;
        topics.extend(target.declarations.project(&id, project.partitions(), target.replication));
    }
    let changes = target.plan(&topics).await?;
    target.cluster.apply(&changes).await?;
    output.thing(&Applied::new(&changes), &["topics_created", "drift"])
}

impl Target {
    pub async fn new(declared: &Declared, connections: &Connections) -> anyhow::Result<Self> {
        let declarations = match &declared.dir {
            Some(folder) => Declarations::read(folder)?,
            None => Declarations::embedded()?,
        };
        let cluster = Cluster::new(&connections.kafka)?;
        let replication = replication(declared.replication, cluster.brokers().await?);
        Ok(Self { declarations, cluster, replication })
    }

    pub async fn plan(&self, topics: &[Topic]) -> anyhow::Result<Vec<Change>> {
        Ok(plan(topics, &self.cluster.existing(topics).await?))
    }
}

impl Applied {
    pub fn new(changes: &[Change]) -> Self {
        let mut applied = Self::default();
        for change in changes {
            match change {
                Change::Create(topic) => applied.topics_created.push(topic.name.clone()),
                Change::Drift { .. } => applied.drift.push(change.to_string()),
            }
        }
        applied
    }
}

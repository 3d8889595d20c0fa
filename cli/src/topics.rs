//! `tidemill topics`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use tidemill_common::config::Connections;
use tidemill_common::names::ProjectId;
use tidemill_common::names::events_topic;
use tidemill_topics::{Change, Cluster, Declarations, Growth, Topic, plan, plan_growth, replication};

use crate::audit;
use crate::consent::Consent;
use crate::output::{Output, counted, json_line};
use crate::projects::grow;
use crate::store;

const STEP: [&str; 6] = ["action", "topic", "setting", "from", "to", "note"];

#[derive(Subcommand)]
pub enum Command {
    /// Show how the cluster differs from the declared topics: the metrics' and every project's
    Plan {
        /// End with exit code 4 when there is something to do
        #[arg(long)]
        check: bool,
        #[command(flatten)]
        declared: Declared,
    },
    /// Make the cluster as declared: create topics, change their settings, add partitions
    ///
    /// Nothing is ever deleted. Events get more partitions where the declarations give their project more (`projects:`),
    /// a multiple of what it has. What Kafka cannot change is left as it is. Running it again changes nothing.
    Apply {
        #[command(flatten)]
        consent: Consent,
        #[command(flatten)]
        declared: Declared,
    },
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

/// Declarations and the cluster that they are for.
pub struct Target {
    pub declarations: Declarations,
    pub cluster: Cluster,
    pub replication: Option<i32>,
}

/// A line of the plan.
#[derive(Serialize)]
struct Step {
    action: &'static str,
    topic: String,
    setting: Option<String>,
    from: Option<String>,
    to: Option<String>,
    /// What it deletes, or why it is left.
    note: Option<&'static str>,
}

#[derive(Serialize)]
struct Planned {
    /// Whether it was done.
    applied: bool,
    plan: Vec<Step>,
}

/// There is something to do, and somebody wanted to know: exit code 4.
#[derive(Debug, thiserror::Error)]
#[error("the cluster is not as declared; see 'tidemill topics apply'")]
pub struct Differs;

pub async fn run(command: Command, connections: &Connections, output: Output) -> anyhow::Result<()> {
    match command {
        Command::Plan { check, declared } => {
            let (_, difference) = difference(&declared, connections).await?;
            difference.show(false, output)?;
            if check && difference.to_do() > 0 { Err(Differs.into()) } else { Ok(()) }
        }
        Command::Apply { consent, declared } => {
            let (target, difference) = difference(&declared, connections).await?;
            let to_do = difference.to_do();
            if to_do == 0 {
                return difference.show(false, output);
            }
            if matches!(output, Output::Table) {
                difference.show(false, output)?;
            }
            let applied = consent.given(&format!("Make {}?", counted(to_do, "change")))?;
            if applied {
                let mut db = store::connect(&connections.database_url).await?;
                let lines: Vec<String> = difference.changes.iter().map(Change::to_string).collect();
                let entry = audit::begin(&mut db, "topics apply", None, &lines).await?;
                let done = target.cluster.apply(&difference.changes).await.map_err(anyhow::Error::from);
                entry.end(&mut db, done).await?;
                for growth in &difference.growths {
                    grow::apply(&mut db, growth, connections).await?;
                }
            }
            match output {
                Output::Json => difference.show(applied, output),
                Output::Table => output.ended(&(), applied),
            }
        }
    }
}

/// How topics are not as declared.
pub struct Difference {
    pub changes: Vec<Change>,
    /// Projects whose events are to be spread over more partitions.
    pub growths: Vec<Growth>,
}

/// What all declared topics lack.
pub async fn difference(declared: &Declared, connections: &Connections) -> anyhow::Result<(Target, Difference)> {
    let mut db = store::connect(&connections.database_url).await?;
    let target = Target::new(declared, connections).await?;
    let mut topics = target.declarations.shared(target.replication);
    let (mut growths, mut drift) = (Vec::new(), Vec::new());
    for project in store::live_projects(&mut db).await? {
        let id = ProjectId::parse(&project.id)?;
        topics.extend(target.declarations.project(&id, project.partitions(), &project.routed(), target.replication));
        let Some(wanted) = target.declarations.events_of(&id) else { continue };
        match plan_growth(&mut db, &project.id, wanted).await {
            Ok(growth) => growths.extend(growth),
            Err(error) => drift.push(Change::Drift {
                topic: events_topic(&project.id),
                setting: "partitions".to_owned(),
                found: project.partitions.to_string(),
                declared: wanted.to_string(),
                why: grow::why(&error).ok_or(error)?,
            }),
        }
    }
    let mut changes = target.plan(&topics).await?;
    // What a growth left when it was cut short is not said twice.
    let grows = |change: &Change| {
        matches!(change, Change::Drift { topic, setting, .. }
            if setting == "partitions" && growths.iter().any(|growth| growth.topics.iter().any(|(grows, _)| grows == topic)))
    };
    changes.retain(|change| !grows(change));
    changes.extend(drift);
    Ok((target, Difference { changes, growths }))
}

impl Difference {
    /// How much there is to do.
    pub fn to_do(&self) -> usize {
        self.changes.iter().filter(|change| change.is_to_do()).count() + self.growths.len()
    }

    /// Whether all is as declared.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.growths.is_empty()
    }

    fn show(&self, applied: bool, output: Output) -> anyhow::Result<()> {
        let plan: Vec<Step> =
            self.changes.iter().map(Step::of).chain(self.growths.iter().flat_map(Step::growing)).collect();
        match output {
            Output::Json => json_line(&Planned { applied, plan }),
            Output::Table => output.things(&plan, &STEP),
        }
    }
}

impl Step {
    fn growing(growth: &Growth) -> impl Iterator<Item = Self> + use<'_> {
        growth.topics.iter().map(move |(topic, to)| Self {
            action: "grow",
            topic: topic.clone(),
            setting: Some("partitions".to_owned()),
            from: Some((to / growth.to * growth.from).to_string()),
            to: Some(to.to_string()),
            note: Some(grow::NOTE),
        })
    }

    fn of(change: &Change) -> Self {
        let note = change.note();
        let (action, topic, setting, from, to) = match change.clone() {
            Change::Create(topic) => ("create", topic.name, None, None, None),
            Change::Set { topic, setting, from, to } => ("set", topic, Some(setting), Some(from), Some(to)),
            Change::Grow { topic, from, to } => {
                ("grow", topic, Some("partitions".to_owned()), Some(from.to_string()), Some(to.to_string()))
            }
            Change::Drift { topic, setting, found, declared, .. } => {
                ("leave", topic, Some(setting), Some(found), Some(declared))
            }
        };
        Self { action, topic, setting, from, to, note }
    }
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

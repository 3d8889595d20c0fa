//! `tidemill routes`

use clap::Subcommand;
use serde::Serialize;
use tidemill_common::codec::EVENT_SCHEMA;
use tidemill_common::config::Connections;
use tidemill_common::names::{ProjectId, route_topic};
use tidemill_common::registry::Registry;
use tidemill_topics::{Route, Wanted, begin_route, plan_route};

use crate::audit;
use crate::consent::Consent;
use crate::output::{Output, spinner};
use crate::projects::grow::{SETTLE, shown};
use crate::store;
use crate::topics::{Declared, Target};

const FIELDS: [&str; 8] = ["project", "name", "event_types", "topic", "partitions", "key", "applied", "note"];
const LISTED: [&str; 6] = ["project", "name", "event_types", "topic", "partitions", "key"];
const NOTE: &str = "events sent before and after count once; it cannot be undone";

#[derive(Subcommand)]
pub enum Command {
    /// Give events of some types a topic of their own, so that they hold up no others
    ///
    /// The topic is made as the project's own is declared, and workers and archivers take it up by themselves. Sessions,
    /// metrics, the archive and SQL go on as if nothing had happened, and copies sent before and after count once. It cannot
    /// be undone, and a route's types never change. Running it again completes what was cut short.
    Create {
        /// The project's id
        project: String,
        /// Its name: 1 to 40 characters of a-z, 0-9 and '-'
        #[arg(long)]
        name: String,
        /// An event type that goes there; may be given several times
        #[arg(long = "type", value_name = "TYPE", required = true)]
        event_types: Vec<String>,
        /// A multiple of those of the project's own topic [default: as many]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
        partitions: Option<i32>,
        /// Spread events over these by their users, too: for eventIds that are unevenly spread
        #[arg(long, requires = "partitions")]
        by_user: bool,
        #[command(flatten)]
        declared: Declared,
        #[command(flatten)]
        consent: Consent,
    },
    /// List the routes of a project, or of all
    List {
        /// Only this project's
        #[arg(long)]
        project: Option<String>,
    },
}

#[derive(Serialize)]
struct Planned {
    applied: bool,
    #[serde(flatten)]
    route: Route,
    note: &'static str,
}

pub async fn run(command: Command, connections: &Connections, output: Output) -> anyhow::Result<()> {
    match command {
        Command::Create { project, name, event_types, partitions, by_user, declared, consent } => {
            let wanted = Wanted { name: &name, event_types: &event_types, partitions, by_user };
            create(&project, wanted, &declared, consent, connections, output).await
        }
        Command::List { project } => list(project.as_deref(), connections, output).await,
    }
}

async fn create(
    project: &str,
    wanted: Wanted<'_>,
    declared: &Declared,
    consent: Consent,
    connections: &Connections,
    output: Output,
) -> anyhow::Result<()> {
    let mut db = store::connect(&connections.database_url).await?;
    let route = plan_route(&mut db, project, wanted).await?;
    let target = Target::new(declared, connections).await?;
    let known = store::project(&mut db, project).await?.ok_or_else(|| store::no_project(project))?;
    let topics = target.declarations.project(&ProjectId::parse(project)?, known.partitions(), &[], target.replication);
    let mut planned = Planned { applied: false, route, note: NOTE };
    output.plan(&planned, &FIELDS)?;
    let types = wanted.event_types.join(", ");
    if consent.given(&format!("Send events of type {types} of {project} to a topic of their own, for good?"))? {
        let route = &planned.route;
        let entry = audit::begin(&mut db, "routes create", Some(project), route).await?;
        let bar = spinner("making the topic");
        let registered = Registry::new(&connections.registry_url);
        let done = async {
            let (registry, subject) = (registered?, format!("{}-value", route.topic));
            registry.register(&subject, EVENT_SCHEMA).await?;
            registry.keep_backward_compatible(&subject).await?;
            let begun = begin_route(&mut db, &connections.kafka, route, &topics, SETTLE, |step| {
                bar.set_message(shown(step, "making the topic"));
            });
            Ok(begun.await?)
        }
        .await;
        bar.finish_and_clear();
        entry.end(&mut db, done).await?;
        planned.applied = true;
    }
    output.ended(&planned, planned.applied)
}

async fn list(project: Option<&str>, connections: &Connections, output: Output) -> anyhow::Result<()> {
    let mut db = store::connect(&connections.database_url).await?;
    store::known(&mut db, project).await?;
    let mut routes = Vec::new();
    for of in store::live_projects(&mut db).await? {
        if project.is_some_and(|wanted| *wanted != of.id) {
            continue;
        }
        routes.extend((1..).zip(of.routes.0).map(|(number, route)| Route {
            topic: route_topic(&of.id, number, &route.name),
            project: of.id.clone(),
            name: route.name,
            event_types: route.event_types,
            partitions: of.partitions * route.times,
            key: route.key,
        }));
    }
    output.things(&routes, &LISTED)
}

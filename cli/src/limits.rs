//! `tidemill limits`

use anyhow::bail;
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;
use tidemill_common::config::Connections;
use tidemill_ingest::event_limits::{self, EventLimit, Limited};

use crate::audit;
use crate::consent::Consent;
use crate::output::Output;
use crate::store::{self, explain};

const FIELDS: [&str; 5] = ["project", "kind", "name", "per_second", "set_at"];
const PLAN: [&str; 5] = ["project", "kind", "name", "before", "after"];

#[derive(Subcommand)]
pub enum Command {
    /// Limit an event type or a user of a project; gateways know within 5 seconds
    ///
    /// Events over the limit are answered 429 with a time to come back, so nothing is lost that its sender sends again.
    /// Producers that write to Kafka themselves are not limited by it.
    Set {
        #[command(flatten)]
        of: Of,
        /// Events per second, over all gateways; 0: none may pass
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
        rate: i32,
        #[command(flatten)]
        consent: Consent,
    },
    /// List limits of event types and users
    List {
        /// Only this project's
        #[arg(long)]
        project: Option<String>,
    },
    /// Take a limit away
    Remove {
        #[command(flatten)]
        of: Of,
        #[command(flatten)]
        consent: Consent,
    },
}

/// What is limited.
#[derive(Args)]
pub struct Of {
    /// The project's id
    #[arg(long)]
    project: String,
    #[command(flatten)]
    whose: Whose,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Whose {
    /// The event type
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// The user's id
    #[arg(long)]
    user: Option<String>,
}

impl Of {
    fn limited(&self) -> Limited {
        match &self.whose.event_type {
            Some(event_type) => Limited::Type(event_type.clone()),
            None => Limited::User(self.whose.user.clone().expect("one of both is required")),
        }
    }
}

/// A change: events per second before and after it; none is no limit.
#[derive(Serialize)]
struct Change {
    project: String,
    kind: &'static str,
    name: String,
    before: Option<i32>,
    after: Option<i32>,
    applied: bool,
}

pub async fn run(command: Command, connections: &Connections, output: Output) -> anyhow::Result<()> {
    match command {
        Command::List { project } => {
            let mut db = store::connect(&connections.database_url).await?;
            store::known(&mut db, project.as_deref()).await?;
            output.things(&event_limits::all(&mut db, project.as_deref()).await.map_err(explain)?, &FIELDS)
        }
        Command::Set { of, rate, consent } => change(&of, Some(rate), consent, connections, output).await,
        Command::Remove { of, consent } => change(&of, None, consent, connections, output).await,
    }
}

async fn change(
    of: &Of,
    rate: Option<i32>,
    consent: Consent,
    connections: &Connections,
    output: Output,
) -> anyhow::Result<()> {
    let limited = of.limited();
    let (project, kind, name) = (of.project.clone(), limited.kind(), limited.name().to_owned());
    let mut db = store::connect(&connections.database_url).await?;
    store::known(&mut db, Some(&project)).await?;
    let known = event_limits::all(&mut db, Some(&project)).await.map_err(explain)?;
    let before = known.iter().find(|limit| limit.kind == kind && limit.name == name).map(|limit| limit.per_second);
    if rate.is_none() && before.is_none() {
        bail!("{kind} {name:?} of project {project:?} has no limit; see 'tidemill limits list'");
    }
    let question = match rate {
        Some(0) => format!("Let no event of {kind} {name:?} pass in project {project}?"),
        Some(rate) => format!("Let at most {rate} events a second of {kind} {name:?} pass in project {project}?"),
        None => format!("Take the limit of {kind} {name:?} in project {project} away?"),
    };
    let mut plan = Change { project, kind, name, before, after: rate, applied: false };
    output.plan(&plan, &PLAN)?;
    if consent.given(&question)? {
        let command = if rate.is_some() { "limits set" } else { "limits remove" };
        let body = json!({ "kind": kind, "name": plan.name, "before": before, "after": rate });
        let entry = audit::begin(&mut db, command, Some(&plan.project), &body).await?;
        let done: anyhow::Result<EventLimit> = match rate {
            Some(rate) => event_limits::set(&mut db, &plan.project, &limited, rate).await,
            None => event_limits::remove(&mut db, &plan.project, &limited).await,
        }
        .map_err(explain)
        .and_then(|row| row.ok_or_else(|| store::no_project(&plan.project)));
        entry.end(&mut db, done).await?;
        plan.applied = true;
    }
    output.ended(&plan, plan.applied)
}

//! `tidemill replay plan`

use chrono::{DateTime, Utc};
use serde::Serialize;
use tidemill_stream::replay::{self, From, Plan};

use super::{Desk, archive, explain};
use crate::audit;
use crate::consent::Consent;
use crate::output::{Output, counted};
use crate::{position, store};

const PLAN: [&str; 7] = ["project", "begins", "records", "archive_files", "left_out", "replaces", "rate"];

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    whose: Whose,
    /// Only what was appended at this time or later (RFC 3339) [default: from the beginning]
    #[arg(long, value_name = "TIME")]
    from_time: Option<DateTime<Utc>>,
    /// Only what stands in a partition at this offset or behind it, e.g. 3:1200; may be given several times
    #[arg(long, value_name = "PARTITION:OFFSET", value_parser = position, conflicts_with_all = ["from_time", "all"])]
    from_offset: Vec<(i32, i64)>,
    /// Records per second, over all workers of the replay [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    rate: Option<i32>,
    #[command(flatten)]
    consent: Consent,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Whose {
    /// The project's id
    #[arg(long)]
    project: Option<String>,
    /// All projects, a replay for each
    #[arg(long)]
    all: bool,
}

fn position(text: &str) -> Result<(i32, i64), String> {
    position::parse(text).ok_or_else(|| "give e.g. 3:1200".to_owned())
}

/// A plan, and the replay that it has become.
#[derive(Serialize)]
struct Planned {
    id: Option<i64>,
    generation: Option<i32>,
    applied: bool,
    #[serde(flatten)]
    plan: Plan,
}

pub async fn run(args: &Args, desk: &mut Desk) -> anyhow::Result<()> {
    let Desk { db, pool, setup, output } = desk;
    let connections = &setup.connections;
    let projects = match &args.whose.project {
        Some(project) => vec![project.clone()],
        None => store::live_projects(db).await?.into_iter().map(|project| project.id).collect(),
    };
    let from = match (args.from_time, args.from_offset.is_empty()) {
        (Some(time), _) => From::Time(time),
        (None, false) => From::Offsets(args.from_offset.iter().copied().collect()),
        (None, true) => From::Beginning,
    };
    let mut planned = Vec::new();
    for project in projects {
        let archive = match from {
            From::Offsets(_) => None,
            From::Beginning | From::Time(_) => archive::offer(connections, &project, args.from_time).await?,
        };
        let begin = (&from, archive.as_ref());
        let plan = replay::plan(pool, &connections.kafka, &project, begin, args.rate).await.map_err(explain)?;
        planned.push(Planned { id: None, generation: None, applied: false, plan });
    }
    if !matches!(output, Output::Json) {
        output.things(&planned, &PLAN)?;
    }
    let left_out: i64 = planned.iter().map(|planned| planned.plan.left_out).sum();
    let warning = match (args.from_time, left_out) {
        (Some(time), _) => format!(" What was appended before {time} will not be in what it builds."),
        (None, 0) => String::new(),
        (None, left_out) => format!(" {left_out} older records will not be in what it builds."),
    };
    if args.consent.given(&format!("Plan {}?{warning}", counted(planned.len(), "replay")))? {
        for planned in &mut planned {
            let entry = audit::begin(db, "replay plan", Some(&planned.plan.project), &planned.plan).await?;
            let entered = replay::enter(pool, &planned.plan, &audit::who()).await.map_err(explain);
            let replay = entry.end(db, entered).await?;
            (planned.id, planned.generation, planned.applied) = (Some(replay.id), Some(replay.generation), true);
        }
    }
    match output {
        Output::Table if planned.iter().any(|planned| planned.applied) => {
            output.things(&planned, &["id", "project", "generation"])
        }
        _ => output.ended(&planned, false),
    }
}

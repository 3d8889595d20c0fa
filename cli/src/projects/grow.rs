//! `tidemill projects grow`, and what of `tidemill topics apply` is the same.

use std::time::Duration;

use serde::Serialize;
use sqlx::PgConnection;
use tidemill_common::config::Connections;
use tidemill_common::kafka::METADATA;
use tidemill_topics::{GrowError, Growth, Step, grow, plan_growth};

use crate::audit;
use crate::consent::Consent;
use crate::output::{Output, spinner};
use crate::store;

/// Clients get this long to see what is new before anything belongs there.
pub const SETTLE: Duration = METADATA.saturating_mul(2);

const FIELDS: [&str; 5] = ["project", "applied", "from", "to", "note"];

/// What happens to events.
pub const NOTE: &str = "copies sent before and after count once; it cannot be undone";

#[derive(Serialize)]
struct Planned {
    applied: bool,
    #[serde(flatten)]
    growth: Growth,
    note: &'static str,
}

pub async fn run(
    id: &str,
    partitions: i32,
    consent: Consent,
    connections: &Connections,
    output: Output,
) -> anyhow::Result<()> {
    let mut db = store::connect(&connections.database_url).await?;
    let planned = plan_growth(&mut db, id, partitions).await?;
    let Some(growth) = planned else {
        let growth = Growth { project: id.to_owned(), from: partitions, to: partitions, topics: Vec::new() };
        return output.thing(&Planned { applied: false, growth, note: "there is nothing to do" }, &FIELDS);
    };
    let Growth { from, to, .. } = growth;
    let mut planned = Planned { applied: false, growth, note: NOTE };
    output.plan(&planned, &FIELDS)?;
    if consent.given(&format!("Spread the events of {id} over {to} partitions instead of {from}?"))? {
        apply(&mut db, &planned.growth, connections).await?;
        planned.applied = true;
    }
    match output {
        Output::Table => output.ended(&planned, planned.applied),
        Output::Json => output.thing(&planned, &FIELDS),
    }
}

/// Enters it and does it, with its progress shown.
pub async fn apply(db: &mut PgConnection, growth: &Growth, connections: &Connections) -> anyhow::Result<()> {
    let entry = audit::begin(db, "projects grow", Some(&growth.project), growth).await?;
    let bar = spinner("making partitions");
    let done = grow(db, &connections.kafka, growth, SETTLE, |step| {
        bar.set_message(shown(step, "making partitions"));
    })
    .await;
    bar.finish_and_clear();
    entry.end(db, done.map_err(anyhow::Error::from)).await
}

/// A step of a change of how events are spread, as people read it.
pub fn shown(step: Step, creating: &'static str) -> &'static str {
    match step {
        Step::Creating => creating,
        Step::Settling => "letting clients see what is new",
        Step::Ending => "ending the era",
    }
}

/// Why a project does not get the partitions that are declared for it.
pub fn why(error: &GrowError) -> Option<&'static str> {
    match error {
        GrowError::Fewer { .. } => Some("Kafka cannot take partitions away"),
        GrowError::NotMultiple { .. } => {
            Some("declare a multiple, so that every new partition takes over from one alone")
        }
        GrowError::TooSoon { .. } => {
            Some("it grew less than a dedupe window and two hours ago; 'tidemill projects grow' says when it may")
        }
        _ => None,
    }
}

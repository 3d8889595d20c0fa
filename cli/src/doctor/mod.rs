//! `tidemill doctor`: everything that Tidemill stands on, looked at once. It changes nothing, but for one small file in
//! the warehouse that it writes and removes.

mod clocks;
mod kafka;
mod postgres;
mod redis;
mod registry;
mod warehouse;

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde::Serialize;
use tidemill_common::config::Connections;

use crate::output::{Output, counted, spinner};
use crate::store::Project;
use crate::topics::Declared;

const FIELDS: [&str; 4] = ["check", "state", "what", "what_to_do"];
/// A component that says nothing for so long is told of as one that does not answer.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Args)]
pub struct Doctor {
    /// Show what is as it should be, too
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    declared: Declared,
}

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, and might be better.
    Warning,
    /// Something does not work, or may lose data.
    Failure,
}

/// What one check has found.
#[derive(Debug, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub state: State,
    pub what: String,
    pub what_to_do: Option<String>,
}

impl Finding {
    pub fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, state: State::Ok, what: what.into(), what_to_do: None }
    }

    pub fn warning(check: &'static str, what: impl Into<String>, what_to_do: impl Into<String>) -> Self {
        Self { check, state: State::Warning, what: what.into(), what_to_do: Some(what_to_do.into()) }
    }

    pub fn failure(check: &'static str, what: impl Into<String>, what_to_do: impl Into<String>) -> Self {
        Self { check, state: State::Failure, what: what.into(), what_to_do: Some(what_to_do.into()) }
    }
}

pub async fn run(doctor: Doctor, connections: &Connections, output: Output) -> anyhow::Result<()> {
    let progress = spinner("asking all components");
    let (mut findings, projects) = within("postgres", postgres::check(connections)).await;
    let (kafka, redis, registry, warehouse, clocks) = tokio::join!(
        within("kafka", kafka::check(connections, &doctor.declared, &projects)),
        within("redis", redis::check(connections)),
        within("registry", registry::check(connections, &projects)),
        within("warehouse", warehouse::check(connections, &projects)),
        within("clocks", clocks::check(connections, &projects)),
    );
    for (found, ()) in [kafka, redis, registry, warehouse, clocks] {
        findings.extend(found);
    }
    progress.finish_and_clear();
    let (failures, warnings) = (count(&findings, State::Failure), count(&findings, State::Warning));
    if !doctor.all && matches!(output, Output::Table) {
        let all = findings.len();
        findings.retain(|finding| finding.state != State::Ok);
        eprintln!("{} of {all} checks are as they should be", all - findings.len());
    }
    output.things(&findings, &FIELDS)?;
    if failures > 0 {
        bail!(
            "{} failed, and {warnings} gave warnings; 'what to do' says how to mend them",
            counted(failures, "check")
        );
    }
    Ok(())
}

fn count(findings: &[Finding], state: State) -> usize {
    findings.iter().filter(|finding| finding.state == state).count()
}

type Found<T> = (Vec<Finding>, T);

/// Findings, or that there is no answer.
async fn within<T: Default>(check: &'static str, findings: impl Future<Output = Found<T>>) -> Found<T> {
    let silent = |_| {
        let what = format!("no answer within {} s", PATIENCE.as_secs());
        (
            vec![Finding::failure(check, what, "is the address right, the component up, and no firewall between?")],
            T::default(),
        )
    };
    tokio::time::timeout(PATIENCE, findings).await.unwrap_or_else(silent)
}

/// The ids of projects that are not deleted.
fn ids(projects: &[Project]) -> impl Iterator<Item = &str> {
    projects.iter().map(|project| project.id.as_str())
}

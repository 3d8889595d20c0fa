//! How many partitions a project's topics have.

use anyhow::bail;
use tidemill_topics::{Change, Partitions};

use crate::store::Project;
use crate::topics::Target;

/// What is kept with a project wins; a new one takes what its size class says.
pub fn partitions(known: Option<&Project>, size: Option<&str>, target: &Target) -> anyhow::Result<Partitions> {
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
pub fn refuse_other_partitions(changes: &[Change]) -> anyhow::Result<()> {
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

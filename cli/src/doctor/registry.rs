//! The schema registry: every project's subjects.

use tidemill_common::codec::EVENT_SCHEMA;
use tidemill_common::config::Connections;
use tidemill_common::names::{events_topic, processed_topic};
use tidemill_common::registry::Registry;
use tidemill_stream::emit::PROCESSED_SCHEMA;

use super::{Finding, Found, ids};
use crate::store::Project;

const CHECK: &str = "registry";

pub async fn check(connections: &Connections, projects: &[Project]) -> Found<()> {
    let registry = match Registry::new(&connections.registry_url) {
        Ok(registry) => registry.ping().await.map(|()| registry),
        Err(error) => Err(error),
    };
    let registry = match registry {
        Ok(registry) => registry,
        Err(error) => {
            let what_to_do =
                "mend SCHEMA_REGISTRY_URL (with Apicurio it ends in /apis/ccompat/v7), or start the registry";
            return (vec![Finding::failure(CHECK, error.to_string(), what_to_do)], ());
        }
    };
    let mut findings = Vec::new();
    for project in ids(projects) {
        for (topic, schema) in [(events_topic(project), EVENT_SCHEMA), (processed_topic(project), PROCESSED_SCHEMA)] {
            let subject = format!("{topic}-value");
            match registry.lacks(&subject, schema).await {
                Ok(found) => findings.extend(found.into_iter().map(|what| {
                    Finding::failure(
                        CHECK,
                        what,
                        format!("run 'tidemill projects create {project}': it completes what is missing"),
                    )
                })),
                Err(error) => {
                    findings.push(Finding::failure(CHECK, format!("{subject}: {error}"), "look at the registry's log"))
                }
            }
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            CHECK,
            format!("{} subjects are registered and BACKWARD compatible", 2 * projects.len()),
        ));
    }
    (findings, ())
}

//! The schema registry: every project's subjects.

use tidemill_common::codec::EVENT_SCHEMA;
use tidemill_common::codec::processed::PROCESSED_SCHEMA;
use tidemill_common::config::Connections;
use tidemill_common::names::processed_topic;
use tidemill_common::registry::Registry;

use super::{Finding, Found};
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
    let mut subjects = 0;
    for project in projects {
        let events = project.topics().into_iter().map(|topic| (topic, EVENT_SCHEMA));
        for (topic, schema) in events.chain([(processed_topic(&project.id), PROCESSED_SCHEMA)]) {
            subjects += 1;
            let subject = format!("{topic}-value");
            match registry.lacks(&subject, schema).await {
                Ok(found) => findings.extend(found.into_iter().map(|what| {
                    Finding::failure(
                        CHECK,
                        what,
                        format!("run 'tidemill projects create {}': it completes what is missing", project.id),
                    )
                })),
                Err(error) => {
                    findings.push(Finding::failure(CHECK, format!("{subject}: {error}"), "look at the registry's log"))
                }
            }
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("{subjects} subjects are registered and BACKWARD compatible")));
    }
    (findings, ())
}

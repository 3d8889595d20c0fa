//! The schema registry: every project's subjects.

use reqwest::{Client, StatusCode};
use serde_json::Value;
use tidemill_common::codec::EVENT_SCHEMA;
use tidemill_common::config::Connections;
use tidemill_common::names::{events_topic, processed_topic};
use tidemill_stream::emit::PROCESSED_SCHEMA;

use super::{Finding, Found, ids};
use crate::store::Project;

const CHECK: &str = "registry";

pub async fn check(connections: &Connections, projects: &[Project]) -> Found<()> {
    let url = connections.registry_url.trim_end_matches('/');
    let client = Client::new();
    if let Err(error) = get(&client, &format!("{url}/schemas/types")).await {
        let what_to_do = "mend SCHEMA_REGISTRY_URL (with Apicurio it ends in /apis/ccompat/v7), or start the registry";
        return (vec![Finding::failure(CHECK, error, what_to_do)], ());
    }
    let mut findings = Vec::new();
    for project in ids(projects) {
        for (topic, schema) in [(events_topic(project), EVENT_SCHEMA), (processed_topic(project), PROCESSED_SCHEMA)] {
            let subject = format!("{topic}-value");
            match registered(&client, url, &subject, schema).await {
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

/// What is wrong with a subject.
async fn registered(client: &Client, url: &str, subject: &str, schema: &str) -> Result<Option<String>, String> {
    let Some(latest) = get(client, &format!("{url}/subjects/{subject}/versions/latest")).await? else {
        return Ok(Some(format!("{subject} has no schema")));
    };
    let parse = |text: &str| serde_json::from_str::<Value>(text).ok();
    let ours = latest["schema"].as_str().and_then(parse).is_some_and(|found| parse(schema) == Some(found));
    if !ours {
        return Ok(Some(format!("the newest schema of {subject} is not the one that this binary writes")));
    }
    let rule = get(client, &format!("{url}/config/{subject}")).await?;
    let rule = rule.as_ref().and_then(|rule| rule.get("compatibilityLevel").or(rule.get("compatibility"))?.as_str());
    let kept = rule.is_some_and(|rule| rule.starts_with("BACKWARD") || rule.starts_with("FULL"));
    Ok((!kept).then(|| {
        format!("{subject} takes schemas that cannot read what was written before ({})", rule.unwrap_or("no rule"))
    }))
}

/// An answer; none where there is no such thing.
async fn get(client: &Client, url: &str) -> Result<Option<Value>, String> {
    let told = |error: reqwest::Error| error.without_url().to_string();
    let answer = client.get(url).send().await.map_err(told)?;
    match answer.status() {
        StatusCode::NOT_FOUND => Ok(None),
        status if status.is_success() => answer.json().await.map(Some).map_err(told),
        status => Err(format!("it answered {status}")),
    }
}

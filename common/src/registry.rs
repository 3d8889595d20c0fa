//! The schema registry, over the Confluent API.

use std::time::Duration;

use reqwest::StatusCode;
use schema_registry_converter::async_impl::schema_registry::{SrSettings, get_schema_by_id, post_schema};
use schema_registry_converter::error::SRCError;
use schema_registry_converter::schema_registry_common::{SchemaType, SuppliedSchema};
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(5);

/// A registry client. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    settings: SrSettings,
    url: String,
    http: reqwest::Client,
}

/// What a registry call can end in.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry answered that it has no such schema.
    #[error("the schema registry has no schema {0}")]
    Unknown(u32),
    /// The registry could not be asked; trying again may help.
    #[error("the schema registry cannot be asked: {0}; is SCHEMA_REGISTRY_URL right and the registry up?")]
    Unavailable(String),
}

impl Registry {
    /// A client for the registry at `url`, e.g. `http://127.0.0.1:8081/apis/ccompat/v7`.
    pub fn new(url: &str) -> Result<Self, RegistryError> {
        let url = url.trim_end_matches('/').to_owned();
        let settings = SrSettings::new_builder(url.clone()).set_timeout(TIMEOUT).build().map_err(unavailable)?;
        let http = reqwest::Client::builder().timeout(TIMEOUT).build().map_err(unreachable)?;
        Ok(Self { settings, url, http })
    }

    /// Registers an Avro schema under a subject and gives its id. Registering it again gives the same id.
    pub async fn register(&self, subject: &str, schema: &str) -> Result<u32, RegistryError> {
        let supplied = SuppliedSchema::new(None, SchemaType::Avro, schema.to_owned());
        let registered = post_schema(&self.settings, subject.to_owned(), supplied).await.map_err(unavailable)?;
        Ok(registered.id)
    }

    /// Has the registry refuse schemas under a subject that cannot read what was written before.
    pub async fn keep_backward_compatible(&self, subject: &str) -> Result<(), RegistryError> {
        let rule = serde_json::json!({ "compatibility": "BACKWARD" });
        let answer = self.http.put(format!("{}/config/{subject}", self.url)).json(&rule).send().await;
        answer.and_then(reqwest::Response::error_for_status).map(drop).map_err(unreachable)
    }

    /// What a subject lacks to be as [`register`](Self::register) and
    /// [`keep_backward_compatible`](Self::keep_backward_compatible) leave it; none: nothing.
    pub async fn lacks(&self, subject: &str, schema: &str) -> Result<Option<String>, RegistryError> {
        let Some(latest) = self.get(&format!("subjects/{subject}/versions/latest")).await? else {
            return Ok(Some(format!("{subject} has no schema")));
        };
        let parse = |text: &str| serde_json::from_str::<Value>(text).ok();
        let ours = latest["schema"].as_str().and_then(parse).is_some_and(|found| parse(schema) == Some(found));
        if !ours {
            return Ok(Some(format!("the newest schema of {subject} is not the one that this binary writes")));
        }
        let rule = self.get(&format!("config/{subject}")).await?;
        let rule =
            rule.as_ref().and_then(|rule| rule.get("compatibilityLevel").or(rule.get("compatibility"))?.as_str());
        let kept = rule.is_some_and(|rule| rule.starts_with("BACKWARD") || rule.starts_with("FULL"));
        Ok((!kept).then(|| {
            format!("{subject} takes schemas that cannot read what was written before ({})", rule.unwrap_or("no rule"))
        }))
    }

    /// An answer; none where there is no such thing.
    async fn get(&self, path: &str) -> Result<Option<Value>, RegistryError> {
        let answer = self.http.get(format!("{}/{path}", self.url)).send().await.map_err(unreachable)?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            _ => answer.error_for_status().map_err(unreachable)?.json().await.map(Some).map_err(unreachable),
        }
    }

    /// Removes a subject, if there is one. Its schemas keep their ids, so what was written can still be read.
    pub async fn remove(&self, subject: &str) -> Result<(), RegistryError> {
        let answer = self.http.delete(format!("{}/subjects/{subject}", self.url)).send().await.map_err(unreachable)?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(()),
            _ => answer.error_for_status().map(drop).map_err(unreachable),
        }
    }

    /// Asks for an answer.
    pub async fn ping(&self) -> Result<(), RegistryError> {
        let answer = self.http.get(format!("{}/schemas/types", self.url)).send().await;
        answer.and_then(reqwest::Response::error_for_status).map(drop).map_err(unreachable)
    }

    /// The text of a schema.
    pub async fn schema(&self, id: u32) -> Result<String, RegistryError> {
        match get_schema_by_id(id, &self.settings).await {
            Ok(registered) => Ok(registered.schema),
            // The client gives the HTTP status only in words. Anything but 404 says nothing about the schema.
            Err(error) if error.error.contains("status 404") => Err(RegistryError::Unknown(id)),
            Err(error) => Err(unavailable(error)),
        }
    }
}

fn unavailable(error: SRCError) -> RegistryError {
    // Its own Display adds notes for programmers.
    let cause = error.cause.map(|cause| format!(": {cause}")).unwrap_or_default();
    RegistryError::Unavailable(format!("{}{cause}", error.error))
}

fn unreachable(error: reqwest::Error) -> RegistryError {
    RegistryError::Unavailable(error.without_url().to_string())
}

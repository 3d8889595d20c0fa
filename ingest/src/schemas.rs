//! The schema id of each project's events, registered at first use. A known one goes on working without the
//! registry.

use std::collections::HashMap;
use std::sync::RwLock;
use std::time::Duration;

use tidemill_common::breaker::{Breaker, Failure};
use tidemill_common::codec::{EVENT_SCHEMA, Encoder};
use tidemill_common::names::events_topic;
use tidemill_common::registry::{Registry, RegistryError};

/// A registry stores a new subject in this time; it is asked once per project and process.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Encoders by project.
pub struct Schemas {
    registry: Registry,
    breaker: Breaker,
    encoders: RwLock<HashMap<String, Encoder>>,
}

impl Schemas {
    /// Asks this registry.
    pub fn new(registry: Registry) -> Self {
        Self { registry, breaker: Breaker::new("the schema registry", TIMEOUT), encoders: RwLock::default() }
    }

    /// The encoder of a project's events.
    pub async fn encoder(&self, project: &str) -> Result<Encoder, Failure<RegistryError>> {
        if let Some(encoder) = self.encoders.read().expect("no holder panics").get(project) {
            return Ok(*encoder);
        }
        let subject = format!("{}-value", events_topic(project));
        let register = self.registry.register(&subject, EVENT_SCHEMA);
        let id = self.breaker.call(register).await.inspect_err(|error| {
            tracing::warn!(%error, project, "events wait for their schema id");
        })?;
        let encoder = Encoder::new(id);
        self.encoders.write().expect("no holder panics").insert(project.to_owned(), encoder);
        Ok(encoder)
    }

    /// Asks the registry for an answer, unless it is left alone just now.
    pub async fn ping(&self) -> Result<(), Failure<RegistryError>> {
        self.breaker.call(self.registry.ping()).await
    }
}

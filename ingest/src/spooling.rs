//! How the gateway uses its spool.

use std::sync::Arc;
use std::time::Instant;

use chrono::Utc;
use tidemill_common::http::Health;
use tidemill_common::kafka::Producer;
use tokio_util::sync::CancellationToken;

use crate::body_hash::BodyHash;
use crate::config::Config;
use crate::flight::Flight;
use crate::gateway::Gateway;
use crate::keys::Stored;
use crate::outages::Outages;
use crate::spool::{self, Drained, Record, Spool, SpoolError, Status};

/// A spool, and whose events go there.
pub struct Spooling {
    spool: Spool,
    /// Whose events Kafka does not take.
    pub outages: Outages,
}

impl Spooling {
    /// The spool that the settings name, if any.
    pub async fn open(config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(folder) = config.spool_dir.clone() else { return Ok(None) };
        let limit = config.spool_max_bytes;
        let spool = tokio::task::spawn_blocking(move || Spool::open(&folder, limit)).await??;
        Ok(Some(Self { spool, outages: Outages::default() }))
    }

    /// Whether a project's events should not wait for Kafka.
    pub fn kafka_is_down(&self, project: &Arc<str>) -> bool {
        self.outages.lasts(project, Instant::now())
    }

    /// Puts events that Kafka did not take on disk; says whether they are there.
    pub async fn append(&self, flight: &Flight, failed: &[usize]) -> bool {
        let project = &flight.log.project;
        self.outages.failed(project, Instant::now());
        let spooled_at = Utc::now().timestamp_millis();
        let record = |&number: &usize| {
            let event = flight.first(number);
            // To the project's own topic, whatever routes there are by the time it goes: the stream sends it on.
            let (event_id, value) = (flight.encoded.id_text(event), flight.encoded.value(event));
            Record { partition: flight.encoded.own(event), spooled_at, body: event.body.bytes(), event_id, value }
        };
        let records: Vec<Record<'_>> = failed.iter().map(record).collect();
        match self.spool.append(project, &records).await {
            Ok(()) => true,
            Err(SpoolError::Full) => false, // counted there
            Err(error) => {
                tracing::error!(%error, "events cannot be spooled; their senders must retry");
                false
            }
        }
    }

    /// Watches over the spool until shutdown.
    pub fn watch(&self, health: &Health, shutdown: &CancellationToken) {
        let spool = self.spool.clone();
        health.watch("spool", false, shutdown, move || {
            let state = judge(&spool.status());
            async move { state }
        });
    }
}

/// Brings what is spooled to Kafka until shutdown.
pub async fn drain(gateway: Arc<Gateway>, producer: Producer, shutdown: CancellationToken) {
    let Some(spooling) = &gateway.spooling else { return };
    let delivered = |project: String, drained: Vec<Drained>| {
        let gateway = Arc::clone(&gateway);
        async move {
            if let Some(spooling) = &gateway.spooling {
                spooling.outages.over(&project);
            }
            let log = gateway.incarnations.log(&project.into(), &[]);
            let stored = drained.iter().map(|drained| {
                let body = BodyHash::from_bytes(drained.body);
                let stored = Stored { partition: drained.partition, offset: drained.offset, body };
                (drained.event_id.as_str(), stored)
            });
            gateway.claims.confirm(&log, stored).await;
        }
    };
    spool::drain(spooling.spool.clone(), producer, delivered, shutdown).await;
}

fn judge(status: &Status) -> Result<(), String> {
    if !status.waiting.is_empty() {
        let projects = status.waiting.join(", ");
        return Err(format!(
            "events of {projects} are older than 12 h and wait for a word; see 'tidemill spool list', then 'release' \
             or 'discard'"
        ));
    }
    if status.kept > 0 {
        return Err("damaged or refused records are kept in the spool's folder; the log names the files".to_owned());
    }
    Ok(())
}

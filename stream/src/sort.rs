//! What becomes of each record of a batch: a stray, a dead letter, a copy, or a first sight that counts.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::DateTime;
use rdkafka::error::KafkaError;
use tidemill_common::codec::{DecodeError, Decoder};
use tidemill_common::first_sight::{SeenStore, fingerprint};
use tidemill_common::kafka::{Record, TopicPartition};
use tidemill_common::projects::Project;
use tidemill_common::registry::RegistryError;
use tidemill_common::verdict::{Rejection, Verdict, judge};

use crate::emit::{self, Emission, Emitter};
use crate::ledger::Place;
use crate::store::{Counted, DeadLetter};

/// Pause between two questions for an unknown schema.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A transient failure: wait, then start again from the ledger. It never makes a dead letter.
#[derive(Debug, thiserror::Error)]
pub enum Transient {
    /// Kafka.
    #[error("kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// Postgres.
    #[error("postgres: {0}")]
    Postgres(#[from] sqlx::Error),
    /// A record cannot be judged now.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The log's past.
    #[error(transparent)]
    Fill(#[from] tidemill_common::sightings::FillError),
    /// A partition is not ready yet.
    #[error("{0}")]
    NotReady(String),
}

/// A batch, sorted.
#[derive(Default)]
pub struct Sorted {
    /// What counts.
    pub events: Vec<Counted>,
    /// What does not.
    pub dead_letters: Vec<DeadLetter>,
    /// What is sent on.
    pub emissions: Vec<Emission>,
    /// Copies seen.
    pub copies: u64,
    /// Strays sent home.
    pub strays: u64,
}

/// Sorts records. Keeps how long each unknown schema has been asked for.
pub struct Sorter {
    decoder: Decoder,
    emitter: Emitter,
    unknown_wait: Duration,
    unknown_since: HashMap<u32, Instant>,
}

impl Sorter {
    /// A sorter that gives up on an unknown schema after `unknown_wait`.
    pub fn new(decoder: Decoder, emitter: Emitter, unknown_wait: Duration) -> Self {
        Self { decoder, emitter, unknown_wait, unknown_since: HashMap::new() }
    }

    /// Sorts one record of a live partition.
    pub async fn sort(
        &mut self,
        record: &Record,
        place: &Place,
        project: &Project,
        seen: &mut SeenStore,
        sorted: &mut Sorted,
    ) -> Result<(), Transient> {
        match self.judge(record, project).await? {
            Verdict::Valid(event) => {
                if seen.sight(fingerprint(&event.event_id), record.offset, record.append_ms) {
                    sorted.emissions.push(self.emitter.processed(&project.id, record, &event).await?);
                    let (project, generation) = (project.id.clone(), place.generation);
                    sorted.events.push(Counted { project, generation, event });
                } else {
                    sorted.copies += 1;
                }
            }
            Verdict::Stray { home } => {
                sorted.strays += 1;
                sorted.emissions.push(emit::stray(record, home));
            }
            Verdict::Rejected(rejection) => {
                sorted.emissions.push(emit::dead_letter(&project.id, project.dlq_partitions, record, &rejection));
                sorted.dead_letters.push(DeadLetter {
                    project: project.id.clone(),
                    topic: place.topic.clone(),
                    incarnation: place.incarnation.clone(),
                    partition: record.partition,
                    offset: record.offset,
                    append_time: DateTime::from_timestamp_millis(record.append_ms).unwrap_or_default(),
                    stage: rejection.stage,
                    reason: rejection.reason,
                    detail: rejection.detail,
                });
            }
        }
        Ok(())
    }

    /// The verdict; an unknown schema is asked for again for a while, since a registry may come back with
    /// less than it had.
    async fn judge(&mut self, record: &Record, project: &Project) -> Result<Verdict, DecodeError> {
        loop {
            match judge(&self.decoder, record, project.partitions).await {
                Err(DecodeError::UnknownSchema(id)) => {
                    let since = *self.unknown_since.entry(id).or_insert_with(Instant::now);
                    if since.elapsed() >= self.unknown_wait {
                        return Ok(Verdict::Rejected(Rejection::unknown_schema(id)));
                    }
                    let at = TopicPartition { topic: record.topic.clone(), partition: record.partition };
                    tracing::warn!(schema = id, ?at, offset = record.offset, "unknown schema id, asking again");
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                other => return other,
            }
        }
    }
}

//! What becomes of each record of a batch: a stray, a dead letter, a copy, or a first sight that counts.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rdkafka::error::KafkaError;
use tidemill_common::codec::{DecodeError, Decoder, schema_id};
use tidemill_common::event::EventRef;
use tidemill_common::failpoint::{Injected, existed};
use tidemill_common::kafka::Record;
use tidemill_common::projects::Project;
use tidemill_common::registry::RegistryError;
use tidemill_common::seen::{FillError, SeenError, fingerprint};
use tidemill_common::verdict::{Rejection, Verdict, fits, judge};

use crate::emit::{self, Emission, Emitter};
use crate::enrich::Enricher;
use crate::live::Live;
use crate::poison::{Limit, Poison};
use crate::store::{Counted, DeadLetter, Origin};

/// Pause between two questions for an unknown schema.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// From so many unknown schemas on, those that nobody has named for a while are forgotten.
const MOST_UNKNOWN: usize = 10_000;
const FORGET: Duration = Duration::from_secs(600);

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
    /// What was seen cannot be completed.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// What was seen cannot be asked.
    #[error(transparent)]
    Seen(#[from] SeenError),
    /// A partition is not ready yet.
    #[error("{0}")]
    NotReady(String),
    /// A drill.
    #[error(transparent)]
    Injected(#[from] Injected),
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

/// How far a batch had got, to go back to.
struct Mark {
    events: usize,
    dead_letters: usize,
    emissions: usize,
    copies: u64,
    strays: u64,
}

impl Sorted {
    fn mark(&self) -> Mark {
        let (events, dead_letters, emissions) = (self.events.len(), self.dead_letters.len(), self.emissions.len());
        Mark { events, dead_letters, emissions, copies: self.copies, strays: self.strays }
    }

    fn go_back(&mut self, mark: &Mark) {
        self.events.truncate(mark.events);
        self.dead_letters.truncate(mark.dead_letters);
        self.emissions.truncate(mark.emissions);
        (self.copies, self.strays) = (mark.copies, mark.strays);
    }
}

/// Sorts records. Keeps how long each unknown schema has been asked for, and which share is refused.
pub struct Sorter {
    /// Which partitions stand still because too much in them is refused.
    pub poison: Poison,
    decoder: Decoder,
    emitter: Emitter,
    enricher: Enricher,
    unknown_wait: Duration,
    unknown: HashMap<u32, Unknown>,
}

/// A schema id that the registry does not know.
struct Unknown {
    since: Instant,
    asked: Instant,
}

impl Sorter {
    /// A sorter that gives up on an unknown schema after `unknown_wait`, and refuses no more than `limit` allows.
    pub fn new(decoder: Decoder, emitter: Emitter, enricher: Enricher, unknown_wait: Duration, limit: Limit) -> Self {
        Self { poison: Poison::new(limit), decoder, emitter, enricher, unknown_wait, unknown: HashMap::new() }
    }

    /// Sorts the records of a live partition, in order; gives how many. It stops before a record whose schema is not
    /// known yet, and takes none at all where too many would be dead letters: then their partition has to wait, the
    /// others do not.
    pub async fn sort(&mut self, records: &[Record], live: &mut Live, sorted: &mut Sorted) -> Result<usize, Transient> {
        let before = sorted.mark();
        let taken = self.sort_all(records, live, sorted).await?;
        let Some(first) = records.first() else { return Ok(0) };
        let refused = &sorted.dead_letters[before.dead_letters..];
        let reason = refused.last().map_or("", |letter| letter.reason);
        if self.poison.admits(&first.topic_partition(), taken, refused.len(), reason) {
            return Ok(taken);
        }
        sorted.go_back(&before);
        Ok(0)
    }

    async fn sort_all(&mut self, records: &[Record], live: &mut Live, sorted: &mut Sorted) -> Result<usize, Transient> {
        for (taken, record) in records.iter().enumerate() {
            let Some(verdict) = self.judge(record, &live.project).await? else {
                // All unknown schemas behind it are asked for at the same time, not one after the other.
                for later in &records[taken + 1..] {
                    self.judge(later, &live.project).await?;
                }
                return Ok(taken);
            };
            self.place(record, verdict, live, sorted).await?;
        }
        Ok(records.len())
    }

    async fn place(
        &mut self,
        record: &Record,
        verdict: Verdict<'_>,
        live: &mut Live,
        sorted: &mut Sorted,
    ) -> Result<(), Transient> {
        let Live { place, project, seen, .. } = live;
        match verdict {
            Verdict::Valid(decoded) => {
                let event = decoded.event();
                let first = seen.sight(fingerprint(event.event_id), record.offset, record.append_ms)?;
                if first && !existed("existence", event.event_id) {
                    let Record { partition, offset, append_ms, .. } = *record;
                    let origin = Origin { partition, offset, append_ms };
                    // What the enricher alone reads need not be kept.
                    let kept = EventRef { client_address: None, user_agent: None, ..event }.to_event();
                    let mut counted = Counted::new(project.id.clone(), place.generation, kept, origin);
                    counted.traits = self.enricher.traits(&event, &counted.properties());
                    let processed = self.emitter.processed(&project.id, record, &decoded, &counted.traits).await?;
                    sorted.emissions.push(processed);
                    sorted.events.push(counted);
                } else {
                    sorted.copies += 1;
                }
            }
            Verdict::Stray { home } => {
                sorted.strays += 1;
                sorted.emissions.push(emit::stray(record, home));
            }
            Verdict::Rejected(rejection) => {
                let (id, partitions) = (&project.id, project.dlq_partitions);
                sorted.emissions.push(emit::dead_letter(id, partitions, record, &rejection, Utc::now()));
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

    /// The verdict; none while a schema is unknown and may still come, since a registry may be late or may
    /// have come back with less than it had.
    async fn judge<'a>(&mut self, record: &'a Record, project: &Project) -> Result<Option<Verdict<'a>>, DecodeError> {
        let id = if fits(record) { schema_id(&record.value).ok() } else { None };
        let asked_lately = |unknown: &&Unknown| unknown.asked.elapsed() < ASK_AGAIN;
        if let Some(unknown) = id.and_then(|id| self.unknown.get(&id)).filter(asked_lately) {
            return Ok(self.give_up(id.unwrap_or_default(), unknown.since));
        }
        match judge(&self.decoder, record, project.partitions, project.dedupe_window_ms).await {
            Err(DecodeError::UnknownSchema(id)) => {
                let now = Instant::now();
                if self.unknown.len() >= MOST_UNKNOWN {
                    self.unknown.retain(|_, unknown| unknown.asked.elapsed() < FORGET);
                }
                let unknown = self.unknown.entry(id).or_insert(Unknown { since: now, asked: now });
                unknown.asked = now;
                let since = unknown.since;
                tracing::warn!(schema = id, topic = %record.topic, record.partition, record.offset, "unknown schema id");
                Ok(self.give_up(id, since))
            }
            Err(error) => Err(error),
            Ok(verdict) => {
                id.map(|id| self.unknown.remove(&id));
                Ok(Some(verdict))
            }
        }
    }

    fn give_up(&self, id: u32, since: Instant) -> Option<Verdict<'static>> {
        (since.elapsed() >= self.unknown_wait).then(|| Verdict::Rejected(Rejection::unknown_schema(id)))
    }
}

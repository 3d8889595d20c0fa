//! What becomes of each record of a batch: a stray, a dead letter, a copy, or a first sight that counts.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rdkafka::error::KafkaError;
use tidemill_common::codec::{DecodeError, Decoder, schema_id};
use tidemill_common::dead_letters::digest;
use tidemill_common::event::is_object;
use tidemill_common::failpoint::{Injected, existed};
use tidemill_common::home::Layout;
use tidemill_common::kafka::Record;
use tidemill_common::names::events_topic;
use tidemill_common::registry::RegistryError;
use tidemill_common::seen::{FillError, SeenError, fingerprint};
use tidemill_common::verdict::{Rejection, Verdict, fits, judge_with};

use crate::emit::{self, Emissions, Emitter};
use crate::enrich::Enricher;
use crate::hot::Mixes;
use crate::kept::Keeping;
use crate::letters::{Letter, Letters, Redriven};
use crate::live::Live;
use crate::poison::{Limit, Poison};
use crate::properties::Properties;
use crate::store::{Counted, DeadLetter, Outcome, Redrive};

/// Pause between two questions for an unknown schema.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The same where somebody sends a letter through again, and may have just registered its schema.
const ASK_SOON: Duration = Duration::from_millis(50);
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
    /// What became of records that were sent through again.
    pub redrives: Vec<Redrive>,
    /// What is to be sent on.
    pub emissions: Emissions,
    /// Copies seen.
    pub copies: u64,
    /// Strays sent home.
    pub strays: u64,
}

/// How far a batch had got, to go back to.
struct Mark {
    events: usize,
    dead_letters: usize,
    redrives: usize,
    emissions: usize,
    copies: u64,
    strays: u64,
}

impl Sorted {
    fn mark(&self) -> Mark {
        let (events, dead_letters, redrives) = (self.events.len(), self.dead_letters.len(), self.redrives.len());
        let (emissions, copies, strays) = (self.emissions.len(), self.copies, self.strays);
        Mark { events, dead_letters, redrives, emissions, copies, strays }
    }

    fn go_back(&mut self, mark: &Mark) {
        self.events.truncate(mark.events);
        self.dead_letters.truncate(mark.dead_letters);
        self.redrives.truncate(mark.redrives);
        self.emissions.truncate(mark.emissions);
        (self.copies, self.strays) = (mark.copies, mark.strays);
    }
}

/// Sorts records. Keeps how long each unknown schema has been asked for, and which share is refused.
pub struct Sorter {
    /// Which partitions stand still because too much in them is refused.
    pub poison: Poison,
    /// The letters of what is sent through again.
    pub letters: Letters,
    decoder: Decoder,
    emitter: Emitter,
    enricher: Enricher,
    keeping: Keeping,
    unknown_wait: Duration,
    unknown: HashMap<u32, Unknown>,
    mixes: Mixes,
}

/// A verdict, and where the fields of the event's properties stand.
type Judged<'a> = (Verdict<'a>, Range<u32>);

/// A schema id that the registry does not know.
struct Unknown {
    since: Instant,
    asked: Instant,
}

impl Sorter {
    /// A sorter that gives up on an unknown schema after `unknown_wait`, and refuses no more than `limit` allows. `mixes`
    /// are told of what comes.
    pub fn new(
        letters: Letters,
        decoder: Decoder,
        emitter: Emitter,
        enricher: Enricher,
        unknown_wait: Duration,
        limit: Limit,
        mixes: Mixes,
    ) -> Self {
        let (poison, keeping, unknown) = (Poison::new(limit), Keeping::default(), HashMap::new());
        Self { poison, letters, decoder, emitter, enricher, keeping, unknown_wait, unknown, mixes }
    }

    /// Sorts the records of a live partition, in order; gives how many. It stops before a record whose schema is not
    /// known yet, and takes none at all where too many would be dead letters: then their partition has to wait, the
    /// others do not.
    pub async fn sort(&mut self, records: &[Record], live: &mut Live, sorted: &mut Sorted) -> Result<usize, Transient> {
        let before = sorted.mark();
        self.keeping.clear();
        let taken = self.sort_all(records, live, sorted).await?;
        self.keeping.take(Arc::clone(&live.project_id), live.place.generation, &mut sorted.events);
        let Some(first) = records.first() else { return Ok(0) };
        let refused = &sorted.dead_letters[before.dead_letters..];
        let reason = refused.last().map_or("", |letter| letter.reason);
        if self.poison.admits(&first.topic_partition(), taken, refused.len(), reason) {
            return Ok(taken);
        }
        sorted.go_back(&before);
        self.letters.forget();
        Ok(0)
    }

    async fn sort_all(&mut self, records: &[Record], live: &mut Live, sorted: &mut Sorted) -> Result<usize, Transient> {
        let window_ms = live.project.dedupe_window_ms;
        let mut redriven = self.letters.look_up(records, &live.project.id, &live.place).await?;
        for (taken, record) in records.iter().enumerate() {
            let letter = match redriven.remove(&record.offset).map(|known| self.letters.again(known)) {
                Some(Redriven::Undecided) => return Ok(taken),
                Some(Redriven::Dead) => continue,
                Some(Redriven::Closed(letter)) => {
                    self.decide(record, letter, Outcome::Closed, live, sorted);
                    continue;
                }
                Some(Redriven::Open(letter)) => Some(letter),
                Some(Redriven::Read) | None => None,
            };
            let pause = if letter.is_some() { ASK_SOON } else { ASK_AGAIN };
            let Some((verdict, fields)) = self.judge(record, &live.layout, window_ms, pause).await? else {
                // All unknown schemas behind it are asked for at the same time, not one after the other.
                for later in &records[taken + 1..] {
                    self.judge(later, &live.layout, window_ms, ASK_AGAIN).await?;
                }
                return Ok(taken);
            };
            self.place(record, (verdict, fields), letter, live, sorted).await?;
        }
        Ok(records.len())
    }

    /// `letter` is the one that the record is sent through again for.
    async fn place(
        &mut self,
        record: &Record,
        (verdict, fields): Judged<'_>,
        letter: Option<Letter>,
        live: &mut Live,
        sorted: &mut Sorted,
    ) -> Result<(), Transient> {
        let Live { project, seen, .. } = live;
        self.mixes.note(record, || if let Verdict::Valid(decoded) = &verdict { Some(decoded.event()) } else { None });
        match verdict {
            Verdict::Valid(decoded) => {
                let event = decoded.event();
                let first = seen.sight(fingerprint(event.event_id), record.offset, record.append_ms)?;
                let counts = first && !existed("existence", event.event_id);
                if counts {
                    let enricher = &mut self.enricher;
                    let find_out = |fields: &Properties<'_, '_>| enricher.traits(&event, fields);
                    let traits = self.keeping.keep_read(&event, fields, record.into(), find_out);
                    self.emitter.processed(project, record, &decoded, traits, &mut sorted.emissions).await?;
                } else {
                    sorted.copies += 1;
                }
                if let Some(letter) = letter {
                    let outcome = if counts { Outcome::Counted } else { Outcome::Duplicate };
                    self.decide(record, letter, outcome, live, sorted);
                }
            }
            // Its letter waits for it at home.
            Verdict::Stray { home } => {
                sorted.strays += 1;
                emit::stray(record, project.place(home), &mut sorted.emissions);
            }
            Verdict::Rejected(rejection) => self.refuse(record, rejection, letter, live, sorted),
        }
        Ok(())
    }

    fn refuse(
        &mut self,
        record: &Record,
        rejection: Rejection,
        letter: Option<Letter>,
        live: &Live,
        sorted: &mut Sorted,
    ) {
        let Live { place, project, .. } = live;
        if let Some(letter) = letter {
            let (first, attempts) = (letter.first, letter.attempts + 1);
            emit::dead_letter(project, record, first, attempts, &rejection, Utc::now(), &mut sorted.emissions);
            return self.decide(record, letter, Outcome::Refused(rejection), live, sorted);
        }
        emit::dead_letter(project, record, record.into(), 1, &rejection, Utc::now(), &mut sorted.emissions);
        sorted.dead_letters.push(DeadLetter {
            project: project.id.clone(),
            topic: events_topic(&project.id),
            incarnation: place.incarnation.clone(),
            partition: record.number_of_partition(),
            offset: record.offset,
            append_time: DateTime::from_timestamp_millis(record.append_ms).unwrap_or_default(),
            stage: rejection.stage,
            reason: rejection.reason,
            detail: rejection.detail,
            digest: digest(record.key(), record.value()),
        });
    }

    fn decide(&mut self, record: &Record, letter: Letter, outcome: Outcome, live: &Live, sorted: &mut Sorted) {
        let (place, offset) = (live.place.clone(), record.offset);
        let (id, attempts) = (letter.id.clone(), letter.attempts);
        self.letters.decided(letter, &outcome);
        sorted.redrives.push(Redrive { place, offset, letter: id, attempts, outcome });
    }

    /// The verdict; none while a schema is unknown and may still come, since a registry may be late or may
    /// have come back with less than it had. It is not asked again before `pause` is over.
    async fn judge<'a>(
        &mut self,
        record: &'a Record,
        layout: &Layout,
        window_ms: i64,
        pause: Duration,
    ) -> Result<Option<Judged<'a>>, DecodeError> {
        let id = if fits(record) { schema_id(record.value()).ok() } else { None };
        let asked_lately = |unknown: &&Unknown| unknown.asked.elapsed() < pause;
        if let Some(unknown) = id.and_then(|id| self.unknown.get(&id)).filter(asked_lately) {
            return Ok(self.give_up(id.unwrap_or_default(), unknown.since));
        }
        let (keeping, mut fields) = (&mut self.keeping, 0..0);
        let is_object = |properties: &str| {
            let read = keeping.read(properties).map(|places| fields = places);
            read.is_some() || is_object(properties)
        };
        match judge_with(&self.decoder, record, layout, window_ms, is_object).await {
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
                Ok(Some((verdict, fields)))
            }
        }
    }

    fn give_up(&self, id: u32, since: Instant) -> Option<Judged<'static>> {
        (since.elapsed() >= self.unknown_wait).then(|| (Verdict::Rejected(Rejection::unknown_schema(id)), 0..0))
    }
}

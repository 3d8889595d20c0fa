//! Who sent how much, for Postgres: counted per API key in memory, written about once a second by a task beside
//! the requests. While Postgres is away the counts go on growing, not their number.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::outcome::{Answered, Outcome};
use crate::sql;

const FLUSH: Duration = Duration::from_secs(1);
/// Rows older than [`sql::KEPT_DAYS`] are deleted this often.
const CLEAN_UP: Duration = Duration::from_secs(3_600);
/// How long Postgres may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most keys counted at once; what others send meanwhile is not told.
const MOST: usize = 10_000;
/// Most event types told of a key; more are [`OTHER`]. Producers choose their names.
const MOST_TYPES: usize = 32;
const OTHER: &str = "__other__";

/// What keys have sent. Cheap to clone.
#[derive(Clone)]
pub struct Batches {
    tallies: Arc<Mutex<HashMap<String, Tally>>>,
    /// What is being written, until it is: with the same id, so that no row is written twice.
    pending: Arc<tokio::sync::Mutex<Option<Flush>>>,
    pool: PgPool,
    dropped: metrics::Counter,
}

/// What one key has sent since its first request.
#[derive(Debug, Clone, PartialEq)]
pub struct Tally {
    /// Whose key it is.
    pub project: Arc<str>,
    /// The first request's time.
    pub received_at: DateTime<Utc>,
    /// Requests.
    pub requests: i64,
    /// Bytes of their bodies.
    pub bytes: i64,
    /// Their events.
    pub events: i64,
    /// By outcome: accepted, duplicates, invalid, limited, retry.
    pub outcomes: [i64; 5],
    /// Valid events by type.
    pub types: Vec<(String, i64)>,
}

/// Rows that are written together.
pub struct Flush {
    /// The same for every try.
    pub id: Uuid,
    /// By the key's prefix.
    pub tallies: Vec<(String, Tally)>,
}

/// The types of one request's valid events. Borrows them from the request.
#[derive(Default)]
pub struct Types<'a>(Vec<(std::borrow::Cow<'a, str>, i64)>);

/// One request.
pub struct BatchNote<'a> {
    /// The key's prefix.
    pub key_prefix: &'a str,
    /// Whose key it is.
    pub project: &'a Arc<str>,
    /// The body's bytes.
    pub bytes: usize,
    /// What became of the events.
    pub answers: &'a [Answered],
    /// The types of the valid ones.
    pub types: Types<'a>,
}

impl<'a> Types<'a> {
    /// Counts a valid event.
    pub fn count(&mut self, event_type: std::borrow::Cow<'a, str>) {
        if let Some((_, count)) = self.0.iter_mut().find(|(known, _)| *known == event_type) {
            *count += 1;
        } else if self.0.len() < MOST_TYPES {
            self.0.push((event_type, 1));
        } else if let Some((_, others)) = self.0.get_mut(MOST_TYPES) {
            *others += 1;
        } else {
            self.0.push((OTHER.into(), 1));
        }
    }
}

impl Tally {
    fn new(project: &Arc<str>, received_at: DateTime<Utc>) -> Self {
        let project = Arc::clone(project);
        Self { project, received_at, requests: 0, bytes: 0, events: 0, outcomes: [0; 5], types: Vec::new() }
    }

    fn add(&mut self, note: &BatchNote<'_>) {
        self.requests += 1;
        self.bytes += note.bytes as i64;
        self.events += note.answers.len() as i64;
        for answered in note.answers {
            self.outcomes[column(&answered.outcome)] += 1;
        }
        for (event_type, count) in &note.types.0 {
            self.add_type(event_type, *count);
        }
    }

    fn add_type(&mut self, event_type: &str, count: i64) {
        if let Some((_, known)) = self.types.iter_mut().find(|(known, _)| known == event_type) {
            *known += count;
        } else if self.types.len() < MOST_TYPES {
            self.types.push((event_type.to_owned(), count));
        } else if event_type == OTHER {
            self.types.push((OTHER.to_owned(), count));
        } else {
            self.add_type(OTHER, count);
        }
    }
}

/// Where an outcome is counted.
fn column(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Accepted(_) => 0,
        Outcome::Duplicate(_) => 1,
        Outcome::Reused | Outcome::Invalid(_) | Outcome::Violates(_) => 2,
        Outcome::Limited(..) => 3,
        Outcome::Retry(_) => 4,
    }
}

impl Batches {
    /// Nothing sent yet.
    pub fn new(pool: PgPool) -> Self {
        let dropped = metrics::counter!("tidemill_dropped_total", "what" => "batch_metadata");
        Self { tallies: Arc::default(), pending: Arc::default(), pool, dropped }
    }

    /// Counts a request.
    pub fn note(&self, note: &BatchNote<'_>) {
        let mut tallies = self.tallies();
        if let Some(tally) = tallies.get_mut(note.key_prefix) {
            return tally.add(note);
        }
        if tallies.len() >= MOST {
            return self.dropped.increment(1);
        }
        let mut tally = Tally::new(note.project, Utc::now());
        tally.add(note);
        tallies.insert(note.key_prefix.to_owned(), tally);
    }

    /// Writes about once a second, until shutdown.
    pub fn start(&self, shutdown: &CancellationToken) {
        let (writer, cleaner) = (self.clone(), self.clone());
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move {
            loop {
                tokio::time::sleep(FLUSH).await;
                writer.flush().await;
            }
        }));
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move {
            loop {
                if let Err(error) = sql::delete_old_batches(&cleaner.pool).await {
                    tracing::debug!(%error, "old rows of ingest_batches were not deleted");
                }
                tokio::time::sleep(CLEAN_UP).await;
            }
        }));
    }

    /// Writes what is left, once no request is under way; what a flush left behind first.
    pub async fn finish(&self) {
        if !(self.flush().await && self.flush().await) {
            tracing::warn!("what was told of the last batches is lost: Postgres did not take it");
        }
    }

    /// Whether Postgres took everything that it was given.
    async fn flush(&self) -> bool {
        let mut pending = self.pending.lock().await;
        if pending.is_none() {
            let tallies = std::mem::take(&mut *self.tallies());
            if tallies.is_empty() {
                return true;
            }
            *pending = Some(Flush { id: Uuid::new_v4(), tallies: tallies.into_iter().collect() });
        }
        let Some(flush) = pending.as_ref() else { return true };
        match tokio::time::timeout(PATIENCE, sql::insert_batches(&self.pool, flush)).await {
            Ok(Ok(())) => {
                *pending = None;
                true
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "batches are told to Postgres later");
                false
            }
            Err(_) => false,
        }
    }

    fn tallies(&self) -> MutexGuard<'_, HashMap<String, Tally>> {
        self.tallies.lock().expect("no holder panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Whose;

    fn batches() -> Batches {
        Batches::new(PgPool::connect_lazy("postgres://nobody@127.0.0.1:1/none").expect("a URL"))
    }

    fn types(names: impl IntoIterator<Item = String>) -> Types<'static> {
        let mut types = Types::default();
        names.into_iter().for_each(|name| types.count(name.into()));
        types
    }

    fn note(batches: &Batches, key_prefix: &str, outcomes: &[Outcome], types: Types<'_>) {
        let answered = |outcome: &Outcome| Answered { event_id: None, outcome: outcome.clone() };
        let answers: Vec<Answered> = outcomes.iter().map(answered).collect();
        batches.note(&BatchNote { key_prefix, project: &Arc::from("shop"), bytes: 10, answers: &answers, types });
    }

    #[tokio::test]
    async fn requests_of_a_key_add_up() {
        let batches = batches();
        let wait = Duration::ZERO;
        note(&batches, "a", &[Outcome::Reused, Outcome::Limited(Whose::Key, wait)], types(["x".to_owned()]));
        note(&batches, "a", &[Outcome::Retry(wait)], types(["y".to_owned(), "x".to_owned()]));
        note(&batches, "b", &[], types([]));
        let tallies = batches.tallies();
        assert_eq!((tallies["a"].requests, tallies["a"].events, tallies["a"].bytes), (2, 3, 20));
        assert_eq!(tallies["a"].outcomes, [0, 0, 1, 1, 1]);
        assert_eq!(tallies["a"].types, [("x".to_owned(), 2), ("y".to_owned(), 1)]);
        assert_eq!(tallies["b"].requests, 1);
    }

    #[tokio::test]
    async fn made_up_types_and_keys_take_bounded_room() {
        let batches = batches();
        for round in 0..3 {
            note(&batches, "a", &[], types((0..100).map(|i| format!("{round}-{i}"))));
        }
        let told = batches.tallies()["a"].types.clone();
        assert_eq!(told.len(), MOST_TYPES + 1);
        assert_eq!(told.iter().map(|(_, count)| count).sum::<i64>(), 300);
        assert_eq!(told[MOST_TYPES], (OTHER.to_owned(), 300 - MOST_TYPES as i64));
        for i in 0..2 * MOST {
            note(&batches, &i.to_string(), &[], types([]));
        }
        assert_eq!(batches.tallies().len(), MOST);
    }

    #[tokio::test]
    async fn without_postgres_the_same_rows_are_tried_again() {
        let batches = batches();
        note(&batches, "a", &[], types([]));
        batches.pool.close().await;
        assert!(!batches.flush().await);
        let id = batches.pending.lock().await.as_ref().map(|flush| flush.id);
        note(&batches, "a", &[], types([]));
        assert!(!batches.flush().await);
        assert_eq!(batches.pending.lock().await.as_ref().map(|flush| flush.id), id);
        assert_eq!(batches.tallies()["a"].requests, 1, "later ones wait in their own tally");
    }
}

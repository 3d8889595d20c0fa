//! How fresh the counts are: the ledger's offsets against the log's ends, and Redis against the ledger.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use tidemill_common::kafka::{History, TopicPartition};
use tidemill_common::names::events_topic;
use tidemill_common::projects::Project;

use crate::postgres::{self, Entry};

/// The log's ends are asked for at most this often per project.
const CHECKED_FOR: Duration = Duration::from_secs(1);
/// After a failure Kafka is left alone for this long.
const FAILED_FOR: Duration = Duration::from_secs(5);
/// A reader does not wait longer for Kafka.
const TIMEOUT: Duration = Duration::from_millis(1_500);

/// Redis shows what the ledger counts within this time; the worker says so once a second.
const PROJECTED_WITHIN: Duration = Duration::from_secs(3);

/// What can be promised of a project's data, if it is read after this was found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fresh {
    /// Every event appended before this time is counted; `None` when there is no such time to tell.
    pub as_of: Option<DateTime<Utc>>,
    /// The stream cannot write to Redis, though perhaps we can read there: what is in it is old.
    pub redis_lags: bool,
}

/// The ends of a project's partitions, as they were at a time.
struct Ends {
    asked: Instant,
    /// Taken before the log was asked, so that all that was appended before it lies below the ends.
    at: DateTime<Utc>,
    /// By partition; `None`: Kafka did not answer.
    ends: Option<HashMap<i32, i64>>,
}

/// What is known of a project.
#[derive(Default)]
struct Known {
    ends: Option<Ends>,
    goal: Option<Goal>,
}

/// Offsets up to which Redis should show everything soon.
struct Goal {
    set: Instant,
    next: HashMap<i32, i64>,
}

type Slot = Arc<tokio::sync::Mutex<Known>>;

/// Says up to when a project's events are counted.
pub struct Freshness {
    history: History,
    pool: PgPool,
    slots: Mutex<HashMap<String, Slot>>,
}

impl Freshness {
    /// Compares this log with the ledger in this database.
    pub fn new(history: History, pool: PgPool) -> Self {
        Self { history, pool, slots: Mutex::default() }
    }

    /// What can be promised now.
    pub async fn of(&self, project: &Project) -> Result<Fresh, sqlx::Error> {
        let slot = self.slot(project);
        let mut known = slot.lock().await;
        let ends = match known.ends.take().filter(Ends::is_good) {
            Some(ends) => ends,
            None => {
                let (asked, at) = (Instant::now(), Utc::now());
                Ends { asked, at, ends: ask(self.history.clone(), project).await }
            }
        };
        let ledger = postgres::ledger(&self.pool, project).await;
        let found = ledger.map(|ledger| Fresh {
            as_of: as_of(project.partitions, ends.ends.as_ref(), ends.at, &ledger),
            redis_lags: redis_lags(&mut known.goal, &ledger, Instant::now()),
        });
        known.ends = Some(ends);
        found
    }

    fn slot(&self, project: &Project) -> Slot {
        let mut slots = self.slots.lock().expect("no holder panics");
        Arc::clone(slots.entry(project.id.clone()).or_default())
    }
}

impl Ends {
    fn is_good(&self) -> bool {
        self.asked.elapsed() < if self.ends.is_some() { CHECKED_FOR } else { FAILED_FOR }
    }
}

async fn ask(history: History, project: &Project) -> Option<HashMap<i32, i64>> {
    let topic: Arc<str> = events_topic(&project.id).into();
    let partitions: Vec<TopicPartition> =
        (0..project.partitions).map(|partition| TopicPartition { topic: Arc::clone(&topic), partition }).collect();
    let asked = tokio::task::spawn_blocking(move || history.bounds(&partitions));
    match tokio::time::timeout(TIMEOUT, asked).await {
        Ok(Ok(Ok(bounds))) => Some(bounds.into_iter().map(|(at, (_, end))| (at.partition, end)).collect()),
        Ok(Ok(Err(error))) => {
            tracing::warn!(%error, project = project.id, "the log's ends are not known");
            None
        }
        Ok(Err(_)) => None, // the runtime is shutting down
        Err(_) => {
            tracing::warn!(project = project.id, "Kafka does not say the log's ends in time");
            None
        }
    }
}

/// The rule. With all partitions counted up to their ends it is the time at which the ends were asked for,
/// else when the last counted record was appended, in the partition where that is longest ago. Without the
/// ends every partition counts as behind.
fn as_of(
    partitions: i32,
    ends: Option<&HashMap<i32, i64>>,
    ends_at: DateTime<Utc>,
    ledger: &[Entry],
) -> Option<DateTime<Utc>> {
    let mut oldest = ends_at;
    for partition in 0..partitions {
        let entry = ledger.iter().find(|entry| entry.partition == partition);
        let counted = entry.map_or(0, |entry| entry.next_offset);
        let end = ends.and_then(|ends| ends.get(&partition));
        if end.is_none_or(|end| counted < *end) {
            oldest = oldest.min(entry?.as_of);
        }
    }
    Some(oldest)
}

/// Whether Redis has missed its goal: what the ledger counted some seconds ago. A goal that is reached, or that
/// the ledger itself has fallen behind (another topic, an older Postgres), makes way for the next.
fn redis_lags(goal: &mut Option<Goal>, ledger: &[Entry], now: Instant) -> bool {
    if let Some(goal) = goal {
        let of = |entry: &Entry| goal.next.get(&entry.partition).copied().unwrap_or(0);
        let reached = ledger.iter().all(|entry| entry.projected_offset >= of(entry));
        let obsolete = ledger.iter().any(|entry| entry.next_offset < of(entry));
        if !reached && !obsolete {
            return now > goal.set + PROJECTED_WITHIN;
        }
    }
    let next = ledger.iter().map(|entry| (entry.partition, entry.next_offset)).collect();
    *goal = Some(Goal { set: now, next });
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).expect("a time")
    }

    fn entry(partition: i32, next_offset: i64, second: i64) -> Entry {
        Entry { partition, next_offset, projected_offset: next_offset, as_of: at(second) }
    }

    fn rule(ends: Option<&[i64]>, ledger: &[Entry]) -> Option<i64> {
        let ends = ends.map(|ends| (0..).zip(ends.iter().copied()).collect());
        as_of(2, ends.as_ref(), at(1_000), ledger).map(|time| time.timestamp())
    }

    #[test]
    fn all_counted_is_as_of_the_check() {
        assert_eq!(rule(Some(&[5, 7]), &[entry(0, 5, 10), entry(1, 7, 20)]), Some(1_000));
        assert_eq!(rule(Some(&[5, 0]), &[entry(0, 6, 10)]), Some(1_000), "an empty partition needs no entry");
    }

    #[test]
    fn what_is_behind_counts_and_only_that() {
        assert_eq!(rule(Some(&[5, 8]), &[entry(0, 5, 10), entry(1, 7, 20)]), Some(20));
        assert_eq!(rule(Some(&[6, 8]), &[entry(0, 5, 10), entry(1, 7, 20)]), Some(10));
        assert_eq!(rule(Some(&[5, 8]), &[entry(0, 5, 10), entry(1, 7, 2_000)]), Some(1_000), "clocks may differ");
    }

    #[test]
    fn what_is_not_known_is_not_promised() {
        assert_eq!(rule(Some(&[5, 1]), &[entry(0, 5, 10)]), None, "nothing of partition 1 is counted");
        assert_eq!(rule(None, &[entry(0, 5, 10), entry(1, 7, 20)]), Some(10), "without Kafka all may be behind");
        assert_eq!(rule(None, &[entry(0, 5, 10)]), None);
        assert_eq!(rule(Some(&[5]), &[entry(0, 5, 10), entry(1, 7, 20)]), Some(20), "an end that was not told");
    }

    #[test]
    fn redis_lags_when_what_was_counted_is_not_shown_in_time() {
        let (mut goal, t) = (None, Instant::now());
        let late = t + PROJECTED_WITHIN + Duration::from_millis(1);
        let entry = |next_offset, projected_offset| [Entry { projected_offset, ..entry(0, next_offset, 10) }];
        assert!(!redis_lags(&mut goal, &entry(10, 5), t));
        assert!(!redis_lags(&mut goal, &entry(90, 9), t + PROJECTED_WITHIN), "there is time yet");
        assert!(redis_lags(&mut goal, &entry(90, 9), late));
        assert!(!redis_lags(&mut goal, &entry(90, 10), late), "reached; the next goal is 90");
        assert!(redis_lags(&mut goal, &entry(95, 89), late + (late - t)));
        assert!(!redis_lags(&mut goal, &entry(3, 3), late + (late - t)), "the ledger went back");
    }
}

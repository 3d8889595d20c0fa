//! How fresh the counts are: the ledger's offsets against the log's ends, and Redis against the ledger.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use tidemill_common::kafka::{History, KafkaConfig, TopicPartition};
use tidemill_common::projects::Project;

use crate::postgres::{self, Entry};

/// The log's ends are asked for at most this often per project.
const CHECKED_FOR: Duration = Duration::from_secs(1);
/// After a failure Kafka is left alone for this long.
const FAILED_FOR: Duration = Duration::from_secs(5);
/// A reader does not wait longer for Kafka.
const TIMEOUT: Duration = Duration::from_millis(1_500);

/// A topic that is deleted and made again is noticed after this time.
const INCARNATION_FOR: Duration = Duration::from_secs(5);

/// What can be promised of a project's data, if it is read after this was found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fresh {
    /// Every event appended before this time is counted; `None` when there is no such time to tell.
    pub as_of: Option<DateTime<Utc>>,
    /// Redis shows all that this promises. If not, what is read there may be older than `as_of`.
    pub redis_is_even: bool,
}

/// The ends of a project's partitions, as they were at a time.
struct Ends {
    asked: Instant,
    /// Taken before the log was asked, so that all that was appended before it lies below the ends.
    at: DateTime<Utc>,
    /// By the partition's number; `None`: Kafka did not answer.
    ends: Option<HashMap<i32, i64>>,
}

/// What is known of a project.
#[derive(Default)]
struct Known {
    ends: Option<Ends>,
    incarnations: Option<Incarnations>,
}

/// The topics' incarnations, and when they were asked for; `None`: they are not known.
struct Incarnations {
    asked: Instant,
    ids: Option<Vec<String>>,
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
    pub fn new(kafka: KafkaConfig, pool: PgPool) -> Self {
        Self { history: History::new(kafka), pool, slots: Mutex::default() }
    }

    /// What can be promised now.
    pub async fn of(&self, project: &Project) -> Result<Fresh, sqlx::Error> {
        let slot = self.slot(project);
        let mut known = slot.lock().await;
        if known.incarnations.as_ref().is_none_or(|known| known.asked.elapsed() >= INCARNATION_FOR) {
            let asked = Instant::now();
            known.incarnations = Some(Incarnations { asked, ids: incarnations(self.history.clone(), project).await });
        }
        if !known.ends.as_ref().is_some_and(Ends::is_good) {
            let (asked, at) = (Instant::now(), Utc::now());
            known.ends = Some(Ends { asked, at, ends: ends(self.history.clone(), project).await });
        }
        let Known { ends: Some(ends), incarnations } = &*known else {
            return Ok(Fresh { as_of: None, redis_is_even: false }); // they have just been set
        };
        let incarnations = incarnations.as_ref().and_then(|known| known.ids.as_deref());
        let ledger = postgres::ledger(&self.pool, project, incarnations).await?;
        Ok(Fresh {
            as_of: as_of(&numbers(project), ends.ends.as_ref(), ends.at, &ledger),
            redis_is_even: ledger.iter().all(|entry| entry.projected_offset >= entry.next_offset),
        })
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

async fn ends(history: History, project: &Project) -> Option<HashMap<i32, i64>> {
    let partitions = project.partitions_of_events();
    let bounds = ask(project, "the log's ends", move || history.bounds(&partitions)).await?;
    Some(bounds.into_iter().map(|(at, (_, end))| (at.number(), end)).collect())
}

async fn incarnations(history: History, project: &Project) -> Option<Vec<String>> {
    let topics = project.topics();
    let describe = move || history.incarnations(&topics, TIMEOUT);
    Some(ask(project, "the topics' ids", describe).await?.into_values().collect())
}

fn numbers(project: &Project) -> Vec<i32> {
    project.partitions_of_events().iter().map(TopicPartition::number).collect()
}

/// Asks Kafka; `None` when it does not answer in time.
async fn ask<T: Send + 'static, E: Display + Send + 'static>(
    project: &Project,
    what: &str,
    question: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Option<T> {
    match tokio::time::timeout(TIMEOUT, tokio::task::spawn_blocking(question)).await {
        Ok(Ok(Ok(answer))) => Some(answer),
        Ok(Ok(Err(error))) => {
            tracing::warn!(%error, project = project.id, what, "Kafka does not say");
            None
        }
        Ok(Err(_)) => None, // the runtime is shutting down
        Err(_) => {
            tracing::warn!(project = project.id, what, "Kafka does not say in time");
            None
        }
    }
}

/// The rule. With all partitions counted up to their ends it is the time at which the ends were asked for,
/// else when the last counted record was appended, in the partition where that is longest ago. Without the
/// ends every partition counts as behind.
fn as_of(
    partitions: &[i32],
    ends: Option<&HashMap<i32, i64>>,
    ends_at: DateTime<Utc>,
    ledger: &[Entry],
) -> Option<DateTime<Utc>> {
    let mut oldest = ends_at;
    for partition in partitions {
        let entry = ledger.iter().find(|entry| entry.partition == *partition);
        let counted = entry.map_or(0, |entry| entry.next_offset);
        let end = ends.and_then(|ends| ends.get(partition));
        if end.is_none_or(|end| counted < *end) {
            oldest = oldest.min(entry?.as_of);
        }
    }
    Some(oldest)
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
        as_of(&[0, 1], ends.as_ref(), at(1_000), ledger).map(|time| time.timestamp())
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
}

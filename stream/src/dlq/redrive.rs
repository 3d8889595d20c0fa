//! Sends dead letters through again: the bytes that were refused, to the partition where they were, with a header that
//! names the letter. Whether one counts is the stream's to decide, so it does no harm to send one twice: a run that was
//! ended is simply run again.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rdkafka::error::KafkaError;
use serde::Serialize;
use sqlx::PgPool;
use tidemill_common::dead_letters::{LetterId, REDRIVE_OF};
use tidemill_common::kafka::{History, KafkaConfig, Outgoing, Producer, Record};
use tidemill_common::projects::Project;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

pub use super::notes::{Outcomes, Plan, plan};
use super::payload::{self, Wanted, Wants, in_dlq, in_log};
use super::{DeadLetter, Filter, notes};

const KAFKA_TIMEOUT: Duration = Duration::from_secs(10);
/// Records that were found and wait to be sent.
const AHEAD: usize = 64;
/// Deliveries that are awaited at a time.
const AT_ONCE: usize = 16;
/// Who falls behind the rate does not make up for more than this.
const CATCH_UP: Duration = Duration::from_millis(100);
/// What was sent is noted after so many letters, or this long.
const NOTED: (usize, Duration) = (100, Duration::from_millis(500));
/// How often the stream's answers are looked for.
const LOOK: Duration = Duration::from_millis(200);

/// Why letters cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum RedriveError {
    /// Postgres.
    #[error("Postgres: {0}; run it again, what was sent will not count twice")]
    Postgres(#[from] sqlx::Error),
    /// Kafka.
    #[error("Kafka: {0}; run it again, what was sent will not count twice")]
    Kafka(#[from] KafkaError),
    /// The topic is not there.
    #[error("there is no topic {0}; make it with 'tidemill topics apply'")]
    NoTopic(String),
    /// A thread of ours ended.
    #[error("the reader of dead letters ended abruptly: {0}")]
    Ended(#[from] tokio::task::JoinError),
}

/// How a run went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Letters that were sent.
    pub sent: i64,
    /// Letters whose bytes are nowhere any more; they stay open.
    pub gone: i64,
    /// What the stream made of those that were sent.
    #[serde(flatten)]
    pub outcomes: Outcomes,
}

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// So many of so many letters are sent.
    Sent(i64, i64),
    /// All are sent; so many of so many are decided.
    Decided(i64, i64),
}

/// What it takes to send letters.
pub struct Redriver {
    /// The letters.
    pub pool: PgPool,
    /// The brokers.
    pub kafka: KafkaConfig,
    /// Their project.
    pub project: Project,
}

impl Redriver {
    /// Sends the letters that match, at most `rate` a second, then waits up to `wait` for what the stream makes of them.
    /// The filter has to name the project.
    pub async fn run(
        &self,
        filter: &Filter,
        rate: u32,
        wait: Duration,
        mut step: impl FnMut(Step),
    ) -> Result<Report, RedriveError> {
        let incarnations = self.incarnations().await?;
        let wants = notes::wants(&self.pool, filter).await?;
        let total = wants.values().map(Vec::len).sum::<usize>() as i64;
        let started: DateTime<Utc> = sqlx::query_scalar("SELECT now()").fetch_one(&self.pool).await?;
        let (found, to_send) = mpsc::channel(AHEAD);
        let finding = self.find(wants, incarnations.clone(), found);
        let sent = self.send(to_send, &incarnations, rate, |sent| step(Step::Sent(sent, total))).await;
        let left = finding.await?;
        let sent = sent?;
        let gone = left?.values().map(Vec::len).sum::<usize>() as i64;
        let outcomes = self.outcomes(started, sent, wait, step).await?;
        Ok(Report { sent, gone, outcomes })
    }

    /// A letter's record, for people to look at.
    pub async fn show(&self, letter: &DeadLetter) -> Result<Option<Record>, RedriveError> {
        let incarnations = self.incarnations().await?;
        let DeadLetter { topic_incarnation, partition, offset, attempts, digest, created_at, .. } = letter.clone();
        let id = LetterId { incarnation: topic_incarnation, partition, offset };
        let wanted = Wanted { id, attempts, digest, created_ms: created_at.timestamp_millis() };
        let (history, project) = (History::new(self.kafka.clone()), self.project.clone());
        let find = move || payload::one(&history, &project, &incarnations, wanted);
        Ok(tokio::task::spawn_blocking(find).await??)
    }

    /// Kafka's ids of the topics of the project's events.
    async fn incarnations(&self) -> Result<HashMap<String, String>, RedriveError> {
        let (history, topics) = (History::new(self.kafka.clone()), self.project.topics());
        let asked = topics.clone();
        let ask = move || history.incarnations(&asked, KAFKA_TIMEOUT);
        let found = tokio::task::spawn_blocking(ask).await??;
        match topics.into_iter().find(|topic| !found.contains_key(topic)) {
            Some(missing) => Err(RedriveError::NoTopic(missing)),
            None => Ok(found),
        }
    }

    /// Looks for bytes on a thread of its own; gives the letters for which there are none.
    fn find(
        &self,
        mut wants: Wants,
        incarnations: HashMap<String, String>,
        found: mpsc::Sender<(Wanted, Record)>,
    ) -> tokio::task::JoinHandle<Result<Wants, KafkaError>> {
        let (history, project) = (History::new(self.kafka.clone()), self.project.clone());
        tokio::task::spawn_blocking(move || {
            let mut each = |wanted, record| found.blocking_send((wanted, record)).is_ok();
            in_dlq(&history, &project, &mut wants, &mut each)?;
            if !wants.is_empty() {
                in_log(&history, &project, &incarnations, &mut wants, &mut each)?;
            }
            Ok(wants)
        })
    }

    async fn send(
        &self,
        mut found: mpsc::Receiver<(Wanted, Record)>,
        incarnations: &HashMap<String, String>,
        rate: u32,
        mut progress: impl FnMut(i64),
    ) -> Result<i64, RedriveError> {
        let producer = Producer::new(&self.kafka, KAFKA_TIMEOUT)?;
        let (mut pace, mut sent, mut more) = (Pace::new(rate), 0, true);
        let (mut delivered, mut noted) = (Vec::new(), Instant::now());
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased; // a letter whose turn has come goes before the next one's is waited for
                Some(letter) = under_way.next() => {
                    delivered.push(letter?);
                    sent += 1;
                    progress(sent);
                }
                letter = found.recv(), if more && under_way.len() < AT_ONCE => match letter {
                    Some((wanted, record)) => {
                        sleep_until(pace.turn(Instant::now())).await;
                        under_way.push(send(&producer, self.project.place(wanted.id.partition), wanted, record));
                    }
                    None => more = false,
                },
                else => break,
            }
            if delivered.len() >= NOTED.0 || noted.elapsed() > NOTED.1 {
                notes::sent(&self.pool, &self.project, &mut delivered, incarnations).await?;
                noted = Instant::now();
            }
        }
        notes::sent(&self.pool, &self.project, &mut delivered, incarnations).await?;
        Ok(sent)
    }

    async fn outcomes(
        &self,
        started: DateTime<Utc>,
        sent: i64,
        wait: Duration,
        mut step: impl FnMut(Step),
    ) -> Result<Outcomes, sqlx::Error> {
        let deadline = Instant::now() + wait;
        loop {
            let outcomes = notes::outcomes(&self.pool, &self.project.id, started).await?;
            step(Step::Decided(sent - outcomes.under_way, sent));
            if outcomes.under_way == 0 || Instant::now() >= deadline {
                return Ok(outcomes);
            }
            sleep(LOOK).await;
        }
    }
}

/// Sends a letter; gives its offset in the partition where it stood.
async fn send(
    producer: &Producer,
    (topic, partition): (String, i32),
    wanted: Wanted,
    record: Record,
) -> Result<(Wanted, i64), KafkaError> {
    let letter = wanted.id.to_string();
    let outgoing = Outgoing {
        topic: &topic,
        partition,
        key: record.key(),
        value: record.value(),
        headers: &[(REDRIVE_OF, &letter)],
    };
    let (_, offset) = producer.send(&outgoing).await?;
    Ok((wanted, offset))
}

/// Lets one through at a time.
struct Pace {
    every: Duration,
    next: Instant,
}

impl Pace {
    fn new(rate: u32) -> Self {
        Self { every: Duration::from_secs(1) / rate.max(1), next: Instant::now() }
    }

    /// When the next may go.
    fn turn(&mut self, now: Instant) -> Instant {
        let turn = self.next.max(now.checked_sub(CATCH_UP).unwrap_or(now));
        self.next = turn + self.every;
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_and_a_pause_is_not_made_up_for() {
        let mut pace = Pace::new(100);
        let start = pace.next;
        let mut through = |start: Instant| (0..=200).fold(start, |now, _| now.max(pace.turn(now)));
        let end = through(start);
        assert_eq!(end - start, Duration::from_secs(2));
        let later = end + Duration::from_secs(60);
        assert_eq!(through(later) - later, Duration::from_secs(2) - CATCH_UP);
    }
}

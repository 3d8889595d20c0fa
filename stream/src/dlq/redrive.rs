//! Sends dead letters through again: the bytes that were refused, to the partition where they were, with a header that
//! names the letter. Whether one counts is the stream's to decide, so it does no harm to send one twice: a run that was
//! ended is simply run again.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rdkafka::error::KafkaError;
use serde::Serialize;
use sqlx::{PgPool, Row};
use tidemill_common::dead_letters::{LetterId, REDRIVE_OF};
use tidemill_common::kafka::{History, KafkaConfig, Outgoing, Producer, Record, topic_incarnations};
use tidemill_common::names::events_topic;
use tidemill_common::projects::Project;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::payload::{self, Wanted, Wants, in_dlq, in_log};
use super::{DeadLetter, Filter, MATCHES, UNDER_WAY, bind};

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

/// What a redrive with a filter would do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Plan {
    /// Letters to send.
    pub letters: i64,
    /// Open letters that were sent already; the stream has yet to say what they are.
    pub under_way: i64,
}

/// What has become of the letters of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct Outcomes {
    /// They count now.
    pub counted: i64,
    /// A copy had counted.
    pub duplicate: i64,
    /// Refused again.
    pub refused: i64,
    /// Discarded meanwhile.
    pub discarded: i64,
    /// The stream has not come to them.
    pub under_way: i64,
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

/// What a redrive with this filter would do. Letters that are not open are none of its business.
pub async fn plan(pool: &PgPool, filter: &Filter) -> Result<Plan, sqlx::Error> {
    let sql = format!(
        "SELECT count(*) FILTER (WHERE NOT {UNDER_WAY}), count(*) FILTER (WHERE {UNDER_WAY})
         FROM dead_letters d WHERE {MATCHES} AND d.state = 'open'"
    );
    let row = bind!(sqlx::query(sqlx::AssertSqlSafe(sql)), filter).fetch_one(pool).await?;
    Ok(Plan { letters: row.try_get(0)?, under_way: row.try_get(1)? })
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
        let incarnation = self.incarnation().await?;
        let wants = self.wants(filter).await?;
        let total = wants.values().map(Vec::len).sum::<usize>() as i64;
        let started: DateTime<Utc> = sqlx::query_scalar("SELECT now()").fetch_one(&self.pool).await?;
        let (found, to_send) = mpsc::channel(AHEAD);
        let finding = self.find(wants, incarnation.clone(), found);
        let sent = self.send(to_send, &incarnation, rate, |sent| step(Step::Sent(sent, total))).await;
        let left = finding.await?;
        let sent = sent?;
        let gone = left?.values().map(Vec::len).sum::<usize>() as i64;
        let outcomes = self.outcomes(started, sent, wait, step).await?;
        Ok(Report { sent, gone, outcomes })
    }

    /// A letter's record, for people to look at.
    pub async fn show(&self, letter: &DeadLetter) -> Result<Option<Record>, RedriveError> {
        let incarnation = self.incarnation().await?;
        let DeadLetter { topic_incarnation, partition, offset, attempts, digest, created_at, .. } = letter.clone();
        let id = LetterId { incarnation: topic_incarnation, partition, offset };
        let wanted = Wanted { id, attempts, digest, created_ms: created_at.timestamp_millis() };
        let (history, project) = (History::new(self.kafka.clone()), self.project.clone());
        let find = move || payload::one(&history, &project, &incarnation, wanted);
        Ok(tokio::task::spawn_blocking(find).await??)
    }

    async fn incarnation(&self) -> Result<String, RedriveError> {
        let (kafka, topic) = (self.kafka.clone(), events_topic(&self.project.id));
        let asked = topic.clone();
        let ask = move || topic_incarnations(&kafka, &[&asked], KAFKA_TIMEOUT);
        tokio::task::spawn_blocking(ask).await??.remove(&topic).ok_or(RedriveError::NoTopic(topic))
    }

    /// The letters that are open and not on their way.
    async fn wants(&self, filter: &Filter) -> Result<Wants, sqlx::Error> {
        let sql = format!(
            r#"SELECT d.topic_incarnation, d.partition, d."offset", d.attempts, d.digest, d.created_at
               FROM dead_letters d WHERE {MATCHES} AND d.state = 'open' AND NOT {UNDER_WAY}"#
        );
        let mut wants = Wants::new();
        for row in bind!(sqlx::query(sqlx::AssertSqlSafe(sql)), filter).fetch_all(&self.pool).await? {
            let id = LetterId { incarnation: row.try_get(0)?, partition: row.try_get(1)?, offset: row.try_get(2)? };
            let created_ms = row.try_get::<DateTime<Utc>, _>(5)?.timestamp_millis();
            let place = (id.partition, id.offset);
            let wanted = Wanted { id, attempts: row.try_get(3)?, digest: row.try_get(4)?, created_ms };
            wants.entry(place).or_default().push(wanted);
        }
        Ok(wants)
    }

    /// Looks for bytes on a thread of its own; gives the letters for which there are none.
    fn find(
        &self,
        mut wants: Wants,
        incarnation: String,
        found: mpsc::Sender<(Wanted, Record)>,
    ) -> tokio::task::JoinHandle<Result<Wants, KafkaError>> {
        let (history, project) = (History::new(self.kafka.clone()), self.project.clone());
        tokio::task::spawn_blocking(move || {
            let mut each = |wanted, record| found.blocking_send((wanted, record)).is_ok();
            in_dlq(&history, &project, &mut wants, &mut each)?;
            if !wants.is_empty() {
                in_log(&history, &project, &incarnation, &mut wants, &mut each)?;
            }
            Ok(wants)
        })
    }

    async fn send(
        &self,
        mut found: mpsc::Receiver<(Wanted, Record)>,
        incarnation: &str,
        rate: u32,
        mut progress: impl FnMut(i64),
    ) -> Result<i64, RedriveError> {
        let producer = Producer::new(&self.kafka, KAFKA_TIMEOUT)?;
        let (mut pace, mut sent, mut more) = (Pace::new(rate), 0, true);
        let (mut delivered, mut noted) = (Vec::new(), Instant::now());
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                letter = found.recv(), if more && under_way.len() < AT_ONCE => match letter {
                    Some((wanted, record)) => {
                        sleep_until(pace.turn(Instant::now())).await;
                        under_way.push(send(&producer, &self.project.id, wanted, record));
                    }
                    None => more = false,
                },
                Some(letter) = under_way.next() => {
                    delivered.push(letter?);
                    sent += 1;
                    progress(sent);
                }
                else => break,
            }
            if delivered.len() >= NOTED.0 || noted.elapsed() > NOTED.1 {
                self.note(&mut delivered, incarnation).await?;
                noted = Instant::now();
            }
        }
        self.note(&mut delivered, incarnation).await?;
        Ok(sent)
    }

    /// Notes where letters stand now, so that nobody sends them again before the stream has come to them.
    async fn note(&self, delivered: &mut Vec<(Wanted, i64)>, incarnation: &str) -> Result<(), sqlx::Error> {
        if delivered.is_empty() {
            return Ok(());
        }
        // In the one order of all locks.
        delivered.sort_by(|(a, _), (b, _)| a.id.cmp(&b.id));
        sqlx::query(
            r#"WITH sent AS (
                   SELECT d.topic, d.topic_incarnation, d.partition, d."offset", w.attempts, w.sent_offset
                   FROM dead_letters d
                   JOIN unnest($2::text[], $3::int[], $4::bigint[], $5::int[], $6::bigint[])
                        AS w(incarnation, partition, "offset", attempts, sent_offset)
                     ON d.topic_incarnation = w.incarnation AND d.partition = w.partition AND d."offset" = w."offset"
                   WHERE d.topic = $1
                   ORDER BY d.topic_incarnation COLLATE "C", d.partition, d."offset" FOR UPDATE OF d)
               UPDATE dead_letters d
               SET sent_incarnation = $7, sent_offset = s.sent_offset, sent_attempts = s.attempts, sent_at = now()
               FROM sent s
               WHERE d.topic = s.topic AND d.topic_incarnation = s.topic_incarnation AND d.partition = s.partition
                 AND d."offset" = s."offset""#,
        )
        .bind(events_topic(&self.project.id))
        .bind(delivered.iter().map(|(wanted, _)| &*wanted.id.incarnation).collect::<Vec<_>>())
        .bind(delivered.iter().map(|(wanted, _)| wanted.id.partition).collect::<Vec<_>>())
        .bind(delivered.iter().map(|(wanted, _)| wanted.id.offset).collect::<Vec<_>>())
        .bind(delivered.iter().map(|(wanted, _)| wanted.attempts).collect::<Vec<_>>())
        .bind(delivered.iter().map(|(_, offset)| *offset).collect::<Vec<_>>())
        .bind(incarnation)
        .execute(&self.pool)
        .await?;
        delivered.clear();
        Ok(())
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
            let outcomes: Outcomes = sqlx::query_as(
                "SELECT count(*) FILTER (WHERE state = 'counted') AS counted,
                        count(*) FILTER (WHERE state = 'duplicate') AS duplicate,
                        count(*) FILTER (WHERE state = 'discarded') AS discarded,
                        count(*) FILTER (WHERE state = 'open' AND attempts > sent_attempts) AS refused,
                        count(*) FILTER (WHERE state = 'open' AND attempts = sent_attempts) AS under_way
                 FROM dead_letters WHERE project = $1 AND sent_at >= $2",
            )
            .bind(&self.project.id)
            .bind(started)
            .fetch_one(&self.pool)
            .await?;
            step(Step::Decided(sent - outcomes.under_way, sent));
            if outcomes.under_way == 0 || Instant::now() >= deadline {
                return Ok(outcomes);
            }
            sleep(LOOK).await;
        }
    }
}

/// Sends a letter; gives its offset in the partition where it stood.
async fn send(producer: &Producer, project: &str, wanted: Wanted, record: Record) -> Result<(Wanted, i64), KafkaError> {
    let (topic, letter) = (events_topic(project), wanted.id.to_string());
    let outgoing = Outgoing {
        topic: &topic,
        partition: wanted.id.partition,
        key: record.key.as_deref(),
        value: &record.value,
        headers: vec![(REDRIVE_OF, &letter)],
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

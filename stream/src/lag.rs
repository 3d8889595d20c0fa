//! Where the stream stands in whole topics, whichever workers have their partitions.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use sqlx::{PgExecutor, PgPool};
use tidemill_common::kafka::{History, TopicPartition};

use crate::ledger::VIEW;

const KAFKA_TIMEOUT: Duration = Duration::from_secs(10);
/// Of the live generation. What a topic had before it was made again is of no interest.
const POSITIONS: &str = "SELECT l.topic, l.partition, l.next_offset FROM ledger l \
     JOIN unnest($2::text[], $3::text[]) AS w(topic, incarnation) \
       ON l.topic = w.topic AND l.topic_incarnation = w.incarnation \
     JOIN projects p ON p.id = split_part(l.topic, '.', 2) AND p.generation = l.generation \
     WHERE l.view = $1";

/// Why lags are not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka does not say where the log ends.
    #[error("kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// Postgres does not say where the ledger stands.
    #[error("postgres: {0}")]
    Postgres(#[from] sqlx::Error),
}

/// Where the ledger stands in these topics, each with its incarnation. Partitions that no worker has had yet are
/// missing.
pub async fn positions(
    db: impl PgExecutor<'_>,
    incarnations: &HashMap<String, String>,
) -> Result<HashMap<TopicPartition, i64>, sqlx::Error> {
    let (topics, ids): (Vec<&str>, Vec<&str>) = incarnations.iter().map(|(topic, id)| (&**topic, &**id)).unzip();
    let rows: Vec<(String, i32, i64)> =
        sqlx::query_as(POSITIONS).bind(VIEW).bind(topics).bind(ids).fetch_all(db).await?;
    let position =
        |(topic, partition, next): (String, i32, i64)| (TopicPartition { topic: topic.into(), partition }, next);
    Ok(rows.into_iter().map(position).collect())
}

/// How many records the stream is behind in these topics, on average of their partitions.
pub(crate) async fn averages(
    kafka: &History,
    pool: &PgPool,
    topics: BTreeSet<String>,
) -> Result<HashMap<Arc<str>, f64>, Error> {
    if topics.is_empty() {
        return Ok(HashMap::new());
    }
    let history = kafka.clone();
    let ask = move || history.incarnations(&topics, KAFKA_TIMEOUT);
    let positions = positions(pool, &blocking(ask).await?).await?;
    let (history, partitions) = (kafka.clone(), positions.keys().cloned().collect::<Vec<_>>());
    let ends = blocking(move || history.ends(&partitions)).await?;
    let mut sums: HashMap<Arc<str>, (i64, u32)> = HashMap::new();
    for (at, next) in positions {
        let Some(end) = ends.get(&at) else { continue };
        let (sum, count) = sums.entry(at.topic).or_default();
        *sum += (end.offset - next).max(0);
        *count += 1;
    }
    Ok(sums.into_iter().map(|(topic, (sum, count))| (topic, sum as f64 / f64::from(count))).collect())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KafkaError> + Send + 'static,
) -> Result<T, KafkaError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(KafkaError::Canceled))
}

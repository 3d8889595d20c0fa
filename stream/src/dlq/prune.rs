//! What was made of records that were sent through again is the verdict on them, for as long as somebody may read them.
//! Once Kafka has deleted a record, nobody does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use sqlx::{PgPool, Row};
use tidemill_common::kafka::{History, TopicPartition};
use tokio_util::sync::CancellationToken;

/// How often it is done; any worker may do it.
const EVERY: Duration = Duration::from_secs(3_600);
/// A verdict is kept for longer than anybody holds a record in hand, or a dedupe window lasts.
pub const KEPT: Duration = Duration::from_secs(48 * 3_600);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why nothing was pruned; it will be, later.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// Postgres.
    #[error("Postgres: {0}")]
    Postgres(#[from] sqlx::Error),
    /// Kafka.
    #[error("Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// A task failed.
    #[error("{0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Where verdicts are, and where their records were.
struct Stretch {
    at: TopicPartition,
    incarnation: String,
}

/// Prunes, now and then, until shutdown.
pub async fn keep_pruning(pool: PgPool, history: History, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        match verdicts(&pool, &history, KEPT).await {
            Ok(0) => {}
            Ok(pruned) => tracing::info!(pruned, "verdicts whose records Kafka has deleted"),
            Err(error) => tracing::debug!(%error, "verdicts are pruned another time"),
        }
    }
}

/// Removes the verdicts that are older than `kept` and whose records no log holds any more; gives how many. Where Kafka
/// says nothing of a topic, they stay.
pub async fn verdicts(pool: &PgPool, history: &History, kept: Duration) -> Result<u64, PruneError> {
    let rows = sqlx::query(
        "SELECT DISTINCT topic, topic_incarnation, partition FROM redrives
         WHERE created_at <= now() - make_interval(secs => $1)",
    )
    .bind(kept.as_secs_f64())
    .fetch_all(pool)
    .await?;
    let stretch = |row: &sqlx::postgres::PgRow| {
        let topic: String = row.try_get(0)?;
        let at = TopicPartition { topic: Arc::from(topic), partition: row.try_get(2)? };
        Ok(Stretch { at, incarnation: row.try_get(1)? })
    };
    let stretches = rows.iter().map(stretch).collect::<Result<Vec<_>, sqlx::Error>>()?;
    if stretches.is_empty() {
        return Ok(0);
    }
    let history = history.clone();
    let begins = tokio::task::spawn_blocking(move || begins(&history, stretches)).await??;
    let pruned = sqlx::query(
        r#"DELETE FROM redrives r
           USING unnest($2::text[], $3::text[], $4::int[], $5::bigint[]) AS w(topic, incarnation, partition, begins)
           WHERE (r.topic, r.topic_incarnation, r.partition) = (w.topic, w.incarnation, w.partition)
             AND r."offset" < w.begins AND r.created_at <= now() - make_interval(secs => $1)"#,
    )
    .bind(kept.as_secs_f64())
    .bind(begins.iter().map(|(stretch, _)| &*stretch.at.topic).collect::<Vec<_>>())
    .bind(begins.iter().map(|(stretch, _)| &*stretch.incarnation).collect::<Vec<_>>())
    .bind(begins.iter().map(|(stretch, _)| stretch.at.partition).collect::<Vec<_>>())
    .bind(begins.iter().map(|(_, begins)| *begins).collect::<Vec<_>>())
    .execute(pool)
    .await?;
    Ok(pruned.rows_affected())
}

/// The first offset that each log still holds; of one that was made again, nothing. Blocks.
fn begins(history: &History, stretches: Vec<Stretch>) -> Result<Vec<(Stretch, i64)>, KafkaError> {
    let topics: Vec<&str> = stretches.iter().map(|stretch| &*stretch.at.topic).collect();
    let now = history.incarnations(&topics, TIMEOUT)?;
    let is_now = |stretch: &&Stretch| now.get(&*stretch.at.topic) == Some(&stretch.incarnation);
    let there: Vec<TopicPartition> = stretches.iter().filter(is_now).map(|stretch| stretch.at.clone()).collect();
    let bounds = if there.is_empty() { HashMap::new() } else { history.bounds(&there)? };
    let begins = |stretch: Stretch| match now.get(&*stretch.at.topic) {
        Some(id) if *id == stretch.incarnation => bounds.get(&stretch.at).map(|(low, _)| (stretch, *low)),
        Some(_) => Some((stretch, i64::MAX)),
        None => None,
    };
    Ok(stretches.into_iter().filter_map(begins).collect())
}

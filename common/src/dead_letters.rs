//! What the stream has given up on because nobody knew its schema. Everybody else has to ask here, since the
//! schema may have come since: a dead letter stays one until it is sent through again.

use std::collections::{BTreeSet, HashMap};

use sqlx::{PgPool, Row};

use crate::kafka::TopicPartition;

/// The offsets of such records in one incarnation of a topic, by partition.
pub async fn unknown_schemas(
    pool: &PgPool,
    topic: &str,
    incarnation: &str,
) -> Result<HashMap<TopicPartition, BTreeSet<i64>>, sqlx::Error> {
    let rows = sqlx::query(
        r#"SELECT partition, "offset" FROM dead_letters
           WHERE topic = $1 AND topic_incarnation = $2 AND reason = 'unknown-schema'"#,
    )
    .bind(topic)
    .bind(incarnation)
    .fetch_all(pool)
    .await?;
    let mut offsets = HashMap::<TopicPartition, BTreeSet<i64>>::new();
    for row in rows {
        let at = TopicPartition { topic: topic.into(), partition: row.try_get(0)? };
        offsets.entry(at).or_default().insert(row.try_get(1)?);
    }
    Ok(offsets)
}

//! Dead letters: which records were refused, where they stand and why.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

/// A record that is not an event.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Its project.
    pub project: String,
    /// Its topic.
    pub topic: String,
    /// Kafka's id of the topic.
    pub incarnation: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// When it was appended.
    pub append_time: DateTime<Utc>,
    /// The step that refused it.
    pub stage: &'static str,
    /// A stable word.
    pub reason: &'static str,
    /// A sentence for people.
    pub detail: String,
}

/// Writes dead letters; those that are there already stay as they are.
pub async fn insert(tx: &mut PgConnection, letters: &[DeadLetter]) -> Result<(), sqlx::Error> {
    for letter in letters {
        sqlx::query(
            r#"INSERT INTO dead_letters
                   (project, topic, topic_incarnation, partition, "offset", append_time, stage, reason, detail)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING"#,
        )
        .bind(&letter.project)
        .bind(&letter.topic)
        .bind(&letter.incarnation)
        .bind(letter.partition)
        .bind(letter.offset)
        .bind(letter.append_time)
        .bind(letter.stage)
        .bind(letter.reason)
        // What a hostile record says must not stop the worker: Postgres cannot store U+0000.
        .bind(letter.detail.replace('\0', "\u{fffd}"))
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

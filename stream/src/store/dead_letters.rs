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
    /// What its record is known by ([`tidemill_common::dead_letters::digest`]).
    pub digest: [u8; 32],
}

/// Writes dead letters; those that are there already stay as they are. They come sorted by partition and offset, and
/// only the one whose ledger row is locked writes those of a partition, so nobody waits for anybody here.
pub async fn insert(tx: &mut PgConnection, letters: &[DeadLetter]) -> Result<(), sqlx::Error> {
    if letters.is_empty() {
        return Ok(());
    }
    fn column<'a, T>(letters: &'a [DeadLetter], value: impl Fn(&'a DeadLetter) -> T) -> Vec<T> {
        letters.iter().map(value).collect()
    }
    sqlx::query(
        r#"INSERT INTO dead_letters
               (project, topic, topic_incarnation, partition, "offset", append_time, stage, reason, detail, digest)
           SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::bigint[], $6::timestamptz[],
                                $7::text[], $8::text[], $9::text[], $10::bytea[])
           ON CONFLICT DO NOTHING"#,
    )
    .bind(column(letters, |letter| &*letter.project))
    .bind(column(letters, |letter| &*letter.topic))
    .bind(column(letters, |letter| &*letter.incarnation))
    .bind(column(letters, |letter| letter.partition))
    .bind(column(letters, |letter| letter.offset))
    .bind(column(letters, |letter| letter.append_time))
    .bind(column(letters, |letter| letter.stage))
    .bind(column(letters, |letter| letter.reason))
    // What a hostile record says must not stop the worker: Postgres cannot store U+0000.
    .bind(column(letters, |letter| letter.detail.replace('\0', "\u{fffd}")))
    .bind(column(letters, |letter| &letter.digest[..]))
    .execute(tx)
    .await?;
    Ok(())
}

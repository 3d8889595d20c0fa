//! What the stream has given up on, and what it made of it when it was sent through again.
//!
//! A record's verdict depends on the record alone, but for these: a schema may come to the registry, or a corrected
//! worker may be started, after a record was refused. A dead letter stays one, whatever its record would be judged now;
//! and a record that is sent through again counts only if its letter was open when the stream came to it. So whoever
//! else reads the log asks here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use sqlx::{PgPool, Row};

use crate::kafka::Record;
use crate::names::{own_topic, partition_number};

/// Header of a record that is sent through again: whose letter it is, as [`LetterId`] writes it.
pub const REDRIVE_OF: &str = "redrive-of";
/// Longest topic id.
const MAX_INCARNATION: usize = 64;

/// Which dead letter of a project: where the record stands that was refused first. Its text is
/// `<topic incarnation>:<partition>:<offset>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LetterId {
    /// Kafka's id of the topic.
    pub incarnation: String,
    /// The partition's number in the project.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// A text that names no dead letter.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} names no dead letter; write <topic incarnation>:<partition>:<offset>")]
pub struct BadLetterId(String);

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.incarnation, self.partition, self.offset)
    }
}

impl FromStr for LetterId {
    type Err = BadLetterId;

    fn from_str(text: &str) -> Result<Self, BadLetterId> {
        let parse = || {
            let mut parts = text.split(':');
            let (incarnation, partition, offset) = (parts.next()?, parts.next()?, parts.next()?);
            // Kafka's ids are base64; nothing else may come near Postgres.
            let base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/-_=".contains(&byte);
            let good = (1..=MAX_INCARNATION).contains(&incarnation.len()) && incarnation.bytes().all(base64);
            let (partition, offset) = (partition.parse().ok()?, offset.parse().ok()?);
            let id = Self { incarnation: incarnation.to_owned(), partition, offset };
            (good && parts.next().is_none() && id.partition >= 0 && id.offset >= 0).then_some(id)
        };
        parse().ok_or_else(|| BadLetterId(text.to_owned()))
    }
}

/// The letter that a record says it is sent through again for. Anybody may say so: see [`digest`].
pub fn redrive_of(record: &Record) -> Option<LetterId> {
    std::str::from_utf8(record.header(REDRIVE_OF)?).ok()?.parse().ok()
}

/// What a letter's record is known by: the SHA-256 of its key and value. A record with other bytes is not sent through
/// again, whatever its headers say.
pub fn digest(key: Option<&[u8]>, value: &[u8]) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(key.map_or(-1, |key| key.len() as i64).to_be_bytes());
    digest.update(key.unwrap_or_default());
    digest.update(value);
    digest.finalize().into()
}

/// How far the live generation of the stream has got in a partition, and what of it is nobody's event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Passed {
    /// Behind the last record that it has judged.
    pub next: i64,
    /// Of the offsets that were asked for, those that are no sightings, whatever their records look like.
    pub dead: BTreeSet<i64>,
}

const DEAD: &str = r#"
    SELECT "offset" FROM dead_letters
    WHERE topic = $6 AND topic_incarnation = $2 AND partition = w.partition + $7
      AND "offset" >= w.low AND "offset" < w.high
    UNION
    SELECT "offset" FROM redrives
    WHERE topic = $1 AND topic_incarnation = $2 AND partition = w.partition AND "offset" >= w.low AND "offset" < w.high
      AND outcome IN ('refused', 'closed')"#;

/// Where the stream stands in partitions of one of a project's topics, and what it gave up there; `from` is the first
/// offset of interest in each of them.
pub async fn passed(
    pool: &PgPool,
    project: &str,
    topic: &str,
    incarnation: &str,
    from: &BTreeMap<i32, i64>,
) -> Result<BTreeMap<i32, Passed>, sqlx::Error> {
    // One statement, so that both answers are of one moment.
    let sql = format!(
        "SELECT w.partition, coalesce(l.next_offset, 0), ARRAY({DEAD})
         FROM unnest($3::int[], $4::bigint[], $5::bigint[]) AS w(partition, low, high)
         LEFT JOIN ledger l ON l.view = 'stream' AND l.topic = $1 AND l.topic_incarnation = $2
           AND l.partition = w.partition AND l.generation = (SELECT generation FROM projects WHERE id = $8)"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(topic)
        .bind(incarnation)
        .bind(from.keys().copied().collect::<Vec<_>>())
        .bind(from.values().copied().collect::<Vec<_>>())
        .bind(vec![i64::MAX; from.len()])
        .bind(own_topic(topic))
        .bind(partition_number(topic, 0))
        .bind(project)
        .fetch_all(pool)
        .await?;
    let passed = |row: &sqlx::postgres::PgRow| {
        let dead: Vec<i64> = row.try_get(2)?;
        Ok((row.try_get(0)?, Passed { next: row.try_get(1)?, dead: dead.into_iter().collect() }))
    };
    rows.iter().map(passed).collect()
}

/// The offsets within spans of a topic's partitions that are no sightings.
pub async fn dead(
    pool: &PgPool,
    topic: &str,
    incarnation: &str,
    spans: &[(i32, Range<i64>)],
) -> Result<HashMap<i32, BTreeSet<i64>>, sqlx::Error> {
    let sql = format!(
        "SELECT w.partition, ARRAY({DEAD})
         FROM unnest($3::int[], $4::bigint[], $5::bigint[]) AS w(partition, low, high)"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(topic)
        .bind(incarnation)
        .bind(spans.iter().map(|(partition, _)| *partition).collect::<Vec<_>>())
        .bind(spans.iter().map(|(_, span)| span.start).collect::<Vec<_>>())
        .bind(spans.iter().map(|(_, span)| span.end).collect::<Vec<_>>())
        .bind(own_topic(topic))
        .bind(partition_number(topic, 0))
        .fetch_all(pool)
        .await?;
    let offsets = |row: &sqlx::postgres::PgRow| {
        let dead: Vec<i64> = row.try_get(1)?;
        Ok((row.try_get(0)?, dead.into_iter().collect()))
    };
    rows.iter().map(offsets).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_named_and_found_by_their_names() {
        let id = LetterId { incarnation: "bXkgdG9waWM_-A==".into(), partition: 3, offset: 17 };
        assert_eq!(id.to_string(), "bXkgdG9waWM_-A==:3:17");
        assert_eq!(id.to_string().parse::<LetterId>().expect("a letter"), id);
        for text in ["", "a:1", "a:1:2:3", ":1:2", "a:-1:2", "a:1:-2", "a:x:2", "a\0:1:2", "a b:1:2", "é:1:2"] {
            assert!(text.parse::<LetterId>().is_err(), "{text:?}");
        }
        assert!(format!("{}:1:2", "a".repeat(65)).parse::<LetterId>().is_err());
    }

    #[test]
    fn no_other_bytes_have_a_letters_digest() {
        let digests =
            [digest(None, b"ab"), digest(Some(b""), b"ab"), digest(Some(b"a"), b"b"), digest(Some(b"ab"), b"")];
        assert_eq!(digests.iter().collect::<BTreeSet<_>>().len(), digests.len());
    }
}

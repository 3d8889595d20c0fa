//! Dead letters, as operators handle them: looked at, sent through again ([`redrive`]), discarded.

mod notes;
pub mod payload;
pub mod prune;
pub mod redrive;
pub mod watch;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgExecutor, PgPool, Row};
use tidemill_common::names::partition_number;

/// Which letters; what is `None` does not matter.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Filter {
    /// Of this project.
    pub project: Option<String>,
    /// Refused last for this reason.
    pub reason: Option<String>,
    /// Refused last by this step.
    pub stage: Option<String>,
    /// In this state: `open`, `counted`, `duplicate` or `discarded`.
    pub state: Option<String>,
    /// Refused first at this time or later.
    pub since: Option<DateTime<Utc>>,
    /// Refused first before this time.
    pub until: Option<DateTime<Utc>>,
    /// Whose record stands there: partition and offset.
    pub at: Option<(i32, i64)>,
}

/// A dead letter.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct DeadLetter {
    /// Whose record it is.
    pub project: String,
    /// Kafka's id of the topic that the record stands in: the project's own or a route's.
    pub topic_incarnation: String,
    /// The partition's number in the project.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// When it was appended there.
    pub append_time: DateTime<Utc>,
    /// `open`, `counted`, `duplicate` (a copy had counted) or `discarded`.
    pub state: String,
    /// The step that refused it last.
    pub stage: String,
    /// A stable word for why.
    pub reason: String,
    /// A sentence for people.
    pub detail: String,
    /// How often it was refused.
    pub attempts: i32,
    /// When it was first.
    pub created_at: DateTime<Utc>,
    /// When it was last.
    pub refused_at: DateTime<Utc>,
    /// When it was last sent through again.
    pub sent_at: Option<DateTime<Utc>>,
    /// When it was closed.
    pub closed_at: Option<DateTime<Utc>>,
    /// Why it was discarded.
    pub why: Option<String>,
    /// What its record is known by.
    #[serde(skip)]
    pub digest: Vec<u8>,
}

/// How many letters there are of a kind.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct Count {
    /// Of this project,
    pub project: String,
    /// in this state,
    pub state: String,
    /// refused last by this step,
    pub stage: String,
    /// for this reason.
    pub reason: String,
    /// So many.
    pub count: i64,
    /// The most attempts of any.
    pub attempts: i32,
    /// When the first was refused.
    pub oldest: DateTime<Utc>,
    /// When the last was refused first.
    pub newest: DateTime<Utc>,
}

const COLUMNS: &str = r#"project, topic_incarnation, partition, "offset", append_time, state, stage, reason, detail,
    attempts, created_at, refused_at, sent_at, closed_at, why, digest"#;
/// Of `dead_letters d`, with the parameters of [`bind`].
const MATCHES: &str = r#"
    ($1::text IS NULL OR d.project = $1) AND ($2::text IS NULL OR d.reason = $2) AND ($3::text IS NULL OR d.stage = $3)
    AND ($4::text IS NULL OR d.state = $4) AND ($5::timestamptz IS NULL OR d.created_at >= $5)
    AND ($6::timestamptz IS NULL OR d.created_at < $6) AND ($7::int IS NULL OR d.partition = $7)
    AND ($8::bigint IS NULL OR d."offset" = $8)"#;
/// Binds a filter to a query.
macro_rules! bind {
    ($query:expr, $filter:expr) => {
        $query
            .bind($filter.project.as_deref())
            .bind($filter.reason.as_deref())
            .bind($filter.stage.as_deref())
            .bind($filter.state.as_deref())
            .bind($filter.since)
            .bind($filter.until)
            .bind($filter.at.map(|(partition, _)| partition))
            .bind($filter.at.map(|(_, offset)| offset))
    };
}
use bind;

/// How many letters match, by what they are, the most first.
pub async fn counts(db: impl PgExecutor<'_>, filter: &Filter) -> Result<Vec<Count>, sqlx::Error> {
    let sql = format!(
        "SELECT d.project, d.state, d.stage, d.reason, count(*) AS count, max(d.attempts) AS attempts,
                min(d.created_at) AS oldest, max(d.created_at) AS newest
         FROM dead_letters d WHERE {MATCHES} GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC, 1, 2, 3, 4"
    );
    bind!(sqlx::query_as(sqlx::AssertSqlSafe(sql)), filter).fetch_all(db).await
}

/// The newest letters that match.
pub async fn list(db: impl PgExecutor<'_>, filter: &Filter, limit: i64) -> Result<Vec<DeadLetter>, sqlx::Error> {
    let sql = format!(
        r#"SELECT {COLUMNS} FROM dead_letters d WHERE {MATCHES}
           ORDER BY created_at DESC, topic, partition, "offset" DESC LIMIT $9"#
    );
    bind!(sqlx::query_as(sqlx::AssertSqlSafe(sql)), filter).bind(limit).fetch_all(db).await
}

/// What the stream made of a letter's record each time it was sent through again.
#[derive(Debug, Clone, Serialize)]
pub struct Try {
    /// Where it stood then: the partition's number in the project.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// `counted`, `duplicate`, `refused` or `closed` (its letter was not open any more).
    pub outcome: String,
    /// When.
    pub created_at: DateTime<Utc>,
}

/// The tries of a letter, in their order.
pub async fn tries(db: impl PgExecutor<'_>, letter: &DeadLetter) -> Result<Vec<Try>, sqlx::Error> {
    let rows = sqlx::query(
        r#"SELECT topic, partition, "offset", outcome, created_at FROM redrives
           WHERE split_part(topic, '.', 2) = $1 AND letter_incarnation = $2 AND letter_partition = $3 AND letter_offset = $4
           ORDER BY created_at, "offset""#,
    )
    .bind(&letter.project)
    .bind(&letter.topic_incarnation)
    .bind(letter.partition)
    .bind(letter.offset)
    .fetch_all(db)
    .await?;
    let one = |row: &PgRow| {
        let partition = partition_number(row.try_get(0)?, row.try_get(1)?);
        Ok(Try { partition, offset: row.try_get(2)?, outcome: row.try_get(3)?, created_at: row.try_get(4)? })
    };
    rows.iter().map(one).collect()
}

/// Gives up the open letters that match, for a reason that people can read later; says how many. What is on its way
/// through again will find its letter closed. The rows are locked in the one order, all at once.
pub async fn discard(pool: &PgPool, filter: &Filter, why: &str) -> Result<u64, sqlx::Error> {
    let sql = format!(
        r#"WITH chosen AS (
               SELECT d.topic, d.topic_incarnation, d.partition, d."offset" FROM dead_letters d
               WHERE {MATCHES} AND d.state = 'open'
               ORDER BY d.topic COLLATE "C", d.topic_incarnation COLLATE "C", d.partition, d."offset" FOR UPDATE)
           UPDATE dead_letters d SET state = 'discarded', why = $9, closed_at = now() FROM chosen c
           WHERE d.topic = c.topic AND d.topic_incarnation = c.topic_incarnation AND d.partition = c.partition
             AND d."offset" = c."offset""#
    );
    Ok(bind!(sqlx::query(sqlx::AssertSqlSafe(sql)), filter).bind(why).execute(pool).await?.rows_affected())
}

/// What a person can do about a letter that was refused for this reason.
pub fn remedy(reason: &str) -> &'static str {
    match reason {
        "unknown-schema" => "register the schema under its old id (restore the registry), then redrive",
        "not-avro" | "bad-datum" => {
            "have the producer write Avro as schemas/event.avsc says, in the Confluent framing, and send it anew under \
             a new eventId or the same; redrive only if this Tidemill was at fault and is corrected"
        }
        "invalid" => "have the producer correct what the detail names and send it anew; then discard",
        "too-large" => "have the producer send less than 1,000,000 bytes, then discard",
        "late-stray" => "it has not counted unless a copy has, more than a dedupe window ago: redrive to count it",
        _ => "see what the detail says; redrive when that is mended",
    }
}

//! What Postgres knows of letters that are sent through again: which are to be sent, which are under way, what became of
//! them.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgPool, Row};
use tidemill_common::dead_letters::LetterId;
use tidemill_common::names::events_topic;
use tidemill_common::projects::Project;

use super::payload::{Wanted, Wants};
use super::{Filter, MATCHES, bind};

/// Was sent, and the stream has not said what it is: it has not come to it, or is just sending it home.
const UNDER_WAY: &str = r#"
    (d.state = 'open' AND d.sent_attempts IS NOT DISTINCT FROM d.attempts
     AND (d.sent_at > now() - interval '1 minute'
          OR EXISTS (SELECT 1 FROM ledger l JOIN projects p ON p.generation = l.generation
                     WHERE p.id = d.project AND l.view = 'stream' AND split_part(l.topic, '.', 2) = d.project
                       AND l.partition = d.partition % 10000 AND l.topic_incarnation = d.sent_incarnation AND l.next_offset <= d.sent_offset)))"#;

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

/// What a redrive with this filter would do. Letters that are not open are none of its business.
pub async fn plan(pool: &PgPool, filter: &Filter) -> Result<Plan, sqlx::Error> {
    let sql = format!(
        "SELECT count(*) FILTER (WHERE NOT {UNDER_WAY}), count(*) FILTER (WHERE {UNDER_WAY})
         FROM dead_letters d WHERE {MATCHES} AND d.state = 'open'"
    );
    let row = bind!(sqlx::query(sqlx::AssertSqlSafe(sql)), filter).fetch_one(pool).await?;
    Ok(Plan { letters: row.try_get(0)?, under_way: row.try_get(1)? })
}

/// The letters that are open and not on their way.
pub async fn wants(pool: &PgPool, filter: &Filter) -> Result<Wants, sqlx::Error> {
    let sql = format!(
        r#"SELECT d.topic_incarnation, d.partition, d."offset", d.attempts, d.digest, d.created_at
               FROM dead_letters d WHERE {MATCHES} AND d.state = 'open' AND NOT {UNDER_WAY}"#
    );
    let mut wants = Wants::new();
    for row in bind!(sqlx::query(sqlx::AssertSqlSafe(sql)), filter).fetch_all(pool).await? {
        let id = LetterId { incarnation: row.try_get(0)?, partition: row.try_get(1)?, offset: row.try_get(2)? };
        let created_ms = row.try_get::<DateTime<Utc>, _>(5)?.timestamp_millis();
        let place = (id.partition, id.offset);
        let wanted = Wanted { id, attempts: row.try_get(3)?, digest: row.try_get(4)?, created_ms };
        wants.entry(place).or_default().push(wanted);
    }
    Ok(wants)
}

/// Notes where letters stand now, so that nobody sends them again before the stream has come to them.
pub async fn sent(
    pool: &PgPool,
    project: &Project,
    delivered: &mut Vec<(Wanted, i64)>,
    incarnations: &HashMap<String, String>,
) -> Result<(), sqlx::Error> {
    if delivered.is_empty() {
        return Ok(());
    }
    // In the one order of all locks.
    delivered.sort_by(|(a, _), (b, _)| a.id.cmp(&b.id));
    sqlx::query(
        r#"WITH sent AS (
                   SELECT d.topic, d.topic_incarnation, d.partition, d."offset", w.attempts, w.sent_offset, w.sent_incarnation
                   FROM dead_letters d
                   JOIN unnest($2::text[], $3::int[], $4::bigint[], $5::int[], $6::bigint[], $7::text[])
                        AS w(incarnation, partition, "offset", attempts, sent_offset, sent_incarnation)
                     ON d.topic_incarnation = w.incarnation AND d.partition = w.partition AND d."offset" = w."offset"
                   WHERE d.topic = $1
                   ORDER BY d.topic_incarnation COLLATE "C", d.partition, d."offset" FOR UPDATE OF d)
               UPDATE dead_letters d
               SET sent_incarnation = s.sent_incarnation, sent_offset = s.sent_offset, sent_attempts = s.attempts,
                   sent_at = now()
               FROM sent s
               WHERE d.topic = s.topic AND d.topic_incarnation = s.topic_incarnation AND d.partition = s.partition
                 AND d."offset" = s."offset""#,
    )
    .bind(events_topic(&project.id))
    .bind(delivered.iter().map(|(wanted, _)| &*wanted.id.incarnation).collect::<Vec<_>>())
    .bind(delivered.iter().map(|(wanted, _)| wanted.id.partition).collect::<Vec<_>>())
    .bind(delivered.iter().map(|(wanted, _)| wanted.id.offset).collect::<Vec<_>>())
    .bind(delivered.iter().map(|(wanted, _)| wanted.attempts).collect::<Vec<_>>())
    .bind(delivered.iter().map(|(_, offset)| *offset).collect::<Vec<_>>())
    .bind(delivered.iter().map(|(wanted, _)| incarnations.get(&project.place(wanted.id.partition).0)).collect::<Vec<_>>())
    .execute(pool)
    .await?;
    delivered.clear();
    Ok(())
}

/// What has become of a project's letters that were sent since.
pub async fn outcomes(pool: &PgPool, project: &str, since: DateTime<Utc>) -> Result<Outcomes, sqlx::Error> {
    sqlx::query_as(
        "SELECT count(*) FILTER (WHERE state = 'counted') AS counted,
                count(*) FILTER (WHERE state = 'duplicate') AS duplicate,
                count(*) FILTER (WHERE state = 'discarded') AS discarded,
                count(*) FILTER (WHERE state = 'open' AND attempts > sent_attempts) AS refused,
                count(*) FILTER (WHERE state = 'open' AND attempts = sent_attempts) AS under_way
         FROM dead_letters WHERE project = $1 AND sent_at >= $2",
    )
    .bind(project)
    .bind(since)
    .fetch_one(pool)
    .await
}

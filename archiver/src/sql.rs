//! What the archiver asks Postgres: what the stream made of a record.

use sqlx::PgPool;

/// What the stream made of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It has not come to it yet.
    Open,
    /// It is a dead letter.
    Dead,
    /// It was read.
    Read,
}

/// What the live generation of the stream made of a record.
pub async fn fate(
    pool: &PgPool,
    project: &str,
    topic: &str,
    incarnation: &str,
    partition: i32,
    offset: i64,
) -> Result<Fate, sqlx::Error> {
    // One statement, so that both answers are of one moment.
    let (passed, dead): (bool, bool) = sqlx::query_as(
        "SELECT EXISTS (SELECT 1 FROM ledger l JOIN projects p ON p.id = $1 AND p.generation = l.generation
                        WHERE l.view = 'stream' AND l.topic = $2 AND l.topic_incarnation = $3
                          AND l.partition = $4 AND l.next_offset > $5),
                EXISTS (SELECT 1 FROM dead_letters
                        WHERE topic = $2 AND topic_incarnation = $3 AND partition = $4 AND \"offset\" = $5)",
    )
    .bind(project)
    .bind(topic)
    .bind(incarnation)
    .bind(partition)
    .bind(offset)
    .fetch_one(pool)
    .await?;
    Ok(match (passed, dead) {
        (_, true) => Fate::Dead,
        (false, false) => Fate::Open,
        (true, false) => Fate::Read,
    })
}

//! The ledger: how far the stream has got in each partition, in the same database as its data.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, Row};
use tidemill_common::failpoint::mutant;

/// This view's name.
const VIEW: &str = "stream";

/// A partition's place in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Kafka's id of the topic.
    pub incarnation: String,
    /// The live generation of the topic's project.
    pub generation: i32,
}

/// What the ledger says of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The first offset that is not counted.
    pub next: i64,
    /// The first offset that is not known to be in Redis.
    pub projected: i64,
}

/// A step of a partition from one position to the next.
#[derive(Debug, Clone)]
pub struct Advance {
    /// Whose.
    pub place: Place,
    /// Where the batch starts: the end of the batch before it, not its first record's offset.
    pub start: i64,
    /// Behind its last record.
    pub next: i64,
    /// Up to where everything is in Redis.
    pub projected: i64,
    /// Append time of the last record.
    pub as_of: DateTime<Utc>,
}

/// The positions of these partitions; those that are new begin at the given offsets.
pub async fn open(pool: &PgPool, places: &[(Place, i64)]) -> Result<HashMap<Place, Position>, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let mut places: Vec<&(Place, i64)> = places.iter().collect();
    places.sort(); // like every insert
    let columns = Columns::of(places.iter().map(|(place, _)| place));
    let begins: Vec<i64> = places.iter().map(|(_, begin)| *begin).collect();
    sqlx::query(
        "INSERT INTO ledger (view, topic, partition, topic_incarnation, generation, next_offset, projected_offset, as_of)
         SELECT $1, w.topic, w.partition, w.incarnation, w.generation, w.begins, w.begins, to_timestamp(0)
         FROM unnest($2::text[], $3::int[], $4::text[], $5::int[], $6::bigint[])
              AS w(topic, partition, incarnation, generation, begins)
         ON CONFLICT DO NOTHING",
    )
    .bind(VIEW)
    .bind(&columns.topics)
    .bind(&columns.partitions)
    .bind(&columns.incarnations)
    .bind(&columns.generations)
    .bind(&begins)
    .execute(&mut *connection)
    .await?;
    read(&mut connection, &columns, "").await
}

/// Moves all partitions on, if every one of them still stands where its batch starts; else changes nothing
/// and says false. The rows stay locked until the transaction ends.
pub async fn advance(tx: &mut PgConnection, steps: &[Advance]) -> Result<bool, sqlx::Error> {
    let columns = Columns::of(steps.iter().map(|step| &step.place));
    let found = read(tx, &columns, "FOR UPDATE OF l").await?;
    let stands = |step: &Advance| found.get(&step.place).is_some_and(|position| position.next == step.start);
    if !steps.iter().all(stands) && !mutant("no-fencing") {
        return Ok(false);
    }
    sqlx::query(
        "UPDATE ledger l SET next_offset = w.next, projected_offset = w.projected, as_of = w.as_of
         FROM unnest($2::text[], $3::int[], $4::text[], $5::int[], $6::bigint[], $7::bigint[], $8::timestamptz[])
              AS w(topic, partition, incarnation, generation, next, projected, as_of)
         WHERE l.view = $1 AND l.topic = w.topic AND l.partition = w.partition
           AND l.topic_incarnation = w.incarnation AND l.generation = w.generation",
    )
    .bind(VIEW)
    .bind(&columns.topics)
    .bind(&columns.partitions)
    .bind(&columns.incarnations)
    .bind(&columns.generations)
    .bind(steps.iter().map(|step| step.next).collect::<Vec<_>>())
    .bind(steps.iter().map(|step| step.projected).collect::<Vec<_>>())
    .bind(steps.iter().map(|step| step.as_of).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(true)
}

/// Notes that everything below `projected` is in Redis, where the ledger has got that far.
pub async fn mark_projected(pool: &PgPool, places: &[(Place, i64)]) -> Result<(), sqlx::Error> {
    let columns = Columns::of(places.iter().map(|(place, _)| place));
    sqlx::query(
        "UPDATE ledger l SET projected_offset = w.projected
         FROM unnest($2::text[], $3::int[], $4::text[], $5::int[], $6::bigint[])
              AS w(topic, partition, incarnation, generation, projected)
         WHERE l.view = $1 AND l.topic = w.topic AND l.partition = w.partition
           AND l.topic_incarnation = w.incarnation AND l.generation = w.generation
           AND l.projected_offset < w.projected AND w.projected <= l.next_offset",
    )
    .bind(VIEW)
    .bind(&columns.topics)
    .bind(&columns.partitions)
    .bind(&columns.incarnations)
    .bind(&columns.generations)
    .bind(places.iter().map(|(_, projected)| *projected).collect::<Vec<_>>())
    .execute(pool)
    .await?;
    Ok(())
}

/// Reads rows in one order everywhere, so that locks cannot form a ring.
async fn read(
    connection: &mut PgConnection,
    columns: &Columns<'_>,
    lock: &'static str,
) -> Result<HashMap<Place, Position>, sqlx::Error> {
    let sql = format!(
        "SELECT l.topic, l.partition, l.topic_incarnation, l.generation, l.next_offset, l.projected_offset
         FROM ledger l
         JOIN unnest($2::text[], $3::int[], $4::text[], $5::int[]) AS w(topic, partition, incarnation, generation)
           ON l.topic = w.topic AND l.partition = w.partition
          AND l.topic_incarnation = w.incarnation AND l.generation = w.generation
         WHERE l.view = $1
         ORDER BY l.topic COLLATE \"C\", l.partition, l.topic_incarnation COLLATE \"C\", l.generation {lock}"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(VIEW)
        .bind(&columns.topics)
        .bind(&columns.partitions)
        .bind(&columns.incarnations)
        .bind(&columns.generations)
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            let place = Place {
                topic: row.try_get(0)?,
                partition: row.try_get(1)?,
                incarnation: row.try_get(2)?,
                generation: row.try_get(3)?,
            };
            Ok((place, Position { next: row.try_get(4)?, projected: row.try_get(5)? }))
        })
        .collect()
}

/// Places by column, as Postgres' `unnest` takes them.
#[derive(Default)]
struct Columns<'a> {
    topics: Vec<&'a str>,
    partitions: Vec<i32>,
    incarnations: Vec<&'a str>,
    generations: Vec<i32>,
}

impl<'a> Columns<'a> {
    fn of(places: impl Iterator<Item = &'a Place>) -> Self {
        let mut columns = Self::default();
        for place in places {
            columns.topics.push(&place.topic);
            columns.partitions.push(place.partition);
            columns.incarnations.push(&place.incarnation);
            columns.generations.push(place.generation);
        }
        columns
    }
}

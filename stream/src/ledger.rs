//! The ledger: how far the stream has got in each partition, in the same database as its data.

use std::collections::HashMap;

use sqlx::{PgConnection, PgPool, Row};
use tidemill_common::failpoint::mutant;
use tidemill_common::kafka::Reached;

/// This view's name.
pub(crate) const VIEW: &str = "stream";

/// A partition's place in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Kafka's id of the topic.
    pub incarnation: String,
    /// A generation of what is derived from it: of live workers, the one that is live.
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
    /// The newest append time of its records, in milliseconds since 1970.
    pub newest_ms: i64,
}

impl Advance {
    /// Where it leads to.
    pub fn reached(&self) -> Reached {
        Reached { next: self.next, newest_ms: self.newest_ms }
    }
}

/// The past on which a transaction builds: what was learnt in another one need not hold in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct History {
    /// That of [`crate::timeline`].
    pub epoch: i64,
    /// How often a user was forgotten.
    pub forgotten: i64,
}

/// What the ledger says of some partitions, all of it at one moment.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// Which history this is ([`crate::timeline`]).
    pub epoch: i64,
    /// The positions of those that the ledger knows.
    pub positions: HashMap<Place, Position>,
    /// When the newest record before each position was appended, in milliseconds since 1970; 0 where it is not known.
    pub newest_ms: HashMap<Place, i64>,
}

/// The positions of these partitions; those that are new begin at the beginning. Where a topic was made again, what
/// its old log held behind its position is gone, and noted in `gaps`. Those of a project that was deleted are not begun:
/// the lock on its row settles which was first.
pub async fn open(pool: &PgPool, places: &[Place]) -> Result<Standing, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let mut places: Vec<&Place> = places.iter().collect();
    places.sort(); // like every insert
    let columns = Columns::of(places.into_iter());
    let gone = sqlx::query(
        "WITH begun AS (
             INSERT INTO ledger (view, topic, partition, topic_incarnation, generation, next_offset, projected_offset, as_of)
             SELECT $1, w.topic, w.partition, w.incarnation, w.generation, 0, 0, to_timestamp(0)
             FROM unnest($2::text[], $3::int[], $4::text[], $5::int[]) AS w(topic, partition, incarnation, generation)
             JOIN projects p ON p.id = split_part(w.topic, '.', 2) AND p.deleted_at IS NULL
             FOR SHARE OF p
             ON CONFLICT DO NOTHING
             RETURNING topic, partition, topic_incarnation, generation)
         INSERT INTO gaps (view, generation, topic, topic_incarnation, partition, from_offset, reason)
         SELECT $1, l.generation, l.topic, l.topic_incarnation, l.partition, l.next_offset, 'the topic was made again'
         FROM begun b JOIN ledger l
           ON l.view = $1 AND l.generation = b.generation AND l.topic = b.topic AND l.partition = b.partition
          AND l.topic_incarnation <> b.topic_incarnation
         ON CONFLICT DO NOTHING
         RETURNING topic, partition, from_offset",
    )
    .bind(VIEW)
    .bind(&columns.topics)
    .bind(&columns.partitions)
    .bind(&columns.incarnations)
    .bind(&columns.generations)
    .fetch_all(&mut *connection)
    .await?;
    for row in gone {
        let (topic, partition, next): (String, i32, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        tracing::error!(topic, partition, next, "the topic was made again; what its old log held behind that is gone");
    }
    standing(&mut connection, &columns, "", "").await
}

/// Begins partitions of a new generation at these offsets. What is before them is none of its concern.
pub async fn begin(tx: &mut PgConnection, starts: &[(Place, i64)]) -> Result<(), sqlx::Error> {
    let columns = Columns::of(starts.iter().map(|(place, _)| place));
    sqlx::query(
        "INSERT INTO ledger (view, topic, partition, topic_incarnation, generation, next_offset, projected_offset, as_of)
         SELECT $1, w.topic, w.partition, w.incarnation, w.generation, w.next, w.next, to_timestamp(0)
         FROM unnest($2::text[], $3::int[], $4::text[], $5::int[], $6::bigint[])
              AS w(topic, partition, incarnation, generation, next)",
    )
    .bind(VIEW)
    .bind(&columns.topics)
    .bind(&columns.partitions)
    .bind(&columns.incarnations)
    .bind(&columns.generations)
    .bind(starts.iter().map(|(_, next)| *next).collect::<Vec<_>>())
    .execute(tx)
    .await
    .map(drop)
}

/// What the ledger says of these partitions now.
pub async fn look(pool: &PgPool, places: &[Place]) -> Result<Standing, sqlx::Error> {
    standing(&mut *pool.acquire().await?, &Columns::of(places.iter()), "", "").await
}

/// Whether a batch counts for readers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Side {
    /// In its projects' live generations, and in no others.
    #[default]
    Live,
    /// In one that is built beside the live one, as long as it is not live.
    Rebuild,
}

/// That all of the generations asked for are live. It is computed once for all rows.
const LIVE: &str = "AND (
    SELECT bool_and(p.generation = u.generation) FROM unnest($2::text[], $5::int[]) AS u(topic, generation)
    JOIN projects p ON p.id = split_part(u.topic, '.', 2))";
/// That none of them is.
const REBUILD: &str = "AND NOT EXISTS (
    SELECT FROM unnest($2::text[], $5::int[]) AS u(topic, generation)
    JOIN projects p ON p.id = split_part(u.topic, '.', 2) AND p.generation = u.generation)";

/// If every one of them still stands where its batch starts, in a generation of this side: moves all partitions on, and
/// says on which history this builds. Else changes nothing. The rows stay locked until the transaction ends. For the live
/// side the generations have to be held ([`crate::generation::begin`]).
pub async fn advance(tx: &mut PgConnection, side: Side, steps: &[Advance]) -> Result<Option<History>, sqlx::Error> {
    let columns = Columns::of(steps.iter().map(|step| &step.place));
    let which = match side {
        Side::Live => LIVE,
        Side::Rebuild => REBUILD,
    };
    let found = standing(tx, &columns, which, "FOR UPDATE OF l").await?;
    let stands = |step: &Advance| found.positions.get(&step.place).is_some_and(|position| position.next == step.start);
    if !steps.iter().all(stands) && !mutant("no-fencing") {
        return Ok(None);
    }
    // In this statement, since the one before may have waited for its locks.
    let forgotten: Vec<i64> = sqlx::query_scalar(
        "UPDATE ledger l SET next_offset = w.next, projected_offset = w.projected,
                as_of = to_timestamp(w.newest_ms / 1000.0), newest_ms = GREATEST(l.newest_ms, w.newest_ms)
         FROM unnest($2::text[], $3::int[], $4::text[], $5::int[], $6::bigint[], $7::bigint[], $8::bigint[])
              AS w(topic, partition, incarnation, generation, next, projected, newest_ms)
         WHERE l.view = $1 AND l.topic = w.topic AND l.partition = w.partition
           AND l.topic_incarnation = w.incarnation AND l.generation = w.generation
         RETURNING (SELECT forgotten FROM timeline)",
    )
    .bind(VIEW)
    .bind(&columns.topics)
    .bind(&columns.partitions)
    .bind(&columns.incarnations)
    .bind(&columns.generations)
    .bind(steps.iter().map(|step| step.next).collect::<Vec<_>>())
    .bind(steps.iter().map(|step| step.projected).collect::<Vec<_>>())
    .bind(steps.iter().map(|step| step.newest_ms).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    let forgotten = forgotten.first().copied().unwrap_or_default();
    Ok(Some(History { epoch: found.epoch, forgotten }))
}

/// Goes past records that the log does not have (any more), because a person has said so, and notes it in `gaps`.
/// False: the partition does not stand at `from`.
pub async fn skip(pool: &PgPool, place: &Place, from: i64, to: i64) -> Result<bool, sqlx::Error> {
    // Nothing is said of a time up to which all is counted, until the next batch. What is newest behind a lost end stays
    // so: leaders' clocks differ, and what remains of the log may look older than it is.
    let moved = sqlx::query(
        "WITH moved AS (
             UPDATE ledger SET next_offset = $7, projected_offset = $7, as_of = to_timestamp(0)
             WHERE view = $1 AND topic = $2 AND partition = $3 AND topic_incarnation = $4 AND generation = $5
               AND next_offset = $6
             RETURNING view, generation, topic, topic_incarnation, partition)
         INSERT INTO gaps (view, generation, topic, topic_incarnation, partition, from_offset, to_offset, reason)
         SELECT view, generation, topic, topic_incarnation, partition, $6, $7, 'on_gap = skip' FROM moved
         ON CONFLICT (view, generation, topic, topic_incarnation, partition, from_offset)
         DO UPDATE SET to_offset = excluded.to_offset, created_at = now()
         RETURNING 1",
    )
    .bind(VIEW)
    .bind(&place.topic)
    .bind(place.partition)
    .bind(&place.incarnation)
    .bind(place.generation)
    .bind(from)
    .bind(to)
    .fetch_optional(pool)
    .await?;
    Ok(moved.is_some())
}

/// Notes that everything below `projected` is in Redis, where the ledger has got that far.
pub async fn mark_projected(pool: &PgPool, places: &[(Place, i64)]) -> Result<(), sqlx::Error> {
    let columns = Columns::of(places.iter().map(|(place, _)| place));
    let mut tx = pool.begin().await?;
    // A mark that is lost costs a projection.
    sqlx::query("SET LOCAL synchronous_commit = off").execute(&mut *tx).await?;
    standing(&mut tx, &columns, "", "FOR UPDATE OF l").await?; // in the order of all locks
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
    .execute(&mut *tx)
    .await?;
    tx.commit().await
}

/// Reads rows in one order everywhere, so that locks cannot form a ring.
async fn standing(
    connection: &mut PgConnection,
    columns: &Columns<'_>,
    which: &'static str,
    lock: &'static str,
) -> Result<Standing, sqlx::Error> {
    let sql = format!(
        "SELECT l.topic, l.partition, l.topic_incarnation, l.generation, l.next_offset, l.projected_offset,
                GREATEST(l.newest_ms, (extract(epoch FROM l.as_of) * 1000)::bigint), (SELECT epoch FROM timeline)
         FROM ledger l
         JOIN unnest($2::text[], $3::int[], $4::text[], $5::int[]) AS w(topic, partition, incarnation, generation)
           ON l.topic = w.topic AND l.partition = w.partition
          AND l.topic_incarnation = w.incarnation AND l.generation = w.generation
         WHERE l.view = $1 {which}
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
    let mut standing = Standing::default();
    for row in rows {
        let place = Place {
            topic: row.try_get(0)?,
            partition: row.try_get(1)?,
            incarnation: row.try_get(2)?,
            generation: row.try_get(3)?,
        };
        standing.newest_ms.insert(place.clone(), row.try_get(6)?);
        standing.positions.insert(place, Position { next: row.try_get(4)?, projected: row.try_get(5)? });
        standing.epoch = row.try_get(7)?;
    }
    Ok(standing)
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

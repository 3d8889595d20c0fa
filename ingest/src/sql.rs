//! The SQL of this crate.

use sqlx::PgPool;
use sqlx::types::Json;

use crate::batches::Flush;

/// How long rows of `ingest_batches` are kept.
pub const KEPT_DAYS: i32 = 30;
/// A flush that is tried again leaves the rows of its first try as they are.
const INSERT_BATCHES: &str = "INSERT INTO ingest_batches (flush, project, key_prefix, received_at, requests, events, \
     accepted, duplicates, invalid, limited, retry, bytes, types) \
     SELECT $1, * FROM unnest($2::text[], $3::text[], $4::timestamptz[], $5::bigint[], $6::bigint[], $7::bigint[], \
     $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::jsonb[]) ON CONFLICT DO NOTHING";
const DELETE_OLD_BATCHES: &str = "DELETE FROM ingest_batches WHERE received_at < now() - make_interval(days => $1)";

/// Asks for an answer.
pub async fn ping(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT 1").execute(pool).await.map(drop)
}

/// Writes a flush, all of it or nothing.
pub async fn insert_batches(pool: &PgPool, flush: &Flush) -> Result<(), sqlx::Error> {
    let rows = &flush.tallies;
    let types = |types: &[(String, i64)]| {
        Json(types.iter().map(|(name, count)| (name.clone(), (*count).into())).collect::<serde_json::Map<_, _>>())
    };
    let mut insert = sqlx::query(INSERT_BATCHES)
        .bind(flush.id)
        .bind(rows.iter().map(|(_, tally)| tally.project.to_string()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(prefix, _)| prefix.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|(_, tally)| tally.received_at).collect::<Vec<_>>())
        .bind(rows.iter().map(|(_, tally)| tally.requests).collect::<Vec<_>>())
        .bind(rows.iter().map(|(_, tally)| tally.events).collect::<Vec<_>>());
    for column in 0..5 {
        insert = insert.bind(rows.iter().map(|(_, tally)| tally.outcomes[column]).collect::<Vec<_>>());
    }
    let insert = insert
        .bind(rows.iter().map(|(_, tally)| tally.bytes).collect::<Vec<_>>())
        .bind(rows.iter().map(|(_, tally)| types(&tally.types)).collect::<Vec<_>>());
    insert.execute(pool).await.map(drop)
}

/// Deletes rows that are too old.
pub async fn delete_old_batches(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query(DELETE_OLD_BATCHES).bind(KEPT_DAYS).execute(pool).await.map(drop)
}

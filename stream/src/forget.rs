//! Removes what says who a user was, while what is counted stays; or all that there is of a project.

use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tidemill_common::names::events_topic;
use tidemill_common::redis::{Redis, RedisFailure};

use crate::{keys, session_key};

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Events.
    pub raw_events: u64,
    /// Sessions that named him.
    pub sessions: u64,
    /// Whether it was kept when he was first seen, once per generation.
    pub first_seen: u64,
}

/// Locks what changes in the order in which everybody does: users, then session keys by their bytes. Their versions
/// rise, so that copies elsewhere are known to be old.
const LOCK_KEYS: &str = "
    WITH his AS MATERIALIZED (
        SELECT generation, project, session_id FROM session_keys
        WHERE project = $1 AND ((generation, session_id) IN
              (SELECT generation, session_id FROM sessions WHERE project = $1 AND user_id = $2) OR session_id = $3)
        ORDER BY session_id COLLATE \"C\" FOR UPDATE
    )
    UPDATE session_keys k SET version = k.version + 1 FROM his
    WHERE (k.generation, k.project, k.session_id) = (his.generation, his.project, his.session_id)";

const SESSIONS: &str = "
    WITH own AS (
        DELETE FROM sessions WHERE project = $1 AND session_id = $3 AND user_id = $2 RETURNING 1
    ), others AS (
        UPDATE sessions SET user_id = NULL, user_at = NULL, is_new = false
        WHERE project = $1 AND user_id = $2 AND session_id <> $3 RETURNING 1
    )
    SELECT 1 FROM own UNION ALL SELECT 1 FROM others";

/// Removes a user: his events, his name in sessions, his sessions that had no other name, when he was first seen. He
/// is new when he comes again. Copies in Redis go within half an hour of his last event.
pub async fn user(db: &mut PgConnection, project: &str, user: &str) -> Result<Removed, sqlx::Error> {
    let key = &*session_key::of_user(user);
    let mut transaction = db.begin().await?;
    let db = &mut *transaction;
    let first_seen = run(db, "DELETE FROM users WHERE project = $1 AND user_id = $2", &[project, user]).await?;
    run(db, LOCK_KEYS, &[project, user, key]).await?;
    run(db, "DELETE FROM cart_events WHERE project = $1 AND session_id = $2", &[project, key]).await?;
    let sessions = run(db, SESSIONS, &[project, user, key]).await?;
    run(db, "DELETE FROM session_keys WHERE project = $1 AND session_id = $2", &[project, key]).await?;
    let raw_events = run(db, "DELETE FROM raw_events WHERE project = $1 AND user_id = $2", &[project, user]).await?;
    transaction.commit().await?;
    Ok(Removed { raw_events, sessions, first_seen })
}

/// Tables with rows of projects, but for what says that there was one.
const TABLES: &str = "
    SELECT c.oid::regclass::text FROM pg_class c
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'project' AND NOT a.attisdropped
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace = current_schema()::regnamespace
      AND c.relname <> 'audit'
    ORDER BY 1";
/// Rows that go in one transaction.
const CHUNK: i64 = 20_000;

/// Removes all rows of a project, some at a time; calls `each` with how many have gone. Its own row stays, since its
/// id is never used again. It can be run again. No worker may write any more: its topics must be gone.
pub async fn project(db: &mut PgConnection, project: &str, mut each: impl FnMut(u64)) -> Result<(), sqlx::Error> {
    let tables: Vec<String> = sqlx::query_scalar(TABLES).fetch_all(&mut *db).await?;
    for table in tables {
        // Postgres gives the name, quoted.
        let delete = format!(
            "DELETE FROM {table} WHERE project = $1 AND (tableoid, ctid) IN \
             (SELECT tableoid, ctid FROM {table} WHERE project = $1 LIMIT $2)"
        );
        loop {
            let rows = sqlx::query(AssertSqlSafe(delete.clone())).bind(project).bind(CHUNK).execute(&mut *db).await?;
            each(rows.rows_affected());
            if rows.rows_affected() < CHUNK as u64 {
                break;
            }
        }
    }
    let topic = events_topic(project);
    for table in ["gaps", "hot_partitions", "ledger"] {
        let delete = AssertSqlSafe(format!("DELETE FROM {table} WHERE topic = $1"));
        each(sqlx::query(delete).bind(&topic).execute(&mut *db).await?.rows_affected());
    }
    Ok(())
}

/// Removes the one key of a project in Redis that does not go by itself.
pub async fn seen_users(redis: &Redis, project: &str) -> Result<(), RedisFailure> {
    let mut unlink = redis::pipe();
    unlink.cmd("UNLINK").arg(keys::seen_users(project)).ignore();
    redis.run(&unlink).await
}

/// How many rows a statement came to.
async fn run(db: &mut PgConnection, statement: &'static str, binds: &[&str]) -> Result<u64, sqlx::Error> {
    let query = binds.iter().fold(sqlx::query(statement), |query, bind| query.bind(*bind));
    Ok(query.execute(db).await?.rows_affected())
}

//! Removes from Postgres what says who a user was. What is counted stays.

use serde::Serialize;
use sqlx::{Connection, PgConnection};

use crate::session_key;

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

/// How many rows a statement came to.
async fn run(db: &mut PgConnection, statement: &'static str, binds: &[&str]) -> Result<u64, sqlx::Error> {
    let query = binds.iter().fold(sqlx::query(statement), |query, bind| query.bind(*bind));
    Ok(query.execute(db).await?.rows_affected())
}

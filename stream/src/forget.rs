//! Removes what says who a user was, while what is counted stays; or all that there is of a project.

use std::iter;

use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tidemill_common::projects;
use tidemill_common::redis::{Redis, RedisFailure};

use crate::project::lost;
use crate::store::raw_events;
use crate::{keys, session_key};

/// Copies that are removed from Redis at a time.
const COPIES: usize = 1_000;

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
        DELETE FROM sessions WHERE project = $1 AND session_id = $3 AND user_id = $2 RETURNING session_id
    ), others AS (
        UPDATE sessions SET user_id = NULL, user_at = NULL, is_new = false
        WHERE project = $1 AND user_id = $2 AND session_id <> $3 RETURNING session_id
    )
    SELECT session_id FROM own UNION ALL SELECT session_id FROM others";

/// Removes a user from Postgres: his events, his name in sessions, his sessions that had no other name, when he was first
/// seen. He is new when he comes again. Gives the keys of the sessions, too, for [`copies`].
pub async fn user(db: &mut PgConnection, project: &str, user: &str) -> Result<(Removed, Vec<String>), sqlx::Error> {
    let key = &*session_key::of_user(user);
    let mut transaction = db.begin().await?;
    let db = &mut *transaction;
    let first_seen = run(db, "DELETE FROM users WHERE project = $1 AND user_id = $2", &[project, user]).await?;
    run(db, LOCK_KEYS, &[project, user, key]).await?;
    let named: Vec<String> =
        sqlx::query_scalar(SESSIONS).bind(project).bind(user).bind(key).fetch_all(&mut *db).await?;
    run(db, "DELETE FROM session_keys WHERE project = $1 AND session_id = $2", &[project, key]).await?;
    raw_events::unlimited(db).await?;
    let raw_events = run(db, "DELETE FROM raw_events WHERE project = $1 AND user_id = $2", &[project, user]).await?;
    // Last, since it holds up whoever else writes to this row.
    run(db, "UPDATE timeline SET forgotten = forgotten + 1", &[]).await?;
    transaction.commit().await?;
    Ok((Removed { raw_events, sessions: named.len() as u64, first_seen }, named))
}

/// Removes a user from Redis: from those whom his project has seen, and the copies of his own sessions and of those that
/// `named` him. Who asks for one of them is answered by Postgres until its next event. What a worker has in hand at this
/// moment may come after it; it goes half an hour behind the last event.
pub async fn copies(redis: &Redis, project: &str, user: &str, named: &[String]) -> Result<(), RedisFailure> {
    lost::users(redis, project, &[user]).await.why.map_or(Ok(()), Err)?;
    let own = session_key::of_user(user);
    let sessions: Vec<&str> = iter::once(&own).chain(named).map(String::as_str).collect();
    for sessions in sessions.chunks(COPIES) {
        let mut unlink = redis::pipe();
        for key in sessions {
            unlink.cmd("UNLINK").arg(keys::session(project, key)).ignore();
        }
        redis.run::<()>(&unlink).await?;
    }
    Ok(())
}

/// What there is of a user: what [`user`] would remove.
pub async fn kept(db: &mut PgConnection, project: &str, user: &str) -> Result<Removed, sqlx::Error> {
    let (raw_events, sessions, first_seen): (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM raw_events WHERE project = $1 AND user_id = $2),
                (SELECT count(*) FROM sessions WHERE project = $1 AND user_id = $2),
                (SELECT count(*) FROM users WHERE project = $1 AND user_id = $2)",
    )
    .bind(project)
    .bind(user)
    .fetch_one(db)
    .await?;
    Ok(Removed {
        raw_events: raw_events.unsigned_abs(),
        sessions: sessions.unsigned_abs(),
        first_seen: first_seen.unsigned_abs(),
    })
}

/// Tables with rows of projects, but for what says that there was one.
const TABLES: &str = "
    SELECT c.oid::regclass::text FROM pg_class c
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'project' AND NOT a.attisdropped
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace = current_schema()::regnamespace
      AND c.relname <> 'audit'
    ORDER BY 1";
/// Tables whose rows name a topic of a project, in the second part of its name, but not the project.
const BY_TOPIC: [&str; 4] = ["gaps", "hot_partitions", "ledger", "redrives"];
/// Rows that go in one transaction, but for raw events, of which a day does.
const CHUNK: i64 = 20_000;

/// How many rows of a project [`project`] would remove, by table; those that have none are left out.
pub async fn rows(db: &mut PgConnection, project: &str) -> Result<Vec<(String, i64)>, sqlx::Error> {
    let tables: Vec<String> = sqlx::query_scalar(TABLES).fetch_all(&mut *db).await?;
    let mut rows = Vec::new();
    for table in tables {
        let count = AssertSqlSafe(format!("SELECT count(*) FROM {table} WHERE project = $1"));
        rows.push((table, sqlx::query_scalar(count).bind(project).fetch_one(&mut *db).await?));
    }
    for table in BY_TOPIC {
        let count = AssertSqlSafe(format!("SELECT count(*) FROM {table} WHERE split_part(topic, '.', 2) = $1"));
        let count = sqlx::query_scalar(count).bind(project).fetch_one(&mut *db).await?;
        rows.push((table.to_owned(), count));
    }
    rows.retain(|(_, rows)| *rows > 0);
    Ok(rows)
}

/// Removes all rows of a project, some at a time; calls `each` with how many have gone. Its own row stays, since its
/// id is never used again, and must say that it was deleted. It can be run again, and while workers are at it: what they
/// have in hand goes through first, and without its rows in the ledger nothing does after that.
pub async fn project(db: &mut PgConnection, project: &str, mut each: impl FnMut(u64)) -> Result<(), sqlx::Error> {
    let mut fence = db.begin().await?;
    projects::hold(&mut fence, project).await?;
    let ledger = sqlx::query("DELETE FROM ledger WHERE split_part(topic, '.', 2) = $1").bind(project);
    each(ledger.execute(&mut *fence).await?.rows_affected());
    fence.commit().await?;
    let tables: Vec<String> = sqlx::query_scalar(TABLES).fetch_all(&mut *db).await?;
    for table in tables.iter().filter(|table| *table != "raw_events") {
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
    raw_events::delete(db, project, None, &mut each).await?;
    for table in BY_TOPIC {
        let delete = AssertSqlSafe(format!("DELETE FROM {table} WHERE split_part(topic, '.', 2) = $1"));
        each(sqlx::query(delete).bind(project).execute(&mut *db).await?.rows_affected());
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

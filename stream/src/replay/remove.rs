//! Giving a generation up: its rows go in small steps, which nobody who counts waits for. It can be begun again at any
//! time, and does what is left to do.

use sqlx::PgPool;

use super::{Replay, ReplayError, archive, refused};
use crate::store::raw_events;

/// Rows that are deleted at once.
const MOST: i64 = 10_000;
/// What has rows of generations. The ledger and the gaps go first, with the decision.
const TABLES: [&str; 4] = ["sessions", "session_keys", "users", "metric_rollups"];

/// Ends a replay without a switch, and deletes what it has built; gives how many rows. Its workers end by themselves.
/// `shown` is told of each step.
pub async fn remove_aborted(pool: &PgPool, replay: &Replay, shown: impl FnMut(u64)) -> Result<u64, ReplayError> {
    let mut tx = pool.begin().await?;
    let aborted = sqlx::query(
        "UPDATE replays SET state = 'aborted', ended_at = coalesce(ended_at, now())
         WHERE id = $1 AND state <> 'switched'",
    )
    .bind(replay.id)
    .execute(&mut *tx)
    .await?;
    if aborted.rows_affected() == 0 {
        return refused(format!("replay {} is switched, so what it has built is live", replay.id));
    }
    forget(&mut tx, replay, replay.generation).await?;
    tx.commit().await?;
    remove(pool, &replay.project, replay.generation, shown).await
}

/// Gives up what was live before a replay was switched; gives how many rows.
pub async fn drop_kept(pool: &PgPool, replay: &Replay, shown: impl FnMut(u64)) -> Result<u64, ReplayError> {
    if replay.state != "switched" {
        return refused(format!("replay {} is {}, so it has replaced nothing", replay.id, replay.state));
    }
    let mut tx = pool.begin().await?;
    sqlx::query("UPDATE projects SET kept_generation = NULL WHERE id = $1 AND kept_generation = $2")
        .bind(&replay.project)
        .bind(replay.replaces)
        .execute(&mut *tx)
        .await?;
    forget(&mut tx, replay, replay.replaces).await?;
    tx.commit().await?;
    remove(pool, &replay.project, replay.replaces, shown).await
}

/// Without its rows in the ledger, nothing is counted in a generation any more.
async fn forget(tx: &mut sqlx::PgConnection, replay: &Replay, generation: i32) -> Result<(), sqlx::Error> {
    let mut topics = replay.columns().0;
    let archive = archive::topic(&replay.project);
    topics.push(&archive);
    for statement in [
        "DELETE FROM ledger WHERE view = 'stream' AND generation = $1 AND topic = ANY ($2)",
        "DELETE FROM gaps WHERE view = 'stream' AND generation = $1 AND topic = ANY ($2)",
    ] {
        sqlx::query(statement).bind(generation).bind(&topics).execute(&mut *tx).await?;
    }
    Ok(())
}

async fn remove(pool: &PgPool, project: &str, generation: i32, mut shown: impl FnMut(u64)) -> Result<u64, ReplayError> {
    let mut removed = 0;
    for table in TABLES {
        let step = format!(
            "DELETE FROM {table} WHERE ctid = ANY (ARRAY(
                 SELECT ctid FROM {table} WHERE generation = $1 AND project = $2 LIMIT $3))"
        );
        loop {
            let rows = sqlx::query(sqlx::AssertSqlSafe(step.as_str()))
                .bind(generation)
                .bind(project)
                .bind(MOST)
                .execute(pool)
                .await?
                .rows_affected();
            removed += rows;
            shown(removed);
            if rows < MOST as u64 {
                break;
            }
        }
    }
    raw_events::delete(&mut *pool.acquire().await?, project, Some(generation), |rows| {
        removed += rows;
        shown(removed);
    })
    .await?;
    Ok(removed)
}

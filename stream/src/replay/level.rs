//! Both generations at the same offsets.

use std::time::{Duration, Instant};

use sqlx::{PgPool, Postgres, Transaction};
use tidemill_common::projects;

use super::positions::{now, reached, standing};
use super::{Replay, ReplayError, refused};

const LOOK: Duration = Duration::from_millis(50);
/// The same while nobody waits for it.
const LOOK_NEAR: Duration = Duration::from_millis(200);
/// What was level so lately is near enough: the rest takes no longer.
const NEAR: Duration = Duration::from_secs(5);
/// For how long live workers may be kept waiting. They give a batch up only after half a minute.
const PATIENCE: Duration = Duration::from_secs(15);

/// The live generation stands still, and the replay's is level with it, until this is dropped.
pub struct Level {
    tx: Transaction<'static, Postgres>,
}

impl Level {
    pub(super) fn into_transaction(self) -> Transaction<'static, Postgres> {
        self.tx
    }

    /// Lets the live workers go on.
    pub async fn release(self) -> Result<(), ReplayError> {
        Ok(self.tx.rollback().await?)
    }
}

/// Waits until the replay is where the live generation was a moment ago. Workers have to be at work; `shown` is told
/// where both stand.
pub async fn near(pool: &PgPool, replay: &Replay, mut shown: impl FnMut(&super::Progress)) -> Result<(), ReplayError> {
    loop {
        let (goal, since) = (now(pool, replay).await?, Instant::now());
        loop {
            let state: String =
                sqlx::query_scalar("SELECT state FROM replays WHERE id = $1").bind(replay.id).fetch_one(pool).await?;
            if state != "running" && state != "planned" {
                return refused(format!("replay {} is {state} now", replay.id));
            }
            shown(&super::progress(pool, replay).await?);
            if reached(&now(pool, replay).await?, &goal) {
                break;
            }
            tokio::time::sleep(LOOK_NEAR).await;
        }
        if since.elapsed() < NEAR {
            return Ok(());
        }
    }
}

/// Has the live generation stand still and waits until the replay is level with it. Its workers have to be at work.
/// Live batches wait meanwhile; if it takes too long they go on, and this is refused.
pub async fn level(pool: &PgPool, replay: &Replay) -> Result<Level, ReplayError> {
    let mut tx = pool.begin().await?;
    sqlx::query("SELECT set_config('lock_timeout', $1, true)")
        .bind(format!("{}ms", PATIENCE.as_millis()))
        .execute(&mut *tx)
        .await?;
    let until = Instant::now() + PATIENCE;
    projects::hold(&mut tx, &replay.project).await?;
    let live: Option<i32> = sqlx::query_scalar(
        "SELECT p.generation FROM projects p JOIN replays r ON r.project = p.id WHERE r.id = $1 AND r.state = 'running'",
    )
    .bind(replay.id)
    .fetch_optional(&mut *tx)
    .await?;
    if live != Some(replay.replaces) {
        return refused(format!("replay {} is over, or not running; see 'tidemill replay status'", replay.id));
    }
    let goal = standing(&mut tx, replay, "FOR UPDATE OF l").await?;
    // Asked by the same connection, which must not idle in its transaction.
    while !reached(&standing(&mut tx, replay, "").await?, &goal) {
        if Instant::now() > until {
            return refused(format!(
                "replay {} did not become level within {} s, so nothing was changed and the live workers go on; \
                 try again, without a rate limit or with another worker ('tidemill replay run')",
                replay.id,
                PATIENCE.as_secs()
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
    let both = standing(&mut tx, replay, "FOR UPDATE OF l").await?;
    if both.iter().any(|standing| standing.rebuilt != Some(standing.live)) {
        return refused("the generations are not at the same offsets, since a partition is new; try again");
    }
    Ok(Level { tx })
}

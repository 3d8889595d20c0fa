//! How far a replay is, beside the generation that is live.

use serde::Serialize;
use sqlx::{PgConnection, PgPool, Row};
use tidemill_common::names::partition_number;

use super::{Replay, archive};

/// The archive as a partition: the live generation stands at its end.
pub(super) const ARCHIVE: i32 = -1;

/// Where both generations stand in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The partition's number.
    pub partition: i32,
    /// The first offset that the live generation has not counted.
    pub live: i64,
    /// The same of the replay's; none: no worker has come to this partition.
    pub rebuilt: Option<i64>,
}

/// How much is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Records read.
    pub done: u64,
    /// Records until it is level with the live generation.
    pub left: u64,
    /// Files of the archive that are left.
    pub files_left: u64,
}

/// Where both stand at one moment, in all partitions that the live generation has begun; by partition. `lock` is
/// `FOR UPDATE OF l`, which keeps the live generation where it is, or nothing.
pub(super) async fn standing(
    db: &mut PgConnection,
    replay: &Replay,
    lock: &'static str,
) -> Result<Vec<Standing>, sqlx::Error> {
    // A subselect, since a row that may be missing cannot be locked.
    let sql = format!(
        "SELECT l.topic, l.partition, l.next_offset,
                (SELECT r.next_offset FROM ledger r
                 WHERE r.view = l.view AND r.generation = $4 AND r.topic = l.topic
                   AND r.topic_incarnation = l.topic_incarnation AND r.partition = l.partition)
         FROM ledger l JOIN unnest($1::text[], $2::text[]) AS w(topic, incarnation)
           ON l.topic = w.topic AND l.topic_incarnation = w.incarnation
         WHERE l.view = 'stream' AND l.generation = $3
         ORDER BY l.topic COLLATE \"C\", l.partition {lock}"
    );
    let (topics, ids) = replay.columns();
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(topics)
        .bind(ids)
        .bind(replay.replaces)
        .bind(replay.generation)
        .fetch_all(&mut *db)
        .await?;
    let mut standing = Vec::with_capacity(rows.len() + 1);
    for row in &rows {
        let partition = partition_number(row.try_get(0)?, row.try_get(1)?);
        standing.push(Standing { partition, live: row.try_get(2)?, rebuilt: row.try_get(3)? });
    }
    if let (Some(snapshot), Some(files)) = (replay.archive_snapshot, replay.archive_files) {
        let place = archive::place(replay, snapshot);
        let rebuilt = sqlx::query_scalar(
            "SELECT next_offset FROM ledger
             WHERE view = 'stream' AND generation = $1 AND topic = $2 AND topic_incarnation = $3",
        )
        .bind(place.generation)
        .bind(place.topic)
        .bind(place.incarnation)
        .fetch_optional(db)
        .await?;
        standing.push(Standing { partition: ARCHIVE, live: archive::position(files, 0), rebuilt });
    }
    Ok(standing)
}

/// The same, now.
pub(super) async fn now(pool: &PgPool, replay: &Replay) -> Result<Vec<Standing>, sqlx::Error> {
    standing(&mut *pool.acquire().await?, replay, "").await
}

/// How far a replay is.
pub async fn progress(pool: &PgPool, replay: &Replay) -> Result<Progress, sqlx::Error> {
    Ok(of(&now(pool, replay).await?, replay))
}

fn of(standing: &[Standing], replay: &Replay) -> Progress {
    let mut progress = Progress::default();
    for Standing { partition, live, rebuilt } in standing {
        if *partition == ARCHIVE {
            progress.files_left = archive::files_between(rebuilt.unwrap_or(0), *live);
            continue;
        }
        let start = replay.starts.0.get(partition).copied().unwrap_or(0);
        let rebuilt = rebuilt.unwrap_or(start);
        progress.done += (rebuilt - start).max(0).unsigned_abs();
        progress.left += (live - rebuilt).max(0).unsigned_abs();
    }
    progress
}

/// Whether the replay has got to where the live generation stood.
pub(super) fn reached(now: &[Standing], goal: &[Standing]) -> bool {
    let at = |partition: i32| now.iter().find(|standing| standing.partition == partition)?.rebuilt;
    goal.iter().all(|goal| at(goal.partition).is_some_and(|rebuilt| rebuilt >= goal.live))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(partition: i32, live: i64, rebuilt: Option<i64>) -> Standing {
        Standing { partition, live, rebuilt }
    }

    #[test]
    fn a_goal_is_reached_when_every_partition_has_come_there() {
        let goal = [at(0, 10, None), at(1, 20, Some(3))];
        assert!(!reached(&goal, &goal));
        assert!(!reached(&[at(0, 99, Some(50)), at(1, 99, Some(19))], &goal));
        assert!(reached(&[at(0, 99, Some(10)), at(1, 99, Some(20))], &goal), "it need not be where that is now");
        assert!(!reached(&[at(0, 99, Some(10))], &goal), "a partition that is not there at all");
    }
}

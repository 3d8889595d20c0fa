//! Shards: several rows for one window, so that workers write side by side without waiting for each other.
//!
//! A batch writes one shard, and holds it to the end of its transaction. It takes the one of the batch before;
//! if another worker has that in hand, the first that is free. So workers settle on different shards by
//! themselves, and a window has no more rows than workers have written it at the same time. Sums and merges over
//! shards are the same whoever wrote what.

use std::sync::atomic::{AtomicI32, Ordering};

use sqlx::PgConnection;

/// As many workers can write rollups at the same time.
pub const SHARDS: i32 = 16;
/// Begins the number of the locks in Postgres; a generation is added to it. It stands for "tide".
const LOCK: i32 = 0x7469_6465;

/// Takes shards.
#[derive(Debug)]
pub struct Shards {
    /// How many there are.
    count: i32,
    last: AtomicI32,
}

impl Shards {
    /// So many shards.
    pub fn new(count: i32) -> Self {
        Self { count: count.max(1), last: AtomicI32::new(0) }
    }

    /// Takes a shard of a generation's rollups until the transaction ends; waits only if all are taken. Nobody else
    /// writes its rows meanwhile. As the last lock of a transaction it cannot be part of a ring.
    pub async fn take(&self, tx: &mut PgConnection, generation: i32) -> Result<i16, sqlx::Error> {
        let last = self.last.load(Ordering::Relaxed);
        let lock = LOCK.wrapping_add(generation);
        let order: Vec<i32> = (0..self.count).map(|step| (last + step) % self.count).collect();
        let free: Option<i32> = sqlx::query_scalar(
            "SELECT shard FROM unnest($2::int[]) AS shard WHERE pg_try_advisory_xact_lock($1, shard) LIMIT 1",
        )
        .bind(lock)
        .bind(&order)
        .fetch_optional(&mut *tx)
        .await?;
        let shard = match free {
            Some(shard) => shard,
            None => {
                sqlx::query("SELECT pg_advisory_xact_lock($1, $2)").bind(lock).bind(last).execute(tx).await?;
                last
            }
        };
        self.last.store(shard, Ordering::Relaxed);
        Ok(shard as i16)
    }
}

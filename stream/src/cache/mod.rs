//! What operators do with the hot copies in Redis: fill one with them ([`Cache::warm`]), compare all of them with
//! Postgres and replicas with their masters ([`Cache::audit`]), look at the nodes ([`status`]), and take the gateway's
//! hints along to another Redis ([`claims`]).
//!
//! Everything is written as the workers write it: absolute values with the versions of the rows they stand for, an older
//! one never over a newer one. So all of this runs beside live workers.

mod audit;
pub mod claims;
mod mend;
mod nodes;
mod replicas;
mod report;
pub mod scan;
mod shards;
pub mod status;
mod verify;
mod warm;

use serde::Serialize;
use sqlx::PgPool;
use tidemill_common::redis::Redis;

pub use audit::Said as Looking;
pub use mend::Mended;
pub use nodes::{Node, nodes, place};
pub use report::{Audit, Tally};
pub use shards::Shards;
pub use warm::{CONCURRENT, Said, Warmed};

use crate::metric::Definitions;
pub use crate::project::ProjectError;
use crate::project::Writer;
use crate::project::pending::Key;

/// Hot copies in one Redis, and what they are copies of.
pub struct Cache {
    writer: Writer,
}

/// A project and what the gateway caches for it.
#[derive(Debug, Clone)]
pub struct Contents {
    /// Its id.
    pub project: String,
    /// Its JSON Schemas.
    pub schemas: Vec<Plain>,
}

/// A text under a key whose name says which version it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plain {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// How long it stands, in seconds.
    pub seconds: u64,
}

/// What a copy is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Windows of metrics.
    Windows,
    /// Live sessions.
    Sessions,
    /// Carts.
    Carts,
    /// Members of the sets of seen users.
    SeenUsers,
    /// JSON Schemas.
    Schemas,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Windows, Self::Sessions, Self::Carts, Self::SeenUsers, Self::Schemas];

    fn of(key: &Key) -> Self {
        match key {
            Key::Window(_) => Self::Windows,
            Key::Session(_) => Self::Sessions,
            Key::Cart(_) => Self::Carts,
            Key::User(_) => Self::SeenUsers,
        }
    }
}

impl Cache {
    /// The copies in `redis` of what `pool` has, with the stream's setting for compression.
    pub fn new(pool: PgPool, redis: Redis, definitions: Definitions, compress_above: Option<usize>) -> Self {
        Self { writer: Writer { pool, redis, definitions, compress_above } }
    }

    /// Writes these keys as the workers do; every part of Redis has to take its own.
    async fn write(&self, keys: &[Key]) -> Result<(), ProjectError> {
        self.writer.write(keys).await?.why.map_or(Ok(()), |why| Err(why.into()))
    }

    /// About how many keys there are to be warmed, of all these projects: windows are counted once per shard of their
    /// rows at most, sessions by the half hour.
    pub async fn count(&self, projects: &[String]) -> Result<u64, sqlx::Error> {
        let now = chrono::Utc::now();
        let first = |granularity| crate::project::list::first_window(granularity, now).0;
        let starts = crate::window::Granularity::ALL.map(first);
        let count: i64 = sqlx::query_scalar(
            "SELECT coalesce(sum(
                 (SELECT count(*) FROM sessions s WHERE s.generation = p.generation AND s.project = p.id
                    AND s.last_slot >= $2)
               + (SELECT count(*) FROM session_keys c WHERE c.generation = p.generation AND c.project = p.id
                    AND c.cart_slot >= $7)
               + (SELECT count(*) FROM users u WHERE u.generation = p.generation AND u.project = p.id)
               + (SELECT count(*) FROM (SELECT DISTINCT granularity, window_start, metric_name, dimension_value
                    FROM metric_rollups r
                    JOIN unnest($3::text[], $4::timestamptz[]) AS g(name, since)
                      ON r.granularity = g.name AND r.window_start >= g.since
                    WHERE r.generation = p.generation AND r.project = p.id
                      AND (r.dimension_key = '' OR r.metric_name = $5 AND r.dimension_key = $6)) AS w)), 0)::bigint
             FROM projects p WHERE p.id = ANY ($1)",
        )
        .bind(projects)
        .bind(crate::project::list::first_session(now).0)
        .bind(crate::window::Granularity::ALL.map(crate::window::Granularity::as_str).as_slice())
        .bind(starts.as_slice())
        .bind(crate::metric::EVENTS)
        .bind(crate::metric::EVENT_TYPE)
        .bind(crate::project::list::first_cart(now).0)
        .fetch_one(&self.writer.pool)
        .await?;
        Ok(u64::try_from(count).unwrap_or_default())
    }
}

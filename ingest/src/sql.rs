//! The SQL of this crate.

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgPool};

/// What Postgres says of an API key.
#[derive(Debug, Clone, FromRow)]
pub struct KeyRow {
    /// SHA-256 of the key.
    pub hash: Vec<u8>,
    /// Whose events it writes.
    pub project: String,
    /// The project's number of home partitions.
    pub partitions: i32,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Events per second.
    pub rate_limit: Option<i32>,
    /// From when on it is refused.
    pub expires_at: Option<DateTime<Utc>>,
}

const KEY: &str = "
    SELECT k.hash, k.project, p.partitions, k.scopes, k.rate_limit, k.expires_at
    FROM api_keys k JOIN projects p ON p.id = k.project
    WHERE k.prefix = $1 AND p.deleted_at IS NULL AND (k.revoked_at IS NULL OR k.revoked_at > now())";

/// The key with this prefix, unless it is revoked.
pub async fn key(pool: &PgPool, prefix: &str) -> Result<Option<KeyRow>, sqlx::Error> {
    sqlx::query_as(KEY).bind(prefix).fetch_optional(pool).await
}

/// Asks for an answer.
pub async fn ping(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT 1").execute(pool).await.map(drop)
}

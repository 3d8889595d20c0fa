//! The SQL of this crate.

use sqlx::PgPool;

/// Asks for an answer.
pub async fn ping(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT 1").execute(pool).await.map(drop)
}

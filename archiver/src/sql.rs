//! What the archiver asks Postgres of a project: which columns it declares.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgPool;
use tidemill_common::promoted::KEYWORD;

/// When a project's JSON Schemas last changed; none without the project.
pub async fn schemas_changed_at(pool: &PgPool, project: &str) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    sqlx::query_scalar("SELECT schemas_changed_at FROM projects WHERE id = $1").bind(project).fetch_optional(pool).await
}

/// The newest JSON Schema of each event type that says anything of columns.
pub async fn schemas_with_columns(pool: &PgPool, project: &str) -> Result<Vec<(String, Value)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT event_type, schema FROM (
             SELECT DISTINCT ON (event_type) event_type, schema FROM event_schemas WHERE project = $1
             ORDER BY event_type, version DESC
         ) newest WHERE schema::text LIKE $2",
    )
    .bind(project)
    .bind(format!("%\"{KEYWORD}\"%"))
    .fetch_all(pool)
    .await
}

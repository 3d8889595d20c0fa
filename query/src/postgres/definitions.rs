//! The metrics that projects declare.

use serde_json::Value;
use sqlx::PgPool;
use tidemill_common::projects::Project;

/// Declares a metric, or declares it otherwise. Says whether it is new; none when the project has `most` of them.
pub async fn declare(
    pool: &PgPool,
    project: &Project,
    name: &str,
    definition: &Value,
    most: usize,
) -> Result<Option<bool>, sqlx::Error> {
    sqlx::query_scalar(
        "INSERT INTO metric_definitions AS d (project, name, definition)
         SELECT $1, $2, $3
         WHERE EXISTS (SELECT FROM metric_definitions WHERE project = $1 AND name = $2)
            OR (SELECT count(*) FROM metric_definitions WHERE project = $1) < $4
         ON CONFLICT (project, name) DO UPDATE SET definition = excluded.definition,
             changed_at = CASE WHEN d.definition = excluded.definition THEN d.changed_at ELSE now() END
         RETURNING xmax = 0",
    )
    .bind(&project.id)
    .bind(name)
    .bind(definition)
    .bind(most as i64)
    .fetch_optional(pool)
    .await
}

/// Takes a metric back. False: there is none of this name.
pub async fn undeclare(pool: &PgPool, project: &Project, name: &str) -> Result<bool, sqlx::Error> {
    let deleted = sqlx::query("DELETE FROM metric_definitions WHERE project = $1 AND name = $2")
        .bind(&project.id)
        .bind(name)
        .execute(pool)
        .await?;
    Ok(deleted.rows_affected() > 0)
}

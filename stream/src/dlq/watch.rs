//! What of dead letters is worth an alert: how many are open, and since when.

use std::collections::BTreeSet;
use std::time::Duration;

use metrics::gauge;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

/// How often Postgres is asked. The answer is in an index of open letters.
const EVERY: Duration = Duration::from_secs(60);

/// Project, reason, how many, and how many seconds ago the first was refused.
type Open = (String, String, i64, f64);

/// Shows it until shutdown, in every worker alike.
pub async fn watch(pool: PgPool, shutdown: CancellationToken) {
    let mut shown = BTreeSet::new();
    loop {
        match open(&pool).await {
            Ok(open) => shown = show(&open, &shown),
            Err(error) => tracing::debug!(%error, "open dead letters not counted"),
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
            return;
        }
    }
}

/// The open letters of all projects, by project and reason.
pub async fn open(pool: &PgPool) -> Result<Vec<Open>, sqlx::Error> {
    sqlx::query_as(
        "SELECT project, reason, count(*), extract(epoch FROM now() - min(created_at))::float8
         FROM dead_letters WHERE state = 'open' GROUP BY 1, 2",
    )
    .fetch_all(pool)
    .await
}

/// What was shown before and is no more becomes zero.
fn show(open: &[Open], before: &BTreeSet<(String, String)>) -> BTreeSet<(String, String)> {
    let set = |(project, reason): &(String, String), count: i64, seconds: f64| {
        let (project, reason) = (project.clone(), reason.clone());
        gauge!("tidemill_dead_letters_open", "project" => project.clone(), "reason" => reason.clone())
            .set(count as f64);
        gauge!("tidemill_dead_letters_oldest_seconds", "project" => project, "reason" => reason).set(seconds);
    };
    let mut shown = BTreeSet::new();
    for (project, reason, count, seconds) in open {
        let kind = (project.clone(), reason.clone());
        set(&kind, *count, *seconds);
        shown.insert(kind);
    }
    before.difference(&shown).for_each(|kind| set(kind, 0, 0.0));
    shown
}

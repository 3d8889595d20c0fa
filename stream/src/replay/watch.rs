//! How far replays are, for Prometheus: every stream worker shows the same, since who runs a replay comes and goes.

use std::collections::BTreeSet;
use std::time::Duration;

use metrics::gauge;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use super::{Progress, ReplayError, list, progress};

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(15);

/// A replay's project and number.
pub type Labels = (String, i64);

/// Shows it until shutdown.
pub async fn watch(pool: PgPool, shutdown: CancellationToken) {
    let mut shown = BTreeSet::new();
    loop {
        match look(&pool, &shown).await {
            Ok(now) => shown = now,
            Err(error) => tracing::debug!(%error, "replays not looked at"),
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
            return;
        }
    }
}

/// Shows all that are not over, and gives which those are. What was shown before and is over becomes zero.
pub async fn look(pool: &PgPool, before: &BTreeSet<Labels>) -> Result<BTreeSet<Labels>, ReplayError> {
    let mut shown = BTreeSet::new();
    for replay in list(pool, None).await?.iter().filter(|replay| replay.is_open()) {
        let labels = (replay.project.clone(), replay.id);
        show(&labels, replay.state == "running", &progress(pool, replay).await?);
        shown.insert(labels);
    }
    before.difference(&shown).for_each(|labels| show(labels, false, &Progress::default()));
    Ok(shown)
}

fn show((project, id): &Labels, running: bool, progress: &Progress) {
    let set = |name: &'static str, value: u64| {
        gauge!(name, "project" => project.clone(), "replay" => id.to_string()).set(value as f64);
    };
    set("tidemill_replay_running", u64::from(running));
    set("tidemill_replay_done_records", progress.done);
    set("tidemill_replay_left_records", progress.left);
    set("tidemill_replay_left_files", progress.files_left);
}

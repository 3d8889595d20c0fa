//! What live readers are told of metrics: the newest state of each window in `metrics.*`, beside the one in Postgres.

use std::collections::BTreeMap;

use sqlx::Row;
use sqlx::postgres::PgRow;
use tidemill_common::metric_update::{MetricUpdate, MetricWindow};
use tidemill_common::names::metrics_topic;
use tidemill_testkit::Stack;

use super::postgres::window_key;
use crate::oracle::{DECLARED, EVENTS, Reading, WindowKey};

/// Which state of a window: epoch, generation and version.
pub type Stamp = (i64, i32, i64);

/// What was published, and which states Postgres has.
#[derive(Debug, Default)]
pub struct Published {
    /// The newest that was published.
    pub told: BTreeMap<WindowKey, (Stamp, Reading)>,
    /// What Postgres has now.
    pub stored: BTreeMap<WindowKey, Stamp>,
}

/// Everything of the stack's project. Postgres is read first, so it cannot be ahead of what will be published of it.
pub async fn published(stack: &Stack) -> anyhow::Result<Published> {
    let stored = stored(stack).await?;
    let mut told = BTreeMap::<WindowKey, (Stamp, Reading)>::new();
    let ours = format!("{}:", stack.project);
    for metric in DECLARED.iter().map(|declared| declared.name).chain([EVENTS]) {
        for record in stack.records_of_any(&metrics_topic(metric)).await {
            if !record.key().unwrap_or_default().starts_with(ours.as_bytes()) {
                continue; // another row's
            }
            let update = MetricUpdate::decode(record.value())?;
            for window in &update.windows {
                let (key, stamp) = (key(&update, window), (update.epoch, update.generation, window.version));
                if told.get(&key).is_none_or(|(newest, _)| *newest < stamp) {
                    told.insert(key, (stamp, reading(window)));
                }
            }
        }
    }
    Ok(Published { told, stored })
}

fn key(update: &MetricUpdate, window: &MetricWindow) -> WindowKey {
    let dimension = update.dimension.as_deref().unwrap_or_default();
    let dimension =
        if update.metric == EVENTS { dimension.replace("eventType", "event_type") } else { dimension.to_owned() };
    WindowKey {
        metric: update.metric.clone(),
        dimension,
        value: update.dimension_value.clone().unwrap_or_default(),
        granularity: window.granularity.clone(),
        start: window.start / 1_000_000,
    }
}

fn reading(window: &MetricWindow) -> Reading {
    let users = window.unique_users.map(|users| users as f64);
    let value = window.value.as_deref().and_then(|value| value.parse().ok());
    Reading { count: window.count, value: users.or(value) }
}

async fn stored(stack: &Stack) -> anyhow::Result<BTreeMap<WindowKey, Stamp>> {
    let rows = sqlx::query(
        "SELECT r.metric_name, r.dimension_key, r.dimension_value, r.granularity,
                extract(epoch FROM r.window_start)::bigint, (SELECT epoch FROM timeline), r.generation, sum(r.version)::bigint
         FROM metric_rollups r JOIN projects p ON p.id = r.project AND p.generation = r.generation
         WHERE r.project = $1 AND r.metric_name = ANY($2)
         GROUP BY 1, 2, 3, 4, r.window_start, r.generation",
    )
    .bind(&stack.project)
    .bind(DECLARED.iter().map(|declared| declared.name).chain([EVENTS]).collect::<Vec<_>>())
    .fetch_all(&stack.pool)
    .await?;
    let entry = |row: &PgRow| {
        let key = window_key(row)?;
        Ok((key, (row.try_get(5)?, row.try_get(6)?, row.try_get(7)?)))
    };
    rows.iter().map(entry).collect()
}

//! How far the tables are behind the log, and whether one stands still.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tidemill_common::http::Health;
use tidemill_common::kafka::{TopicPartition, topic_incarnations};
use tidemill_common::names::project_of;
use tokio_util::sync::CancellationToken;

use crate::error::ArchiveError;
use crate::prepare::Shared;

const LOOK: Duration = Duration::from_secs(5);
const KAFKA_TIMEOUT: Duration = Duration::from_secs(5);
/// A position may stand still this much longer than it takes to commit.
const PATIENCE: Duration = Duration::from_secs(60);

type Offsets = HashMap<TopicPartition, i64>;

/// The tables' positions in our partitions. Cheap to clone.
#[derive(Clone, Default)]
pub struct Positions(Arc<Mutex<Offsets>>);

impl Positions {
    pub fn set(&self, at: TopicPartition, next: i64) {
        self.lock().insert(at, next);
    }

    pub fn remove(&self, at: &TopicPartition) {
        self.lock().remove(at);
    }

    fn lock(&self) -> MutexGuard<'_, Offsets> {
        self.0.lock().expect("no holder panics")
    }
}

/// Watches until shutdown: the checks `kafka` and `positions`, and the lag in records.
pub async fn watch(shared: Shared, positions: Positions, health: Health, shutdown: CancellationToken) {
    let patience = Duration::from_millis(shared.config.commit_interval_ms) + PATIENCE;
    let mut movement = Movement::default();
    while !shutdown.is_cancelled() {
        let now = positions.lock().clone();
        let ends = ends(&shared, now.keys().cloned().collect()).await;
        health.set("kafka", true, ends.as_ref().map(drop).map_err(ToString::to_string));
        if let Ok(ends) = ends {
            show_lag(&now, &ends);
            health.set("positions", true, movement.observe(&now, &ends, Instant::now(), patience));
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// The log's ends.
async fn ends(shared: &Shared, partitions: Vec<TopicPartition>) -> Result<Offsets, ArchiveError> {
    let (history, kafka) = (shared.history.clone(), shared.kafka.clone());
    tokio::task::spawn_blocking(move || {
        if partitions.is_empty() {
            // Nothing is ours, so this only asks whether Kafka answers.
            topic_incarnations(&kafka, &["events"], KAFKA_TIMEOUT)?;
            return Ok(Offsets::new());
        }
        Ok(history.bounds(&partitions)?.into_iter().map(|(at, (_, high))| (at, high)).collect())
    })
    .await?
}

fn show_lag(positions: &Offsets, ends: &Offsets) {
    let mut lags: HashMap<&str, i64> = HashMap::new();
    for (at, next) in positions {
        let behind = ends.get(at).map_or(0, |end| (end - next).max(0));
        *lags.entry(project_of(&at.topic).unwrap_or_default()).or_default() += behind;
    }
    for (project, lag) in lags {
        metrics::gauge!("tidemill_archiver_lag_records", "project" => project.to_owned()).set(lag as f64);
    }
}

/// Since when each position has been where it is while the log went on. Pure: time is handed in.
#[derive(Default)]
struct Movement(HashMap<TopicPartition, (i64, Instant)>);

impl Movement {
    fn observe(&mut self, now_at: &Offsets, ends: &Offsets, now: Instant, patience: Duration) -> Result<(), String> {
        let behind = |at: &TopicPartition, next: i64| ends.get(at).is_some_and(|end| next < *end);
        self.0.retain(|at, (next, _)| now_at.get(at) == Some(next) && behind(at, *next));
        for (at, &next) in now_at.iter().filter(|(at, next)| behind(at, **next)) {
            self.0.entry(at.clone()).or_insert((next, now));
        }
        let stuck = self.0.iter().filter(|(_, (_, since))| now.duration_since(*since) > patience).min();
        stuck.map_or(Ok(()), |(at, (next, since))| {
            let seconds = now.duration_since(*since).as_secs();
            Err(format!("{} partition {} has stood at offset {next} for {seconds} s", at.topic, at.partition))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_position_that_stands_while_the_log_goes_on_is_stuck() {
        let at = TopicPartition { topic: "events.shop".into(), partition: 1 };
        let offsets = |next: i64| Offsets::from([(at.clone(), next)]);
        let (mut movement, start, patience) = (Movement::default(), Instant::now(), Duration::from_secs(60));
        let mut observe = |next, end, after| {
            movement.observe(&offsets(next), &offsets(end), start + Duration::from_secs(after), patience).is_ok()
        };
        assert!(observe(5, 5, 0));
        assert!(observe(5, 5, 1_000), "nothing to archive");
        assert!(observe(5, 6, 1_000), "only now there is something");
        assert!(observe(5, 9, 1_060));
        assert!(!observe(5, 9, 1_061));
        assert!(observe(6, 9, 1_062), "it moves again");
        assert!(observe(6, 9, 1_122));
        assert!(!observe(6, 9, 1_123));
        assert!(observe(9, 9, 1_124));
    }
}

//! How far a view is behind the log, and whether it stands still while the log goes on. It watches from beside, so it
//! notices a view whose own loop has stopped, too.

mod lag;
mod track;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, KafkaResult};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::http::Health;
use crate::kafka::{End, History, TopicPartition};
use crate::names::project_of;

pub use lag::{Lags, PartitionLag, exposition};

type Offsets = HashMap<TopicPartition, i64>;
type Ends = HashMap<TopicPartition, End>;

/// A view's positions in our partitions. Cheap to clone.
#[derive(Clone, Default)]
pub struct Positions(Arc<Mutex<Offsets>>);

impl Positions {
    /// A partition stands here.
    pub fn set(&self, at: TopicPartition, next: i64) {
        self.lock().insert(at, next);
    }

    /// A partition is not ours any more.
    pub fn remove(&self, at: &TopicPartition) {
        self.lock().remove(at);
    }

    /// These are ours, and no others.
    pub fn replace(&self, positions: impl Iterator<Item = (TopicPartition, i64)>) {
        let mut ours = self.lock();
        ours.clear();
        ours.extend(positions);
    }

    fn lock(&self) -> MutexGuard<'_, Offsets> {
        self.0.lock().expect("no holder panics")
    }
}

/// Who watches.
pub struct Watch {
    /// The service, as in the names of its metrics.
    pub name: &'static str,
    /// Asks for the log's ends.
    pub history: History,
    /// Is told.
    pub health: Health,
    /// How long a position may stand still while the log goes on.
    pub patience: Duration,
    /// How often it looks.
    pub every: Duration,
}

impl Watch {
    /// Watches until shutdown: the checks `kafka` and `positions`, `tidemill_<name>_lag_records{project}` and
    /// `…_lag_seconds{project}`, and [`exposition`]. What gives `looks` hears of each look.
    pub async fn run(
        self,
        positions: Positions,
        looks: watch::Sender<Arc<Vec<PartitionLag>>>,
        shutdown: CancellationToken,
    ) {
        let (mut movement, mut lags) = (Movement::default(), Lags::default());
        let latest = looks.subscribe();
        self.health.also_measure(move || exposition(&latest.borrow()));
        while !shutdown.is_cancelled() {
            let now = positions.lock().clone();
            let ends = self.ends(now.keys().cloned().collect()).await;
            self.health.set("kafka", true, ends.as_ref().map(drop).map_err(ToString::to_string));
            if let Ok(ends) = ends {
                lags.look(chrono::Utc::now().timestamp_millis(), &now, &ends);
                self.ask(&mut lags).await;
                let rows = lags.rows(self.name);
                self.show(&rows);
                looks.send_replace(Arc::new(rows));
                self.health.set("positions", true, movement.observe(&now, &ends, Instant::now(), self.patience));
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(self.every) => {}
            }
        }
    }

    /// The log's ends.
    async fn ends(&self, partitions: Vec<TopicPartition>) -> KafkaResult<Ends> {
        let history = self.history.clone();
        let ask = move || {
            if partitions.is_empty() {
                return history.ping().map(|()| Ends::new());
            }
            history.ends(&partitions)
        };
        tokio::task::spawn_blocking(ask).await.unwrap_or(Err(KafkaError::Canceled))
    }

    /// Has the log tell how old is what was there before the first look.
    async fn ask(&self, lags: &mut Lags) {
        let asked = lags.questions();
        if asked.is_empty() {
            return;
        }
        let history = self.history.clone();
        let ask = move || history.append_times(&asked).map(|told| (asked, told));
        match tokio::task::spawn_blocking(ask).await.unwrap_or(Err(KafkaError::Canceled)) {
            Ok((asked, told)) => lags.told(&asked, &told),
            Err(error) => tracing::debug!(%error, "append times of old records are not known"),
        }
    }

    /// Sums of projects; their longest wait.
    fn show(&self, rows: &[PartitionLag]) {
        let mut lags: HashMap<&str, (i64, f64)> = HashMap::new();
        for row in rows {
            let (records, seconds) = lags.entry(project_of(&row.topic).unwrap_or_default()).or_default();
            *records += row.lag;
            *seconds = seconds.max(row.seconds.unwrap_or_default());
        }
        for (project, (records, seconds)) in lags {
            let gauge = |unit| {
                let name = format!("tidemill_{}_lag_{unit}", self.name);
                metrics::gauge!(name, "project" => project.to_owned())
            };
            gauge("records").set(records as f64);
            gauge("seconds").set(seconds);
        }
    }
}

/// Since when each position has been where it is while the log went on. Pure: time is handed in.
#[derive(Default)]
struct Movement(HashMap<TopicPartition, (i64, Instant)>);

impl Movement {
    fn observe(&mut self, now_at: &Offsets, ends: &Ends, now: Instant, patience: Duration) -> Result<(), String> {
        let behind = |at: &TopicPartition, next: i64| ends.get(at).is_some_and(|end| next < end.offset);
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
            let ends = Ends::from([(at.clone(), End { offset: end, leader_changes: None })]);
            movement.observe(&offsets(next), &ends, start + Duration::from_secs(after), patience).is_ok()
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

//! Hot partitions: found, explained, told.

mod detector;
pub mod findings;
mod heavy;
mod mix;
mod remedy;
mod webhook;

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use metrics::counter;
use serde::Serialize;
use serde_json::json;
use sqlx::PgPool;
use tidemill_common::http::Health;
use tidemill_common::kafka::{History, TopicPartition};
use tidemill_common::names::project_of;
use tidemill_common::progress::PartitionLag;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use detector::Threshold;
use detector::{Detector, Hot, Standing};
pub use mix::{Explanation, Mixes, Part};
pub use remedy::Remedy;
pub use webhook::Webhook;

use crate::lag;

/// How often the mixes are aged, and what was found is confirmed.
const TIDY: Duration = Duration::from_secs(60);
const CONFIRM: Duration = Duration::from_secs(20);

/// A hot partition, and why.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// The view that is behind.
    pub view: &'static str,
    /// The topic's project.
    pub project: String,
    /// The topic.
    pub topic: Arc<str>,
    /// The partition's number.
    pub partition: i32,
    /// Its lag has been far above the average from then on.
    pub since: DateTime<Utc>,
    /// Records that it is behind.
    pub lag: i64,
    /// The average of all partitions of the topic.
    pub average: f64,
    /// What it consists of.
    pub why: Explanation,
    /// What can be done.
    pub remedies: Vec<Remedy>,
}

/// Looks after the partitions of a worker.
pub struct Guard {
    pool: PgPool,
    history: History,
    mixes: Mixes,
    webhook: Option<Webhook>,
    threshold: Threshold,
    detector: Detector,
    /// Those that are hot, for `/metrics`.
    shown: Arc<Mutex<Vec<Hot>>>,
}

impl Guard {
    /// A guard that has seen nothing. `/metrics` tells of what it finds.
    pub fn new(
        pool: PgPool,
        history: History,
        mixes: Mixes,
        webhook: Option<Webhook>,
        threshold: Threshold,
        health: &Health,
    ) -> Self {
        let shown: Arc<Mutex<Vec<Hot>>> = Arc::default();
        let hot = Arc::clone(&shown);
        health.also_measure(move || exposition(&hot.lock().expect("no holder panics")));
        Self { pool, history, mixes, webhook, threshold, detector: Detector::new(threshold), shown }
    }

    /// Looks whenever there is something new about lags, until shutdown.
    pub async fn run(mut self, mut looks: watch::Receiver<Arc<Vec<PartitionLag>>>, shutdown: CancellationToken) {
        let (mut tidied, mut confirmed) = (Instant::now(), Instant::now());
        while let Some(Ok(())) = shutdown.run_until_cancelled(looks.changed()).await {
            let lags = Arc::clone(&looks.borrow_and_update());
            if tidied.elapsed() >= TIDY {
                tidied = Instant::now();
                self.mixes.age(|at| lags.iter().any(|lag| lag.partition == at.partition && lag.topic == at.topic));
                note(findings::tidy(&self.pool).await);
            }
            // Without the averages nothing is known; what is suspected stays so.
            match self.standings(&lags).await {
                Ok(standings) => self.look(&standings, &lags).await,
                Err(error) => {
                    tracing::warn!(%error, "lags of whole topics are not known; nothing is said of hot partitions")
                }
            }
            if confirmed.elapsed() >= CONFIRM {
                confirmed = Instant::now();
                for hot in self.detector.hot() {
                    note(findings::keep(&self.pool, &self.finding(&hot, &lags)).await);
                }
            }
        }
    }

    /// Our partitions beside all others of their topics. Others are only asked for where one of ours may be hot.
    async fn standings(&self, lags: &[PartitionLag]) -> Result<HashMap<TopicPartition, Standing>, crate::lag::Error> {
        let suspicious = |lag: &&PartitionLag| lag.lag >= self.threshold.records || self.detector.suspects(&lag.at());
        let topics: BTreeSet<String> = lags.iter().filter(suspicious).map(|lag| lag.topic.to_string()).collect();
        let averages = lag::averages(&self.history, &self.pool, topics).await?;
        let standing = |lag: &PartitionLag| {
            let average = averages.get(&*lag.topic).copied().unwrap_or(lag.lag as f64);
            (lag.at(), Standing { lag: lag.lag, average })
        };
        Ok(lags.iter().map(standing).collect())
    }

    async fn look(&mut self, standings: &HashMap<TopicPartition, Standing>, lags: &[PartitionLag]) {
        let changes = self.detector.look(standings, Instant::now());
        *self.shown.lock().expect("no holder panics") = self.detector.hot().collect();
        for hot in &changes.began {
            let finding = self.finding(hot, lags);
            let (topic, partition, lag, average) = (&finding.topic, finding.partition, finding.lag, finding.average);
            let why = serde_json::to_string(&finding.why).unwrap_or_default();
            tracing::warn!(%topic, partition, lag, average, why, "a partition is hot; see 'tidemill lag hot'");
            counter!("tidemill_hot_partitions_found_total", "view" => finding.view).increment(1);
            self.tell("hot-partition", &finding);
            note(findings::keep(&self.pool, &finding).await);
        }
        for hot in &changes.ended {
            let finding = self.finding(hot, lags);
            tracing::info!(topic = %finding.topic, partition = finding.partition, "a partition is not hot any more");
            self.tell("hot-partition-over", &finding);
            note(findings::end(&self.pool, &finding).await);
        }
    }

    /// `text` is what chat programs show.
    fn tell(&self, event: &str, finding: &Finding) {
        let Some(webhook) = &self.webhook else { return };
        let Finding { topic, partition, lag, average, .. } = finding;
        let text = match event {
            "hot-partition" => format!(
                "Tidemill: partition {partition} of {topic} is hot: {lag} records behind, {average:.0} on average. See 'tidemill lag hot'."
            ),
            _ => format!("Tidemill: partition {partition} of {topic} is not hot any more."),
        };
        webhook.tell(json!({ "event": event, "text": text, "finding": finding }));
    }

    fn finding(&self, hot: &Hot, lags: &[PartitionLag]) -> Finding {
        let why = self.mixes.explain(&hot.at);
        let project = project_of(&hot.at.topic).unwrap_or_default().to_owned();
        let lag = lags.iter().find(|lag| lag.partition == hot.at.partition && lag.topic == hot.at.topic);
        Finding {
            view: crate::ledger::VIEW,
            topic: hot.at.topic.clone(),
            partition: hot.at.partition,
            since: Utc::now() - hot.since.elapsed(),
            lag: hot.standing.lag,
            average: hot.standing.average,
            remedies: lag.map(|lag| remedy::remedies(&project, lag, &why)).unwrap_or_default(),
            project,
            why,
        }
    }
}

/// What Postgres is told it is told again soon.
fn note(written: Result<(), sqlx::Error>) {
    if let Err(error) = written {
        tracing::warn!(%error, "hot partitions are not entered in Postgres");
    }
}

/// How many times the average each is behind.
fn exposition(hot: &[Hot]) -> String {
    let mut text = String::new();
    if hot.is_empty() {
        return text;
    }
    text.push_str("# TYPE tidemill_hot_partition gauge\n");
    for Hot { at, standing, .. } in hot {
        let labels = format!("view=\"{}\",topic=\"{}\",partition=\"{}\"", crate::ledger::VIEW, at.topic, at.partition);
        let times = standing.lag as f64 / standing.average.max(1.0);
        writeln!(text, "tidemill_hot_partition{{{labels}}} {times}").expect("a String grows");
    }
    text
}

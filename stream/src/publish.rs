//! Publication of metrics for live readers: counts per event type to `metrics.events`, declared metrics to
//! `metrics.{metric_name}`.
//!
//! Values are absolute and read after the commit, with their versions, so that any number of workers may publish the
//! same window in any order. Each key is published at most once a second, with all of its windows that have changed.
//! It is a feed and no truth: what cannot be sent is tried again, and what a crash swallows comes with the next change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::Utc;
use sqlx::PgPool;
use tidemill_common::failpoint::mutant;
use tidemill_common::home::home_partition;
use tidemill_common::kafka::{KafkaConfig, Outgoing, Producer};
use tidemill_common::metric_update::{METRIC_UPDATE_SCHEMA, MetricUpdate, MetricWindow};
use tidemill_common::names::metrics_topic;
use tidemill_common::registry::Registry;
use tidemill_topics::{Cluster, Declarations, plan, replication};
use tokio_util::sync::CancellationToken;

use crate::fold::rollups::RollupKey;
use crate::metric;
use crate::project::read::{self, HotWindow};

/// Between two updates of a key.
const EVERY: Duration = Duration::from_secs(1);
/// A topic that could not be made is tried again after this time.
const TRY_TOPIC: Duration = Duration::from_secs(30);
/// Windows that are published at once; the others wait for the next second.
const AT_ONCE: usize = 5_000;
/// Windows that wait at most; beyond it nothing is noted, and a warning says so.
const WAITING: usize = 200_000;

/// What is to be published. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Publisher {
    waiting: Arc<Mutex<BTreeSet<RollupKey>>>,
}

/// What publishing needs.
pub struct Outlet {
    /// Where the values are.
    pub pool: PgPool,
    /// Sends updates.
    pub producer: Producer,
    /// Keeps their schema.
    pub registry: Registry,
    /// Makes topics.
    pub kafka: KafkaConfig,
}

/// A topic that is there.
#[derive(Debug, Clone, Copy)]
struct Ready {
    partitions: i32,
    schema: u32,
}

impl Publisher {
    /// Notes windows that have changed, of those that are published.
    pub fn add<'a>(&self, windows: impl Iterator<Item = &'a RollupKey>) {
        let now = Utc::now().timestamp();
        let hot = |key: &&RollupKey| key.granularity.hot_until(key.window_start) > now;
        let mut waiting = self.waiting.lock().expect("no holder panics");
        for key in windows.filter(hot) {
            if waiting.len() >= WAITING {
                tracing::warn!(WAITING, "too many windows wait to be published; live readers miss changes");
                metrics::counter!("tidemill_stream_publications_dropped_total").increment(1);
                return;
            }
            waiting.insert(key.clone());
        }
    }

    /// Publishes what is noted, second by second, until shutdown.
    pub fn run(&self, outlet: Outlet, shutdown: CancellationToken) {
        let publisher = self.clone();
        tokio::spawn(async move {
            let mut topics = Topics::default();
            let mut tick = tokio::time::interval(EVERY);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                let ended = shutdown.run_until_cancelled(tick.tick()).await.is_none();
                let taken = publisher.take();
                if !taken.is_empty()
                    && let Err(error) = outlet.publish(&taken, &mut topics).await
                {
                    tracing::warn!(%error, windows = taken.len(), "metrics are published later");
                    publisher.waiting.lock().expect("no holder panics").extend(taken);
                }
                if ended {
                    return;
                }
            }
        });
    }

    fn take(&self) -> BTreeSet<RollupKey> {
        let mut waiting = self.waiting.lock().expect("no holder panics");
        let Some(first_left) = waiting.iter().nth(AT_ONCE).cloned() else { return std::mem::take(&mut *waiting) };
        let left = waiting.split_off(&first_left);
        std::mem::replace(&mut *waiting, left)
    }
}

/// Topics by name; those that cannot be used, until when.
#[derive(Default)]
struct Topics(HashMap<String, Result<Ready, Instant>>);

impl Outlet {
    async fn publish(&self, keys: &BTreeSet<RollupKey>, topics: &mut Topics) -> anyhow::Result<()> {
        let keys: Vec<&RollupKey> = keys.iter().skip(usize::from(mutant("unpublished"))).collect();
        let mut updates = BTreeMap::<String, MetricUpdate>::new();
        for window in read::windows(&self.pool, &keys).await? {
            let update = update(&window);
            let entry = updates.entry(format!("{} {}", update.metric, update.key()));
            entry.and_modify(|known| known.windows.extend_from_slice(&update.windows)).or_insert(update);
        }
        let mut records = Vec::new();
        for update in updates.values() {
            let topic = metrics_topic(&update.metric);
            let Some(ready) = self.topic(&topic, &update.metric, topics).await else { continue };
            let (key, value) = (update.key().into_bytes(), update.encode(ready.schema)?);
            records.push((topic, home_partition(&key, ready.partitions), key, value));
        }
        let outgoing: Vec<Outgoing<'_>> = records
            .iter()
            .map(|(topic, partition, key, value)| Outgoing {
                topic,
                partition: *partition,
                key: Some(key),
                value,
                headers: &[],
            })
            .collect();
        self.producer.send_all(&outgoing).await?;
        metrics::counter!("tidemill_stream_publications_total").increment(outgoing.len() as u64);
        Ok(())
    }

    /// The topic, made as declared if it is missing. One that cannot be made keeps nobody else's from being sent.
    async fn topic(&self, topic: &str, metric: &str, topics: &mut Topics) -> Option<Ready> {
        match topics.0.get(topic) {
            Some(Ok(ready)) => return Some(*ready),
            Some(Err(until)) if Instant::now() < *until => return None,
            _ => {}
        }
        let made = self.make(topic, metric).await;
        if let Err(error) = &made {
            tracing::warn!(%error, topic, "a metric is not published");
        }
        let made = made.map_err(|_| Instant::now() + TRY_TOPIC);
        topics.0.insert(topic.to_owned(), made);
        made.ok()
    }

    async fn make(&self, topic: &str, metric: &str) -> anyhow::Result<Ready> {
        let cluster = Cluster::new(&self.kafka)?;
        let copies = replication(None, cluster.brokers().await?);
        let declared = vec![Declarations::embedded()?.metric(metric, copies)];
        cluster.apply(&plan(&declared, &cluster.existing(&declared).await?)).await?;
        let existing = cluster.existing(&declared).await?;
        let partitions = existing.get(topic).map_or(declared[0].partitions, |existing| existing.partitions);
        let subject = format!("{topic}-value");
        let schema = self.registry.register(&subject, METRIC_UPDATE_SCHEMA).await?;
        self.registry.keep_backward_compatible(&subject).await?;
        Ok(Ready { partitions, schema })
    }
}

fn update(HotWindow { key, stamp, totals }: &HotWindow<'_>) -> MetricUpdate {
    let series = &key.series;
    let is_events = *series.metric == *metric::EVENTS;
    let dimension = if is_events {
        series.dimension.replace(metric::EVENT_TYPE, "eventType")
    } else {
        series.dimension.to_string()
    };
    let value = totals.value(series.aggregation).map(|value| value.to_string());
    MetricUpdate {
        project: series.project.to_string(),
        metric: series.metric.to_string(),
        dimension_value: Some(series.value.to_string()).filter(|value| !value.is_empty()),
        dimension: Some(dimension).filter(|dimension| !dimension.is_empty()),
        generation: stamp.generation,
        epoch: stamp.epoch,
        windows: vec![MetricWindow {
            granularity: key.granularity.as_str().to_owned(),
            start: key.window_start * 1_000_000,
            version: stamp.version,
            count: totals.count,
            value,
            unique_users: is_events.then(|| i64::try_from(totals.unique()).unwrap_or(i64::MAX)),
        }],
    }
}

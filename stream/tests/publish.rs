//! What workers show of declared metrics: live readers see them change, in absolute values.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::json;
use support::declare;
use tidemill_common::event::Event;
use tidemill_common::kafka::{History, Span, TopicPartition};
use tidemill_common::metric_update::{MetricUpdate, MetricWindow};
use tidemill_stream::keys;
use tidemill_stream::window::Granularity;
use tidemill_testkit::{Stack, event, eventually};
use tokio_util::sync::CancellationToken;

async fn worker(stack: &Stack) -> support::Running {
    support::worker(stack, "a", |config, _| config.seen_dir = stack.folder("seen-stream")).await
}

/// This project's updates in a topic, in the order of each partition; none while there is no topic.
async fn updates(stack: &Stack, topic: &str) -> Vec<MetricUpdate> {
    let history = History::new(stack.connections.kafka.clone());
    let consumer: BaseConsumer = stack.connections.kafka.client().create().unwrap();
    let topic: Arc<str> = topic.into();
    let read = move || {
        let mut updates = Vec::new();
        // The topic is everybody's, and may be older than this test.
        let metadata = consumer.fetch_metadata(Some(&topic), Duration::from_secs(10)).unwrap();
        for partition in 0..metadata.topics()[0].partitions().len() as i32 {
            let at = TopicPartition { topic: topic.clone(), partition };
            let Ok(bounds) = history.bounds(std::slice::from_ref(&at)) else { return updates };
            let spans: Vec<Span> = bounds.into_iter().map(|(at, (from, to))| Span { at, from, to }).collect();
            history
                .read(&spans, &CancellationToken::new(), |record| {
                    let update = MetricUpdate::decode(record.value()).unwrap();
                    assert_eq!(record.key(), Some(update.key().as_bytes()));
                    updates.push(update);
                    Ok::<(), rdkafka::error::KafkaError>(())
                })
                .unwrap();
        }
        updates
    };
    let mut updates = tokio::task::spawn_blocking(read).await.unwrap();
    updates.retain(|update| update.project == stack.project);
    updates
}

/// The newest state of each window of a granularity's, by dimension's value.
fn newest(updates: &[MetricUpdate], granularity: &str) -> HashMap<Option<String>, MetricWindow> {
    let mut newest = HashMap::<Option<String>, MetricWindow>::new();
    for update in updates {
        for window in update.windows.iter().filter(|window| window.granularity == granularity) {
            let known = newest.entry(update.dimension_value.clone()).or_insert_with(|| window.clone());
            if known.version < window.version {
                *known = window.clone();
            }
        }
    }
    newest
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_published_after_the_commit() {
    tidemill_common::telemetry::start_logging("warn");
    let stack = Stack::new().await;
    let definition =
        json!({"name": "test_published", "aggregation": "sum", "field": "amount", "dimensions": ["country"]});
    declare(&stack, definition).await;
    let now = chrono::Utc::now().timestamp();
    let events = |from: i64, to: i64| {
        let of = |i: i64| {
            let country = if i % 2 == 0 { "\"DE\"" } else { "null" };
            let properties = Some(format!(r#"{{"amount":0.10,"country":{country}}}"#));
            let user_id = Some(format!("u-{}", i % 7));
            Event { user_id, properties, ..event(&format!("e-{i}"), "pay", now) }
        };
        (from..to).map(of).collect::<Vec<_>>()
    };
    let running = worker(&stack).await;

    let shows = |events: i64, sum: &'static str, in_de: &'static str| {
        let stack = &stack;
        async move {
            let counted = newest(&updates(stack, "metrics.events").await, "1d");
            let pay = Some("pay".to_owned());
            if counted.get(&pay).is_none_or(|window| (window.count, window.unique_users) != (events, Some(7))) {
                return false;
            }
            // In another partition, which may have been read a moment before.
            if counted.get(&None).is_none_or(|window| window.count != events) {
                return false;
            }
            let sums = newest(&updates(stack, "metrics.test_published").await, "1h");
            let value =
                |value: Option<&str>| sums.get(&value.map(str::to_owned)).and_then(|window| window.value.as_deref());
            value(Some("DE")) == Some(in_de)
                && updates(stack, "metrics.test_published").await.iter().any(|update| {
                    update.dimension.is_none()
                        && update.windows.iter().any(|window| window.value.as_deref() == Some(sum))
                })
        }
    };
    stack.send_all(&events(0, 100)).await;
    eventually("the first hundred are published", || shows(100, "10", "5")).await;
    stack.send_all(&events(100, 150)).await;
    eventually("so are those that come later", || shows(150, "15", "7.5")).await;

    let all = updates(&stack, "metrics.events").await;
    let day = Granularity::Day.window(now * 1_000_000) * 1_000_000;
    assert!(
        all.iter().any(|update| update.windows.iter().any(|window| window.granularity == "1d" && window.start == day))
    );
    let mut versions: Vec<(Option<&str>, i64)> = all
        .iter()
        .filter_map(|update| Some((update.dimension_value.as_deref(), update.windows.iter().map(|w| w.version).max()?)))
        .collect();
    let published = versions.len();
    versions.sort_unstable();
    versions.dedup();
    assert_eq!(versions.len(), published, "what has not changed is not published again");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_worker_takes_up_what_is_declared_and_shows_it_in_redis() {
    let stack = Stack::new().await;
    let running = worker(&stack).await;
    let now = chrono::Utc::now().timestamp();
    let paid =
        |i: usize| Event { properties: Some(r#"{"amount":"0.10"}"#.into()), ..event(&format!("e-{i}"), "pay", now) };
    stack.send(&paid(0)).await;
    declare(&stack, json!({"name": "test_taken_up", "aggregation": "sum", "field": "amount"})).await;
    let sent = AtomicUsize::new(1);
    let of = |column: &str| {
        let sql = format!(
            "SELECT coalesce(sum({column}), 0)::float8 FROM metric_rollups WHERE metric_name = 'test_taken_up' AND granularity = '1d'"
        );
        let pool = stack.pool.clone();
        async move { sqlx::query_scalar::<_, f64>(sqlx::AssertSqlSafe(sql)).fetch_one(&pool).await.unwrap() }
    };
    eventually("it is counted by the worker that runs", || async {
        stack.send(&paid(sent.fetch_add(1, Ordering::Relaxed))).await;
        of("count").await > 0.0
    })
    .await;
    // From then on every event counts.
    let (counted, before) = (of("count").await, sent.load(Ordering::Relaxed));
    let more: Vec<Event> = (before..before + 50).map(paid).collect();
    stack.send_all(&more).await;
    eventually("so are all that follow", || async { of("count").await >= counted + 50.0 }).await;
    assert!((of("sum").await - of("count").await / 10.0).abs() < 1e-9);
    let client = redis::Client::open(stack.connections.redis_url.clone()).unwrap();
    let redis = client.get_multiplexed_async_connection().await.unwrap();
    let key = keys::metric(&stack.project, "test_taken_up", Granularity::Day, Granularity::Day.window(now * 1_000_000));
    let count = of("count").await;
    eventually("redis shows it", || {
        let (mut redis, key) = (redis.clone(), key.clone());
        async move {
            let copy = redis::cmd("GET").arg(key).query_async::<Option<String>>(&mut redis).await.unwrap();
            let copy: serde_json::Value = serde_json::from_str(&copy.unwrap_or_default()).unwrap_or_default();
            copy["aggregation"] == "sum" && copy["value"].as_str().and_then(|v| v.parse().ok()) == Some(count / 10.0)
        }
    })
    .await;
    running.stop().await;
}

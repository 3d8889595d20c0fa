//! A project one of whose event types gets a topic of its own while events arrive: every event counts once, wherever its
//! copies were sent.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use support::spread::{assert_once, live, rebuilt, settled, sources};
use support::{Running, worker};
use tidemill_common::codec::Encoder;
use tidemill_common::event::Event;
use tidemill_common::home::home_partition;
use tidemill_common::kafka::Outgoing;
use tidemill_common::names::{ROUTE, events_topic};
use tidemill_stream::dlq::Filter;
use tidemill_stream::dlq::redrive::Redriver;
use tidemill_stream::replay;
use tidemill_testkit::{LateRegistry, PARTITIONS, Stack, event, eventually};

/// A schema that the registry lacks at first.
const LATE: u32 = 4_000_000;

/// Every third is a click.
fn events(range: std::ops::Range<usize>) -> Vec<Event> {
    let now = chrono::Utc::now().timestamp();
    range.map(|i| event(&format!("e-{i}"), if i % 3 == 0 { "click" } else { "view" }, now)).collect()
}

fn clicks(range: std::ops::Range<usize>) -> Vec<Event> {
    events(range).into_iter().filter(|event| event.event_type == "click").collect()
}

/// Sends before and after, to either topic, with a worker at work all the while.
async fn routed(stack: &Stack) -> Running {
    let all = events(0..600);
    let running = live(stack).await;
    stack.send_all(&all[..200]).await;
    settled(stack).await;
    stack.route("clicks", "click").await;
    // Who has not heard of it, and who has.
    stack.send_all(&all[150..300]).await;
    stack.send_home(&all[100..500]).await;
    stack.send_all(&all[..550]).await;
    stack.send_home(&all[500..600]).await;
    running
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_from_before_and_after_count_once() {
    let stack = Stack::new().await;
    let running = routed(&stack).await;
    assert_once(&stack, 600).await;
    let of_route = sources(&stack).await.into_values().filter(|sources| sources[0].0 >= ROUTE).count();
    assert_eq!(of_route, clicks(200..600).len(), "what came later is in the topic of its own");
    // What came to it but by being sent home is known there, to who comes next, too.
    running.stop().await;
    let running = live(&stack).await;
    stack.send_home(&events(0..600)).await;
    assert_once(&stack, 600).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_decide_too_where_that_is_wanted() {
    let stack = Stack::new().await;
    let of_users = |range| {
        let of_user = |(i, event): (usize, Event)| Event { user_id: Some(format!("u-{}", i % 7)), ..event };
        events(range).into_iter().enumerate().map(of_user).collect::<Vec<_>>()
    };
    let running = live(&stack).await;
    stack.send_all(&of_users(0..200)).await;
    settled(&stack).await;
    stack.route_as("clicks", "click", Some(3 * PARTITIONS), true).await;
    stack.send_all(&of_users(0..300)).await;
    stack.send_home(&of_users(0..500)).await;
    assert_once(&stack, 500).await;
    let partitions: std::collections::BTreeSet<i32> =
        sources(&stack).await.into_values().map(|sources| sources[0].0).filter(|at| *at >= ROUTE).collect();
    assert_eq!(partitions.len(), 3 * PARTITIONS as usize, "all of the route's partitions have some");
    // The store inherits from one partition of the project's own topic, for several of the route's.
    running.stop().await;
    ["seen-stream", "checkpoints"].iter().for_each(|folder| std::fs::remove_dir_all(stack.folder(folder)).unwrap());
    let running = live(&stack).await;
    stack.send_home(&of_users(0..500)).await;
    assert_once(&stack, 500).await;
    sqlx::query("UPDATE eras SET ended_at = now() - interval '2 days'").execute(&stack.pool).await.unwrap();
    stack.grow(2 * PARTITIONS).await;
    stack.send_home(&of_users(0..600)).await;
    assert_once(&stack, 600).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_lost_inherits_again() {
    let stack = Stack::new().await;
    let running = routed(&stack).await;
    settled(&stack).await;
    running.stop().await;
    for gone in [&["seen-stream"][..], &["seen-stream", "checkpoints"]] {
        gone.iter().for_each(|folder| std::fs::remove_dir_all(stack.folder(folder)).unwrap());
        let running = live(&stack).await;
        stack.send_home(&events(0..600)).await;
        stack.send_all(&events(0..600)).await;
        assert_once(&stack, 600).await;
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_topics_of_routes_grow_with_the_projects_own() {
    let stack = Stack::new().await;
    let running = routed(&stack).await;
    assert_once(&stack, 600).await;
    sqlx::query("UPDATE eras SET ended_at = now() - interval '2 days'").execute(&stack.pool).await.unwrap();
    stack.grow(2 * PARTITIONS).await;
    stack.send_home(&events(300..700)).await;
    stack.send_by(&events(400..700), PARTITIONS).await;
    assert_once(&stack, 700).await;
    let high = ROUTE + PARTITIONS;
    assert!(sources(&stack).await.values().any(|sources| sources[0].0 >= high), "in the route's new partitions");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_gives_the_same() {
    let stack = Stack::new().await;
    let running = routed(&stack).await;
    assert_once(&stack, 600).await;
    let (replay, mut rebuilding) = rebuilt(&stack).await;
    let level = async { replay::switch(replay::level(&stack.pool, &replay).await?, &replay).await };
    rebuilding.during(level).await.unwrap();
    rebuilding.stop().await.unwrap();
    let sql = "SELECT coalesce(sum(count), 0)::bigint FROM metric_rollups r JOIN projects p ON p.generation = r.generation
               WHERE r.project = $1 AND p.id = $1 AND metric_name = 'events' AND dimension_key = '' AND granularity = '1d'";
    let live: i64 = sqlx::query_scalar(sql).bind(&stack.project).fetch_one(&stack.pool).await.unwrap();
    assert_eq!(live, 600, "the other generation has the route's events, too");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_of_a_route_go_through_again() {
    let stack = Stack::new().await;
    let registry = LateRegistry::without(Some(LATE)).await;
    let running = worker(&stack, "a", |config, connections| {
        (config.unknown_schema_wait_ms, connections.registry_url) = (300, registry.url.clone());
        (config.poison_share, config.poison_records) = (0.9, 15);
    })
    .await;
    stack.route("clicks", "click").await;
    let project = stack.project().await;
    let route = &project.topics()[1];
    // A click that came by a schema that nobody knew, in each topic; that in the project's own is a stray besides.
    let clicks = clicks(0..6);
    for (event, topic) in clicks.iter().zip([route.as_str(), &events_topic(&stack.project)]) {
        let value = Encoder::new(LATE).encode(event);
        let partition = home_partition(event.event_id.as_bytes(), PARTITIONS);
        let key = Some(event.event_id.as_bytes());
        let record = Outgoing { topic, partition, key, value: &value, headers: &[] };
        stack.producer.send(&record).await.unwrap();
    }
    let letters = async |state: &str| {
        let sql = r#"SELECT partition FROM dead_letters WHERE project = $1 AND topic = $2 AND state = $3 ORDER BY 1"#;
        let own = events_topic(&stack.project);
        let query = sqlx::query_scalar::<_, i32>(sql).bind(&stack.project).bind(own).bind(state.to_owned());
        query.fetch_all(&stack.pool).await.unwrap()
    };
    eventually("both are refused", || async { letters("open").await.len() == 2 }).await;
    assert!(letters("open").await[1] >= ROUTE, "by the partition's number");
    settled(&stack).await;
    registry.learn();
    let redriver =
        Redriver { pool: stack.pool.clone(), kafka: stack.connections.kafka.clone(), project: stack.project().await };
    let filter = Filter { project: Some(stack.project.clone()), ..Filter::default() };
    let report = redriver.run(&filter, 100, std::time::Duration::from_secs(30), |_| {}).await.unwrap();
    assert_eq!((report.sent, report.gone, report.outcomes.counted), (2, 0, 2), "{report:?}");
    assert_once(&stack, 2).await;
    running.stop().await;
}

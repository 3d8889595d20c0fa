//! A project whose topics get more partitions while events arrive: every event counts once, whichever number its copies
//! were sent by.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;

use support::{Running, counted, drained, worker};
use tidemill_common::event::Event;
use tidemill_common::home::home_partition;
use tidemill_common::names::{events_topic, processed_topic};
use tidemill_common::projects;
use tidemill_stream::Config;
use tidemill_stream::replay::{self, From, Rebuilding, Setup};
use tidemill_testkit::{PARTITIONS, Stack, event, eventually};

const GROWN: i32 = 2 * PARTITIONS;

async fn live(stack: &Stack) -> Running {
    worker(stack, "a", |config, _| {
        config.checkpoint_url = Some(format!("file://{}", stack.folder("checkpoints").display()));
        config.checkpoint_interval_ms = 100;
    })
    .await
}

fn events(range: std::ops::Range<usize>) -> Vec<Event> {
    let now = chrono::Utc::now().timestamp();
    range.map(|i| event(&format!("e-{i}"), "view", now)).collect()
}

/// Waits until all is counted, strays that go home too.
async fn settled(stack: &Stack) {
    let topic = events_topic(&stack.project);
    loop {
        let before = stack.ends(&topic).await;
        drained(stack).await;
        if stack.ends(&topic).await == before {
            return;
        }
    }
}

/// From how many records the events in the processed topic come, by eventId.
async fn sources(stack: &Stack) -> BTreeMap<String, usize> {
    let mut sources = BTreeMap::<String, std::collections::BTreeSet<(i32, i64)>>::new();
    for record in stack.records(&processed_topic(&stack.project)).await {
        let id = String::from_utf8(record.key.clone().unwrap()).unwrap();
        let offset = record.number("source-offset").unwrap();
        sources.entry(id).or_default().insert((record.partition, offset));
    }
    sources.into_iter().map(|(id, sources)| (id, sources.len())).collect()
}

/// Every one of so many events counts once, and is sent on as one.
async fn assert_once(stack: &Stack, events: usize) {
    settled(stack).await;
    assert_eq!(counted(stack).await, events as i64);
    let sources = sources(stack).await;
    let twice: Vec<_> = sources.iter().filter(|(_, sources)| **sources > 1).collect();
    assert!(twice.is_empty() && sources.len() == events, "{} sent on; more than once: {twice:?}", sources.len());
}

/// Sends before and after, by either number, with a worker at work all the while.
async fn grown(stack: &Stack) -> Running {
    let all = events(0..500);
    let running = live(stack).await;
    stack.send_by(&all[..200], PARTITIONS).await;
    settled(stack).await;
    stack.add_partitions(GROWN).await;
    // A standard partitioner whose client has seen the partitions before anything belongs there.
    stack.send_by(&all[180..240], GROWN).await;
    // The worker has the new partitions, too, and nobody tells it of what comes.
    settled(stack).await;
    stack.send_by(&all[220..260], GROWN).await;
    stack.grow(GROWN).await;
    // Who has not learned the new number yet, and who has.
    stack.send_by(&all[230..300], PARTITIONS).await;
    stack.send_by(&all[100..400], GROWN).await;
    stack.send_by(&all[..450], PARTITIONS).await;
    stack.send_by(&all[440..500], GROWN).await;
    running
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_from_before_and_after_count_once() {
    let stack = Stack::new().await;
    let running = grown(&stack).await;
    assert_once(&stack, 500).await;
    let children = sources(&stack).await.into_keys().filter(|id| home_partition(id.as_bytes(), GROWN) >= PARTITIONS);
    assert!(children.count() > 200, "many events live in new partitions");
    // What stands in no new partition but by being sent home is known there, to who comes next, too.
    running.stop().await;
    let running = live(&stack).await;
    stack.send_by(&events(0..500), GROWN).await;
    assert_once(&stack, 500).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_lost_inherits_again() {
    let stack = Stack::new().await;
    let running = grown(&stack).await;
    settled(&stack).await;
    running.stop().await;
    for gone in [&["seen-stream"][..], &["seen-stream", "checkpoints"]] {
        gone.iter().for_each(|folder| std::fs::remove_dir_all(stack.folder(folder)).unwrap());
        let running = live(&stack).await;
        stack.send_by(&events(0..500), GROWN).await;
        assert_once(&stack, 500).await;
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_counts_what_came_before_by_the_old_number() {
    let stack = Stack::new().await;
    stack.send_by(&events(0..300), PARTITIONS).await;
    stack.grow(GROWN).await;
    stack.send_by(&events(200..400), GROWN).await;
    let running = live(&stack).await;
    assert_once(&stack, 400).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_while_a_project_changes_hears_the_new_layout() {
    let stack = Stack::new().await;
    let (pool, project) = (stack.pool.clone(), stack.project.clone());
    let mut growing = stack.pool.begin().await.unwrap();
    projects::hold(&mut growing, &project).await.unwrap();
    let asked = tokio::spawn(async move { projects::layouts_now(&pool, &[&project]).await.unwrap()[&project] });
    eventually("the question waits", || async {
        let sql = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                   WHERE l.locktype = 'advisory' AND NOT l.granted AND d.datname = current_database()";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&stack.pool).await.unwrap() == 1
    })
    .await;
    let grown = "UPDATE projects SET layout = 7 WHERE id = $1";
    sqlx::query(grown).bind(&stack.project).execute(&mut *growing).await.unwrap();
    growing.commit().await.unwrap();
    assert_eq!(asked.await.unwrap(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_gives_the_same() {
    let stack = Stack::new().await;
    let running = grown(&stack).await;
    assert_once(&stack, 500).await;
    let plan =
        replay::plan(&stack.pool, &stack.connections.kafka, &stack.project, (&From::Beginning, None), None).await;
    let replay = replay::enter(&stack.pool, &plan.unwrap(), "a test").await.unwrap();
    let config =
        Config { session_timeout_ms: 6_000, seen_dir: stack.folder("replay").join("stream"), ..Config::default() };
    let setup = Setup { connections: stack.connections.clone(), config };
    let mut rebuilding = Rebuilding::start(&setup, &replay, None).await.unwrap();
    let both = async {
        replay::near(&stack.pool, &replay, |_| {}).await?;
        replay::compare(&stack.pool, replay::level(&stack.pool, &replay).await?, &replay).await
    };
    assert_eq!(rebuilding.during(both).await.unwrap(), []);
    rebuilding.stop().await.unwrap();
    running.stop().await;
}

//! A project whose topics get more partitions while events arrive: every event counts once, whichever number its copies
//! were sent by.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use support::Running;
use support::spread::{assert_once, live, rebuilt, settled, sources};
use tidemill_common::event::Event;
use tidemill_common::home::home_partition;
use tidemill_common::projects;
use tidemill_testkit::{PARTITIONS, Stack, event, eventually};

const GROWN: i32 = 2 * PARTITIONS;

fn events(range: std::ops::Range<usize>) -> Vec<Event> {
    let now = chrono::Utc::now().timestamp();
    range.map(|i| event(&format!("e-{i}"), "view", now)).collect()
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
    let (_, rebuilding) = rebuilt(&stack).await;
    rebuilding.stop().await.unwrap();
    running.stop().await;
}

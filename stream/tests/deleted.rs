//! A deleted project's rows are gone for good, whatever its workers have in hand. (The services as a whole:
//! cli/tests/deleted.rs.)
#![allow(clippy::unwrap_used)]

use tidemill_common::names::events_topic;
use tidemill_stream::forget;
use tidemill_stream::ledger::{self, Place};
use tidemill_testkit::{Stack, eventually};

/// As `common/src/projects.rs` has it.
const LOCK: i32 = 0x6765_6e65;

async fn delete(stack: &Stack) {
    let delete = "UPDATE projects SET deleted_at = now() WHERE id = $1";
    sqlx::query(delete).bind(&stack.project).execute(&stack.pool).await.unwrap();
}

async fn rows(stack: &Stack) -> i64 {
    let rows = "SELECT (SELECT count(*) FROM users WHERE project = $1) + (SELECT count(*) FROM ledger)";
    sqlx::query_scalar(rows).bind(&stack.project).fetch_one(&stack.pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_in_hand_goes_through_before_its_projects_rows_go() {
    let stack = Stack::new().await;
    let mut batch = stack.pool.begin().await.unwrap();
    let hold = "SELECT pg_advisory_xact_lock_shared($1, hashtext($2))";
    sqlx::query(hold).bind(LOCK).bind(&stack.project).execute(&mut *batch).await.unwrap();
    let user = "INSERT INTO users (generation, project, user_id, first_event_at) VALUES (0, $1, 'u', now())";
    sqlx::query(user).bind(&stack.project).execute(&mut *batch).await.unwrap();
    delete(&stack).await;
    let (pool, project) = (stack.pool.clone(), stack.project.clone());
    let forgetting = tokio::spawn(async move {
        let mut removed = 0;
        forget::project(&mut pool.acquire().await.unwrap(), &project, |rows| removed += rows).await.unwrap();
        removed
    });
    eventually("it waits for the batch", || async {
        let waiting = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                       WHERE d.datname = current_database() AND locktype = 'advisory' AND NOT granted";
        sqlx::query_scalar::<_, i64>(waiting).fetch_one(&stack.pool).await.unwrap() == 1
    })
    .await;
    batch.commit().await.unwrap();
    assert_eq!(forgetting.await.unwrap(), 1);
    assert_eq!(rows(&stack).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_project_gets_no_ledger_again() {
    let stack = Stack::new().await;
    let topic = events_topic(&stack.project);
    let place = |partition| Place { topic: topic.clone(), partition, incarnation: "i".to_owned(), generation: 0 };
    let opened = ledger::open(&stack.pool, &[place(0)]).await.unwrap();
    assert_eq!(opened.positions.len(), 1);
    delete(&stack).await;
    forget::project(&mut stack.pool.acquire().await.unwrap(), &stack.project, |_| ()).await.unwrap();
    // A worker that has looked at the project before.
    let opened = ledger::open(&stack.pool, &[place(0), place(1)]).await.unwrap();
    assert!(opened.positions.is_empty(), "{:?}", opened.positions);
    assert_eq!(rows(&stack).await, 0);
}

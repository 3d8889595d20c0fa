//! What a worker has seen outlives it: on its disk, or in checkpoints. Alone in its process, for its metrics' sake.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::path::Path;

use support::{Running, counted, drained, worker};
use tidemill_common::event::Event;
use tidemill_common::names::events_topic;
use tidemill_testkit::{Stack, event, eventually};

/// More in each partition than is read from the log without asking for a checkpoint.
const MANY: usize = 24_000;

async fn seeing(stack: &Stack, group: &str) -> Running {
    worker(stack, group, |config, _| {
        config.batch_size = 5_000;
        config.checkpoint_url = Some(format!("file://{}", stack.folder("checkpoints").display()));
        config.checkpoint_interval_ms = 100;
    })
    .await
}

fn events(range: std::ops::Range<usize>) -> Vec<Event> {
    let now = chrono::Utc::now().timestamp();
    range.map(|i| event(&format!("e-{i}"), "view", now)).collect()
}

/// A counter of this process.
fn metric(name: &str) -> u64 {
    let text = tidemill_common::telemetry::metrics().render();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
}

/// The ends of what checkpoints below a folder cover, together.
fn covered(folder: &Path) -> i64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let end = |entry: fs::DirEntry| {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            return covered(&entry.path());
        }
        let manifest = entry.file_name() == "manifest.json";
        let text = if manifest { fs::read_to_string(entry.path()).unwrap_or_default() } else { String::new() };
        let manifest: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        manifest["covers"]["end"].as_i64().unwrap_or(0)
    };
    entries.map(end).sum()
}

/// Waits until checkpoints cover all of the log.
async fn checkpointed(stack: &Stack) {
    let end: i64 = stack.ends(&events_topic(&stack.project)).await.values().sum();
    let folder = stack.folder("checkpoints");
    eventually("checkpoints cover the log", || async { covered(&folder) == end }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_exact_with_its_disk_with_a_checkpoint_and_with_the_log_alone() {
    tidemill_common::telemetry::metrics();
    let stack = Stack::new().await;
    let all = events(0..MANY);
    stack.send_all(&all).await;
    let running = seeing(&stack, "a").await;
    drained(&stack).await;
    stack.send_all(&all[..500]).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, MANY as i64);
    checkpointed(&stack).await;
    running.stop().await;

    // The disk is there: nothing is read from the log again.
    let before = metric("tidemill_seen_records_read_total");
    stack.send_all(&all[..1_000]).await;
    let running = seeing(&stack, "b").await;
    stack.send_all(&events(MANY..MANY + 10)).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, MANY as i64 + 10);
    assert_eq!(metric("tidemill_seen_records_read_total"), before);
    checkpointed(&stack).await;
    running.stop().await;
    fs::remove_dir_all(stack.folder("seen-stream")).unwrap();

    // A checkpoint is there: it covers everything.
    let running = seeing(&stack, "c").await;
    stack.send_all(&all).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, MANY as i64 + 10);
    assert_eq!(metric("tidemill_seen_checkpoints_taken_total"), 4, "one for each partition");
    assert_eq!(metric("tidemill_seen_records_read_total"), before);

    // Its disk goes while it works.
    fs::remove_dir_all(stack.folder("seen-stream")).unwrap();
    stack.send_all(&all[..5_000]).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, MANY as i64 + 10);
    running.stop().await;

    // Neither disk nor checkpoint: the log has it all.
    fs::remove_dir_all(stack.folder("seen-stream")).unwrap();
    fs::remove_dir_all(stack.folder("checkpoints")).unwrap();
    let before = metric("tidemill_seen_records_read_total");
    let running = seeing(&stack, "d").await;
    stack.send_all(&all[..5_000]).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, MANY as i64 + 10);
    assert!(metric("tidemill_seen_records_read_total") - before >= MANY as u64);
    eventually("it is ready", || async { running.health().await.0 == 200 }).await;
    running.stop().await;
}

//! What a worker has seen outlives it: on its disk, or in checkpoints on S3. Only one of these tests has workers, for
//! its metrics' sake.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use support::{Running, counted, drained, worker};
use tidemill_common::config::Warehouse;
use tidemill_common::event::Event;
use tidemill_common::home::home_partition;
use tidemill_common::kafka::{History, Reached};
use tidemill_common::names::events_topic;
use tidemill_common::seen::{Checkpoints, Limits, SeenStore, SeenStores, StoreKey, fingerprint};
use tidemill_testkit::{PARTITIONS, S3, Stack, event, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// More in each partition than is read from the log without asking for a checkpoint.
const MANY: usize = 24_000;

/// Where checkpoints of a test lie.
fn place(stack: &Stack) -> String {
    format!("s3://warehouse/seen/{}", stack.project)
}

async fn seeing(stack: &Stack, group: &str, checkpoints: &str) -> Running {
    worker(stack, group, |config, _| {
        config.batch_size = 5_000;
        config.checkpoint_url = Some(checkpoints.to_owned());
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

/// Waits until checkpoints cover all of the log.
async fn checkpointed(stack: &Stack) {
    let checkpoints = Checkpoints::new(&place(stack), &stack.connections.warehouse).unwrap();
    for partition in 0..PARTITIONS {
        let (key, end) = key_and_end(stack, partition).await;
        eventually("checkpoints cover the log", || async {
            // An S3 server of tests shows an object while it is written.
            let found = checkpoints.find(&key).await.unwrap_or_default();
            found.is_some_and(|manifest| manifest.covers.end == end)
        })
        .await;
    }
}

/// Whose store a partition's is, and where the partition ends.
async fn key_and_end(stack: &Stack, partition: i32) -> (StoreKey, i64) {
    let topic = events_topic(&stack.project);
    let end = stack.ends(&topic).await[&partition];
    let mut found =
        History::new(stack.connections.kafka.clone()).incarnations([&topic], Duration::from_secs(10)).unwrap();
    (StoreKey { incarnation: found.remove(&topic).unwrap(), topic, partition }, end)
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_exact_with_its_disk_with_a_checkpoint_and_with_the_log_alone() {
    tidemill_common::telemetry::metrics();
    let server = S3::start().await;
    let stack = Stack::with(|connections| server.reach(connections)).await;
    let all = events(0..MANY);
    stack.send_all(&all).await;
    let running = seeing(&stack, "a", &place(&stack)).await;
    drained(&stack).await;
    stack.send_all(&all[..500]).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, MANY as i64);
    checkpointed(&stack).await;
    running.stop().await;

    // The disk is there: nothing is read from the log again.
    let before = metric("tidemill_seen_records_read_total");
    stack.send_all(&all[..1_000]).await;
    let running = seeing(&stack, "b", &place(&stack)).await;
    stack.send_all(&events(MANY..MANY + 10)).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, MANY as i64 + 10);
    assert_eq!(metric("tidemill_seen_records_read_total"), before);
    checkpointed(&stack).await;
    running.stop().await;
    fs::remove_dir_all(stack.folder("seen-stream")).unwrap();

    // A checkpoint is there: it covers everything.
    let running = seeing(&stack, "c", &place(&stack)).await;
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
    let before = metric("tidemill_seen_records_read_total");
    let running = seeing(&stack, "d", &format!("{}/nothing", place(&stack))).await;
    stack.send_all(&all[..5_000]).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, MANY as i64 + 10);
    assert!(metric("tidemill_seen_records_read_total") - before >= MANY as u64);
    eventually("it is ready", || async { running.health().await.0 == 200 }).await;
    running.stop().await;

    // The log has lost its end, and has grown past it since: what the disk, or a checkpoint, has of that is not so.
    let mut all = MANY as i64 + 10;
    for by_checkpoint in [false, true] {
        let fresh: Vec<Event> = events(all as usize..all as usize + 200);
        let home = |event: &&Event| home_partition(event.event_id.as_bytes(), PARTITIONS) == 0;
        let lost: Vec<&Event> = fresh.iter().filter(home).collect();
        remember(&stack, &lost, by_checkpoint).await;
        // In another order, so that what is at an offset now was at a lower one.
        let (first, last): (Vec<&Event>, Vec<&Event>) = fresh.iter().partition(|event| !lost[..5].contains(event));
        all += fresh.len() as i64;
        for events in [first, last] {
            stack.send_all(&events.into_iter().cloned().collect::<Vec<_>>()).await;
        }
        stack.send_all(&events(all as usize..all as usize + 10)).await;
        all += 10;
        let running = seeing(&stack, "e", &place(&stack)).await;
        drained(&stack).await;
        assert_eq!(counted(&stack).await, all, "by a checkpoint: {by_checkpoint}");
        running.stop().await;
    }
}

/// Has the store of the first partition know events that the log had, on this disk or in a checkpoint alone.
async fn remember(stack: &Stack, lost: &[&Event], by_checkpoint: bool) {
    let (key, end) = key_and_end(stack, 0).await;
    let stores = SeenStores::open(&stack.folder("seen-stream"), Limits::default()).unwrap();
    let mut seen = stores.load(&key, 24 * HOUR_MS).unwrap();
    assert_eq!(seen.reached().next, end);
    let newest_ms = chrono::Utc::now().timestamp_millis();
    for (offset, event) in (end..).zip(lost) {
        seen.note(fingerprint(&event.event_id), offset, newest_ms);
    }
    seen.advance(Reached { next: end + lost.len() as i64, newest_ms });
    seen.flush();
    stores.settle().unwrap();
    seen.tick(1);
    if by_checkpoint {
        let checkpoints = Checkpoints::new(&place(stack), &stack.connections.warehouse).unwrap();
        assert_eq!(checkpoints.save_all(&stores, &mut HashMap::new()).await, 0, "none fails");
    }
    drop(seen);
    stores.close().unwrap();
    if by_checkpoint {
        fs::remove_dir_all(stack.folder("seen-stream")).unwrap();
    }
}

/// A partition's store, and what a test needs to lose it.
struct Place {
    stack: Stack,
    key: StoreKey,
    server: S3,
    checkpoints: Checkpoints,
}

/// More than goes into one part of an upload.
const SIGHTINGS: i64 = 300_000;
const HOUR_MS: i64 = 3_600_000;

impl Place {
    async fn new() -> Self {
        let server = S3::start().await;
        let stack = Stack::with(|connections| server.reach(connections)).await;
        let key = StoreKey { topic: events_topic(&stack.project), incarnation: "Id/+".to_owned(), partition: 3 };
        let checkpoints = Checkpoints::new(&place(&stack), &stack.connections.warehouse).unwrap();
        Self { stack, key, server, checkpoints }
    }

    /// A disk with nothing on it.
    fn disk(&self, name: &str) -> (SeenStores, SeenStore) {
        let stores = SeenStores::open(&self.stack.folder(name), Limits::default()).unwrap();
        let seen = stores.load(&self.key, HOUR_MS).unwrap();
        (stores, seen)
    }

    /// An object of the checkpoint.
    fn object(&self, name: &str) -> String {
        format!("{}/warehouse/seen/{}/{}/{name}", self.server.endpoint, self.stack.project, self.key.place())
    }

    async fn read(&self, name: &str) -> Vec<u8> {
        reqwest::get(self.object(name)).await.unwrap().bytes().await.unwrap().to_vec()
    }

    async fn write(&self, name: &str, bytes: Vec<u8>) {
        let answer = reqwest::Client::new().put(self.object(name)).body(bytes).send().await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
    }

    /// What a new disk has after it has taken the checkpoint, and what is still to be read from the log.
    async fn restored(&self, name: &str) -> (Result<(), String>, SeenStore, i64) {
        let (stores, _) = self.disk(name);
        let fetched = match self.checkpoints.find(&self.key).await {
            Ok(Some(manifest)) => self.checkpoints.fetch(&self.key, &manifest, &stores.folder_of(&self.key)).await,
            Ok(None) => panic!("no checkpoint"),
            Err(error) => Err(error),
        };
        let seen = stores.load(&self.key, HOUR_MS).unwrap();
        let missing = seen.missing(0, SIGHTINGS);
        (fetched.map_err(|error| error.to_string()), seen, missing.end - missing.start)
    }
}

fn id(offset: i64) -> tidemill_common::seen::Fingerprint {
    fingerprint(&offset.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_on_s3_is_whole_or_it_is_not_used() {
    let place = Place::new().await;
    assert_eq!(place.checkpoints.find(&place.key).await.unwrap(), None, "none yet");
    let (stores, mut seen) = place.disk("first");
    seen.complete(&(0..SIGHTINGS));
    for offset in 0..SIGHTINGS {
        seen.note(id(offset), offset, offset);
    }
    seen.advance(Reached { next: SIGHTINGS, newest_ms: SIGHTINGS });
    seen.flush();
    stores.settle().unwrap();
    seen.tick(1);
    let mut last = HashMap::new();
    assert_eq!(place.checkpoints.save_all(&stores, &mut last).await, 0, "none fails");
    let manifest = place.checkpoints.find(&place.key).await.unwrap().unwrap();
    assert_eq!((manifest.covers.clone(), last.get(&place.key)), (0..SIGHTINGS, Some(&manifest)));
    let (name, bytes) = manifest.files.last().unwrap().clone();
    assert!(bytes > 8 * 1024 * 1024, "an upload in parts: {bytes} bytes");

    let (fetched, mut seen, missing) = place.restored("lost").await;
    assert_eq!((fetched, missing), (Ok(()), 0));
    assert!(!seen.sight(id(7), SIGHTINGS, SIGHTINGS).unwrap() && seen.sight(id(-1), SIGHTINGS + 1, SIGHTINGS).unwrap());

    let whole = place.read(&name).await;
    let torn = |at: usize| [&whole[..at], &[0; 64], &whole[at + 64..]].concat();
    for (disk, bytes) in
        [("cut", whole[..whole.len() / 2].to_vec()), ("empty", Vec::new()), ("footer", torn(whole.len() - 64))]
    {
        place.write(&name, bytes).await;
        let (_, _, missing) = place.restored(disk).await;
        assert_eq!(missing, SIGHTINGS, "{disk}: all of it is read from the log");
    }
    // What is wrong within is found when it is read.
    place.write(&name, torn(1_000)).await;
    let (_, mut seen, _) = place.restored("page").await;
    let all = (0..SIGHTINGS).all(|offset| matches!(seen.sight(id(offset), SIGHTINGS + offset, SIGHTINGS), Ok(false)));
    assert!(!all && seen.missing(0, SIGHTINGS) == (0..SIGHTINGS), "the damage is found");

    reqwest::Client::new().delete(place.object(&name)).send().await.unwrap();
    let (fetched, _, missing) = place.restored("gone").await;
    assert!(fetched.unwrap_err().contains("NotFound") && missing == SIGHTINGS);
    place.write("manifest.json", b"{\"covers\":{\"start\":0,".to_vec()).await;
    let (fetched, _, missing) = place.restored("manifest").await;
    assert!(fetched.unwrap_err().ends_with("manifest.json is not what was written") && missing == SIGHTINGS);
}

/// Answers as S3 does who does not know the key.
async fn refusing() -> String {
    const BODY: &str = "<Error><Code>InvalidAccessKeyId</Code><Message>No such key.</Message></Error>";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let _ = client.read(&mut [0; 8_192]).await;
            let head = "HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-type: application/xml";
            let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{BODY}", BODY.len());
            let _ = client.write_all(answer.as_bytes()).await;
        }
    });
    endpoint
}

#[tokio::test]
async fn wrong_credentials_are_called_so() {
    let warehouse = Warehouse {
        s3_endpoint: Some(refusing().await),
        s3_access_key_id: Some("nobody".to_owned()),
        s3_secret_access_key: Some("guessed".to_owned()),
        ..Warehouse::default()
    };
    let key = StoreKey { topic: "events.any".to_owned(), incarnation: "id".to_owned(), partition: 0 };
    let checkpoints = Checkpoints::new("s3://warehouse/seen", &warehouse).unwrap();
    let error = checkpoints.find(&key).await.unwrap_err().to_string();
    assert!(
        error.starts_with("checkpoints: object storage does not let us in; check the credentials (S3_ACCESS_KEY_ID"),
        "{error}"
    );
    assert!(error.contains("InvalidAccessKeyId") && !error.contains("guessed"), "{error}");

    let url = "s3:///seen?secret_access_key=guessed";
    let error = Checkpoints::new(url, &warehouse).unwrap_err().to_string();
    assert!(error.starts_with("checkpoint_url \"s3:///seen\" cannot be used") && !error.contains("guessed"), "{error}");
}

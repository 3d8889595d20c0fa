//! What must not be counted, what must not be passed over in silence, and what has to wait for a person.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sqlx::Row;
use sqlx::postgres::types::PgInterval;
use support::{counted, drained, epoch, live_traffic, worker};
use tidemill_common::event::Event;
use tidemill_common::home::home_partition;
use tidemill_common::kafka::Outgoing;
use tidemill_common::names::{dlq_topic, events_topic};
use tidemill_common::origin::Origin;
use tidemill_stream::OnGap;
use tidemill_testkit::{PARTITIONS, Stack, event, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const POISON: usize = 600;

fn home(event: &Event) -> i32 {
    home_partition(event.event_id.as_bytes(), PARTITIONS)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stray_that_comes_home_late_is_a_dead_letter() {
    let stack = Stack::new().await;
    sqlx::query("UPDATE projects SET dedupe_window_ms = 60000").execute(&stack.pool).await.unwrap();
    let events = live_traffic(0..3, 3);
    stack.send_stray(&events[0], 30).await;
    stack.send_stray(&events[1], 90).await;
    stack.send(&events[2]).await;
    let running = worker(&stack, "a", |_, _| ()).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, 2);
    let letter = sqlx::query("SELECT stage, reason, detail FROM dead_letters").fetch_one(&stack.pool).await.unwrap();
    assert_eq!((letter.get::<&str, _>(0), letter.get::<&str, _>(1)), ("validate", "late-stray"));
    assert!(letter.get::<&str, _>(2).contains("offset 7"), "{}", letter.get::<&str, _>(2));
    running.stop().await;
    // It was no sighting: a copy that comes straight home counts, whoever judges it.
    let running = worker(&stack, "b", |_, _| ()).await;
    stack.send(&events[1]).await;
    stack.send(&events[0]).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, 3);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_mostly_poison_waits_and_nothing_is_lost() {
    let stack = Stack::new().await;
    let neighbour = format!("{}-b", stack.project);
    stack.create_project(&neighbour).await;
    let good = live_traffic(0..200, 20);
    stack.send_all(&good[..100]).await;
    for i in 0..POISON {
        stack.send_raw(i as i32 % PARTITIONS, Some(b"k"), b"not avro").await;
    }
    stack.send_all(&good[100..]).await;
    let topics = format!("^events\\.{}(-b)?$", stack.project);
    let limited = |share: f64| {
        let topics = topics.clone();
        move |config: &mut tidemill_stream::Config, _: &mut _| {
            (config.topics, config.poison_share, config.poison_records) = (topics, share, 100);
        }
    };
    let running = worker(&stack, "a", limited(0.5)).await;
    eventually("health says so", || async {
        let (status, health) = running.health().await;
        status == 503 && health.contains("TIDEMILL_STREAM__POISON_SHARE") && health.contains("not-avro")
    })
    .await;
    // Another tenant does not wait for it.
    let value = stack.encoder.encode(&event("e-1", "view", 1_709_251_200));
    let topic = events_topic(&neighbour);
    let theirs = Outgoing { topic: &topic, partition: home(&good[1]), key: Some(b"e-1"), value: &value, headers: &[] };
    stack.producer.send(&theirs).await.unwrap();
    eventually("the neighbour's event is counted", || async {
        let sql = "SELECT EXISTS (SELECT 1 FROM metric_rollups WHERE project = $1)";
        sqlx::query_scalar::<_, bool>(sql).bind(&neighbour).fetch_one(&stack.pool).await.unwrap()
    })
    .await;
    assert_eq!(running.health().await.0, 503);
    let letters = || async { stack.records(&dlq_topic(&stack.project)).await };
    assert!(letters().await.len() < POISON / 2, "the dead letters are not where it goes");
    assert!(counted(&stack).await <= 100, "and nothing overtakes it");
    running.stop().await;

    // A person says that the records are to blame.
    let running = worker(&stack, "b", limited(1.0)).await;
    eventually("all is counted", || async { counted(&stack).await == 200 }).await;
    drained(&stack).await;
    assert_eq!(running.health().await.0, 200);
    let letters = letters().await;
    let mut sources = BTreeSet::new();
    for letter in &letters {
        let header = |name: &str| {
            let (_, value) = letter.headers.iter().find(|(key, _)| key == name).expect(name);
            String::from_utf8(value.clone()).unwrap()
        };
        assert_eq!((&*header("stage"), &*header("reason"), &*header("attempts")), ("decode", "not-avro", "1"));
        assert_eq!(header("source-topic"), events_topic(&stack.project));
        chrono::DateTime::parse_from_rfc3339(&header("time")).expect("a time");
        let Origin { partition, offset, .. } = Origin::of_sent_on(letter).expect("an origin");
        sources.insert((partition, offset));
    }
    assert_eq!(sources.len(), POISON, "each of them, from its own place");
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM dead_letters").fetch_one(&stack.pool).await.unwrap();
    assert_eq!(rows, POISON as i64);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_retention_deleted_are_named_and_wait_for_a_person() {
    let stack = Stack::new().await;
    let events = live_traffic(0..200, 10);
    stack.send_all(&events[..100]).await;
    let running = worker(&stack, "a", |_, _| ()).await;
    drained(&stack).await;
    running.stop().await;
    let counted_there = events[..100].iter().filter(|event| home(event) == 0).count();
    stack.send_all(&events[100..]).await;
    let end = stack.ends(&events_topic(&stack.project)).await[&0];
    let lost = end - 2 - counted_there as i64;
    stack.delete_records(0, end - 2).await;

    let running = worker(&stack, "b", |_, _| ()).await;
    let elsewhere = events.iter().filter(|event| home(event) != 0).count();
    eventually("the other partitions go on", || async { counted(&stack).await == (counted_there + elsewhere) as i64 })
        .await;
    let (status, health) = running.health().await;
    let gap = format!("offsets {counted_there} to {} ({lost} records) were deleted", end - 3);
    assert_eq!(status, 503);
    assert!(health.contains(&format!("{}/0", events_topic(&stack.project))) && health.contains(&gap), "{health}");
    assert!(health.contains("TIDEMILL_STREAM__ON_GAP=skip"), "{health}");
    running.stop().await;

    let running = worker(&stack, "c", |config, _| config.on_gap = OnGap::Skip).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, 200 - lost);
    let row = sqlx::query("SELECT partition, from_offset, to_offset FROM gaps").fetch_one(&stack.pool).await.unwrap();
    assert_eq!((row.get(0), row.get(1), row.get(2)), (0, counted_there as i64, Some(end - 2)));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_deleted_before_anybody_came_are_a_gap_too_and_so_is_a_lost_end() {
    let stack = Stack::new().await;
    let events = live_traffic(0..100, 10);
    stack.send_all(&events).await;
    stack.delete_records(1, 5).await;
    let running = worker(&stack, "a", |_, _| ()).await;
    eventually("health names it", || async { running.health().await.1.contains("offsets 0 to 4 (5 records)") }).await;
    running.stop().await;

    // A log that has lost its end goes on where it ends now, and what was counted stays counted.
    let running = worker(&stack, "b", |config, _| config.on_gap = OnGap::Skip).await;
    drained(&stack).await;
    running.stop().await;
    // Its leader's clock was ahead.
    let ahead =
        "UPDATE ledger SET next_offset = next_offset + 1000, newest_ms = newest_ms + 3600000 WHERE partition = 2";
    sqlx::query(ahead).execute(&stack.pool).await.unwrap();
    let running = worker(&stack, "c", |_, _| ()).await;
    eventually("health names it", || async {
        let (status, health) = running.health().await;
        status == 503 && health.contains("has lost its end") && health.contains("(1000 records)")
    })
    .await;
    running.stop().await;
    let running = worker(&stack, "d", |config, _| config.on_gap = OnGap::Skip).await;
    eventually("it goes on", || async {
        let noted = sqlx::query("SELECT 1 FROM gaps WHERE partition = 2").fetch_optional(&stack.pool).await;
        noted.unwrap().is_some()
    })
    .await;
    stack.send_all(&live_traffic(100..200, 10)).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, 195);
    assert_eq!(running.health().await.0, 200);
    running.stop().await;
    let newest = "SELECT to_timestamp(newest_ms / 1000.0) - as_of FROM ledger WHERE partition = 2";
    let ahead: PgInterval = sqlx::query_scalar(newest).fetch_one(&stack.pool).await.unwrap();
    assert!(ahead.microseconds > 3_500_000_000, "what is kept looks no newer than what was lost: {ahead:?}");

    // So does one that has grown past where it was before.
    stack.send_all(&live_traffic(200..300, 10)).await;
    let end = stack.ends(&events_topic(&stack.project)).await[&3];
    let next: i64 = sqlx::query_scalar(
        "UPDATE ledger l SET next_offset = $1 FROM ledger old
         WHERE l.partition = 3 AND (old.topic, old.partition) = (l.topic, l.partition) RETURNING old.next_offset",
    )
    .bind(end)
    .fetch_one(&stack.pool)
    .await
    .unwrap();
    let running = worker(&stack, "e", |_, _| ()).await;
    let lost = format!("lost its end: offsets {next} to {} ({} records)", end - 1, end - next);
    eventually("health names it", || async { running.health().await.1.contains(&lost) }).await;
    running.stop().await;
    let running = worker(&stack, "f", |config, _| config.on_gap = OnGap::Skip).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, 295);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_that_overtakes_a_running_worker_is_noticed() {
    let stack = Stack::new().await;
    stack.send_all(&live_traffic(0..40, 10)).await;
    let running = worker(&stack, "a", |_, _| ()).await;
    drained(&stack).await;
    // It cannot commit for a while, so it is behind when retention comes.
    let mut lock = stack.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE users IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    stack.send_all(&live_traffic(40..80, 10)).await;
    eventually("a batch waits for the lock", || async {
        let sql = "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'users'::regclass)";
        sqlx::query_scalar::<_, bool>(sql).fetch_one(&stack.pool).await.unwrap()
    })
    .await;
    let end = stack.ends(&events_topic(&stack.project)).await[&0];
    stack.delete_records(0, end).await;
    // Its batch fails, and what it has to read again is gone.
    sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted AND relation = 'users'::regclass")
        .execute(&mut *lock)
        .await
        .unwrap();
    lock.rollback().await.unwrap();
    eventually("health names it", || async {
        let (status, health) = running.health().await;
        status == 503 && health.contains("were deleted before they were read")
    })
    .await;
    let elsewhere = live_traffic(40..80, 10).iter().filter(|event| home(event) != 0).count() as i64;
    eventually("the other partitions go on", || async { counted(&stack).await == 40 + elsewhere }).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_of_a_topic_made_again_had_left_is_noted() {
    let stack = Stack::new().await;
    let events = live_traffic(0..40, 5);
    stack.send_all(&events).await;
    let running = worker(&stack, "a", |_, _| ()).await;
    drained(&stack).await;
    stack.delete_topics(&stack.project).await;
    stack.create_topics(&stack.project).await;
    stack.send_all(&events).await;
    eventually("what the new log holds is counted too", || async { counted(&stack).await == 80 }).await;
    let rows = sqlx::query("SELECT from_offset, to_offset, reason FROM gaps").fetch_all(&stack.pool).await.unwrap();
    assert_eq!(rows.len(), PARTITIONS as usize);
    assert_eq!(rows.iter().map(|row| row.get::<i64, _>(0)).sum::<i64>(), 40, "up to where the old one was counted");
    assert!(rows.iter().all(|row| row.get::<Option<i64>, _>(1).is_none()), "nobody knows how much there was");
    assert_eq!(epoch(&stack).await, 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_stands_still_is_not_ready() {
    let stack = Stack::new().await;
    let running = worker(&stack, "a", |config, _| config.stall_ms = 1_000).await;
    stack.send_all(&live_traffic(0..40, 10)).await;
    drained(&stack).await;
    let mut lock = stack.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE users IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    stack.send_all(&live_traffic(40..80, 10)).await;
    eventually("it is not ready", || async {
        let (status, health) = running.health().await;
        status == 503 && health.contains("has stood at offset")
    })
    .await;
    lock.rollback().await.unwrap();
    eventually("it is ready again", || async { running.health().await.0 == 200 }).await;
    assert_eq!(counted(&stack).await, 80);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_without_an_answer_is_resolved_by_the_ledger() {
    let stack = Stack::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = listener.local_addr().unwrap().to_string();
    let (_, rest) = stack.connections.database_url.split_once('@').expect("a user");
    let server = rest.split('/').next().unwrap().to_owned();
    let url = stack.connections.database_url.replace(&server, &proxy);
    let cuts = Arc::new(AtomicUsize::new(5));
    tokio::spawn(forward(listener, server, Arc::clone(&cuts)));
    let running = worker(&stack, "a", |_, connections| connections.database_url = url).await;
    let events = live_traffic(0..1_000, 20);
    for chunk in events.chunks(50) {
        stack.send_all(chunk).await;
        stack.send_all(&chunk[..5]).await;
        if cuts.load(Ordering::SeqCst) > 0 {
            drained(&stack).await; // a batch takes what there is, so each chunk has one of its own
        }
    }
    drained(&stack).await;
    assert_eq!(counted(&stack).await, 1_000);
    eventually("all five commits were cut off", || async { cuts.load(Ordering::SeqCst) == 0 }).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, 1_000);
    assert_eq!(epoch(&stack).await, 0, "nothing was restored");
    running.stop().await;
}

/// Passes everything on, but for the answers to some COMMITs: those connections are cut once the server has answered.
async fn forward(listener: TcpListener, server: String, cuts: Arc<AtomicUsize>) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let (server, cuts) = (TcpStream::connect(&server).await.unwrap(), Arc::clone(&cuts));
        tokio::spawn(async move {
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            let (mut asked, mut answered) = (vec![0; 65_536], vec![0; 65_536]);
            loop {
                tokio::select! {
                    read = from_client.read(&mut asked) => {
                        let Ok(length @ 1..) = read else { return };
                        let commits = asked[..length].windows(7).any(|bytes| bytes == b"COMMIT\0");
                        if to_server.write_all(&asked[..length]).await.is_err() {
                            return;
                        }
                        let less = |left: usize| left.checked_sub(1);
                        if commits && cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
                            let _ = from_server.read(&mut answered).await; // it is committed by now
                            return;
                        }
                    }
                    read = from_server.read(&mut answered) => {
                        let Ok(length @ 1..) = read else { return };
                        if to_client.write_all(&answered[..length]).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_written_in_one_go_and_only_once() {
    let stack = Stack::new().await;
    for partition in 0..PARTITIONS {
        for _ in 0..20 {
            stack.send_raw(partition, None, b"\0\0bad\0").await;
        }
    }
    stack.send(&event("ancient", "view", 0)).await;
    let running = worker(&stack, "a", |_, _| ()).await;
    drained(&stack).await;
    running.stop().await;
    let rows = || async {
        let sql = "SELECT reason, count(*) FROM dead_letters GROUP BY 1 ORDER BY 1";
        let rows = sqlx::query(sql).fetch_all(&stack.pool).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect::<Vec<(String, i64)>>()
    };
    let expected = vec![("invalid".to_owned(), 1), ("unknown-schema".to_owned(), 80)];
    assert_eq!(rows().await, expected);
    // Counted anew, they are there already.
    sqlx::query("UPDATE ledger SET next_offset = 0, projected_offset = 0").execute(&stack.pool).await.unwrap();
    let running = worker(&stack, "b", |_, _| ()).await;
    drained(&stack).await;
    assert_eq!(rows().await, expected);
    running.stop().await;
}

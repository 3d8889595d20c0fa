//! The worker on the real components: everything counts once, whoever else works and whenever it ends.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::Row;
use support::{Running, counted, drained};
use tidemill_common::codec::{Decoder, processed};
use tidemill_common::event::Event;
use tidemill_common::home::home_partition;
use tidemill_common::names::{dlq_topic, events_topic, processed_topic};
use tidemill_common::origin::Origin;
use tidemill_common::registry::Registry;
use tidemill_stream::window::Granularity;
use tidemill_stream::{Config, keys, session_key};
use tidemill_testkit::{PARTITIONS, Stack, event, eventually};

/// 2024-03-01T00:00:00Z
const T0: i64 = 1_709_251_200;
/// Unknown schema ids in one partition; they are waited for together, not one after the other.
const UNKNOWN: u8 = 30;

/// A worker of a group of its own, on this test's topic.
async fn worker(stack: &Stack, group: &str) -> Running {
    let usual = Config::default().hot_key_interval_ms;
    support::worker(stack, group, |config, _| config.hot_key_interval_ms = usual).await
}

/// Waits until a worker of this group counts all partitions.
async fn live(stack: &Stack, group: &str) {
    let line = format!("tidemill_stream_live_partitions{{group=\"{}-{group}\"}} {PARTITIONS}", stack.project);
    eventually("all partitions are live", || async { tidemill_common::telemetry::metrics().render().contains(&line) })
        .await;
}

/// Events of `users` users in sessions that cross partitions, over three hours.
fn traffic(count: usize, users: usize) -> Vec<Event> {
    (0..count)
        .map(|i| {
            let user = i % users;
            let mut event =
                event(&format!("e-{i}"), ["view", "click", "purchase"][i % 3], T0 + (i * 7 % 10_800) as i64);
            event.user_id = Some(format!("u-{user}"));
            event.session_id = Some(format!("s-{user}"));
            event.properties = Some(format!("{{\"page\":\"p{}\"}}", i % 5));
            event
        })
        .collect()
}

async fn position(stack: &Stack) -> i64 {
    sqlx::query_scalar("SELECT coalesce(sum(next_offset), 0)::bigint FROM ledger WHERE view = 'stream'")
        .fetch_one(&stack.pool)
        .await
        .unwrap()
}

/// Everything in Postgres, computed from the events by other means.
async fn assert_exact(stack: &Stack, events: &[Event]) {
    let mut windows = BTreeMap::<(String, i64), i64>::new();
    for event in events {
        *windows.entry((event.event_type.clone(), Granularity::Hour.window(event.timestamp))).or_default() += 1;
    }
    let rows = sqlx::query(
        "SELECT dimension_value, extract(epoch FROM window_start)::bigint, sum(count)::bigint FROM metric_rollups
         WHERE metric_name = 'events' AND dimension_key = 'event_type' AND granularity = '1h' GROUP BY 1, 2",
    )
    .fetch_all(&stack.pool)
    .await
    .unwrap();
    let found: BTreeMap<(String, i64), i64> = rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
    assert_eq!(found, windows);

    let mut sessions = BTreeMap::<String, Vec<i64>>::new();
    for event in events {
        sessions.entry(event.session_id.clone().unwrap()).or_default().push(event.timestamp / 1_000_000);
    }
    let mut expected = BTreeMap::<(String, i64), (i64, i64)>::new();
    for (id, mut times) in sessions {
        times.sort_unstable();
        for run in times.chunk_by(|a, b| b - a <= 1_800) {
            expected.insert((id.clone(), run[0]), (run[run.len() - 1], run.len() as i64));
        }
    }
    let rows = sqlx::query(
        "SELECT session_id, extract(epoch FROM first_event_at)::bigint, extract(epoch FROM last_event_at)::bigint,
                total_events FROM sessions",
    )
    .fetch_all(&stack.pool)
    .await
    .unwrap();
    let found: BTreeMap<_, _> = rows
        .iter()
        .map(|r| ((r.get::<String, _>(0), r.get::<i64, _>(1)), (r.get::<i64, _>(2), r.get::<i64, _>(3))))
        .collect();
    assert_eq!(found, expected);

    let counted_sessions: i64 = sqlx::query_scalar(
        "SELECT coalesce(sum(count), 0)::bigint FROM metric_rollups WHERE metric_name = 'sessions' AND granularity = '1d'",
    )
    .fetch_one(&stack.pool)
    .await
    .unwrap();
    assert_eq!(counted_sessions, expected.len() as i64);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_strays_and_garbage() {
    let stack = Stack::new().await;
    let events = traffic(300, 20);
    stack.send_all(&events).await;
    stack.send_all(&events[..30]).await;
    // A producer with another partitioner, once alone and once as a copy.
    let mut stray = event("stray-1", "view", T0);
    (stray.user_id, stray.session_id) = (Some("u-stray".into()), Some("s-stray".into()));
    stray.properties = Some(r#"{"\ud800":1}"#.into()); // an object, though its field's name is no text
    for value in [stack.encoder.encode(&stray), stack.encoder.encode(&events[0])] {
        let id = if value == stack.encoder.encode(&stray) { "stray-1" } else { "e-0" };
        let elsewhere = (home_partition(id.as_bytes(), PARTITIONS) + 1) % PARTITIONS;
        stack.send_raw(elsewhere, Some(id.as_bytes()), &value).await;
    }
    // Not Avro; an unknown schema; a datum cut short; an invalid event.
    stack.send_raw(0, None, b"not avro").await;
    for id in 0..UNKNOWN {
        stack.send_raw(1, Some(b"k"), &[0, 0x7f, 0xff, 0xff, id, 1, 2, 3]).await;
    }
    // Larger than can be sent on with headers.
    stack.send_raw(3, Some(b"k"), &vec![0; 1_020_000]).await;
    let whole = stack.encoder.encode(&events[0]);
    stack.send_raw(2, Some(b"k"), &whole[..whole.len() / 2]).await;
    let ancient = event("ancient", "view", 0);
    stack.send(&ancient).await;

    let running = worker(&stack, "a").await;
    let all: Vec<Event> = events.iter().chain([&stray]).cloned().collect();
    eventually("all is counted", || async { counted(&stack).await == all.len() as i64 }).await;
    drained(&stack).await;
    assert_exact(&stack, &all).await;

    let letters =
        sqlx::query("SELECT reason, stage FROM dead_letters ORDER BY reason").fetch_all(&stack.pool).await.unwrap();
    let reasons: Vec<(String, String)> = letters.iter().map(|row| (row.get(0), row.get(1))).collect();
    let mut expected =
        vec![("bad-datum", "decode"), ("invalid", "validate"), ("not-avro", "decode"), ("too-large", "decode")];
    expected.extend([("unknown-schema", "decode"); UNKNOWN as usize]);
    let expected: Vec<_> = expected.into_iter().map(|(reason, stage)| (reason.to_owned(), stage.to_owned())).collect();
    assert_eq!(reasons, expected);

    // The dead letters name their origin, and hold the record as it came.
    let source = stack.records(&events_topic(&stack.project)).await;
    let dead = stack.records(&dlq_topic(&stack.project)).await;
    assert_eq!(dead.len(), 4 + UNKNOWN as usize);
    for letter in &dead {
        let header = |name: &str| {
            let (_, value) = letter.headers.iter().find(|(key, _)| key == name).expect(name);
            String::from_utf8(value.clone()).unwrap()
        };
        assert_eq!(header("source-topic"), events_topic(&stack.project));
        let Origin { partition, offset, .. } = Origin::of_sent_on(letter).expect("an origin");
        let origin = source.iter().find(|r| (r.partition, r.offset) == (partition, offset)).expect("origin");
        if header("reason") == "too-large" {
            assert!(letter.value().is_empty() && letter.key().is_none(), "it stands at its origin");
        } else {
            assert_eq!((origin.value(), origin.key()), (letter.value(), letter.key()));
        }
        assert!(!header("reason").is_empty() && !header("detail").is_empty());
    }

    // Every first sight stands once among the processed ones, in the partition of its source.
    let decoder = Decoder::new(Registry::new(&stack.connections.registry_url).unwrap());
    let mut processed = Vec::new();
    for record in stack.records(&processed_topic(&stack.project)).await {
        assert!(record.headers.is_empty());
        assert_eq!(processed::read(record.value()).unwrap().1.partition, record.partition);
        processed.push(decoder.decode(record.value()).await.unwrap().event_id);
    }
    processed.sort();
    let mut ids: Vec<String> = all.iter().map(|event| event.event_id.clone()).collect();
    ids.sort();
    assert_eq!(processed, ids);
    running.stop().await;

    // A worker that starts anew reads all of it again, and judges it as it was judged.
    let running = worker(&stack, "b").await;
    stack.send(&event("later", "view", T0)).await;
    stack.send(&events[0]).await;
    eventually("it goes on behind the garbage", || async { counted(&stack).await == all.len() as i64 + 1 }).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, all.len() as i64 + 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_cannot_store_stops_nobody() {
    let stack = Stack::new().await;
    let mut hostile = event("e-1", "page", T0);
    (hostile.user_id, hostile.session_id) = (Some("u".into()), Some("s".into()));
    hostile.properties = Some(r#"{"page":"a\u0000b"}"#.to_owned());
    stack.send(&hostile).await;
    let worker = worker(&stack, "a").await;
    drained(&stack).await;
    let page: String = sqlx::query_scalar("SELECT current_page FROM sessions").fetch_one(&stack.pool).await.unwrap();
    assert_eq!(page, "a\u{fffd}b");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_does_not_fit_its_ledger_waits_for_a_person_and_nobody_for_it() {
    let stack = Stack::new().await;
    stack.send_all(&traffic(40, 5)).await;
    let running = worker(&stack, "a").await;
    drained(&stack).await;
    running.stop().await;
    sqlx::query("UPDATE ledger SET next_offset = 1000000 WHERE partition = 0").execute(&stack.pool).await.unwrap();
    let running = worker(&stack, "b").await;
    let before = counted(&stack).await;
    let more: Vec<Event> = (0..40).map(|i| event(&format!("more-{i}"), "view", T0)).collect();
    stack.send_all(&more).await;
    let elsewhere = more.iter().filter(|e| home_partition(e.event_id.as_bytes(), PARTITIONS) != 0).count() as i64;
    eventually("the other partitions go on", || async { counted(&stack).await == before + elsewhere }).await;
    let health = reqwest::get(format!("{}/health", running.url)).await.unwrap();
    assert_eq!(health.status(), 503);
    assert!(health.text().await.unwrap().contains("has lost its end"), "and health says what to do");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_again_is_another_log() {
    let stack = Stack::new().await;
    let events = traffic(200, 5);
    stack.send_all(&events).await;
    let running = worker(&stack, "a").await;
    drained(&stack).await;
    stack.delete_topics(&stack.project).await;
    stack.create_topics(&stack.project).await;
    stack.send_all(&events).await;
    eventually("what the new log holds is counted too", || async { counted(&stack).await == 400 }).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn zombies_count_nothing_twice() {
    let stack = Stack::new().await;
    let events = traffic(3_000, 50);
    // Two groups: both workers believe that all partitions are theirs, all the time.
    let (first, second) = (worker(&stack, "a").await, worker(&stack, "b").await);
    live(&stack, "a").await;
    live(&stack, "b").await;
    for chunk in events.chunks(500) {
        stack.send_all(chunk).await;
        stack.send_all(&chunk[..10]).await;
    }
    drained(&stack).await;
    assert_exact(&stack, &events).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_through_many_partitions_and_two_workers() {
    let stack = Stack::new().await;
    let workers = [worker(&stack, "a").await, worker(&stack, "a").await];
    // Few sessions, so that both workers change the same ones at the same time.
    let events = traffic(4_000, 3);
    for chunk in events.chunks(250).rev() {
        stack.send_all(chunk).await;
    }
    drained(&stack).await;
    assert_exact(&stack, &events).await;
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn abrupt_ends_neither_lose_nor_repeat() {
    let stack = Stack::new().await;
    let events = traffic(4_000, 40);
    let mut running = worker(&stack, "g0").await;
    for (i, chunk) in events.chunks(400).enumerate() {
        stack.send_all(chunk).await;
        stack.send_all(&chunk[..20]).await;
        let before = position(&stack).await;
        eventually("some progress", || async { position(&stack).await > before }).await;
        running.kill();
        // A new group, so that nothing waits for the old member's session to time out.
        running = worker(&stack, &format!("g{}", i + 1)).await;
    }
    drained(&stack).await;
    assert_exact(&stack, &events).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_restored_from_a_backup_goes_on_from_its_ledger() {
    let stack = Stack::new().await;
    let events = traffic(1_000, 10);
    stack.send_all(&events[..500]).await;
    let running = worker(&stack, "a").await;
    drained(&stack).await;
    let tables = ["ledger", "users", "session_keys", "sessions", "metric_rollups", "dead_letters"];
    for table in tables {
        let sql = format!("CREATE TABLE backup_{table} AS TABLE {table}");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&stack.pool).await.unwrap();
    }
    stack.send_all(&events[500..800]).await;
    drained(&stack).await;
    let restore = tables.map(|t| format!("DELETE FROM {t}; INSERT INTO {t} SELECT * FROM backup_{t};")).concat();
    let restore = format!("BEGIN; {restore} COMMIT;");
    sqlx::raw_sql(sqlx::AssertSqlSafe(restore)).execute(&stack.pool).await.unwrap();
    // The worker that is running finds the ledger behind its own position.
    stack.send_all(&events[800..]).await;
    stack.send_all(&events[..100]).await;
    drained(&stack).await;
    assert_exact(&stack, &events).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_shows_live_sessions_and_hot_windows() {
    let stack = Stack::new().await;
    let running = worker(&stack, "a").await;
    let now = chrono::Utc::now().timestamp();
    let mut events = Vec::new();
    for i in 0..60 {
        let mut event = event(&format!("e-{i}"), "view", now - 30 + i % 20);
        event.user_id = Some(format!("u-{}", i % 7));
        event.session_id = Some(format!("s-{}", i % 7));
        event.properties = Some(format!("{{\"page\":\"p{i}\"}}"));
        events.push(event);
    }
    // An old one: counted, but not hot; it takes `isNew` from the live session of its user.
    let mut old = event("old", "view", now - 5 * 86_400);
    (old.user_id, old.session_id) = (Some("u-0".into()), Some("s-old".into()));
    stack.send_all(&events).await;
    drained(&stack).await;

    let client = redis::Client::open(stack.connections.redis_url.clone()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let session = keys::session(&stack.project, "s-0");
    let hash = |mut redis: redis::aio::MultiplexedConnection, key: String| async move {
        redis::cmd("HGETALL").arg(key).query_async::<BTreeMap<String, String>>(&mut redis).await.unwrap()
    };
    eventually("the session is in Redis", || async {
        hash(redis.clone(), session.clone()).await.get("totalEvents").map(String::as_str) == Some("9")
    })
    .await;
    let shown = hash(redis.clone(), session.clone()).await;
    assert_eq!((&*shown["userId"], &*shown["isNew"], &*shown["pageViews"]), ("u-0", "true", "9"));
    let ttl: i64 = redis::cmd("TTL").arg(&session).query_async(&mut redis).await.unwrap();
    assert!((1_700..=1_800).contains(&ttl), "30 minutes after the last event: {ttl}");

    stack.send(&old).await;
    eventually("isNew has gone to the older session", || async {
        hash(redis.clone(), session.clone()).await["isNew"] == "false"
    })
    .await;
    let mut sum = 0;
    let mut windows: Vec<i64> = events.iter().map(|event| Granularity::Minute.window(event.timestamp)).collect();
    windows.dedup();
    windows.sort_unstable();
    windows.dedup();
    for window in windows {
        let value: String = redis::cmd("GET")
            .arg(keys::metric(&stack.project, "view", Granularity::Minute, window))
            .query_async(&mut redis)
            .await
            .unwrap();
        let value: serde_json::Value = serde_json::from_str(&value).unwrap();
        sum += value["count"].as_i64().unwrap();
        assert!(value["unique_users"].as_u64().unwrap() <= 7);
    }
    assert_eq!(sum, 60);
    let cold = keys::metric(&stack.project, "view", Granularity::Minute, Granularity::Minute.window(old.timestamp));
    let exists: bool = redis::cmd("EXISTS").arg(cold).query_async(&mut redis).await.unwrap();
    assert!(!exists, "cold windows stay out of Redis");
    let seen: i64 = redis::cmd("SCARD").arg(keys::seen_users(&stack.project)).query_async(&mut redis).await.unwrap();
    assert_eq!(seen, 7);

    // A worker that died between commit and projection: the next one catches up from the ledger's mark.
    running.stop().await;
    sqlx::query("UPDATE ledger SET projected_offset = 0").execute(&stack.pool).await.unwrap();
    let sessions = keys::metric(
        &stack.project,
        "sessions",
        Granularity::Minute,
        Granularity::Minute.window((now - 30) * 1_000_000),
    );
    let gone: i64 = redis::cmd("DEL").arg(&[&session, &sessions]).query_async(&mut redis).await.unwrap();
    assert_eq!(gone, 2, "both had been there");
    let running = worker(&stack, "b").await;
    eventually("projected again", || async { !hash(redis.clone(), session.clone()).await.is_empty() }).await;
    eventually("what sessions count for, too", || {
        let (mut redis, sessions) = (redis.clone(), sessions.clone());
        async move { redis::cmd("EXISTS").arg(sessions).query_async::<bool>(&mut redis).await.unwrap() }
    })
    .await;
    eventually("the mark is written", || async {
        sqlx::query_scalar::<_, bool>("SELECT bool_and(projected_offset = next_offset) FROM ledger")
            .fetch_one(&stack.pool)
            .await
            .unwrap()
    })
    .await;
    assert_eq!(counted(&stack).await, 61);
    running.stop().await;
    tokio::time::timeout(Duration::from_secs(5), redis::cmd("DEL").arg(&session).exec_async(&mut redis))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_say_where_they_come_from_and_what_is_in_their_cart() {
    let stack = Stack::new().await;
    let running = worker(&stack, "a").await;
    let now = chrono::Utc::now().timestamp();
    let mut number = 0;
    let mut happened = |event_type: &str, ago: i64, properties: &str| {
        number += 1;
        let mut event = event(&format!("e-{number}"), event_type, now - ago);
        (event.session_id, event.properties) = (Some("s".into()), Some(properties.to_owned()));
        event.user_agent = Some("Mozilla/5.0 (iPhone) Mobile/15E148".into());
        event
    };
    let events = [
        happened("page_view", 60, r#"{"page":"home","url":"https://shop.example/?utm_medium=email"}"#),
        happened("page_view", 50, r#"{"page":"jacket","referrer":"https://www.google.com/"}"#),
        happened("add_to_cart", 40, r#"{"sku":"jacket","quantity":2,"price":"49.90"}"#),
        happened("add_to_cart", 40, r#"{"sku":"hat","price":10}"#),
        happened("remove_from_cart", 30, r#"{"sku":"jacket","quantity":1}"#),
    ];
    // The latest first, and one by one.
    for event in events.iter().rev() {
        stack.send(event).await;
    }
    // A user's events without a session, under a name that a session could have.
    let mut lone = event("lone", "click", now);
    lone.user_id = Some("s".into());
    stack.send(&lone).await;

    let client = redis::Client::open(stack.connections.redis_url.clone()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let hash = |mut redis: redis::aio::MultiplexedConnection, key: String| async move {
        redis::cmd("HGETALL").arg(key).query_async::<BTreeMap<String, String>>(&mut redis).await.unwrap()
    };
    let (session, cart) = (keys::session(&stack.project, "s"), keys::cart(&stack.project, "s"));
    let by_user = keys::session(&stack.project, &session_key::of_user("s"));
    eventually("all of it is in Redis", || async {
        let total = hash(redis.clone(), session.clone()).await.get("totalEvents").cloned();
        let items = hash(redis.clone(), cart.clone()).await.get("total_items").cloned();
        let lone = hash(redis.clone(), by_user.clone()).await;
        (total.as_deref(), items.as_deref(), lone.is_empty()) == (Some("5"), Some("2"), false)
    })
    .await;
    let shown = hash(redis.clone(), session.clone()).await;
    let fields = ["trafficSource", "deviceType", "entryPage", "currentPage", "sessionId", "pageViews"];
    assert_eq!(fields.map(|field| &*shown[field]), ["email", "mobile", "home", "jacket", "s", "2"]);
    let lone = hash(redis.clone(), by_user.clone()).await;
    assert_eq!((&*lone["userId"], &*lone["trafficSource"], lone.get("sessionId")), ("s", "direct", None));
    let shown = hash(redis.clone(), cart.clone()).await;
    let fields = ["total_items", "total_value", "item:jacket", "item:hat"];
    assert_eq!(fields.map(|field| &*shown[field]), ["2", "59.9", "1 49.9", "1 10"]);
    let ttl: i64 = redis::cmd("TTL").arg(&cart).query_async(&mut redis).await.unwrap();
    assert!((86_000..=86_400 - 30).contains(&ttl), "24 hours after its last event: {ttl}");

    stack.send(&happened("purchase", 20, r#"{"total":"59.90"}"#)).await;
    eventually("the cart is empty and the session has brought something", || async {
        let revenue = hash(redis.clone(), session.clone()).await.get("revenue").cloned();
        let items = hash(redis.clone(), cart.clone()).await.get("total_items").cloned();
        (revenue.as_deref(), items.as_deref()) == (Some("59.9"), Some("0"))
    })
    .await;
    assert!(!hash(redis.clone(), cart.clone()).await.contains_key("item:hat"));

    // The processed events carry it, for readers of the newer schema and of the older one.
    let url = format!(
        "{}/subjects/{}-value/versions/latest",
        stack.connections.registry_url,
        processed_topic(&stack.project)
    );
    let subject: serde_json::Value = reqwest::get(url).await.unwrap().json().await.unwrap();
    assert!(subject["schema"].as_str().unwrap().contains("trafficSource"));
    let decoder = Decoder::new(Registry::new(&stack.connections.registry_url).unwrap());
    for record in stack.records(&processed_topic(&stack.project)).await {
        let read = decoder.decode(record.value()).await.unwrap();
        let sent = events.iter().find(|sent| sent.event_id == read.event_id);
        assert!(sent.is_none_or(|sent| *sent == read), "{read:?}");
        let ends_with = |text: &str| record.value().windows(text.len()).any(|part| part == text.as_bytes());
        assert_eq!(ends_with("mobile"), read.event_id != "lone");
    }
    running.stop().await;
    redis::cmd("DEL").arg(&[session, cart, by_user]).exec_async(&mut redis).await.unwrap();
}

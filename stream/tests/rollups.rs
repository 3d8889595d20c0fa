//! Metrics on the real components: what is declared is counted, whoever writes, and readers of SQL see it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use sqlx::PgPool;
use support::declare;
use tidemill_common::event::Event;
use tidemill_common::origin::Origin;
use tidemill_stream::metric::Definitions;
use tidemill_stream::store::{Batch, Counted, RawEvents, SHARDS, Shards, Store};
use tidemill_stream::{forget, replay};
use tidemill_testkit::{Stack, event};

/// 2024-03-01T00:00:00Z
const T0: i64 = 1_709_251_200;

fn store(stack: &Stack, shards: i32) -> Store {
    let definitions = Definitions::new(stack.pool.clone(), None).unwrap();
    Store::new(stack.pool.clone(), definitions, Shards::new(shards))
}

fn batch(stack: &Stack, events: impl IntoIterator<Item = Event>) -> Batch {
    let events =
        events.into_iter().map(|event| Counted::new(&*stack.project, 0, &event.as_ref(), Origin::default())).collect();
    Batch { events, ..Batch::default() }
}

async fn deadlocks(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        .fetch_one(pool)
        .await
        .unwrap()
}

/// The value of `daily_metrics` on the first day.
async fn daily(stack: &Stack, metric: &str, dimension: &str, value: &str) -> Option<f64> {
    sqlx::query_scalar(
        "SELECT value::float8 FROM daily_metrics
         WHERE project = $1 AND date = '2024-03-01' AND metric_name = $2 AND dimension_key = $3 AND dimension_value = $4",
    )
    .bind(&stack.project)
    .bind(metric)
    .bind(dimension)
    .bind(value)
    .fetch_optional(&stack.pool)
    .await
    .unwrap()
    .flatten()
}

/// Sixteen workers that all write the same windows: gives events per second.
async fn write_by_sixteen(stack: &Stack, shards: i32) -> f64 {
    const WRITERS: usize = 16;
    const BATCHES: usize = 8;
    const EVENTS: usize = 250;
    let started = Instant::now();
    let writers = (0..WRITERS).map(|writer| {
        let (store, stack) = (store(stack, shards), &stack);
        async move {
            for round in 0..BATCHES {
                let of = |i: usize| {
                    let types = ["view", "click", "buy", "leave"];
                    let mut event = event("", types[i % 4], T0 + (i % 120) as i64);
                    // Each writer has users of its own, so that only rollups are in common.
                    event.user_id = Some(format!("{writer}-{round}-{}", i % 50));
                    event.properties = Some(format!(r#"{{"x":{i},"amount":"0.{}"}}"#, 10 + i % 90));
                    event
                };
                let batch = batch(stack, (0..EVENTS).map(of));
                assert!(store.commit(&batch).await.unwrap().is_some());
            }
        }
    });
    futures::future::join_all(writers).await;
    (WRITERS * BATCHES * EVENTS) as f64 / started.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_writers_of_the_same_windows_neither_lose_nor_lock_up() {
    let mut rates = Vec::new();
    for shards in [SHARDS, 1] {
        let stack = Stack::new().await;
        declare(&stack, json!({"name": "sold", "aggregation": "sum", "field": "amount", "dimensions": ["eventType"]}))
            .await;
        declare(&stack, json!({"name": "spread", "aggregation": "p95", "field": "x"})).await;
        rates.push(write_by_sixteen(&stack, shards).await);
        let (counted, used): (i64, i64) = sqlx::query_as(
            "SELECT sum(count)::bigint, count(DISTINCT shard) FROM metric_rollups
             WHERE metric_name = 'events' AND dimension_key = '' AND granularity = '1h'",
        )
        .fetch_one(&stack.pool)
        .await
        .unwrap();
        assert_eq!(counted, 16 * 8 * 250);
        assert_eq!(used > 1, shards > 1, "{used} of {shards} shards");
        let cents: usize = (0..250).map(|i| 10 + i % 90).sum();
        assert_eq!(daily(&stack, "sold", "", "").await, Some((16 * 8 * cents) as f64 / 100.0), "to the cent");
        assert_eq!(daily(&stack, "events", "event_type", "click").await, Some((16.0 * 8.0) * 63.0));
        let users = daily(&stack, "daily_active_users", "", "").await.unwrap();
        assert!((users / (16.0 * 8.0 * 50.0) - 1.0).abs() < 0.02, "{users}");
        let p95 = daily(&stack, "spread", "", "").await.unwrap();
        assert!((p95 / 237.0 - 1.0).abs() <= 0.01, "{p95}");
        assert_eq!(deadlocks(&stack.pool).await, 0);
    }
    println!("16 writers: {:.0} events/s with {SHARDS} shards, {:.0} events/s with one", rates[0], rates[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_writer_stays_with_one_shard() {
    let stack = Stack::new().await;
    let store = store(&stack, SHARDS);
    for second in 0..5 {
        store.commit(&batch(&stack, [event("", "view", T0 + second)])).await.unwrap();
    }
    let rows: Vec<i16> =
        sqlx::query_scalar("SELECT DISTINCT shard FROM metric_rollups").fetch_all(&stack.pool).await.unwrap();
    assert_eq!(rows, [0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_shards_are_taken_a_writer_waits_for_its_own() {
    let stack = Stack::new().await;
    let (first, second) = (Arc::new(store(&stack, 1)), store(&stack, 1));
    let mut held = stack.pool.begin().await.unwrap();
    assert_eq!(Shards::new(1).take(&mut held, 0).await.unwrap(), 0);
    let waiting = tokio::spawn({
        let (first, batch) = (Arc::clone(&first), batch(&stack, [event("", "view", T0)]));
        async move { first.commit(&batch).await.unwrap().is_some() }
    });
    tidemill_testkit::eventually("the writer waits", || async {
        let waits = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                     WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted";
        sqlx::query_scalar::<_, i64>(waits).fetch_one(&stack.pool).await.unwrap() == 1
    })
    .await;
    held.commit().await.unwrap();
    assert!(waiting.await.unwrap());
    assert!(second.commit(&batch(&stack, [event("", "view", T0)])).await.unwrap().is_some());
    assert_eq!(daily(&stack, "events", "", "").await, Some(2.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_aggregation_is_seen_in_daily_metrics() {
    let stack = Stack::new().await;
    for aggregation in ["sum", "min", "max", "avg", "unique", "p50", "p99"] {
        declare(&stack, json!({"name": format!("x_{aggregation}"), "aggregation": aggregation, "field": "x"})).await;
    }
    declare(&stack, json!({"name": "big", "where": [{"property": "x", "gte": 90}], "dimensions": ["side"]})).await;
    let store = store(&stack, SHARDS);
    let numbered = |x: i64| {
        let side = if x % 2 == 0 { "even" } else { "odd" };
        let properties = Some(format!(r#"{{"x":{x}.5,"side":"{side}"}}"#));
        Event { properties, ..event("", "measured", T0 + x * 60) }
    };
    for half in [(0..50), (50..100)] {
        store.commit(&batch(&stack, half.rev().map(numbered))).await.unwrap();
    }
    let value = |metric: &'static str| daily(&stack, metric, "", "");
    assert_eq!(value("x_sum").await, Some(5_000.0));
    assert_eq!((value("x_min").await, value("x_max").await), (Some(0.5), Some(99.5)));
    assert_eq!(value("x_avg").await, Some(50.0));
    assert_eq!(value("x_unique").await, Some(100.0));
    let near = |found: Option<f64>, exact: f64| found.is_some_and(|found| (found / exact - 1.0).abs() <= 0.01);
    assert!(near(value("x_p50").await, 49.5) && near(value("x_p99").await, 98.5));
    assert_eq!(value("big").await, Some(10.0));
    assert_eq!(daily(&stack, "big", "side", "odd").await, Some(5.0));
    assert_eq!(value("page_views").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sketch_that_has_not_changed_is_not_written() {
    let stack = Stack::new().await;
    let store = store(&stack, SHARDS);
    let users = || (0..20_000).map(|i| Event { user_id: Some(format!("u-{i}")), ..event("", "view", T0) });
    store.commit(&batch(&stack, users())).await.unwrap();
    // The sketch stands outside of its row: what is written there shows as new chunks.
    let chunks = || async {
        let toast: String =
            sqlx::query_scalar("SELECT reltoastrelid::regclass::text FROM pg_class WHERE relname = 'metric_rollups'")
                .fetch_one(&stack.pool)
                .await
                .unwrap();
        let sql = format!("SELECT array_agg(DISTINCT chunk_id::bigint ORDER BY chunk_id::bigint) FROM {toast}");
        sqlx::query_scalar::<_, Vec<i64>>(sqlx::AssertSqlSafe(sql)).fetch_one(&stack.pool).await.unwrap()
    };
    let before = chunks().await;
    assert_eq!(before.len(), 6, "three windows of all events, three of their type");
    store.commit(&batch(&stack, users().take(3_000))).await.unwrap();
    assert_eq!(chunks().await, before);
    assert_eq!(daily(&stack, "events", "", "").await, Some(23_000.0));
    store
        .commit(&batch(&stack, (0..50).map(|i| Event { user_id: Some(format!("new-{i}")), ..event("", "view", T0) })))
        .await
        .unwrap();
    assert_ne!(chunks().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_events_are_kept_by_day_of_receipt_and_dropped_by_it() {
    let stack = Stack::new().await;
    let raw_events = RawEvents::new(90);
    let store = store(&stack, SHARDS).with_raw_events(Some(raw_events.clone()));
    let now = chrono::Utc::now();
    let hostile = r#"{"a\u0000":"\u0000","b":1e5}"#;
    let counted = |days_ago: i64, offset: i64, properties: &str| {
        let append_ms = (now - chrono::TimeDelta::days(days_ago)).timestamp_millis();
        let event = Event { properties: Some(properties.to_owned()), ..event(&format!("e-{offset}"), "view", T0) };
        Counted::new(&*stack.project, 0, &event.as_ref(), Origin { partition: 1, offset, append_ms })
    };
    let events = vec![
        counted(0, 1, r#"{"plan":"pro","n":19.990}"#),
        counted(2, 2, hostile),
        counted(2, 3, r#"{"x":"\ud800"}"#),
        counted(91, 4, "{}"), // too old to be kept
    ];
    store.commit(&Batch { events, ..Batch::default() }).await.unwrap().unwrap();
    let ids = |condition: &'static str| {
        let sql = format!("SELECT array_agg(event_id ORDER BY event_id) FROM raw_events WHERE {condition}");
        let pool = stack.pool.clone();
        async move { sqlx::query_scalar::<_, Option<Vec<String>>>(sqlx::AssertSqlSafe(sql)).fetch_one(&pool).await.unwrap() }
    };
    let all = |ids: &[&str]| Some(ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());
    assert_eq!(ids("true").await, all(&["e-1", "e-2", "e-3"]));
    assert_eq!(ids(r#"properties @> '{"plan":"pro","n":19.99}'"#).await, all(&["e-1"]));
    assert_eq!(ids("kafka_offset = 2 AND properties->>'b' IN ('100000', '100000.0')").await, all(&["e-2"]));
    assert_eq!(daily(&stack, "events", "", "").await, Some(4.0), "what is not kept is counted all the same");
    let later = now + chrono::TimeDelta::days(89);
    assert_eq!(raw_events.drop_days(&stack.pool, later).await.unwrap(), 1);
    assert_eq!(ids("true").await, all(&["e-1"]));
    assert_eq!(raw_events.drop_days(&stack.pool, later).await.unwrap(), 0);
}

/// As everywhere else, but that most days are compressed.
#[tokio::test(flavor = "multi_thread")]
async fn in_timescaledb_raw_events_are_compressed_and_still_written_deleted_and_dropped() {
    let Some(stack) = Stack::with_timescaledb().await else { return };
    let raw_events = RawEvents::new(90);
    let store = store(&stack, SHARDS).with_raw_events(Some(raw_events.clone()));
    let now = chrono::Utc::now();
    // Three events at a time.
    let write = |generation: i32, user: &'static str, days_ago: i64| {
        let append_ms = (now - chrono::TimeDelta::days(days_ago)).timestamp_millis();
        let events = (0..3).map(|offset| {
            let (user_id, properties) = (Some(user.to_owned()), Some(r#"{"plan":"pro"}"#.to_owned()));
            let event = Event { user_id, properties, ..event("e", "view", T0) };
            Counted::new(&*stack.project, generation, &event.as_ref(), Origin { partition: 1, offset, append_ms })
        });
        let batch = Batch { events: events.collect(), ..Batch::default() };
        let store = &store;
        async move { store.commit(&batch).await.unwrap().unwrap() }
    };
    let left = || async {
        let sql = r#"SELECT concat_ws(' ', user_id, generation, $1 - day, count(*))
                     FROM raw_events, LATERAL (SELECT (append_time AT TIME ZONE 'UTC')::date AS day) d
                     WHERE properties @> '{"plan":"pro"}' GROUP BY user_id, generation, day ORDER BY 1"#;
        sqlx::query_scalar::<_, String>(sql).bind(now.date_naive()).fetch_all(&stack.pool).await.unwrap()
    };
    for (generation, user, days) in [(0, "a", 0), (0, "a", 9), (0, "b", 9), (1, "b", 9), (0, "c", 9), (0, "c", 20)] {
        write(generation, user, days).await;
    }
    let policy: i32 = sqlx::query_scalar(
        "SELECT job_id FROM timescaledb_information.jobs
         WHERE hypertable_name = 'raw_events' AND proc_name = 'policy_compression'",
    )
    .fetch_one(&stack.pool)
    .await
    .unwrap();
    // By itself and as plain text: it has transactions of its own.
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CALL run_job({policy})"))).execute(&stack.pool).await.unwrap();
    let compressed = "SELECT count(*) FROM timescaledb_information.chunks
                      WHERE hypertable_name = 'raw_events' AND is_compressed";
    assert_eq!(sqlx::query_scalar::<_, i64>(compressed).fetch_one(&stack.pool).await.unwrap(), 2);
    write(0, "c", 9).await;
    assert_eq!(left().await, ["a 0 0 3", "a 0 9 3", "b 0 9 3", "b 1 9 3", "c 0 20 3", "c 0 9 6"]);

    // So few events never come to the default.
    let limit = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET
                 timescaledb.max_tuples_decompressed_per_dml_transaction = 1', current_database()); END $$";
    sqlx::raw_sql(limit).execute(&stack.pool).await.unwrap();
    let pool = PgPool::connect(&stack.connections.database_url).await.unwrap();
    let db = &mut *pool.acquire().await.unwrap();
    assert_eq!(forget::user(db, &stack.project, "a").await.unwrap().0.raw_events, 6);
    let id = sqlx::query_scalar(
        "INSERT INTO replays (project, generation, replaces, topics, begins, starts, who)
         VALUES ($1, 1, 0, '{}', '', '{}', '') RETURNING id",
    );
    let id = id.bind(&stack.project).fetch_one(&pool).await.unwrap();
    let replay = replay::find(&pool, id).await.unwrap();
    replay::remove_aborted(&pool, &replay, |_| {}).await.unwrap();
    assert_eq!(left().await, ["b 0 9 3", "c 0 20 3", "c 0 9 6"]);
    let later = now + chrono::TimeDelta::days(75);
    assert_eq!(raw_events.drop_days(&pool, later).await.unwrap(), 1);
    assert_eq!(left().await, ["b 0 9 3", "c 0 9 6"]);
    forget::project(db, &stack.project, |_| ()).await.unwrap();
    assert!(left().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_make_the_same_day_at_the_same_time() {
    let stack = Stack::new().await;
    let batches = (0..8).map(|worker| {
        let store = store(&stack, SHARDS).with_raw_events(Some(RawEvents::new(90)));
        let append_ms = chrono::Utc::now().timestamp_millis();
        let events = (0..20).map(|i| {
            let origin = Origin { partition: worker, offset: i, append_ms };
            Counted::new(&*stack.project, 0, &event("", "view", T0).as_ref(), origin)
        });
        let batch = Batch { events: events.collect(), ..Batch::default() };
        async move { store.commit(&batch).await.unwrap().unwrap() }
    });
    futures::future::join_all(batches).await;
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM raw_events").fetch_one(&stack.pool).await.unwrap();
    assert_eq!(rows, 160);
    assert_eq!(deadlocks(&stack.pool).await, 0);
}

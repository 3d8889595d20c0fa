//! Redis and Postgres that come back with less than they had, and Redis that says something else.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use redis::AsyncCommands;
use support::{Running, back_up, counted, differences, drained, epoch, live_traffic, restore, worker};
use tidemill_common::event::Event;
use tidemill_stream::metric::BOUNCES;
use tidemill_stream::window::Granularity;
use tidemill_stream::{keys, timeline};
use tidemill_testkit::{PrivateRedis, Stack, event, eventually, eventually_within};

/// What is lost is there again within this time.
const SOON: Duration = Duration::from_secs(10);

/// A worker whose Redis is its own.
async fn start(stack: &Stack, redis: &PrivateRedis, group: &str) -> Running {
    let url = redis.url.clone();
    worker(stack, group, |_, connections| connections.redis_url = url).await
}

async fn level(stack: &Stack, redis: &PrivateRedis) {
    level_within(Duration::from_secs(60), stack, redis).await;
}

/// Waits until Redis shows all that Postgres has.
async fn level_within(limit: Duration, stack: &Stack, redis: &PrivateRedis) {
    let deadline = Instant::now() + limit;
    loop {
        let found = differences(stack, redis.connection().await).await;
        if found.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {found:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the ledger knows that Redis shows everything.
async fn marked(stack: &Stack) {
    eventually("all is marked as projected", || async {
        sqlx::query_scalar::<_, bool>("SELECT bool_and(projected_offset = next_offset) FROM ledger")
            .fetch_one(&stack.pool)
            .await
            .unwrap()
    })
    .await;
}

/// Waits until nothing is being projected again, as all of a project is at first.
async fn whole(stack: &Stack, redis: &PrivateRedis) {
    eventually("the project is whole", || async {
        let mut redis = redis.connection().await;
        redis.hexists::<_, _, bool>(keys::projection(&stack.project, ""), "whole").await.unwrap()
    })
    .await;
}

/// 300 events, a backup, and 300 more, in many small batches: the versions of the future that will be lost are high.
async fn go_on_after_a_backup(stack: &Stack) {
    stack.send_all(&live_traffic(0..300, 20)).await;
    drained(stack).await;
    back_up(stack).await;
    for chunk in live_traffic(300..600, 20).chunks(20) {
        stack.send_all(chunk).await;
        drained(stack).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_redis_is_filled_again_without_any_traffic() {
    let (stack, redis) = (Stack::new().await, PrivateRedis::start().await);
    let running = start(&stack, &redis, "a").await;
    stack.send_all(&live_traffic(0..600, 40)).await;
    // An event type with a built-in metric's name has no copy of its own, now or later.
    let now = chrono::Utc::now().timestamp();
    stack.send(&event("e-reserved", "active_users", now)).await;
    let hour = Granularity::Hour;
    let reserved = keys::metric(&stack.project, "active_users", hour, hour.window(now * 1_000_000));
    drained(&stack).await;
    level(&stack, &redis).await;
    marked(&stack).await;
    redis.command::<()>(&["FLUSHALL"]).await;
    level_within(SOON, &stack, &redis).await;
    assert_eq!(epoch(&stack).await, 0, "postgres has lost nothing");
    // Another one comes and goes, empty.
    let mut redis = redis;
    redis.restart(false).await;
    level_within(SOON, &stack, &redis).await;
    assert!(!redis.connection().await.exists::<_, bool>(&reserved).await.unwrap());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_of_redis_is_brought_level() {
    let (stack, mut redis) = (Stack::new().await, PrivateRedis::start().await);
    let running = start(&stack, &redis, "a").await;
    stack.send_all(&live_traffic(0..300, 20)).await;
    drained(&stack).await;
    level(&stack, &redis).await;
    redis.save().await;
    stack.send_all(&live_traffic(300..900, 30)).await;
    drained(&stack).await;
    level(&stack, &redis).await;
    marked(&stack).await;
    // A replica that lagged is promoted.
    redis.restart(true).await;
    assert!(!differences(&stack, redis.connection().await).await.is_empty(), "it is older");
    level_within(SOON, &stack, &redis).await;
    running.stop().await;
    // The same while no worker is there to see it.
    redis.restart(true).await;
    assert!(!differences(&stack, redis.connection().await).await.is_empty(), "it is older");
    let running = start(&stack, &redis, "b").await;
    level_within(SOON, &stack, &redis).await;
    // The last writes are lost and the marks are not: only the process is another one.
    marked(&stack).await;
    let session = keys::session(&stack.project, "s-1");
    let lost = [("totalEvents", "1"), ("version", "0")];
    let _: () = redis.connection().await.hset_multiple(session, &lost).await.unwrap();
    redis.save().await;
    redis.restart(true).await;
    level_within(SOON, &stack, &redis).await;
    assert_eq!(epoch(&stack).await, 0, "postgres has lost nothing");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_redis_that_others_have_filled_is_brought_level() {
    let (stack, old, new) = (Stack::new().await, PrivateRedis::start().await, PrivateRedis::start().await);
    let running = start(&stack, &old, "a").await;
    stack.send_all(&live_traffic(0..300, 20)).await;
    drained(&stack).await;
    level(&stack, &old).await;
    marked(&stack).await;
    running.stop().await;
    let running = start(&stack, &new, "a").await;
    level(&stack, &new).await;
    whole(&stack, &new).await;
    running.stop().await;
    // As if all of that had been done by another worker, with other partitions, while this one was at the old Redis.
    let marks = keys::projection(&stack.project, "");
    let mut connection = new.connection().await;
    let fields: Vec<String> = connection.hkeys(&marks).await.unwrap();
    for field in fields.iter().filter(|field| *field != "whole") {
        let _: () = connection.hdel(&marks, field).await.unwrap();
    }
    let running = start(&stack, &old, "a").await;
    stack.send_all(&live_traffic(300..600, 20)).await;
    drained(&stack).await;
    level(&stack, &old).await;
    marked(&stack).await;
    running.stop().await;
    assert!(!differences(&stack, new.connection().await).await.is_empty(), "it has missed something");
    let running = start(&stack, &new, "a").await;
    level_within(SOON, &stack, &new).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_process_that_takes_over_older_data_is_brought_level() {
    let (stack, redis) = (Stack::new().await, PrivateRedis::start().await);
    let running = start(&stack, &redis, "a").await;
    stack.send_all(&live_traffic(0..300, 20)).await;
    drained(&stack).await;
    level(&stack, &redis).await;
    marked(&stack).await;
    let mut older = Vec::new();
    for key in redis.command::<Vec<String>>(&["KEYS", "*"]).await {
        let dump: Vec<u8> = redis::cmd("DUMP").arg(&key).query_async(&mut redis.connection().await).await.unwrap();
        older.push((key, dump));
    }
    stack.send_all(&live_traffic(300..900, 30)).await;
    drained(&stack).await;
    level(&stack, &redis).await;
    marked(&stack).await;
    // As after a full resynchronisation from a replica that lagged: the process goes on, with less.
    let mut pipeline = redis::pipe();
    pipeline.atomic().cmd("FLUSHALL").ignore();
    for (key, dump) in older {
        pipeline.cmd("RESTORE").arg(key).arg(0).arg(dump).ignore();
    }
    pipeline.query_async::<()>(&mut redis.connection().await).await.unwrap();
    assert!(!differences(&stack, redis.connection().await).await.is_empty(), "it is older");
    level_within(SOON, &stack, &redis).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_postgres_is_noticed_at_rest_and_redis_gives_way() {
    let (stack, redis) = (Stack::new().await, PrivateRedis::start().await);
    let running = start(&stack, &redis, "a").await;
    go_on_after_a_backup(&stack).await;
    level(&stack, &redis).await;
    // In the future that will be lost a session was a bounce for a moment; in the next one it may never be.
    let bounce = keys::metric(&stack.project, BOUNCES, Granularity::Minute, chrono::Utc::now().timestamp() / 60 * 60);
    let copy = r#"{"count":1,"value":"1","aggregation":"count","epoch":0,"generation":0,"version":9}"#;
    redis.connection().await.set::<_, _, ()>(&bounce, copy).await.unwrap();
    restore(&stack).await;
    assert_eq!(counted(&stack).await, 300);
    // Nothing is sent: the worker has to find out by itself.
    eventually_within(SOON, "what the backup lacks is counted again", || async { counted(&stack).await == 600 }).await;
    let raised = epoch(&stack).await;
    assert!(raised > 0);
    level(&stack, &redis).await;
    eventually_within(SOON, "what only the lost future had is gone", || async {
        let copy: Option<String> = redis.connection().await.get(&bounce).await.unwrap();
        copy.is_none_or(|copy| !copy.contains(r#""epoch":0"#))
    })
    .await;
    // In one batch, so the versions are far behind what Redis has had.
    stack.send_all(&live_traffic(600..640, 20)).await;
    drained(&stack).await;
    level(&stack, &redis).await;
    // Once more, from before the epoch was raised.
    restore(&stack).await;
    eventually_within(SOON, "all is counted again", || async { counted(&stack).await == 640 }).await;
    assert!(epoch(&stack).await > raised, "an epoch never comes again");
    level(&stack, &redis).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_restored_while_nobody_works_is_noticed_by_the_marks() {
    let (stack, redis) = (Stack::new().await, PrivateRedis::start().await);
    let running = start(&stack, &redis, "a").await;
    go_on_after_a_backup(&stack).await;
    level(&stack, &redis).await;
    running.stop().await;
    restore(&stack).await;
    let running = start(&stack, &redis, "b").await;
    eventually("what the backup lacks is counted again", || async { counted(&stack).await == 600 }).await;
    stack.send_all(&live_traffic(600..640, 20)).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, 640);
    level(&stack, &redis).await;
    assert!(epoch(&stack).await > 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_postgres_is_noticed_without_redis() {
    let (stack, mut redis) = (Stack::new().await, PrivateRedis::start().await);
    let running = start(&stack, &redis, "a").await;
    go_on_after_a_backup(&stack).await;
    level(&stack, &redis).await;
    redis.save().await;
    redis.kill();
    restore(&stack).await;
    eventually_within(SOON, "what the backup lacks is counted again", || async { counted(&stack).await == 600 }).await;
    let raised = epoch(&stack).await;
    assert!(raised > 0);
    stack.send_all(&live_traffic(600..640, 20)).await;
    drained(&stack).await;
    redis.restart(true).await;
    level_within(SOON, &stack, &redis).await;
    assert_eq!(epoch(&stack).await, raised);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_is_raised_once_however_many_notice() {
    let stack = Stack::new().await;
    let raise = || timeline::raise(&stack.pool, 0, 0, "a test");
    let (first, second, third) = tokio::join!(raise(), raise(), raise());
    let raised = first.unwrap();
    assert!(raised > 0);
    assert_eq!((second.unwrap(), third.unwrap(), epoch(&stack).await), (raised, raised, raised));
    // A backup from before that has the old epoch; what was raised in between must not come again.
    sqlx::query("UPDATE timeline SET epoch = 0").execute(&stack.pool).await.unwrap();
    assert!(timeline::raise(&stack.pool, 0, raised, "a test").await.unwrap() > raised);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_workers_raise_the_epoch_once() {
    let (stack, redis) = (Stack::new().await, PrivateRedis::start().await);
    sqlx::raw_sql(
        "CREATE TABLE backup_raised (epoch bigint);
         CREATE FUNCTION raised() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO backup_raised VALUES (NEW.epoch); RETURN NEW; END $$;
         CREATE TRIGGER raised AFTER UPDATE ON timeline FOR EACH ROW EXECUTE FUNCTION raised()",
    )
    .execute(&stack.pool)
    .await
    .unwrap();
    let workers = [start(&stack, &redis, "a").await, start(&stack, &redis, "a").await];
    stack.send_all(&live_traffic(0..300, 20)).await;
    drained(&stack).await;
    back_up(&stack).await;
    stack.send_all(&live_traffic(300..600, 20)).await;
    drained(&stack).await;
    level(&stack, &redis).await;
    let raised = || async {
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM backup_raised").fetch_one(&stack.pool).await.unwrap()
    };
    assert_eq!(raised().await, 0, "rebalances and slow workers are no restores");
    restore(&stack).await;
    eventually_within(SOON, "all is counted again", || async { counted(&stack).await == 600 }).await;
    stack.send_all(&live_traffic(600..700, 20)).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, 700);
    level(&stack, &redis).await;
    assert_eq!(raised().await, 1);
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_finds_and_mends_what_redis_says_wrongly() {
    let (stack, redis) = (Stack::new().await, PrivateRedis::start().await);
    let url = redis.url.clone();
    let running = worker(&stack, "a", |config, connections| {
        connections.redis_url = url;
        config.audit_interval_ms = 300;
    })
    .await;
    let events = live_traffic(0..60, 6);
    stack.send_all(&events).await;
    drained(&stack).await;
    level(&stack, &redis).await;
    whole(&stack, &redis).await;
    marked(&stack).await;
    let session = |id| keys::session(&stack.project, id);
    let cart = |id| keys::cart(&stack.project, id);
    let mut connection = redis.connection().await;
    let differing = || tidemill_common::telemetry::metrics().render();
    let count = |text: String| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix("tidemill_stream_audit_differences_total "));
        line.map_or(0, |number| number.parse().unwrap())
    };
    // A session goes on without its cart, whose copy stays as it is: that is no difference.
    let on = Event { session_id: Some("s-5".to_owned()), ..live_traffic(61..62, 1).remove(0) };
    stack.send(&on).await;
    drained(&stack).await;
    level(&stack, &redis).await;
    let before = count(differing());
    let changed_at: i64 = connection.hget(cart("s-2"), "changed_at").await.unwrap();
    // Another value of the same version; an older version that nobody is replacing; something unreadable; nobody seen.
    let _: () = connection.hset(session("s-1"), "totalEvents", 999).await.unwrap();
    let _: () = connection.hset_multiple(session("s-2"), &[("totalEvents", 1), ("version", 0)]).await.unwrap();
    let _: () = connection.hdel(session("s-3"), "version").await.unwrap();
    let _: () = connection.hset(cart("s-2"), "changed_at", changed_at + 1).await.unwrap();
    let _: () = connection.srem(keys::seen_users(&stack.project), "u-4").await.unwrap();
    let hour = Granularity::Hour;
    let window = keys::metric(&stack.project, "view", hour, hour.window(events[0].timestamp));
    let _: () = connection.set(window, "not json").await.unwrap();
    level(&stack, &redis).await;
    eventually("all six are counted", || async { count(differing()) >= before + 6 }).await;
    assert_eq!(count(differing()), before + 6, "no more than these");
    let shown = || async { redis.connection().await.hget::<_, _, i64>(cart("s-2"), "changed_at").await.unwrap() };
    eventually("the cart is mended", || async { shown().await == changed_at }).await;
    let version: Option<i64> = connection.hget(session("s-3"), "version").await.unwrap();
    assert!(version.is_some());
    // A missing key is no difference: it may have been evicted.
    let after = count(differing());
    let _: () = connection.del(session("s-5")).await.unwrap();
    let compared = |text: String| text.lines().any(|l| l.starts_with("tidemill_stream_audit_compared_total"));
    assert!(compared(differing()));
    stack.send(&live_traffic(60..61, 6)[0]).await;
    drained(&stack).await;
    assert_eq!(count(differing()), after);
    assert_eq!(epoch(&stack).await, 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_key_is_written_once_per_interval_and_the_ledger_waits_for_it() {
    let (stack, redis) = (Stack::new().await, PrivateRedis::start().await);
    let url = redis.url.clone();
    let running = worker(&stack, "a", |config, connections| {
        connections.redis_url = url;
        config.hot_key_interval_ms = 3_600_000;
    })
    .await;
    whole(&stack, &redis).await;
    let shown = || async {
        let key = keys::session(&stack.project, "s-0");
        redis.connection().await.hget::<_, _, Option<i64>>(key, "totalEvents").await.unwrap()
    };
    stack.send_all(&live_traffic(0..1, 1)).await;
    eventually("the first write is immediate", || async { shown().await == Some(1) }).await;
    marked(&stack).await;
    stack.send_all(&live_traffic(1..3, 1)).await;
    drained(&stack).await;
    assert_eq!(shown().await, Some(1), "the second write waits");
    let marks: BTreeMap<String, String> =
        redis.connection().await.hgetall(keys::projection(&stack.project, "")).await.unwrap();
    let said = |what: &str| -> i64 {
        let marks = marks.iter().filter(|(field, _)| field.starts_with(what));
        marks.map(|(_, mark)| mark.split_once(':').unwrap().1.parse::<i64>().unwrap()).sum()
    };
    assert_eq!((said("began:"), said("shown:")), (1, 1), "and that is what is said");
    running.stop().await;
    assert_eq!(shown().await, Some(3), "at the end everything is written");
    marked(&stack).await;
}

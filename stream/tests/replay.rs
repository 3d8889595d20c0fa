//! Replays on the real components: what is built beside the live numbers is the same, and takes their place at once.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use redis::AsyncCommands;
use sqlx::Row;
use support::{Running, differences, live_traffic};
use tidemill_common::event::Event;
use tidemill_common::home::home_partition;
use tidemill_common::kafka::{IdleGroup, SeekError, SeekTo};
use tidemill_common::names::{dlq_topic, events_topic, processed_topic};
use tidemill_common::telemetry::metrics;
use tidemill_stream::replay::{self, Difference, From, Progress, Rebuilding, Replay, ReplayError, Setup};
use tidemill_stream::{Config, keys};
use tidemill_testkit::{PARTITIONS, Stack, event, eventually};

async fn worker(stack: &Stack) -> Running {
    support::worker(stack, "live", |_, _| {}).await
}

fn setup(stack: &Stack, name: &str) -> Setup {
    let config = Config { session_timeout_ms: 6_000, seen_dir: stack.folder(name).join("stream"), ..Config::default() };
    Setup { connections: stack.connections.clone(), config }
}

async fn plan(stack: &Stack, from: From) -> Result<Replay, ReplayError> {
    let plan = replay::plan(&stack.pool, &stack.connections.kafka, &stack.project, (&from, None), None).await?;
    replay::enter(&stack.pool, &plan, "a test").await
}

async fn compared(stack: &Stack, worker: &mut Rebuilding, replay: &Replay) -> Vec<Difference> {
    let both = async {
        replay::near(&stack.pool, replay, |_| {}).await?;
        replay::compare(&stack.pool, replay::level(&stack.pool, replay).await?, replay).await
    };
    worker.during(both).await.unwrap()
}

async fn switched(stack: &Stack, worker: &mut Rebuilding, replay: &Replay) {
    let both = async {
        replay::near(&stack.pool, replay, |_| {}).await?;
        replay::switch(replay::level(&stack.pool, replay).await?, replay).await
    };
    worker.during(both).await.unwrap();
}

/// Where a generation stands, over all partitions.
async fn position(stack: &Stack, generation: i32) -> i64 {
    let sql = "SELECT coalesce(sum(next_offset), 0)::bigint FROM ledger WHERE view = 'stream' AND generation = $1";
    sqlx::query_scalar(sql).bind(generation).fetch_one(&stack.pool).await.unwrap()
}

/// Waits until a generation has counted all that the log holds. A stray that is sent home makes that more.
async fn drained(stack: &Stack, generation: i32) {
    eventually("the generation reaches the log's end", || async {
        let end: i64 = stack.ends(&events_topic(&stack.project)).await.values().sum();
        position(stack, generation).await == end
    })
    .await;
}

/// The events that a generation counts.
async fn counted(stack: &Stack, generation: i32) -> i64 {
    sqlx::query_scalar(
        "SELECT coalesce(sum(count), 0)::bigint FROM metric_rollups
         WHERE generation = $1 AND metric_name = 'events' AND dimension_key = '' AND granularity = '1d'",
    )
    .bind(generation)
    .fetch_one(&stack.pool)
    .await
    .unwrap()
}

/// What readers are told.
async fn shown(stack: &Stack) -> i64 {
    sqlx::query_scalar(
        "SELECT coalesce(sum(value), 0)::bigint FROM daily_metrics WHERE metric_name = 'events' AND dimension_key = ''",
    )
    .fetch_one(&stack.pool)
    .await
    .unwrap()
}

/// Sessions of a generation, by id and first event: how many events each has.
async fn sessions(stack: &Stack, generation: i32) -> BTreeMap<(String, i64), i64> {
    let sql = "SELECT session_id, extract(epoch FROM first_event_at)::bigint, total_events FROM sessions WHERE generation = $1";
    let rows = sqlx::query(sql).bind(generation).fetch_all(&stack.pool).await.unwrap();
    rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect()
}

/// The same, from the events.
fn expected(events: &[Event]) -> BTreeMap<(String, i64), i64> {
    let mut times = BTreeMap::<String, Vec<i64>>::new();
    for event in events {
        times.entry(event.session_id.clone().unwrap()).or_default().push(event.timestamp / 1_000_000);
    }
    let mut sessions = BTreeMap::new();
    for (id, mut times) in times {
        times.sort_unstable();
        for run in times.chunk_by(|a, b| b - a <= 1_800) {
            sessions.insert((id.clone(), run[0]), run.len() as i64);
        }
    }
    sessions
}

async fn progress(stack: &Stack, replay: &Replay) -> Progress {
    replay::progress(&stack.pool, replay).await.unwrap()
}

/// A gauge of this test's replay, as Prometheus sees it.
fn gauge(stack: &Stack, name: &str) -> f64 {
    let text = metrics().render();
    let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")) && line.contains(&stack.project));
    line.expect(name).rsplit(' ').next().unwrap().parse().unwrap()
}

async fn generation(stack: &Stack) -> i32 {
    stack.project().await.generation
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_equals_what_is_live_while_events_arrive_and_its_workers_die() {
    metrics();
    let stack = Stack::new().await;
    let events = live_traffic(0..9_000, 40);
    stack.send_all(&events[..4_000]).await;
    stack.send_all(&events[..200]).await; // copies
    stack.send_raw(0, None, b"not avro").await;
    stack.send_raw(1, Some(b"k"), &[0, 0x7f, 0xff, 0xff, 1, 1, 2, 3]).await; // an unknown schema
    let stray = (home_partition(b"e-0", PARTITIONS) + 1) % PARTITIONS;
    stack.send_raw(stray, Some(b"e-0"), &stack.encoder.encode(&events[0])).await;
    let live = worker(&stack).await;
    drained(&stack, 0).await;

    let replay = plan(&stack, From::Beginning).await.unwrap();
    assert_eq!((replay.generation, replay.replaces), (1, 0));
    replay::set_rate(&stack.pool, replay.id, Some(1_000)).await.unwrap(); // not over before it is killed
    let sending = async {
        for chunk in events[4_000..].chunks(100) {
            stack.send_all(chunk).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let killing = async {
        let mut done = 0;
        for round in 0..3 {
            let name = if round == 1 { "another-machine" } else { "machine" };
            let _worker = Rebuilding::start(&setup(&stack, name), &replay, None).await.unwrap();
            eventually("it gets on", || async { progress(&stack, &replay).await.done > done }).await;
            done = progress(&stack, &replay).await.done;
        }
        assert!(progress(&stack, &replay).await.left > 0, "killed in the middle");
        let looked = replay::watch::look(&stack.pool, &BTreeSet::new()).await.unwrap();
        assert_eq!(looked, BTreeSet::from([(stack.project.clone(), replay.id)]));
        assert!(gauge(&stack, "tidemill_replay_left_records") > 0.0);
        assert_eq!(gauge(&stack, "tidemill_replay_running"), 1.0);
        replay::set_rate(&stack.pool, replay.id, None).await.unwrap();
        let mut first = Rebuilding::start(&setup(&stack, "machine"), &replay, None).await.unwrap();
        let second = Rebuilding::start(&setup(&stack, "another-machine"), &replay, None).await.unwrap();
        assert_eq!(compared(&stack, &mut first, &replay).await, []);
        let (live, seen) = (counted(&stack, 0).await, shown(&stack).await);
        assert!(seen >= live && generation(&stack).await == 0, "{seen} of {live}");
        switched(&stack, &mut first, &replay).await;
        let left = position(&stack, 0).await;
        first.stop().await.unwrap();
        second.stop().await.unwrap();
        left
    };
    let ((), left) = tokio::join!(sending, killing);

    drained(&stack, 1).await;
    assert_eq!(position(&stack, 0).await, left, "what is not live stands still");
    assert_eq!(generation(&stack).await, 1);
    assert_eq!(counted(&stack, 1).await, events.len() as i64);
    assert_eq!(shown(&stack).await, events.len() as i64);
    assert_eq!(sessions(&stack, 1).await, expected(&events));
    assert_eq!(replay::find(&stack.pool, replay.id).await.unwrap().state, "switched");
    let before = BTreeSet::from([(stack.project.clone(), replay.id)]);
    assert_eq!(replay::watch::look(&stack.pool, &before).await.unwrap(), BTreeSet::new(), "it is over");
    assert_eq!(gauge(&stack, "tidemill_replay_left_records"), 0.0);
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_wrong_is_found_and_replaced_and_leaves_redis() {
    let stack = Stack::new().await;
    let events = live_traffic(0..600, 10);
    stack.send_all(&events).await;
    // With the first of its session, so that it does not move that.
    let refused = stack
        .send(&Event { session_id: Some("s-1".into()), ..event("refused", "view", events[1].timestamp / 1_000_000) })
        .await;
    let live = worker(&stack).await;
    drained(&stack, 0).await;
    let client = redis::Client::open(stack.connections.redis_url.as_str()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    eventually("redis shows it", || async { differences(&stack, redis.clone()).await.is_empty() }).await;

    // A bug: some counts are wrong, there is a session and a user that nobody sent, and one event counts that is a
    // dead letter.
    for wrong in [
        "UPDATE metric_rollups SET count = count + 7, version = version + 1 WHERE metric_name = 'events' AND dimension_key = ''",
        "INSERT INTO session_keys (generation, project, session_id, version) SELECT 0, id, 's-wrong', 1 FROM projects",
        "INSERT INTO sessions (generation, project, session_id, first_event_at, last_event_at, total_events, page_views, conversions, last_slot)
         SELECT 0, id, 's-wrong', now(), now(), 1, 1, 0, floor(extract(epoch FROM now()) / 1800) FROM projects",
        "INSERT INTO users (generation, project, user_id, first_event_at) SELECT 0, id, 'u-wrong', now() FROM projects",
    ] {
        sqlx::query(wrong).execute(&stack.pool).await.unwrap();
    }
    sqlx::query(
        r#"INSERT INTO dead_letters (project, topic, topic_incarnation, partition, "offset", append_time, stage, reason, detail)
           SELECT $1, topic, topic_incarnation, $2, $3, now(), 'decode', 'unknown-schema', '' FROM ledger LIMIT 1"#,
    )
    .bind(&stack.project)
    .bind(refused.0)
    .bind(refused.1)
    .execute(&stack.pool)
    .await
    .unwrap();
    let wrong_session = keys::session(&stack.project, "s-wrong");
    let fields = [("epoch", "0"), ("generation", "0"), ("version", "1"), ("totalEvents", "1")];
    let _: () = redis.hset_multiple(&wrong_session, &fields).await.unwrap();
    let _: () = redis.sadd(keys::seen_users(&stack.project), "u-wrong").await.unwrap();

    let replay = plan(&stack, From::Beginning).await.unwrap();
    assert!(matches!(plan(&stack, From::Beginning).await, Err(ReplayError::Refused(why)) if why.contains("not over")));
    let mut rebuilding = Rebuilding::start(&setup(&stack, "machine"), &replay, None).await.unwrap();
    let found = compared(&stack, &mut rebuilding, &replay).await;
    let of = |what: &str| found.iter().filter(|difference| difference.what == what).collect::<Vec<_>>();
    assert!(!of("events").is_empty() && !of("(sessions)").is_empty() && !of("(users)").is_empty(), "{found:?}");
    assert!(of("events").iter().all(|difference| difference.live != difference.rebuilt && difference.rows > 0));
    assert!(of("conversions").is_empty(), "{found:?}");
    let kept: serde_json::Value = replay::find(&stack.pool, replay.id).await.unwrap().comparison.unwrap();
    assert_eq!(kept.as_array().unwrap().len(), found.len());
    assert!(shown(&stack).await > 607, "until the switch readers see what was live");

    switched(&stack, &mut rebuilding, &replay).await;
    rebuilding.stop().await.unwrap();
    assert_eq!(shown(&stack).await, 600);
    assert_eq!(stack.records(&processed_topic(&stack.project)).await.len(), 601, "a replay sends nothing on");
    assert_eq!(stack.records(&dlq_topic(&stack.project)).await.len(), 0);
    assert_eq!(sessions(&stack, 1).await, expected(&events));
    // Without a further event, too: the worker notices by itself.
    eventually("what only the old one had has left redis", || {
        let mut redis = redis.clone();
        let (session, users) = (wrong_session.clone(), keys::seen_users(&stack.project));
        async move {
            let (session, user): (bool, bool) =
                (redis.exists(session).await.unwrap(), redis.sismember(users, "u-wrong").await.unwrap());
            !session && !user
        }
    })
    .await;
    let replay = replay::find(&stack.pool, replay.id).await.unwrap();
    assert!(
        matches!(plan(&stack, From::Beginning).await, Err(ReplayError::Refused(why)) if why.contains("replay drop"))
    );
    assert!(replay::drop_kept(&stack.pool, &replay, |_| {}).await.unwrap() > 0);
    assert_eq!((counted(&stack, 0).await, sessions(&stack, 0).await.len()), (0, 0));
    eventually("redis shows the new numbers", || async { differences(&stack, redis.clone()).await.is_empty() }).await;
    // The next one has another number.
    assert_eq!(plan(&stack, From::Beginning).await.unwrap().generation, 2);
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_from_an_offset_knows_what_was_before_it() {
    let stack = Stack::new().await;
    let events = live_traffic(0..400, 10);
    stack.send_all(&events[..200]).await;
    let live = worker(&stack).await;
    drained(&stack, 0).await;
    let begin: BTreeMap<i32, i64> = stack.ends(&events_topic(&stack.project)).await.into_iter().collect();
    stack.send_all(&events[..50]).await; // copies of what is left out
    stack.send_all(&events[200..]).await;
    drained(&stack, 0).await;

    let replay = plan(&stack, From::Offsets(begin)).await.unwrap();
    let mut rebuilding = Rebuilding::start(&setup(&stack, "machine"), &replay, None).await.unwrap();
    let found = compared(&stack, &mut rebuilding, &replay).await;
    assert!(found.iter().any(|difference| difference.what == "events"), "{found:?}");
    assert_eq!((counted(&stack, 1).await, counted(&stack, 0).await), (200, 400));

    // Aborted: all of it goes, its workers end, and nothing live has changed.
    assert!(replay::remove_aborted(&stack.pool, &replay, |_| {}).await.unwrap() > 0);
    rebuilding.ended().await.unwrap();
    for table in ["ledger", "users", "sessions", "session_keys", "metric_rollups"] {
        let sql = format!("SELECT count(*) FROM {table} WHERE generation = 1");
        let rows: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&stack.pool).await.unwrap();
        assert_eq!(rows, 0, "{table}");
    }
    assert_eq!((generation(&stack).await, counted(&stack, 0).await), (0, 400));
    assert_eq!(plan(&stack, From::Beginning).await.unwrap().generation, 2, "no number is used again");
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_has_lost_its_beginning_is_not_replayed_as_if_it_had_not() {
    let stack = Stack::new().await;
    assert!(matches!(plan(&stack, From::Beginning).await, Err(ReplayError::Refused(why)) if why.contains("nothing")));
    stack.send_all(&live_traffic(0..100, 10)).await;
    let live = worker(&stack).await;
    drained(&stack, 0).await;
    live.stop().await;
    stack.delete_records(2, 5).await;
    let now = chrono::Utc::now();
    for from in [From::Beginning, From::Time(now), From::Offsets(BTreeMap::from([(2, 7)]))] {
        let Err(ReplayError::Refused(why)) = plan(&stack, from.clone()).await else { panic!("{from} is not refused") };
        assert!(why.contains("of partition 2 only from offset 5") && why.contains("--from-time"), "{why}");
    }
    // A day later there would be a window before it.
    let later = plan(&stack, From::Time(now + Duration::from_secs(86_400 + 120))).await.unwrap();
    assert_eq!(progress(&stack, &later).await, Progress::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn moving_the_groups_offsets_changes_nothing() {
    let stack = Stack::new().await;
    let events = live_traffic(0..300, 10);
    stack.send_all(&events).await;
    let live = worker(&stack).await;
    drained(&stack, 0).await;
    let (kafka, group) = (stack.connections.kafka.clone(), format!("{}-live", stack.project));
    let find = move || IdleGroup::find(&kafka, &group);
    let refused = tokio::task::spawn_blocking(find.clone()).await.unwrap();
    assert!(matches!(refused, Err(SeekError::Active { members: 1, .. })));
    live.stop().await;

    let topic = events_topic(&stack.project);
    let seeks = tokio::task::spawn_blocking({
        let find = find.clone();
        move || {
            let idle = find().unwrap();
            let seeks = idle.plan(&[topic], SeekTo::Beginning).unwrap();
            idle.seek(&seeks).unwrap();
            seeks
        }
    })
    .await
    .unwrap();
    assert_eq!(seeks.len(), PARTITIONS as usize);
    assert_eq!(seeks.iter().filter_map(|seek| seek.from).sum::<i64>(), 300, "{seeks:?}");
    assert!(seeks.iter().all(|seek| seek.to == Some(0)), "{seeks:?}");

    let back = {
        let (find, seeks) = (find.clone(), seeks.clone());
        tokio::task::spawn_blocking(move || {
            let idle = find().unwrap();
            let back = idle.undo(&seeks).unwrap();
            idle.seek(&back).unwrap();
            (back, idle.undo(&seeks).unwrap())
        })
    };
    let (back, after) = back.await.unwrap();
    assert!(back.iter().zip(&seeks).all(|(back, seek)| (back.from, back.to) == (seek.to, seek.from)));
    assert!(after.iter().zip(&seeks).all(|(after, seek)| after.from == seek.from), "it is where it was: {after:?}");
    tokio::task::spawn_blocking(move || find().unwrap().seek(&seeks).unwrap()).await.unwrap();

    let live = worker(&stack).await;
    stack.send(&event("after", "view", events[0].timestamp / 1_000_000)).await;
    drained(&stack, 0).await;
    assert_eq!(counted(&stack, 0).await, 301);
    live.stop().await;
}

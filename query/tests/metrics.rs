//! Metrics, on rows and keys filled in by hand.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};
use support::{Api, Rollup, new_key, time};
use tidemill_common::home::home_partition;
use tidemill_common::kafka::History;
use tidemill_common::names::events_topic;
use tidemill_query::Config;
use tidemill_stream::keys;
use tidemill_stream::window::Granularity;
use tidemill_testkit::{PARTITIONS, event};

fn rollup<'a>(api: &'a Api, start: i64, count: i64, users: &'a [&'a str]) -> Rollup<'a> {
    Rollup {
        generation: 0,
        project: &api.stack.project,
        metric: "events",
        event_type: None,
        granularity: "1m",
        start,
        shard: 0,
        count,
        users,
    }
}

fn text(seconds: i64) -> String {
    DateTime::from_timestamp(seconds, 0).unwrap().to_rfc3339_opts(SecondsFormat::Secs, true)
}

async fn hot(api: &Api, name: &str, start: i64, count: i64, generation: i32) {
    let key = keys::metric(&api.stack.project, name, Granularity::Minute, start);
    let value =
        format!("{{\"count\":{count},\"unique_users\":9,\"generation\":{generation},\"epoch\":0,\"version\":1}}");
    api.redis(&["SET", &key, &value, "EX", "600"]).await;
}

/// `[timestamp, value]` of each data point.
async fn values(api: &Api, path: &str) -> Value {
    let (status, answer) = api.get(path).await;
    assert_eq!(status, 200, "{answer}");
    answer["data"].as_array().unwrap().iter().map(|point| json!([point["timestamp"], point["value"]])).collect()
}

#[tokio::test]
async fn hot_windows_come_from_redis_and_all_others_from_postgres() {
    let api = Api::start().await;
    let minute = Granularity::Minute.window(Utc::now().timestamp_micros());
    let (hot_one, missing, other_generation, broken, cold) =
        (minute - 60, minute - 120, minute - 180, minute - 240, minute - 7_200);
    for start in [hot_one, missing, other_generation, broken, cold] {
        rollup(&api, start, 3, &["a", "b"]).insert(&api.stack).await;
        Rollup { shard: 1, ..rollup(&api, start, 4, &["b", "c"]) }.insert(&api.stack).await;
    }
    hot(&api, "events", hot_one, 100, 0).await;
    hot(&api, "events", other_generation, 100, 1).await;
    hot(&api, "events", cold, 100, 0).await;
    let key = keys::metric(&api.stack.project, "events", Granularity::Minute, broken);
    api.redis(&["SET", &key, "not JSON", "EX", "600"]).await;
    let path = format!("/v1/metrics/events?granularity=1m&startTime={}&endTime={}", text(cold), text(minute + 60));
    let expected = |hot_value: i64| {
        json!([
            [text(cold), 7],
            [text(broken), 7],
            [text(other_generation), 7],
            [text(missing), 7],
            [text(hot_one), hot_value]
        ])
    };
    assert_eq!(values(&api, &path).await, expected(100));
    let (_, answer) = api.get(&path).await;
    assert_eq!((&answer["metric"], &answer["granularity"]), (&json!("events"), &json!("1m")));
    let from_postgres = json!({"timestamp": text(cold), "value": 7, "count": 7, "unique_users": 3});
    assert_eq!(answer["data"][0], from_postgres, "shards are summed and merged");
    let from_redis = json!({"timestamp": text(hot_one), "value": 100, "count": 100, "unique_users": 9});
    assert_eq!(answer["data"][4], from_redis);
    let users = path.replace("/events", "/active_users");
    assert_eq!(values(&api, &users).await[4], json!([text(hot_one), 9]));
    api.redis(&["DEL", &keys::metric(&api.stack.project, "events", Granularity::Minute, hot_one)]).await;
    assert_eq!(values(&api, &path).await, expected(7), "a missing key is no zero");
}

#[tokio::test]
async fn without_redis_all_comes_from_postgres() {
    let nowhere = |stack: &mut tidemill_testkit::Stack| stack.connections.redis_url = "redis://127.0.0.1:1".to_owned();
    let api = Api::start_with(Config::default(), nowhere).await;
    let minute = Granularity::Minute.window(Utc::now().timestamp_micros());
    rollup(&api, minute, 3, &[]).insert(&api.stack).await;
    assert_eq!(values(&api, "/v1/metrics/events?granularity=1m").await, json!([[text(minute), 3]]));
}

#[tokio::test]
async fn a_project_sees_its_own_live_generation() {
    let api = Api::start().await;
    let other = format!("{}-b", api.stack.project);
    api.stack.insert_project(&other).await;
    let other_key = new_key(&api.stack, &other, "read").await;
    let hour = time("2026-01-01T00:00:00Z").timestamp();
    let mine = Rollup { granularity: "1h", ..rollup(&api, hour, 1, &["a"]) };
    mine.insert(&api.stack).await;
    Rollup { generation: 1, count: 20, ..mine }.insert(&api.stack).await;
    let theirs = Rollup { project: &other, event_type: Some("secret"), ..rollup(&api, hour, 300, &["a"]) };
    theirs.insert(&api.stack).await;
    let path = "/v1/metrics/events?startTime=2026-01-01T00:00:00Z&endTime=2026-01-01T01:00:00Z";
    assert_eq!(values(&api, path).await, json!([["2026-01-01T00:00:00Z", 1]]));
    assert_eq!(api.get_as(&other_key, path).await.1["data"], json!([]));
    let secret = path.replace("/events", "/secret") + "&granularity=1m";
    assert_eq!(values(&api, &secret).await, json!([]));
    let names = |list: &Value| list["metrics"].as_array().unwrap().clone();
    assert!(!names(&api.get("/v1/metrics").await.1).contains(&json!("secret")));
    assert!(names(&api.get_as(&other_key, "/v1/metrics").await.1).contains(&json!("secret")));
    sqlx::query("UPDATE projects SET generation = 1").execute(&api.stack.pool).await.unwrap();
    assert_eq!(values(&api, path).await, json!([["2026-01-01T00:00:00Z", 20]]));
}

#[tokio::test]
async fn event_types_and_sessions_are_metrics_too() {
    let api = Api::start().await;
    let day = time("2026-01-01T00:00:00Z").timestamp();
    for (event_type, start, count) in
        [("view", day, 5), ("buy", day, 2), ("view", day + 86_400, 1), ("sessions", day, 8)]
    {
        let row = Rollup { granularity: "1d", event_type: Some(event_type), ..rollup(&api, start, count, &["a"]) };
        row.insert(&api.stack).await;
    }
    Rollup { granularity: "1d", metric: "sessions", ..rollup(&api, day, 4, &[]) }.insert(&api.stack).await;
    let span = "granularity=1d&startTime=2026-01-01T00:00:00Z&endTime=2026-01-03T00:00:00Z";
    let one_two = json!([["2026-01-01T00:00:00Z", 5], ["2026-01-02T00:00:00Z", 1]]);
    assert_eq!(values(&api, &format!("/v1/metrics/view?{span}")).await, one_two);
    let sessions = values(&api, &format!("/v1/metrics/sessions?{span}")).await;
    assert_eq!(sessions, json!([["2026-01-01T00:00:00Z", 4]]), "the built-in metric, not the event type");
    let (_, grouped) = api.get(&format!("/v1/metrics/events?{span}&groupBy=eventType")).await;
    let grouped: Vec<_> = grouped["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|point| (point["eventType"].as_str().unwrap(), point["value"].as_i64().unwrap()))
        .collect();
    assert_eq!(grouped, [("buy", 2), ("sessions", 8), ("view", 5), ("view", 1)]);
    let (_, names) = api.get("/v1/metrics").await;
    let names = names["metrics"].as_array().unwrap();
    assert_eq!(names[..4], [json!("events"), json!("active_users"), json!("daily_active_users"), json!("sessions")]);
    assert_eq!(names[names.len() - 2..], [json!("buy"), json!("view")], "the reserved name stands there once");
    let (status, problem) = api.get("/v1/metrics/events?filter=a").await;
    assert_eq!((status, &problem["field"]), (400, &json!("filter")));
}

#[tokio::test]
async fn as_of_is_now_only_when_all_of_the_log_is_counted() {
    let api = Api::start().await;
    let before = Utc::now();
    let as_of = || async { api.get("/v1/metrics/events").await.1["asOf"].as_str().map(time) };
    // Kafka may be slow to answer; until it does there is nothing to promise.
    let now = || async { as_of().await.is_some_and(|at| at >= before) };
    tidemill_testkit::eventually("an empty log is counted", now).await;
    let (partition, offset) = api.stack.send(&event("e-1", "view", 1_767_225_600)).await;
    assert_eq!((partition, offset), (home_partition(b"e-1", PARTITIONS), 0));
    tidemill_testkit::eventually("the log's new end is seen", || async { as_of().await.is_none() }).await;
    ledger(&api, &incarnation(&api), partition, (0, 0)).await;
    let last = Some(time("2026-01-01T00:00:00Z"));
    tidemill_testkit::eventually("the last that is counted", || async { as_of().await == last }).await;
    ledger(&api, &incarnation(&api), partition, (1, 1)).await;
    tidemill_testkit::eventually("all is counted", now).await;
}

/// The id of the project's topic.
fn incarnation(api: &Api) -> String {
    let topic = events_topic(&api.stack.project);
    let ids =
        History::new(api.stack.connections.kafka.clone()).incarnations([&topic], Duration::from_secs(10)).unwrap();
    ids[&topic].clone()
}

/// Sets a partition's next and projected offset in the ledger, counted in 2026.
async fn ledger(api: &Api, incarnation: &str, partition: i32, (next, projected): (i64, i64)) {
    sqlx::query(
        "INSERT INTO ledger VALUES ('stream', 0, $1, $2, $3, $4, $5, '2026-01-01T00:00:00Z')
         ON CONFLICT (view, generation, topic, topic_incarnation, partition)
         DO UPDATE SET next_offset = $4, projected_offset = $5",
    )
    .bind(events_topic(&api.stack.project))
    .bind(incarnation)
    .bind(partition)
    .bind(next)
    .bind(projected)
    .execute(&api.stack.pool)
    .await
    .unwrap();
}

#[tokio::test]
async fn a_topic_made_again_is_not_counted_by_its_predecessors_rows() {
    let api = Api::start().await;
    let (partition, _) = api.stack.send(&event("e-1", "view", 1_767_225_600)).await;
    ledger(&api, "the predecessor's", partition, (9, 9)).await;
    assert_eq!(api.get("/v1/metrics/events").await.1["asOf"], Value::Null);
    sqlx::query("INSERT INTO ledger SELECT view, generation, topic, $1, partition, 0, 0, 'epoch' FROM ledger")
        .bind(incarnation(&api))
        .execute(&api.stack.pool)
        .await
        .unwrap();
    assert_eq!(api.get("/v1/metrics/events").await.1["asOf"], json!("1970-01-01T00:00:00Z"));
}

#[tokio::test]
async fn redis_is_read_only_when_it_shows_all_that_is_counted() {
    let api = Api::start().await;
    let minute = Granularity::Minute.window(Utc::now().timestamp_micros()) - 60;
    rollup(&api, minute, 3, &["a"]).insert(&api.stack).await;
    hot(&api, "events", minute, 2, 0).await;
    let path = format!("/v1/metrics/events?granularity=1m&startTime={}&endTime={}", text(minute), text(minute + 60));
    for (partition, projected, expected) in [(0, 5, 2), (1, 4, 3), (1, 5, 2)] {
        ledger(&api, &incarnation(&api), partition, (5, projected)).await;
        assert_eq!(values(&api, &path).await, json!([[text(minute), expected]]), "{projected} in {partition}");
    }
}

#[tokio::test]
async fn a_postgres_that_stands_still_does_not_hold_readers() {
    let api = Api::start().await;
    let mut lock = api.stack.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE metric_rollups, sessions").execute(&mut *lock).await.unwrap();
    let answers =
        async { tokio::join!(api.get("/v1/metrics/events"), api.get("/v1/metrics"), api.get("/v1/sessions/s")) };
    let (metric, list, session) = tokio::time::timeout(Duration::from_secs(20), answers).await.unwrap();
    for (status, problem) in [metric, list, session] {
        assert_eq!((status, &problem["type"]), (503, &json!("urn:tidemill:problem:unavailable")), "{problem}");
    }
    lock.rollback().await.unwrap();
    assert_eq!(api.get("/v1/metrics/events").await.0, 200);
}

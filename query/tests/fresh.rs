//! Events are in SQL before they are in the archive, and once, wherever the archive is.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Api, Archiver, new_key};
use tidemill_common::event::Event;
use tidemill_common::kafka::Outgoing;
use tidemill_common::names::processed_topic;
use tidemill_query::Config;
use tidemill_testkit::{event, eventually};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// 2026-01-01T00:00:00Z
const START: i64 = 1_767_225_600;

fn events(numbers: std::ops::Range<i64>) -> Vec<Event> {
    let one = |n: i64| Event {
        user_id: (n % 7 > 0).then(|| format!("u{}", n % 7)),
        properties: Some(format!("{{\"n\":{n}}}")),
        user_agent: Some("agent/1".to_owned()),
        ..event(&format!("e-{n}"), if n % 3 == 0 { "purchase" } else { "view" }, START + n * 3_600)
    };
    numbers.map(one).collect()
}

async fn archiver(api: &Api) -> Archiver {
    api.archiver(|config| config.commit_interval_ms = 300).await
}

fn stream(api: &Api) -> DropGuard {
    let stop = CancellationToken::new();
    let config = tidemill_stream::Config {
        group: format!("test-stream.{}", api.stack.project),
        topics: api.stack.pattern(),
        batch_wait_ms: 20,
        seen_dir: api.stack.folder("seen-stream"),
        ..Default::default()
    };
    let (connections, shutdown) = (api.stack.connections.clone(), stop.clone());
    tokio::spawn(async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        tidemill_stream::run(config, connections, listener.into(), shutdown).await.unwrap();
    });
    stop.drop_guard()
}

/// Sends events and their copies, each copy `times`.
async fn send_processed(api: &Api, events: &[Event], times: usize) {
    support::send_processed(&api.stack, events).await;
    // A stream that begins again where it was before sends what it has sent.
    let topic = processed_topic(&api.stack.project);
    let sent: Vec<_> = api.stack.records(&topic).await;
    for record in sent.iter().rev().take(events.len()).cycle().take(events.len() * (times - 1)) {
        let (partition, key, value) = (record.partition, record.key(), record.value());
        let again = Outgoing { topic: &topic, partition, key, value, headers: &[] };
        api.stack.producer.send(&again).await.unwrap();
    }
}

/// The answer without the tail.
async fn archived(api: &Api, sql: &str) -> Value {
    let path = format!("/v1/query?tail=false&sql={}", sql.replace(' ', "%20"));
    api.get(&path).await.1["rows"].clone()
}

/// Declares the property `n` of views to be a column.
async fn promote(api: &Api) {
    promote_as(api, &["n".to_owned()]).await;
}

/// Declares the property `n` of views to be these columns.
async fn promote_as(api: &Api, columns: &[String]) {
    let place = |column: &String| (column.clone(), json!({ "type": "integer", "x-column": column }));
    let properties: serde_json::Map<String, Value> = columns.iter().map(place).collect();
    let schema = json!({ "type": "object", "properties": properties });
    sqlx::query("INSERT INTO event_schemas (project, event_type, version, schema) VALUES ($1, 'view', 1, $2)")
        .bind(&api.stack.project)
        .bind(schema)
        .execute(&api.stack.pool)
        .await
        .unwrap();
    let changed = "UPDATE projects SET schemas_changed_at = clock_timestamp() WHERE id = $1";
    sqlx::query(changed).bind(&api.stack.project).execute(&api.stack.pool).await.unwrap();
}

const COUNT: &str = "SELECT count(*) AS n FROM events";

#[tokio::test]
async fn a_row_is_the_same_in_the_tail_and_in_the_archive_and_never_in_both() {
    let api = Api::start().await;
    send_processed(&api, &events(0..30), 2).await;
    eventually("all are seen without an archive", || async { api.rows(COUNT).await == json!([{ "n": 30 }]) }).await;
    assert_eq!(archived(&api, COUNT).await, json!([{ "n": 0 }]));
    let all = "SELECT event_id, event_type, event_action, user_id, session_id, occurred_at, received_at, properties, \
               client_address, user_agent, kafka_partition, kafka_offset FROM events ORDER BY event_id";
    let from_tail = api.rows(all).await;
    promote(&api).await;
    let stop = archiver(&api).await;
    eventually("all are archived", || async {
        assert_eq!(api.rows(COUNT).await, json!([{ "n": 30 }]), "while the archive moves on");
        archived(&api, COUNT).await == json!([{ "n": 30 }])
    })
    .await;
    assert_eq!(archived(&api, all).await, from_tail);
    assert_eq!(api.rows(all).await, from_tail);
    drop(stop);
    // Copies of what is archived come once more, and new events behind them.
    send_processed(&api, &events(30..40), 3).await;
    eventually("the new ones are seen", || async { api.rows(COUNT).await == json!([{ "n": 40 }]) }).await;
    for (sql, expected) in [
        ("SELECT count(*) AS n FROM events WHERE event_id = 'e-35'", json!([{ "n": 1 }])),
        ("SELECT count(*) AS n FROM events WHERE user_id = 'u1' AND event_type = 'view'", json!([{ "n": 4 }])),
        ("SELECT count(DISTINCT event_id) AS n FROM events", json!([{ "n": 40 }])),
        // A promoted column, in files and in the tail.
        ("SELECT count(n) AS c, sum(n) AS n FROM events", json!([{ "c": 26, "n": 507 }])),
        ("SELECT event_type FROM events WHERE n = 38", json!([{ "event_type": "view" }])),
        ("SELECT max(json_get_int(properties, 'n')) AS n FROM events", json!([{ "n": 39 }])),
        ("SELECT event_id FROM events ORDER BY occurred_at DESC LIMIT 1", json!([{ "event_id": "e-39" }])),
        (
            "SELECT count(*) AS n FROM events WHERE occurred_at >= '2026-01-02T00:00:00Z' AND timestamp < '2026-01-03'",
            json!([{ "n": 16 }]),
        ),
    ] {
        assert_eq!(api.rows(sql).await, expected, "{sql}");
    }
    let other = format!("{}-b", api.stack.project);
    api.stack.create_project(&other).await;
    let other_key = new_key(&api.stack, &other, "read").await;
    assert_eq!(api.sql_as(&other_key, COUNT).await.1["rows"], json!([{ "n": 0 }]), "another project has none of it");
}

#[tokio::test]
async fn every_event_is_seen_once_and_soon_while_all_of_it_moves() {
    let api = Api::start().await;
    let _running = (stream(&api), archiver(&api).await);
    let sql = "SELECT count(*) AS n, count(DISTINCT event_id) AS ids, count(DISTINCT kafka_offset * 100 + kafka_partition) AS places FROM events";
    let mut took = Vec::new();
    for round in 0..12 {
        let (from, to) = (round * 50, (round + 1) * 50);
        let mut sent = events(from..to);
        sent.extend(events(from.max(5) - 5..to)); // the same once more
        api.stack.send_all(&sent).await;
        let acknowledged = Instant::now();
        eventually("the round is seen", || async {
            let rows = api.rows(sql).await;
            let [n, ids, places] = ["n", "ids", "places"].map(|name| rows[0][name].as_i64().unwrap());
            assert!(n == ids && n == places && n <= to, "{rows} of {to}");
            n == to
        })
        .await;
        took.push(acknowledged.elapsed());
    }
    took.sort();
    println!("seen after {took:?}");
    assert!(took[took.len() / 2] < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn every_event_is_seen_once_while_a_type_gets_a_topic_of_its_own() {
    let api = Api::start().await;
    let _running = (stream(&api), archiver(&api).await);
    let sql = "SELECT count(*) AS n, count(DISTINCT event_id) AS ids, max(kafka_partition) AS high FROM events";
    let seen = async |round: i64| {
        eventually("the round is seen", || async {
            let rows = api.rows(sql).await;
            let [n, ids] = ["n", "ids"].map(|name| rows[0][name].as_i64().unwrap());
            assert!(n == ids && n <= 50 * round, "{rows} of {}", 50 * round);
            n == 50 * round
        })
        .await;
    };
    for round in 1..=8 {
        let (from, to) = ((round - 1) * 50, round * 50);
        if round == 4 {
            api.stack.route("purchases", "purchase").await;
        }
        // Who knows of the route, and who does not; copies from before it, too.
        api.stack.send_home(&events(from.max(30) - 30..to)).await;
        api.stack.send_all(&events(from.max(5) - 5..to)).await;
        seen(round).await;
    }
    let high = api.rows(sql).await[0]["high"].as_i64().unwrap();
    assert!((10_000..20_000).contains(&high), "the route's partitions have numbers of their own: {high}");
    eventually("all are archived", || async { archived(&api, COUNT).await == json!([{ "n": 400 }]) }).await;
    let metrics = async || {
        api.get("/v1/metrics/events?granularity=1d&startTime=2025-12-01T00:00:00Z&endTime=2026-03-01T00:00:00Z").await.1
    };
    eventually("the counts are as of now, in all topics", || async {
        let answer = metrics().await;
        let total: i64 = answer["data"].as_array().unwrap().iter().filter_map(|window| window["value"].as_i64()).sum();
        total == 400 && answer["asOf"].is_string()
    })
    .await;
}

#[tokio::test]
async fn without_a_tail_there_is_the_archive() {
    let api = Api::start_with(Config { sql_tail_mb: 0, ..Config::default() }, |_| ()).await;
    let _archiver = archiver(&api).await;
    send_processed(&api, &events(0..10), 1).await;
    eventually("they are archived", || async { api.rows(COUNT).await == json!([{ "n": 10 }]) }).await;
}

#[tokio::test]
async fn a_tail_that_does_not_fit_is_cut_and_goes_on_when_the_archive_has() {
    let api = Api::start_with(Config { sql_tail_mb: 1, ..Config::default() }, |_| ()).await;
    let large = |n: i64| Event {
        properties: Some(format!("{{\"a\":\"{}\"}}", "x".repeat(100_000))),
        ..events(n..n + 1).remove(0)
    };
    send_processed(&api, &(0..40).map(large).collect::<Vec<_>>(), 1).await;
    let (is_whole, some) = count_and_whether_whole(&api).await;
    assert!(!is_whole && some < 40, "{some} of 40 times 100 kB in 1 MiB");
    let _archiver = archiver(&api).await;
    eventually("all are seen, and only then it is whole", || async {
        let (is_whole, some) = count_and_whether_whole(&api).await;
        assert!(!is_whole || some == 40, "{some} of 40");
        is_whole
    })
    .await;
}

/// Whether the answer says that all of the tail is in it, and how many events it counts.
async fn count_and_whether_whole(api: &Api) -> (bool, i64) {
    let request = api.client.get(format!("{}/v1/query?sql=SELECT%20count(*)%20AS%20n%20FROM%20events", api.base));
    let answer = request.bearer_auth(&api.key).send().await.unwrap();
    let is_whole = answer.headers()["tidemill-tail"] == "whole";
    (is_whole, answer.json::<Value>().await.unwrap()["rows"][0]["n"].as_i64().unwrap())
}

#[tokio::test]
async fn a_tail_is_read_anew_for_other_columns_though_the_table_cannot_be_loaded() {
    let api = Api::start().await;
    let running = archiver(&api).await;
    send_processed(&api, &events(0..10), 1).await;
    eventually("they are archived", || async { archived(&api, COUNT).await == json!([{ "n": 10 }]) }).await;
    drop(running);
    send_processed(&api, &events(10..20), 1).await;
    eventually("all is there", || async { count_and_whether_whole(&api).await == (true, 20) }).await;
    let break_it = "UPDATE iceberg_tables SET metadata_location = 'file:///nowhere.json' WHERE table_namespace LIKE $1";
    sqlx::query(break_it).bind(format!("%.{}", api.stack.project)).execute(&api.stack.pool).await.unwrap();
    promote(&api).await;
    // For longer than the table is not looked at.
    let (begun, mut known) = (Instant::now(), 20);
    while begun.elapsed() < Duration::from_secs(5) {
        send_processed(&api, &events(known..known + 1), 1).await;
        known += 1;
        eventually("the new one is there", || async {
            let (is_whole, count) = count_and_whether_whole(&api).await;
            assert!(!is_whole || count >= known - 1, "{count} of {known} are called whole");
            count == known
        })
        .await;
    }
}

#[tokio::test]
async fn a_table_of_many_columns_is_asked_like_any_other() {
    let api = Api::start().await;
    let columns: Vec<String> = (0..199).map(|i| format!("c{i}")).chain(["n".to_owned()]).collect();
    promote_as(&api, &columns).await;
    let _archiver = archiver(&api).await;
    send_processed(&api, &events(0..10), 1).await;
    eventually("they are archived", || async { archived(&api, COUNT).await == json!([{ "n": 10 }]) }).await;
    let joined = "SELECT count(*) AS n FROM events a JOIN events b ON a.event_id = b.event_id \
                  LEFT JOIN sessions s ON s.session_id = a.session_id WHERE b.n = 8";
    for (sql, expected) in [(COUNT, 10), (joined, 1)] {
        assert_eq!(api.rows(sql).await, json!([{ "n": expected }]), "{sql}");
    }
    let all = api.rows("SELECT * FROM events WHERE n = 8").await;
    assert_eq!(all[0].as_object().unwrap().len(), 13 + 200);
    let wide = "SELECT * FROM events a, events b, events c, events d, events e LIMIT 1";
    let long = format!("{joined} AND a.event_id <> '{}'", "x".repeat(4_000));
    for (sql, most) in [(wide, 1_000), (&*long, 819_200 / long.len())] {
        let (status, answer) = api.sql(sql).await;
        let detail = answer["detail"].as_str().unwrap();
        assert!(status == 400 && detail.contains(&format!("of this length may have {most}")), "{answer}");
    }
}

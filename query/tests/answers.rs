//! The forms of SQL answers, their streaming, their cache, and what becomes of queries that nobody waits for.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use arrow::util::pretty::pretty_format_batches;
use arrow_ipc::reader::StreamReader;
use chrono::TimeDelta;
use serde_json::{Value, json};
use support::{Api, Rollup, insert_session, time};
use tidemill_common::event::Event;
use tidemill_common::redis::Redis;
use tidemill_query::{Config, drop_answers};
use tidemill_testkit::{event, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn with_sessions(config: Config, count: i64) -> Api {
    let api = Api::start_with(config, |_| ()).await;
    for i in 0..count {
        let first = time("2026-01-01T00:00:00Z") + TimeDelta::hours(i);
        insert_session(&api.stack, &api.stack.project, &format!("s{i}"), Some("u"), first, 1).await;
    }
    api
}

/// The answer to a POST with this `Accept`.
async fn accept(api: &Api, sql: &str, accept: &str) -> reqwest::Response {
    let request = api.client.post(format!("{}/v1/query", api.base)).bearer_auth(&api.key).header("accept", accept);
    request.json(&json!({ "sql": sql })).send().await.unwrap()
}

#[tokio::test]
async fn answers_come_in_the_form_that_is_asked_for() {
    let api = with_sessions(Config::default(), 2).await;
    let sql = "SELECT sessionId, first_event_at, revenue, is_new, NULL AS nothing, [1, 2] AS list, interval '1 day' AS i FROM sessions ORDER BY 1";
    let text = |answer: reqwest::Response, kind: &'static str| async move {
        assert_eq!((answer.status().as_u16(), answer.headers()["content-type"].to_str().unwrap()), (200, kind));
        assert_eq!(answer.headers()["tidemill-truncated"], "false");
        answer.text().await.unwrap()
    };
    let csv = text(accept(&api, sql, "text/csv").await, "text/csv; charset=utf-8").await;
    let expected = "sessionId,first_event_at,revenue,is_new,nothing,list,i\n\
                    s0,2026-01-01T00:00:00Z,0.000000000,false,,\"[1, 2]\",1 days\n\
                    s1,2026-01-01T01:00:00Z,0.000000000,false,,\"[1, 2]\",1 days\n";
    assert_eq!(csv, expected);
    let ndjson = text(accept(&api, sql, "application/x-ndjson").await, "application/x-ndjson").await;
    let lines: Vec<Value> = ndjson.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(Value::from(lines.clone()), api.rows(sql).await);
    assert_eq!((lines.len(), &lines[1]["list"], &lines[1]["nothing"]), (2, &json!([1, 2]), &Value::Null));
    let arrow = accept(&api, sql, "application/vnd.apache.arrow.stream").await;
    assert_eq!(arrow.headers()["content-type"], "application/vnd.apache.arrow.stream");
    let bytes = arrow.bytes().await.unwrap();
    let batches: Vec<_> = StreamReader::try_new(bytes.as_ref(), None).unwrap().map(Result::unwrap).collect();
    let shown = pretty_format_batches(&batches).unwrap().to_string();
    assert!(shown.contains("| s1        | 2026-01-01T01:00:00Z | 0.000000000 |"), "{shown}");
    let none = "SELECT session_id FROM sessions WHERE false";
    assert_eq!(accept(&api, none, "text/csv").await.text().await.unwrap(), "session_id\n");
    assert_eq!(accept(&api, none, "application/x-ndjson").await.text().await.unwrap(), "");
    let empty = accept(&api, none, "application/vnd.apache.arrow.stream").await.bytes().await.unwrap();
    assert_eq!(StreamReader::try_new(empty.as_ref(), None).unwrap().schema().field(0).name(), "session_id");
    let refused = accept(&api, sql, "image/png").await;
    assert_eq!(refused.status(), 406);
    assert_eq!(refused.headers()["content-type"], "application/problem+json");
}

/// Enough rows for many pieces.
const MANY: &str =
    "SELECT a.session_id AS a, b.session_id AS b, c.total_events AS n FROM sessions a, sessions b, sessions c";

#[tokio::test]
async fn large_answers_are_streamed_and_say_behind_them_whether_they_are_whole() {
    let api = with_sessions(Config { sql_max_rows: 50_000, ..Config::default() }, 40).await;
    for (kind, limit, rows, truncated) in
        [("text/csv", 64_000, 50_001, true), ("application/x-ndjson", 40_000, 40_000, false)]
    {
        let body = json!({ "sql": format!("{MANY} LIMIT {limit}") }).to_string();
        let address = api.base.strip_prefix("http://").unwrap();
        let mut raw = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "POST /v1/query HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\naccept: {kind}\r\nte: trailers\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n{body}",
            api.key,
            body.len()
        );
        raw.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        raw.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("transfer-encoding: chunked"), "{head}");
        let end = format!("0\r\ntidemill-truncated: {truncated}\r\n\r\n");
        assert!(body.ends_with(&end), "{}", &body[body.len() - 100..]);
        let text = accept(&api, &format!("{MANY} LIMIT {limit}"), kind).await.text().await.unwrap();
        assert_eq!(text.lines().count(), rows);
    }
    let json: Value = accept(&api, MANY, "application/json").await.json().await.unwrap();
    assert_eq!((json["rows"].as_array().unwrap().len(), &json["truncated"]), (50_000, &json!(true)));
}

#[tokio::test]
async fn answers_are_cut_off_by_bytes_too() {
    let api = with_sessions(Config { sql_max_answer_mb: 1, ..Config::default() }, 40).await;
    let answer = accept(&api, MANY, "application/x-ndjson").await.bytes().await.unwrap();
    assert!((1 << 20..3 << 19).contains(&answer.len()), "{}", answer.len());
    // One that is as long as may be, but whole: it was passed with the last rows.
    let all = answer.split(|byte| *byte == b'\n').count() - 1;
    let whole = accept(&api, &format!("SELECT * FROM ({MANY} LIMIT {all})"), "application/json").await;
    let json: Value = whole.json().await.unwrap();
    assert_eq!((json["rows"].as_array().unwrap().len(), &json["truncated"]), (all, &json!(false)));
}

#[tokio::test]
async fn an_answer_that_fails_on_its_way_breaks_off() {
    let api = with_sessions(Config::default(), 40).await;
    let late = format!("SELECT 1 / (63000 - row_number() OVER ()) AS x, a FROM ({MANY})");
    let answer = accept(&api, &late, "application/x-ndjson").await;
    assert!(answer.status() != 200 || answer.bytes().await.is_err());
}

#[tokio::test]
async fn a_query_ends_when_its_caller_hangs_up() {
    let config = Config { concurrency: 1, sql_queue: 0, sql_timeout_s: 120, ..Config::default() };
    let api = with_sessions(config, 120).await;
    let sql =
        "SELECT count(*) FROM sessions a, sessions b, sessions c, sessions d WHERE a.page_views + d.page_views > 7";
    let request = api.client.post(format!("{}/v1/query", api.base)).bearer_auth(&api.key).json(&json!({ "sql": sql }));
    let hung_up = request.timeout(Duration::from_millis(800)).send().await;
    assert!(hung_up.is_err_and(|error| error.is_timeout()));
    let started = Instant::now();
    eventually("its place is free", || async { api.sql("SELECT 1").await.0 == 200 }).await;
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_caller_that_does_not_read_holds_its_place_no_longer_than_the_timeout() {
    let config = Config {
        concurrency: 1,
        sql_queue: 0,
        sql_timeout_s: 3,
        sql_max_rows: 10_000_000,
        sql_max_answer_mb: 1_000,
        ..Config::default()
    };
    let api = with_sessions(config, 120).await;
    let address = api.base.strip_prefix("http://").unwrap();
    let mut stalled = TcpStream::connect(address).await.unwrap();
    let body = json!({ "sql": MANY }).to_string();
    let (key, length) = (&api.key, body.len());
    let request = format!(
        "POST /v1/query HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stalled.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    stalled.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200", "it has the place");
    eventually("its place is free", || async { api.sql("SELECT now()").await.0 == 200 }).await;
    let mut answer = Vec::new();
    stalled.read_to_end(&mut answer).await.unwrap();
    assert!(!answer.ends_with(b"0\r\n\r\n"), "it broke off");
}

#[tokio::test]
async fn batches_are_turned_away_before_anybody_interactive() {
    let config = Config { concurrency: 2, sql_queue: 0, sql_timeout_s: 4, ..Config::default() };
    let api = with_sessions(config, 120).await;
    let sql =
        "SELECT count(*) FROM sessions a, sessions b, sessions c, sessions d WHERE a.page_views + d.page_views > 7";
    let batch = |sql: &str| {
        let body = json!({ "sql": sql, "priority": "batch" });
        api.client.post(format!("{}/v1/query", api.base)).bearer_auth(&api.key).json(&body).send()
    };
    // Whichever comes first has the place, so the long one asks until it has it.
    let long = async {
        loop {
            let answer = batch(sql).await.unwrap();
            if answer.status() != 503 {
                return answer;
            }
        }
    };
    let (long, rest) = tokio::join!(long, async {
        eventually("one batch is turned away", || async {
            let answer = batch("SELECT now()").await.unwrap();
            let is_busy = answer.status() == 503;
            assert!(!is_busy || answer.headers().contains_key("retry-after"));
            is_busy
        })
        .await;
        api.sql("SELECT 1").await.0
    });
    assert_eq!((long.status().as_u16(), rest), (422, 200));
}

async fn cached(api: &Api, path: &str) -> (String, Value) {
    let answer = api.client.get(format!("{}{path}", api.base)).bearer_auth(&api.key).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let cache = answer.headers()["tidemill-cache"].to_str().unwrap().to_owned();
    (cache, answer.json::<Value>().await.unwrap()["rows"].clone())
}

#[tokio::test]
async fn answers_are_kept_for_the_same_data_only() {
    let api = with_sessions(Config::default(), 2).await;
    let count = "/v1/query?sql=SELECT%20count(*)%20AS%20n%20FROM%20events";
    let none = json!([{ "n": 0 }]);
    assert_eq!(cached(&api, count).await, ("miss".to_owned(), none.clone()));
    eventually("the tail is whole and the answer kept", || async { cached(&api, count).await.0 == "hit" }).await;
    assert_eq!(cached(&api, count).await, ("hit".to_owned(), none.clone()));
    support::send_processed(&api.stack, &[event("e-1", "view", 1_767_225_600)]).await;
    let one = json!([{ "n": 1 }]);
    eventually("the new event counts", || async { cached(&api, count).await.1 == one }).await;
    eventually("it is kept again", || async { cached(&api, count).await == ("hit".to_owned(), one.clone()) }).await;
    // Rows of Postgres and the time have no identity.
    let sessions = "/v1/query?sql=SELECT%20count(*)%20AS%20n%20FROM%20sessions";
    for path in [sessions, "/v1/query?sql=SELECT%20now()%20AS%20n", "/v1/query?sql=EXPLAIN%20SELECT%201"] {
        cached(&api, path).await;
        assert_eq!(cached(&api, path).await.0, "miss", "{path}");
    }
    let (path, two) = (format!("{sessions}&maxAge=60"), json!([{ "n": 2 }]));
    assert_eq!(cached(&api, &path).await, ("miss".to_owned(), two.clone()));
    insert_session(&api.stack, &api.stack.project, "more", None, time("2026-01-01T00:00:00Z"), 1).await;
    assert_eq!(cached(&api, &path).await, ("hit".to_owned(), two), "as old as asked for");
    assert_eq!(cached(&api, sessions).await, ("miss".to_owned(), json!([{ "n": 3 }])));
    assert_eq!(cached(&api, &format!("{sessions}&maxAge=0")).await.1, json!([{ "n": 3 }]));
    assert_eq!(api.get(&format!("{sessions}&maxAge=soon")).await.0, 400);
    // Nor is one kept again at once, which may have been begun before.
    drop_answers(&Redis::new(&api.stack.connections.redis_url).unwrap(), &api.stack.project).await.unwrap();
    for _ in 0..2 {
        assert_eq!(cached(&api, &path).await.0, "miss");
    }
}

#[tokio::test]
async fn metrics_are_tables() {
    let api = with_sessions(Config::default(), 1).await;
    let day = 1_767_225_600;
    for (granularity, event_type, shard, count, users) in [
        ("1d", None, 0, 5, &["a", "b"][..]),
        ("1d", None, 1, 2, &["b", "c"]),
        ("1d", Some("view"), 0, 4, &[]),
        ("1h", None, 0, 7, &["a"]),
    ] {
        let project = api.stack.project.as_str();
        let rollup = Rollup {
            generation: 0,
            project,
            metric: "events",
            event_type,
            granularity,
            start: day,
            shard,
            count,
            users,
        };
        rollup.insert(&api.stack).await;
    }
    let other = format!("{}-b", api.stack.project);
    api.stack.insert_project(&other).await;
    for (generation, project) in [(1, &api.stack.project), (0, &other)] {
        let rollup = Rollup {
            generation,
            project,
            metric: "events",
            event_type: None,
            granularity: "1d",
            start: day,
            shard: 0,
            count: 100,
            users: &[],
        };
        rollup.insert(&api.stack).await;
    }
    for (sql, expected) in [
        (
            "SELECT date, metricName, dimension_value, value FROM daily_metrics WHERE date >= '2026-01-01' AND metric_name = 'events' ORDER BY 3",
            json!([
                { "date": "2026-01-01", "metricName": "events", "dimension_value": "", "value": 7.0 },
                { "date": "2026-01-01", "metricName": "events", "dimension_value": "view", "value": 4.0 },
            ]),
        ),
        ("SELECT count(*) AS n FROM daily_metrics WHERE date < date '2026-01-01'", json!([{ "n": 0 }])),
        ("SELECT value FROM daily_metrics WHERE metric_name = 'daily_active_users'", json!([{ "value": 3.0 }])),
        (
            "SELECT granularity, windowStart, count, value, sum FROM metrics WHERE dimension_key = '' ORDER BY granularity",
            json!([
                { "granularity": "1d", "windowStart": "2026-01-01T00:00:00Z", "count": 7, "value": 7.0, "sum": null },
                { "granularity": "1h", "windowStart": "2026-01-01T00:00:00Z", "count": 7, "value": 7.0, "sum": null },
            ]),
        ),
        (
            "SELECT s.session_id, m.value FROM sessions s JOIN daily_metrics m ON CAST(s.first_event_at AS date) = m.date
             WHERE m.metric_name = 'events' AND m.dimension_key = ''",
            json!([{ "session_id": "s0", "value": 7.0 }]),
        ),
    ] {
        assert_eq!(api.rows(sql).await, expected, "{sql}");
    }
}

#[tokio::test]
async fn properties_are_read_by_json_functions() {
    let api = Api::start().await;
    let properties = json!({
        "page": { "path": "/a\"b", "tags": ["x", "y"] }, "price": 9.5, "n": 3, "ok": true, "none": null, "text": "7",
    });
    let one = Event { properties: Some(properties.to_string()), ..event("e-1", "view", 1_767_225_600) };
    support::send_processed(&api.stack, &[one, event("e-2", "view", 1_767_225_600)]).await;
    eventually("both are seen", || async { api.rows("SELECT count(*) AS n FROM events").await == json!([{ "n": 2 }]) })
        .await;
    for (expression, expected) in [
        ("json_get_str(properties, 'page', 'path')", json!("/a\"b")),
        ("json_get_json(properties, 'page') ->> 'path'", json!("/a\"b")),
        ("json_get_json(properties, 'page', 'tags')", json!("[\"x\",\"y\"]")),
        ("json_get_str(properties, 'page', 'tags', 1)", json!("y")),
        ("json_length(properties, 'page', 'tags')", json!(2)),
        ("json_get_float(properties, 'price') * 2", json!(19.0)),
        ("json_get_float(properties, 'n')", json!(3.0)),
        ("json_get_int(properties, 'n')", json!(3)),
        ("json_get_int(properties, 'text')", json!(null)),
        ("CAST(properties ->> 'text' AS bigint)", json!(7)),
        ("json_get_bool(properties, 'ok')", json!(true)),
        ("properties ->> 'none'", json!(null)),
        ("properties ->> 'missing'", json!(null)),
        ("json_contains(properties, 'none')", json!(true)),
        ("json_as_text(properties, 'price')", json!("9.5")),
        ("json_get_json('{\"a\":[1]}', 'a', 0)", json!("1")),
        ("json_get_str('not JSON', 'a')", json!(null)),
    ] {
        let rows = api.rows(&format!("SELECT {expression} AS x FROM events WHERE event_id = 'e-1'")).await;
        assert_eq!(rows, json!([{ "x": expected }]), "{expression}");
    }
    let by_path =
        "SELECT json_get_str(properties, 'page', 'path') AS path, count(*) AS n FROM events GROUP BY 1 ORDER BY 1";
    assert_eq!(api.rows(by_path).await, json!([{ "path": "/a\"b", "n": 1 }, { "path": null, "n": 1 }]));
    for bad in [
        "json_get_str(properties, event_id)",
        "json_get_str(1, 'a')",
        "json_get_str()",
        "json_get_int(properties, 1.5)",
    ] {
        assert_eq!(api.sql(&format!("SELECT {bad} FROM events")).await.0, 400, "{bad}");
    }
}

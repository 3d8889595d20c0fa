//! SQL: what it answers, and what it refuses.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use serde_json::{Value, json};
use support::{Api, insert_session, insert_user, new_key, time};
use tidemill_query::Config;
use tidemill_stream::session_key;

async fn with_sessions(config: Config, count: i64) -> Api {
    let api = Api::start_with(config, |_| ()).await;
    let start = time("2026-01-01T00:00:00Z");
    for i in 0..count {
        let user = (i % 2 == 0).then_some("u");
        let first = start + TimeDelta::hours(i);
        insert_session(&api.stack, &api.stack.project, &format!("s{i}"), user, first, i % 30).await;
    }
    insert_user(&api.stack, &api.stack.project, "u", start).await;
    api
}

#[tokio::test]
async fn a_query_reads_postgres_a_few_times_at_most() {
    let api = with_sessions(Config::default(), 10).await;
    let union = |times| vec!["SELECT session_id FROM sessions"; times].join(" UNION ALL ");
    let counted = |times| format!("SELECT count(*) AS n FROM ({})", union(times));
    assert_eq!(api.rows(&counted(8)).await, json!([{ "n": 80 }]));
    let (status, answer) = api.sql(&counted(9)).await;
    assert!(status == 400 && answer["detail"].as_str().unwrap().contains("9 times, and may do so 8 times"), "{answer}");
}

#[tokio::test]
async fn sessions_are_a_table() {
    let api = with_sessions(Config::default(), 10).await;
    let (status, answer) = api.sql("SELECT * FROM sessions WHERE session_id = 's1'").await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["truncated"], json!(false));
    let expected = json!([{
        "session_id": "s1", "user_id": null, "first_event_at": "2026-01-01T01:00:00Z",
        "last_event_at": "2026-01-01T01:01:00Z", "total_events": 5, "page_views": 3, "conversions": 1,
        "has_conversion": true, "revenue": 0.0, "is_new": false, "is_bounce": false, "entry_page": null,
        "exit_page": "/cart", "current_page": "/cart", "traffic_source": "direct", "device_type": null,
        "country": null, "duration_seconds": 60.0,
    }]);
    assert_eq!(answer["rows"], expected);
    assert_eq!(answer["columns"][2], json!({ "name": "first_event_at", "type": "timestamp" }));
    for (sql, expected) in [
        ("SELECT count(*) AS n FROM sessions", json!([{ "n": 10 }])),
        ("SELECT count(*) AS n FROM sessions WHERE is_new", json!([{ "n": 1 }])),
        ("SELECT session_id FROM sessions WHERE user_id = 'u' AND is_new", json!([{ "session_id": "s0" }])),
        (
            "SELECT session_id AS id FROM sessions WHERE first_event_at >= '2026-01-01T08:00:00Z' ORDER BY id",
            json!([{ "id": "s8" }, { "id": "s9" }]),
        ),
        (
            "SELECT session_id AS id FROM sessions WHERE timestamp '2026-01-01 01:00:30' > last_event_at ORDER BY 1",
            json!([{ "id": "s0" }]),
        ),
        ("SELECT sum(total_events) AS n FROM (SELECT * FROM sessions LIMIT 3)", json!([{ "n": 15 }])),
        ("SELECT count(*) AS n FROM sessions a JOIN sessions b USING (sessionId)", json!([{ "n": 10 }])),
        (
            "SELECT max(duration_seconds) / 60 AS m FROM sessions WHERE session_id IN ('s3', 's7')",
            json!([{ "m": 7.0 }]),
        ),
        ("SELECT count(*) AS n FROM sessions WHERE session_id > 's7' AND user_id IS NULL", json!([{ "n": 1 }])),
        ("SELECT session_id FROM sessions WHERE session_id = chr(0)", json!([])),
    ] {
        assert_eq!(api.rows(sql).await, expected, "{sql}");
    }
    let plan = api.rows("EXPLAIN SELECT page_views FROM sessions WHERE user_id = 'u' LIMIT 2").await.to_string();
    assert!(plan.contains("limit: Some(2)") || plan.contains("fetch=2"), "{plan}");
    assert!(!plan.contains("FilterExec"), "{plan}");
}

#[tokio::test]
async fn json_names_work_and_come_back_as_written() {
    let api = with_sessions(Config::default(), 3).await;
    let rows = api
        .rows("SELECT sessionId, s.PAGEVIEWS, \"isNew\" FROM sessions s WHERE UserID = 'u' ORDER BY firstEventAt")
        .await;
    let expected = json!([
        { "sessionId": "s0", "PAGEVIEWS": 3, "isNew": true },
        { "sessionId": "s2", "PAGEVIEWS": 3, "isNew": false },
    ]);
    assert_eq!(rows, expected);
    let sql = "SELECT eventType, count(*) AS n, max(timestamp) AS timestamp FROM events GROUP BY eventType ORDER BY timestamp";
    let (status, answer) = api.sql(sql).await;
    assert_eq!(status, 200, "{answer}");
    let names: Vec<_> = answer["columns"].as_array().unwrap().iter().map(|column| column["name"].clone()).collect();
    assert_eq!((names, &answer["rows"]), (vec![json!("eventType"), json!("n"), json!("timestamp")], &json!([])));
}

#[tokio::test]
async fn values_have_a_form_in_json() {
    let api = Api::start().await;
    let sql = "SELECT timestamp '2026-01-01 00:00:00.25' AS t, date '2026-01-01' AS d, 1.5 AS f, 'a' AS x, 'b' AS \"x\", \
               NULL AS n, interval '1 day' AS i, [1, 2] AS l, CAST(1 AS decimal(5, 2)) AS m";
    let expected = json!([{
        "t": "2026-01-01T00:00:00.250Z", "d": "2026-01-01", "f": 1.5, "x": "a", "n": null, "i": "1 days", "l": [1, 2], "m": 1.00,
    }]);
    assert_eq!(api.rows(&sql.replace(" 'b' AS \"x\",", "")).await, expected);
    let twice = api.rows("SELECT a.session_id, b.session_id FROM sessions a, sessions b").await;
    assert_eq!(twice, json!([]));
    let path = "/v1/query?sql=SELECT%201%20%2B%201%20AS%20two";
    assert_eq!(api.get(path).await.1["rows"], json!([{ "two": 2 }]));
}

#[tokio::test]
async fn all_but_reads_of_the_own_tables_are_refused_and_touch_nothing() {
    let api = with_sessions(Config::default(), 3).await;
    let other = format!("{}-b", api.stack.project);
    api.stack.insert_project(&other).await;
    let target = std::env::temp_dir().join(format!("{}.csv", api.stack.project));
    let (file, target_text) = (std::env::temp_dir().join(format!("{}-in.csv", api.stack.project)), target.display());
    std::fs::write(&file, "secret\n1\n").unwrap();
    let path = file.display();
    for sql in [
        "DROP TABLE sessions".to_owned(),
        "INSERT INTO sessions (session_id) VALUES ('x')".to_owned(),
        "INSERT INTO events SELECT * FROM events".to_owned(),
        "UPDATE sessions SET user_id = 'x'".to_owned(),
        "DELETE FROM sessions".to_owned(),
        "SELECT * INTO t FROM sessions".to_owned(),
        "CREATE TABLE t AS SELECT 1".to_owned(),
        "CREATE VIEW v AS SELECT 1".to_owned(),
        "SET datafusion.execution.batch_size = 1".to_owned(),
        "SHOW TABLES".to_owned(),
        "SELECT 1; SELECT 2".to_owned(),
        "SELECT 1; DROP TABLE sessions".to_owned(),
        "EXPLAIN ANALYZE INSERT INTO sessions (session_id) VALUES ('x')".to_owned(),
        "EXPLAIN ANALYZE DELETE FROM sessions".to_owned(),
        format!("COPY sessions TO '{target_text}'"),
        format!("COPY (SELECT 1) TO '{target_text}' STORED AS CSV"),
        format!("EXPLAIN ANALYZE COPY sessions TO '{target_text}' STORED AS CSV"),
        format!("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '{path}'"),
        format!("SELECT * FROM '{path}'"),
        format!("SELECT * FROM \"{path}\""),
        format!("SELECT * FROM \"file://{path}\""),
        format!("SELECT * FROM \"{}/tidemill\"", api.stack.connections.warehouse_url),
        format!("SELECT * FROM read_csv('{path}')"),
        format!("SELECT * FROM read_parquet('{path}')"),
        format!("SELECT * FROM parquet_metadata('{path}')"),
        "SELECT * FROM generate_series(1, 1000000000)".to_owned(),
        "SELECT * FROM range(1, 10)".to_owned(),
        format!("SELECT * FROM \"{other}\".events"),
        format!("SELECT * FROM tidemill.\"{other}\".events"),
        format!("SELECT * FROM \"events.{other}\""),
        "SELECT * FROM api_keys".to_owned(),
        "SELECT * FROM public.sessions".to_owned(),
        "SELECT * FROM information_schema.tables".to_owned(),
        "SELECT * FROM pg_catalog.pg_tables".to_owned(),
        "SELECT * FROM sessions WHERE session_id = (SELECT hash FROM api_keys)".to_owned(),
        "SELECT nothing FROM sessions".to_owned(),
        "SELECT 1 / 0".to_owned(),
        "SELECT CAST('x' AS integer)".to_owned(),
        "SELECT repeat('x', 2000000000)".to_owned(),
        format!("SELECT replace('x', 'x', '{}')", "y".repeat(100)),
        "SELECT regexp_replace('x', 'x', 'yy')".to_owned(),
        "SELECT overlay('x' placing 'yy' from 1)".to_owned(),
        "SELECT array_to_string(string_to_array('xx', NULL), 'yyyy')".to_owned(),
        "SELECT encode(encode('x', 'hex'), 'hex')".to_owned(),
        "SELECT string_agg(session_id, ',') FROM sessions".to_owned(),
        "SELECT array_agg(session_id) FROM sessions".to_owned(),
        "SELEC 1".to_owned(),
        String::new(),
    ] {
        let (status, problem) = api.sql(&sql).await;
        assert_eq!((status, &problem["type"]), (400, &json!("urn:tidemill:problem:bad-sql")), "{sql}: {problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(!detail.contains("postgres://") && !detail.contains("secret"), "{sql}: {detail}");
    }
    let said = async |sql: &str| api.sql(sql).await.1["detail"].as_str().unwrap().to_owned();
    let tables = "table 'orders' not found; there are events, sessions, metrics and daily_metrics";
    assert_eq!(said("SELECT * FROM orders").await, tables);
    let parser = said("SELEC 1").await;
    assert!(parser.starts_with("sql parser error: Expected: an SQL statement, found: SELEC"), "{parser}");
    assert!(!target.exists());
    std::fs::remove_file(file).unwrap();
    assert_eq!(api.rows("SELECT count(*) AS n FROM sessions").await, json!([{ "n": 3 }]));
    let missing =
        api.client.post(format!("{}/v1/query", api.base)).bearer_auth(&api.key).body("{}").send().await.unwrap();
    assert_eq!(missing.status(), 400);
}

#[tokio::test]
async fn sessions_know_where_they_come_from_and_what_they_brought() {
    let api = with_sessions(Config::default(), 4).await;
    let change = "UPDATE sessions SET revenue = 12.30, traffic_source = 'email', device_type = 'mobile', country = 'NL'
                  WHERE session_id IN ('s0', 's1')";
    sqlx::query(change).execute(&api.stack.pool).await.unwrap();
    // A session of a user without an id, and one whose id begins as those do.
    let keys = [session_key::of_user("u"), session_key::of_session("\u{1}u").into_owned()];
    for key in &keys {
        insert_session(&api.stack, &api.stack.project, key, Some("u"), time("2026-01-02T00:00:00Z"), 1).await;
    }
    for (sql, expected) in [
        (
            "SELECT trafficSource, deviceType, country, sum(revenue) AS revenue, count(*) AS n FROM sessions
             WHERE traffic_source = 'email' GROUP BY 1, 2, 3",
            json!([{ "trafficSource": "email", "deviceType": "mobile", "country": "NL", "revenue": 24.6, "n": 2 }]),
        ),
        ("SELECT count(*) AS n FROM sessions WHERE traffic_source = 'direct'", json!([{ "n": 4 }])),
        ("SELECT user_id FROM sessions WHERE session_id IS NULL", json!([{ "user_id": "u" }])),
        ("SELECT session_id FROM sessions WHERE session_id = chr(1) || 'u'", json!([{ "session_id": "\u{1}u" }])),
    ] {
        assert_eq!(api.rows(sql).await, expected, "{sql}");
    }
}

#[tokio::test]
async fn a_project_reads_its_own_rows_only() {
    let api = with_sessions(Config::default(), 3).await;
    let other = format!("{}-b", api.stack.project);
    api.stack.insert_project(&other).await;
    insert_session(&api.stack, &other, "theirs", None, time("2026-01-01T00:00:00Z"), 1).await;
    sqlx::query(
        "INSERT INTO sessions SELECT 1, project, 'old', first_event_at, last_event_at, 0, 0, 0 FROM sessions LIMIT 1",
    )
    .execute(&api.stack.pool)
    .await
    .unwrap();
    let other_key = new_key(&api.stack, &other, "read").await;
    let ids = "SELECT session_id FROM sessions WHERE session_id = session_id OR true ORDER BY 1";
    assert_eq!(api.rows(ids).await, json!([{ "session_id": "s0" }, { "session_id": "s1" }, { "session_id": "s2" }]));
    assert_eq!(api.sql_as(&other_key, ids).await.1["rows"], json!([{ "session_id": "theirs" }]));
}

#[tokio::test]
async fn answers_are_cut_off_at_the_limits() {
    let small = Config { sql_max_rows: 3, ..Config::default() };
    let api = with_sessions(small, 4).await;
    let cut = |answer: Value| (answer["rows"].as_array().unwrap().len(), answer["truncated"].clone());
    assert_eq!(cut(api.sql("SELECT * FROM sessions").await.1), (3, json!(true)));
    assert_eq!(cut(api.sql("SELECT * FROM sessions LIMIT 3").await.1), (3, json!(false)));
    assert_eq!(cut(api.sql("SELECT * FROM sessions WHERE false").await.1), (0, json!(false)));
}

/// A product of the table with itself.
fn product(tables: usize) -> String {
    (0..tables).map(|i| format!("sessions s{i}")).collect::<Vec<_>>().join(", ")
}

#[tokio::test]
async fn a_query_that_takes_too_long_is_stopped_and_holds_up_nobody() {
    let config = Config { concurrency: 1, sql_queue: 0, sql_timeout_s: 3, ..Config::default() };
    let api = with_sessions(config, 120).await;
    let endless = format!("SELECT count(*) FROM {} WHERE s0.page_views + s3.page_views > 7", product(4));
    let started = Instant::now();
    let (running, other, health) = tokio::join!(api.sql(&endless), api.sql(&endless), async {
        api.client.get(format!("{}/livez", api.base)).send().await.unwrap().status()
    });
    let mut answers = [(running.0, running.1["type"].clone()), (other.0, other.1["type"].clone())];
    answers.sort_by_key(|(status, _)| *status);
    assert_eq!(answers[0], (422, json!("urn:tidemill:problem:query-too-large")));
    assert_eq!(answers[1], (503, json!("urn:tidemill:problem:busy")));
    assert_eq!(health, 200);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(api.rows("SELECT 1 AS one").await, json!([{ "one": 1 }]), "its place is free again");
}

#[tokio::test]
async fn a_query_that_takes_too_much_memory_fails_alone() {
    let api = with_sessions(Config { sql_memory_mb: 4, ..Config::default() }, 120).await;
    let large = format!("SELECT DISTINCT s0.session_id || s1.session_id || s2.session_id FROM {}", product(3));
    let (status, problem) = api.sql(&large).await;
    assert_eq!((status, &problem["type"]), (422, &json!("urn:tidemill:problem:query-too-large")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("memory"), "{problem}");
    assert_eq!(api.rows("SELECT count(*) AS n FROM sessions").await, json!([{ "n": 120 }]));
}

#[tokio::test]
async fn long_chains_do_not_break_the_planner() {
    let api = Api::start().await;
    let sum = format!("SELECT session_id FROM sessions WHERE total_events = {}1", "total_events + ".repeat(90));
    let or = format!("SELECT session_id FROM sessions WHERE {} false", "page_views = 1 or ".repeat(450));
    let union = format!("{} SELECT 1", "SELECT 1 UNION ALL ".repeat(450));
    let list = format!("SELECT session_id FROM sessions WHERE total_events IN ({}1)", "7, ".repeat(10_000));
    for sql in [sum, or, union, list] {
        let (status, answer) = api.sql(&sql).await;
        assert_eq!(status, 200, "{}: {answer}", &sql[..60]);
    }
    // The largest that are let through.
    let levels = |first: &str, step: &dyn Fn(usize) -> String, count: usize, last: &str| {
        let steps: Vec<String> = (1..=count).map(|i| format!("c{i} AS ({})", step(i - 1))).collect();
        format!("WITH c0 AS ({first}), {} SELECT a FROM c{count} {last}", steps.join(", "))
    };
    let number = "SELECT kafka_offset AS a FROM events";
    for sql in [
        levels(number, &|i| format!("SELECT x.a FROM c{i} x JOIN c{i} y ON x.a = y.a"), 5, ""),
        levels(number, &|i| format!("SELECT x.a FROM c{i} x, c{i} y"), 5, "WHERE a = 1"),
        levels(number, &|i| format!("SELECT a FROM c{i} UNION SELECT a FROM c{i}"), 5, ""),
        levels(number, &|i| format!("SELECT a * a AS a FROM c{i}"), 13, "WHERE a = 1 OR a = 2"),
        levels(number, &|i| format!("SELECT CASE WHEN a > 1 THEN a ELSE a END AS a FROM c{i}"), 8, "WHERE a = 1"),
    ] {
        let started = Instant::now();
        let (status, answer) = api.sql(&sql).await;
        assert_eq!(status, 200, "{}: {answer}", &sql[..160]);
        println!("{:?} for {}", started.elapsed(), &sql[..160]);
        assert!(started.elapsed() < Duration::from_secs(20), "{:?} for {}", started.elapsed(), &sql[..160]);
    }
    let deep = format!("SELECT {}1", "1 + ".repeat(900));
    assert_eq!(api.sql(&deep).await.0, 400);
}

#[tokio::test]
async fn large_values_cannot_be_made_of_small_ones() {
    let api = with_sessions(Config::default(), 1).await;
    let text = |bytes: usize| "x".repeat(bytes);
    let doubled =
        (0..32).fold("SELECT 'xxxxxxxx' AS a".to_owned(), |sql, _| format!("SELECT a || a AS a FROM ({sql})"));
    let ctes: Vec<String> = (1..32).map(|i| format!("c{i} AS (SELECT concat(a, a) AS a FROM c{})", i - 1)).collect();
    for sql in [
        format!("SELECT octet_length(replace('{}', 'x', '{}'))", text(100_000), text(100_000)),
        format!("SELECT octet_length(regexp_replace('{}', 'x', '{}', 'g'))", text(4_000), text(4_000)),
        doubled,
        format!("WITH c0 AS (SELECT 'x' AS a), {} SELECT octet_length(a) FROM c31", ctes.join(", ")),
        "WITH RECURSIVE r AS (SELECT 'x' AS a UNION ALL SELECT a || a FROM r) SELECT max(octet_length(a)) FROM r"
            .to_owned(),
        format!("SELECT {} FROM sessions", vec!["session_id"; 101].join(", ")),
        format!("SELECT '{}'", text(8_193)),
    ] {
        let (status, problem) = api.sql(&sql).await;
        assert_eq!(
            (status, &problem["type"]),
            (400, &json!("urn:tidemill:problem:bad-sql")),
            "{}: {problem}",
            &sql[..60.min(sql.len())]
        );
    }
    let joined = api.rows("SELECT upper(session_id) || '-' || concat(user_id, 1) AS a FROM sessions").await;
    assert_eq!(joined, json!([{ "a": "S0-u1" }]));
}

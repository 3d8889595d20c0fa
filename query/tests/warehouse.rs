//! Queries that another engine answers: what it is asked, and what becomes of its answers. The real engines are in
//! `make test-warehouses`; here they are played, page by page.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::stream;
use serde_json::{Value, json};
use support::{Api, insert_session, time};
use tidemill_query::{Config, Engine};
use tidemill_testkit::eventually;
use tokio::net::TcpListener;

/// What an engine was asked, in order.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<String>>>);

impl Asked {
    fn note(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }

    fn has(&self, what: &str) -> bool {
        self.0.lock().unwrap().iter().any(|asked| asked.contains(what))
    }
}

async fn start(warehouse: Engine, app: Router<()>, rows: usize) -> Api {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let config = Config { warehouse, warehouse_url: Some(url), sql_max_rows: rows, ..Config::default() };
    Api::start_with(config, |_| ()).await
}

/// A Trino whose second page is not there at first, and which never comes to its end.
fn trino(asked: Asked) -> Router<()> {
    let statement = async |State(asked): State<Asked>, headers: HeaderMap, sql: String| {
        let said = |name: &str| headers[name].to_str().unwrap().to_owned();
        asked.note(format!("{} {} {} {sql}", said("x-trino-user"), said("x-trino-catalog"), said("x-trino-schema")));
        if sql.contains("no_such") {
            let error = json!({ "message": "no column", "errorName": "COLUMN_NOT_FOUND", "errorType": "USER_ERROR" });
            return axum::Json(json!({ "id": "1", "error": error }));
        }
        // By another name than it was asked by.
        axum::Json(json!({ "id": "1", "nextUri": "http://elsewhere.invalid:1/v1/statement/queued/1" }))
    };
    let page = async |State(asked): State<Asked>, Path(number): Path<u64>| -> Response {
        let is_first_time = !asked.has(&format!("page {number}"));
        asked.note(format!("page {number}"));
        if number == 2 && is_first_time {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        let columns = json!([{ "name": "event_type", "type": "varchar" }, { "name": "n", "type": "bigint" }]);
        let next = format!("http://elsewhere.invalid:1/v1/statement/queued/{}", number + 1);
        axum::Json(match number {
            1 => json!({ "nextUri": next }),
            _ => json!({ "nextUri": next, "columns": columns, "data": [["a", number], [null, number]] }),
        })
        .into_response()
    };
    let cancel = async |State(asked): State<Asked>| {
        asked.note("cancelled".to_owned());
        StatusCode::NO_CONTENT
    };
    Router::new()
        .route("/v1/statement", post(statement))
        .route("/v1/statement/queued/{page}", get(page).delete(cancel))
        .with_state(asked)
}

#[tokio::test]
async fn trino_is_asked_as_the_project_and_told_when_it_is_enough() {
    let asked = Asked::default();
    let api = start(Engine::Trino, trino(asked.clone()), 3).await;
    let project = api.stack.project.clone();
    let sql = "SELECT eventType, count(*) AS n FROM events GROUP BY 1 -- all of them";
    let request = api.client.post(format!("{}/v1/query", api.base)).bearer_auth(&api.key);
    let response = request.json(&json!({ "sql": sql })).send().await.unwrap();
    let headers = response.headers().clone();
    let answer: Value = response.json().await.unwrap();
    let row = |event_type: Value, n: i64| json!({ "eventType": event_type, "n": n });
    assert_eq!(answer["rows"], json!([row(json!("a"), 2), row(Value::Null, 2), row(json!("a"), 3)]), "{answer}");
    assert_eq!(answer["truncated"], json!(true));
    assert_eq!(
        (&headers["tidemill-warehouse"], &headers["tidemill-tail"]),
        (&"trino".parse().unwrap(), &"off".parse().unwrap())
    );
    assert!(!headers.contains_key("tidemill-snapshot"), "it reads whichever is the newest");
    let sent = format!(
        "tidemill_{project} tidemill tidemill.{project} SELECT event_type, count(*) AS n FROM events GROUP BY 1"
    );
    assert!(asked.has(&sent), "{:?}", asked.0.lock().unwrap());
    eventually("Trino is told", || async { asked.has("cancelled") }).await;
    let (status, problem) = api.sql("SELECT no_such FROM events").await;
    assert_eq!((status, &problem["detail"]), (400, &json!("no column")));
}

/// A ClickHouse whose second line of rows comes late, or is an error.
fn clickhouse(asked: Asked) -> Router<()> {
    let query = async |State(asked): State<Asked>,
                       Query(params): Query<Vec<(String, String)>>,
                       headers: HeaderMap,
                       sql: String|
           -> Response {
        let of = |name: &str| params.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value);
        let user = headers["x-clickhouse-user"].to_str().unwrap();
        asked.note(format!("{user} {} {} {} {sql}", of("database"), of("role"), of("readonly")));
        if sql.contains("no_such") {
            let code = [("x-clickhouse-exception-code", "47")];
            return (StatusCode::NOT_FOUND, code, "Code: 47. Unknown identifier").into_response();
        }
        if sql.contains("forbidden") {
            let code = [("x-clickhouse-exception-code", "497")];
            return (StatusCode::FORBIDDEN, code, "Code: 497. the secret rules").into_response();
        }
        let last = if sql.contains("breaks") { "Code: 159. DB::Exception: Timeout" } else { "[null, \"2\"]" };
        let lines = ["[\"event_type\", \"n\"]\n[\"Nullable(String)\", ", "\"UInt64\"]\n[\"a\", \"1\"]\n", last];
        let pieces = lines.map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
        Body::from_stream(stream::iter(pieces)).into_response()
    };
    Router::new().route("/", post(query)).with_state(asked)
}

#[tokio::test]
async fn clickhouse_is_asked_with_the_projects_role() {
    let asked = Asked::default();
    let api = start(Engine::ClickHouse, clickhouse(asked.clone()), 10).await;
    let project = api.stack.project.clone();
    let rows = api.rows("SELECT event_type AS eventType, count() AS n FROM events GROUP BY 1").await;
    assert_eq!(rows, json!([{ "eventType": "a", "n": 1 }, { "eventType": null, "n": 2 }]));
    assert!(asked.has(&format!("tidemill tidemill_{project} tidemill_{project} 2 SELECT event_type AS event_type")));
    let (status, problem) = api.sql("SELECT no_such FROM events").await;
    assert_eq!((status, &problem["detail"]), (400, &json!("Code: 47. Unknown identifier")));
    let (status, problem) = api.sql("SELECT forbidden FROM events").await;
    assert_eq!(status, 503);
    assert!(!problem.to_string().contains("secret"), "{problem}");
    assert_eq!(api.sql("SELECT breaks FROM events").await.0, 503, "half an answer is none");
}

#[tokio::test]
async fn what_lies_in_postgres_is_answered_here() {
    let asked = Asked::default();
    let api = start(Engine::Trino, trino(asked.clone()), 10).await;
    insert_session(&api.stack, &api.stack.project, "s", None, time("2026-01-01T00:00:00Z"), 1).await;
    assert_eq!(api.rows("SELECT session_id FROM sessions").await, json!([{ "session_id": "s" }]));
    assert_eq!(api.rows("SELECT 1 + 1 AS two").await, json!([{ "two": 2 }]));
    let (status, problem) = api.sql("SELECT * FROM events JOIN sessions USING (session_id)").await;
    assert_eq!(status, 400);
    assert!(
        problem["detail"].as_str().unwrap().contains("\"sessions\" cannot be read in one query with events"),
        "{problem}"
    );
    assert!(asked.0.lock().unwrap().is_empty());
}

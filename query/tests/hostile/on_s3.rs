//! The same where the warehouse lies on S3: whatever is asked for, the server is asked for nothing but files of the
//! caller's own table, and a server that does not answer holds up nobody.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{Response, header};
use serde_json::json;
use tidemill_common::event::Event;
use tidemill_common::home::home_partition;
use tidemill_common::kafka::Outgoing;
use tidemill_common::names::events_topic;
use tidemill_query::Config;
use tidemill_testkit::{PARTITIONS, S3, event, eventually};
use tokio::net::TcpListener;

use crate::statements::{Places, statements};
use crate::support::{Api, new_key};
use crate::{EVENTS, T0};

const TIMEOUT_S: u64 = 2;

/// A door before an S3 server, which knows what was asked for and can be shut.
#[derive(Clone)]
struct Door {
    endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
    shut: Arc<AtomicBool>,
}

impl Door {
    async fn before(server: &S3) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let door = Self { endpoint, asked: Arc::default(), shut: Arc::default() };
        let (passing, behind, client) = (door.clone(), server.endpoint.clone(), reqwest::Client::new());
        let pass = move |request: Request| {
            let (door, behind, client) = (passing.clone(), behind.clone(), client.clone());
            async move { door.pass(request, &behind, &client).await }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(pass)).await.unwrap() });
        door
    }

    async fn pass(&self, request: Request, behind: &str, client: &reqwest::Client) -> Response<Body> {
        let (mut parts, body) = request.into_parts();
        self.asked.lock().unwrap().push(format!("{} {}", parts.method, parts.uri));
        if self.shut.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        parts.headers.remove(header::HOST);
        let body = to_bytes(body, 64 << 20).await.unwrap();
        let request = client.request(parts.method, format!("{behind}{}", parts.uri)).headers(parts.headers).body(body);
        let answer = request.send().await.unwrap();
        let mut passed = Response::builder().status(answer.status());
        *passed.headers_mut().unwrap() = answer.headers().clone();
        passed.headers_mut().unwrap().remove(header::TRANSFER_ENCODING);
        passed.body(Body::from(answer.bytes().await.unwrap())).unwrap()
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

/// The project's events, which are too much for the memory of a query when they are sorted, and one of another project.
async fn archive(api: &Api, other: &str) {
    let topics = format!("^events\\.{}(-b)?$", api.stack.project);
    let archiver = api.archiver(|config| config.topics = topics).await;
    let large = format!(r#"{{"text":"{}"}}"#, "x".repeat(500_000));
    let events: Vec<Event> = (0..EVENTS)
        .map(|n| Event { properties: Some(large.clone()), ..event(&format!("e-{n}"), &format!("t{}", n % 3), T0 + n) })
        .collect();
    api.stack.send_all(&events).await;
    let (topic, value) = (events_topic(other), api.stack.encoder.encode(&event("secret", "secret", T0)));
    let partition = home_partition(b"secret", PARTITIONS);
    let record = Outgoing { topic: &topic, partition, key: Some(b"secret"), value: &value, headers: &[] };
    api.stack.producer.send(&record).await.unwrap();
    let key = new_key(&api.stack, other, "read").await;
    eventually("both are archived", || async {
        let count = "SELECT count(*) AS n FROM events";
        let (_, own) = api.sql(count).await;
        own["rows"] == json!([{ "n": EVENTS }]) && api.sql_as(&key, count).await.1["rows"] == json!([{ "n": 1 }])
    })
    .await;
    archiver.end().await;
}

/// The statements that reach for files, in the words of S3, and what they should not reach.
fn reaching(places: &Places, endpoint: &str) -> Vec<String> {
    let Places { file, warehouse, .. } = places;
    let path = file.trim_start_matches("s3:/");
    let names = [
        file.clone(),
        warehouse.clone(),
        format!("{warehouse}/data/*.parquet"),
        format!("{warehouse}/../../{}/events/data", places.other),
        file.replacen("s3://", "s3a://", 1),
        format!("{endpoint}{path}"),
        format!("archive://files{path}"),
        format!("s3://another-bucket{path}"),
    ];
    let forms = |name: &String| {
        [
            format!("SELECT * FROM \"{name}\""),
            format!("SELECT * FROM '{name}'"),
            format!("SELECT * FROM read_parquet('{name}')"),
            format!("SELECT * FROM parquet_metadata('{name}')"),
            format!("SELECT * FROM s3('{name}')"),
            format!("SELECT * FROM events JOIN '{name}' f ON true"),
            format!("CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{name}'"),
            format!("COPY events TO '{name}'"),
            format!("COPY (SELECT * FROM events) TO '{name}' STORED AS PARQUET"),
        ]
    };
    names.iter().flat_map(forms).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn on_s3_nothing_is_read_but_the_own_table() {
    let server = S3::start().await;
    let door = Door::before(&server).await;
    let config = Config { sql_timeout_s: TIMEOUT_S, sql_memory_mb: 4, ..Config::default() };
    let api = Api::start_with(config, |stack| {
        server.reach(&mut stack.connections);
        stack.connections.warehouse.s3_endpoint = Some(door.endpoint.clone());
        stack.connections.warehouse_url = format!("s3://warehouse/{}", stack.project);
    })
    .await;
    let other = format!("{}-b", api.stack.project);
    api.stack.create_project(&other).await;
    archive(&api, &other).await;
    let written = door.asked();
    let file = |project: &str| {
        let place = format!("/{project}/events/data/");
        let put = written.iter().find(|asked| asked.starts_with("PUT") && asked.contains(&place)).unwrap();
        put.trim_start_matches("PUT ").split('?').next().unwrap().to_owned()
    };
    let (own, others) = (file(&api.stack.project), file(&other));
    let table = own.split_once("/data/").unwrap().0.to_owned();
    let places = Places {
        file: format!("s3:/{others}"),
        target: format!("s3://warehouse/{}/target.parquet", api.stack.project),
        warehouse: format!("s3:/{table}"),
        other,
    };
    for sql in statements(&places).iter().chain(&reaching(&places, &door.endpoint)) {
        let (status, problem) = api.sql(sql).await;
        let shown: String = sql.chars().take(200).collect();
        assert_eq!((status, &problem["type"]), (400, &json!("urn:tidemill:problem:bad-sql")), "{shown}: {problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(sql.contains(&door.endpoint) || !detail.contains(&door.endpoint), "{shown}: {detail}");
    }
    let plan = api.rows("EXPLAIN ANALYZE SELECT * FROM events WHERE event_id = 'e-1'").await.to_string();
    assert!(plan.contains(".parquet") && !plan.contains("s3:") && !plan.contains("warehouse/"), "{plan}");
    let rows =
        api.rows("SELECT count(DISTINCT properties) AS n, min(event_id) AS e, now() > '2000-01-01' AS t FROM events");
    assert_eq!(rows.await, json!([{ "n": 1, "e": "e-0", "t": true }]));
    // What is kept of the other project's table may be looked after meanwhile, but nothing of its rows.
    let asked = door.asked();
    assert!(
        asked.iter().any(|asked| asked.starts_with(&format!("GET {table}/data/"))),
        "the reads are there: {asked:?}"
    );
    let ours = |asked: &&String| {
        let metadata = format!("GET {}/metadata/", others.split_once("/data/").unwrap().0);
        asked.starts_with(&format!("GET {table}/")) || asked.starts_with(&metadata)
    };
    let strange: Vec<&String> = asked.iter().filter(|asked| !ours(asked)).collect();
    assert!(strange.is_empty(), "{strange:#?}");

    // What needs more memory than it may have fails, and what waits for the server is stopped.
    let sorted = "SELECT event_id, properties || event_id AS p FROM events ORDER BY p DESC";
    let (status, problem) = api.sql(sorted).await;
    assert_eq!((status, &problem["type"]), (422, &json!("urn:tidemill:problem:query-too-large")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("memory"), "{problem}");
    door.shut.store(true, Ordering::SeqCst);
    let (began, read) =
        (Instant::now(), "SELECT count(DISTINCT properties) AS n, now() > '2001-01-01' AS t FROM events");
    let (status, problem) = api.sql(read).await;
    assert_eq!(status, 422, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("stopped after 2 s"), "{problem}");
    assert!(began.elapsed() < Duration::from_secs(TIMEOUT_S + 3), "{:?}", began.elapsed());
    door.shut.store(false, Ordering::SeqCst);
    eventually("it is read when the server is back", || async { api.sql(read).await.0 == 200 }).await;
}

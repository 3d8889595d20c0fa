//! What a query can do to others: nothing. At least 200 hostile statements, all of them refused; and under strace,
//! no file and no connection but those of the project's own table and of the databases that are ours.
#![allow(clippy::unwrap_used)]

mod on_s3;
mod statements;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use statements::{Places, beside_events, statements};
use support::{Api, insert_session, new_key, time};
use tidemill_query::{Config, Engine};
use tidemill_testkit::{event, eventually};
use tokio::net::TcpListener;

/// Set for the process that runs under strace.
const TRACED: &str = "TIDEMILL_TEST_TRACED";
/// These files are not there. Looking for them marks a place in the trace.
const BEGIN: &str = "/tidemill-test-begin";
const END: &str = "/tidemill-test-end";

fn places(api: &Api) -> Places {
    let file = api.stack.folder("secret.csv");
    std::fs::write(&file, "secret\n1\n").unwrap();
    Places {
        file: file.display().to_string(),
        target: api.stack.folder("target.csv").display().to_string(),
        warehouse: api.stack.folder("tidemill").display().to_string(),
        other: format!("{}-b", api.stack.project),
    }
}

/// 2026-01-01T00:00:00Z
const T0: i64 = 1_767_225_600;
const EVENTS: i64 = 20;

/// Three sessions, and events that are archived.
async fn with_rows() -> Api {
    let api = Api::start().await;
    for i in 0..3 {
        insert_session(&api.stack, &api.stack.project, &format!("s{i}"), None, time("2026-01-01T00:00:00Z"), 1).await;
    }
    let archiver = api.archiver(|_| ()).await;
    let events: Vec<_> = (0..EVENTS).map(|n| event(&format!("e-{n}"), &format!("t{}", n % 3), T0 + n)).collect();
    api.stack.send_all(&events).await;
    eventually("the events are archived", || async {
        api.rows("SELECT count(*) AS n FROM events").await == json!([{ "n": EVENTS }])
    })
    .await;
    archiver.end().await;
    api
}

#[tokio::test]
async fn hostile_statements_are_refused_and_touch_nothing() {
    let api = with_rows().await;
    let places = places(&api);
    api.stack.create_project(&places.other).await;
    let all = statements(&places);
    let different: BTreeSet<&String> = all.iter().collect();
    assert!(different.len() >= 200, "{}", different.len());
    let mut slowest = (Duration::ZERO, String::new());
    for sql in &all {
        let started = Instant::now();
        let (status, problem) = api.sql(sql).await;
        let shown: String = sql.chars().take(200).collect();
        assert_eq!((status, &problem["type"]), (400, &json!("urn:tidemill:problem:bad-sql")), "{shown}: {problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(!detail.contains("postgres://") && !detail.contains("secret\n"), "{shown}: {detail}");
        slowest = slowest.max((started.elapsed(), shown));
    }
    println!("{} statements; the slowest took {:?}: {}", different.len(), slowest.0, slowest.1);
    assert!(slowest.0 < Duration::from_secs(5), "{slowest:?}");
    assert!(!std::path::Path::new(&places.target).exists());
    assert_eq!(api.rows("SELECT count(*) AS n FROM sessions").await, json!([{ "n": 3 }]));
    assert_eq!(api.rows("SELECT count(*) AS n FROM events").await, json!([{ "n": EVENTS }]));
    let other = new_key(&api.stack, &places.other, "read").await;
    assert_eq!(api.sql_as(&other, "SELECT count(*) AS n FROM events").await.1["rows"], json!([{ "n": 0 }]));
}

/// An engine that counts who comes, and says nothing.
async fn silent_engine() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let came = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&came);
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            drop(connection);
        }
    });
    (url, came)
}

#[tokio::test]
async fn hostile_statements_do_not_reach_another_engine() {
    for warehouse in [Engine::Trino, Engine::ClickHouse] {
        let (url, came) = silent_engine().await;
        let config = Config { warehouse, warehouse_url: Some(url), ..Config::default() };
        let api = Api::start_with(config, |_| ()).await;
        insert_session(&api.stack, &api.stack.project, "s", None, time("2026-01-01T00:00:00Z"), 1).await;
        let places = places(&api);
        for sql in statements(&places).iter().chain(&beside_events(&places)) {
            let (status, problem) = api.sql(sql).await;
            let shown: String = sql.chars().take(200).collect();
            let said = (status, &problem["type"]);
            assert_eq!(said, (400, &json!("urn:tidemill:problem:bad-sql")), "{warehouse:?}: {shown}: {problem}");
        }
        assert_eq!(came.load(Ordering::SeqCst), 0, "{warehouse:?}");
        assert_eq!(api.rows("SELECT count(*) AS n FROM sessions").await, json!([{ "n": 1 }]));
        assert_eq!(api.sql("SELECT count(*) FROM events").await.0, 503);
        assert!(came.load(Ordering::SeqCst) > 0, "{warehouse:?}: a query does reach it");
    }
}

/// The part that runs under strace.
#[tokio::test]
async fn traced() {
    if std::env::var_os(TRACED).is_none() {
        return; // run by the test below
    }
    let api = with_rows().await;
    let places = places(&api);
    // What is loaded once (time zones, say) is no deed of a statement.
    // With the time in them, so that their answers are not kept.
    let reads = [
        "SELECT *, now() AS t FROM events",
        "SELECT count(*), now() AS t FROM events e JOIN sessions s ON e.session_id = s.session_id JOIN metrics m ON true",
        "SELECT date_trunc('minute', occurred_at) AS m, now() AS t FROM events ORDER BY 1",
    ];
    for sql in reads {
        api.rows(sql).await;
    }
    println!("warehouse {}", api.stack.folder("").display());
    assert!(!std::fs::exists(BEGIN).unwrap());
    for sql in statements(&places).iter().map(String::as_str).chain(reads) {
        api.sql(sql).await;
    }
    assert!(!std::fs::exists(END).unwrap());
}

#[test]
fn hostile_statements_open_no_file_and_no_connection_elsewhere() {
    let works = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    if !works.is_ok_and(|status| status.success()) {
        println!("skipped: strace is missing, or may not trace here (it needs the capability SYS_PTRACE)");
        return;
    }
    let log = std::env::temp_dir().join(format!("tidemill-strace-{}", std::process::id()));
    let calls = "trace=open,openat,openat2,creat,connect,bind,execve,unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat,stat,statx,newfstatat,access";
    let traced = Command::new("strace")
        .args(["-f", "-qq", "-s", "512", "-e", calls, "-e", "signal=none", "-o"])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "traced", "--nocapture", "--test-threads=1"])
        .env(TRACED, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&traced.stdout);
    assert!(traced.status.success(), "{said}{}", String::from_utf8_lossy(&traced.stderr));
    let warehouse = said.lines().find_map(|line| line.split_once("warehouse ")).unwrap().1.trim_end_matches('/');
    let trace = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_file(&log).unwrap();
    let (_, rest) = trace.split_once(BEGIN).unwrap();
    let (between, _) = rest.split_once(END).unwrap();
    // The first and the last line are those of the marks.
    let mut calls: Vec<&str> = between.lines().skip(1).collect();
    calls.pop();
    assert!(
        calls.iter().any(|call| call.contains(warehouse) && call.contains(".parquet")),
        "the reads are in the trace"
    );
    let strange: Vec<&&str> = calls.iter().filter(|call| !is_ours(call, warehouse)).collect();
    assert!(strange.is_empty(), "{strange:#?}");
    println!("{} calls between the marks, all of them ours", calls.len());
}

/// Whether a system call is one that serving queries takes: files of the project's own table, and connections to the
/// components on this machine.
fn is_ours(call: &str, warehouse: &str) -> bool {
    let table = format!("\"{warehouse}/tidemill/");
    if call.contains("connect(") || call.contains("bind(") {
        // Postgres, Kafka, Redis, our own server and its client; nothing tries the statements' port 1 or a name.
        let here = call.contains("inet_addr(\"127.0.0.1\")") || call.contains("\"::1\"");
        return here && !call.contains("htons(1)") && !call.contains("htons(53)");
    }
    // The storage library looks whether there is a root.
    if call.contains("statx(AT_FDCWD, \"/\",") {
        return true;
    }
    call.contains(&table) && !call.contains("O_WRONLY") && !call.contains("O_RDWR") && !call.contains("O_CREAT")
}

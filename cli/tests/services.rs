//! How services start and stop as processes.
#![allow(clippy::unwrap_used)]

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

/// Starts a service on a free port and reads its log up to the line that says where it listens.
async fn start(service: &str) -> (Child, Lines<BufReader<ChildStderr>>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidemill"))
        .arg(service)
        .env("PORT", "0")
        .env("TIDEMILL_LISTEN__HOST", "127.0.0.1")
        .env("LOG_LEVEL", "info")
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    loop {
        let line = log.next_line().await.unwrap().expect("the service ended at once");
        let line: Value = serde_json::from_str(&line).unwrap();
        if line["fields"]["message"] == "listening" {
            return (child, log, line["fields"]["address"].as_str().unwrap().to_owned());
        }
    }
}

#[tokio::test]
async fn a_service_takes_any_free_port_and_ends_well_on_sigterm() {
    for service in ["ingest", "query"] {
        let (mut child, mut log, address) = start(service).await;
        let live = reqwest::get(format!("http://{address}/livez")).await.unwrap();
        assert_eq!(live.status(), 200);
        let pid = child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        while log.next_line().await.unwrap().is_some() {}
        assert_eq!(child.wait().await.unwrap().code(), Some(0), "{service}");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_with_advice() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_tidemill"))
        .arg("query")
        .env("PORT", taken.local_addr().unwrap().port().to_string())
        .env("TIDEMILL_LISTEN__HOST", "127.0.0.1")
        .output()
        .await
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("set TIDEMILL_QUERY__PORT to a free port"), "{error}");
}

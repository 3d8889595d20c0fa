//! What the gateway says of itself is true: running gateways, driven from their own document.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Stdio;

use reqwest::StatusCode;
use serde_json::{Value, json};
use support::{Gateway, answer, create_key};
use tidemill_testkit::Stack;
use tokio::process::Command;

const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openapi");
const ALL: [&str; 3] = ["write", "read", "admin"];
/// One request or a few of each kind, and only that their answers are as the document has them.
const CONFORMANCE: [&str; 4] = [
    "--phases=examples",
    "--checks=status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance",
    "--exclude-tag=operations",
    "--warnings=off",
];

/// Runs schemathesis; fails with what it has to say.
async fn drive(gateway: &Gateway, key: &str, options: &[&str]) {
    let python =
        std::env::var("TIDEMILL_PYTHON").expect("TIDEMILL_PYTHON; dev/install makes it, dev/services env names it");
    let run = Command::new(python)
        .args(["-c", "from schemathesis.cli import schemathesis; schemathesis()"])
        .arg(format!("--config-file={HERE}/schemathesis.toml"))
        .args(["run", &format!("http://{}/openapi.json", gateway.address)])
        .args(options)
        .envs([("TIDEMILL_KEY", key), ("TIDEMILL_HOOKS", &format!("{HERE}/hooks.py"))])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(std::env::temp_dir()) // where it may leave what it likes
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let (text, errors) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{text}\n{errors}");
}

/// How often requests were answered so, by all gateways of this process.
async fn answered(gateway: &Gateway, status: u16) -> u64 {
    let metrics = gateway.get("/metrics").await.unwrap().text().await.unwrap();
    let status = format!("status=\"{status}\"");
    let lines = metrics.lines().filter(|line| line.starts_with("analytics_api_requests_total{"));
    lines
        .filter(|line| line.contains(&status))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_as_the_document_has_it() {
    let gateway = Gateway::start().await;
    let key = create_key(&gateway.stack, &gateway.stack.project, &ALL, Some(1_000_000)).await;
    for event_type in ["mode", "purchase"] {
        let schema = json!({"eventType": event_type, "schema": {"type": "object"}});
        let registered = answer(gateway.to("/v1/schemas").bearer_auth(&key).json(&schema)).await;
        assert_eq!(registered.status, 201, "{registered:?}");
    }
    drive(&gateway, &key, &[]).await;
    for status in [200, 201, 202, 400, 401, 404, 405, 409, 415, 422] {
        assert!(answered(&gateway, status).await > 0, "nothing was answered {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn so_is_every_refusal() {
    let gateway = Gateway::start().await;
    let project = &gateway.stack.project;
    let limited = create_key(&gateway.stack, project, &ALL, Some(1)).await;
    drive(&gateway, &limited, &CONFORMANCE).await;
    let reader = create_key(&gateway.stack, project, &["read"], None).await;
    drive(&gateway, &reader, &CONFORMANCE).await;
    drive(&gateway, "nobodys", &CONFORMANCE).await;
    let overloaded = Gateway::with(Stack::new().await, |config, _| config.max_requests = 0).await;
    let key = create_key(&overloaded.stack, &overloaded.stack.project, &ALL, None).await;
    drive(&overloaded, &key, &CONFORMANCE).await;
    for status in [401, 403, 429, 503] {
        assert!(answered(&gateway, status).await > 0, "nothing was answered {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_comes_from_the_gateway_alone() {
    let gateway = Gateway::start().await;
    let get = async |path: &str| {
        let answer = gateway.get(path).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        let headers = ["content-type", "content-security-policy", "referrer-policy"].map(header);
        (headers, answer.text().await.unwrap())
    };
    let ([content_type, policy, referrer], page) = get(&format!("/docs?api_key={}", gateway.key)).await;
    assert_eq!(content_type, "text/html; charset=utf-8");
    assert!(policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"), "{policy}");
    assert_eq!(referrer, "no-referrer");
    assert!(!page.contains("://") && !page.contains(&gateway.key), "{page}");
    let files: Vec<&str> = page.split('"').filter(|text| text.starts_with("docs/")).collect();
    assert_eq!(files.len(), 5, "{page}");
    for file in files {
        let ([_, same, _], content) = get(&format!("/{file}")).await;
        assert_eq!(same, policy);
        assert!(content.len() > 500, "{file}");
    }
    let (_, settings) = get("/docs/swagger-initializer.js").await;
    assert!(settings.contains("openapi.json") && settings.contains("\"validatorUrl\": \"none\""), "{settings}");
    assert!(!settings.contains("://"), "{settings}");
    let document: Value = gateway.get("/openapi.json").await.unwrap().json().await.unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(gateway.get("/docs/index.html").await.unwrap().status(), StatusCode::NOT_FOUND);
}

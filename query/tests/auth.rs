//! Who is let in.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use chrono::Utc;
use serde_json::Value;
use support::{Api, new_key};
use tidemill_common::auth::{AuthError, Keys};
use tidemill_testkit::{Stack, eventually_within};

#[tokio::test]
async fn a_read_key_is_needed() {
    let api = Api::start().await;
    let write_key = new_key(&api.stack, &api.stack.project, "write").await;
    for path in ["/v1/metrics", "/v1/metrics/events", "/v1/sessions/s", "/v1/query?sql=SELECT%201"] {
        let without = api.client.get(format!("{}{path}", api.base)).send().await.unwrap();
        assert_eq!(without.status(), 401, "{path}");
        assert_eq!(without.headers()["content-type"], "application/problem+json");
        assert_eq!(without.headers()["www-authenticate"], "Bearer");
        let (status, problem) = api.get_as(&format!("{}x", &api.key[..api.key.len() - 1]), path).await;
        assert_eq!((status, &problem["type"]), (401, &Value::from("urn:tidemill:problem:unauthorized")), "{path}");
        assert_eq!(api.get_as(&write_key, path).await.0, 403, "{path}");
    }
    let other_header = api.client.get(format!("{}/v1/metrics", api.base)).header("x-api-key", &api.key);
    assert_eq!(other_header.send().await.unwrap().status(), 200);
    assert_eq!(api.client.get(format!("{}/livez", api.base)).send().await.unwrap().status(), 200);
    assert_eq!(api.get("/v1/nothing").await.0, 404);
}

#[tokio::test]
async fn refusals_are_problems_and_are_counted() {
    let api = Api::start().await;
    let write_key = new_key(&api.stack, &api.stack.project, "write").await;
    for path in ["/v1/sessions/%FF", "/v1/metrics/%FF", "/v1/metrics/events?startTime=%FF", "/v1/query?sql=%FF"] {
        let (status, problem) = api.get(path).await;
        assert_eq!((status, &problem["status"]), (400, &Value::from(400)), "{path}: {problem}");
    }
    assert_eq!(api.get_as("tm_nobodys", "/v1/sessions/s").await.0, 401);
    assert_eq!(api.get_as(&write_key, "/v1/metrics").await.0, 403);
    let metrics = api.client.get(format!("{}/metrics", api.base)).send().await.unwrap().text().await.unwrap();
    for (endpoint, status) in [("sessions", 401), ("metrics_list", 403), ("sessions", 400), ("metrics", 400)] {
        let line = format!("analytics_api_requests_total{{endpoint=\"{endpoint}\",status=\"{status}\"}}");
        assert!(metrics.contains(&line), "{line} is missing in\n{metrics}");
    }
}

#[tokio::test]
async fn a_revoked_key_stops_working_within_five_seconds() {
    let api = Api::start().await;
    assert_eq!(api.get("/v1/metrics").await.0, 200);
    sqlx::query("UPDATE api_keys SET revoked_at = now()").execute(&api.stack.pool).await.unwrap();
    let limit = Duration::from_secs(5);
    eventually_within(limit, "refused", || async { api.get("/v1/metrics").await.0 == 401 }).await;
}

#[tokio::test]
async fn without_postgres_known_keys_work_and_unknown_ones_are_told_to_wait() {
    let stack = Stack::new().await;
    let known = new_key(&stack, &stack.project, "read").await;
    let other = new_key(&stack, &stack.project, "read").await;
    let pool = tidemill_common::postgres::pool(&stack.connections.database_url, 2).unwrap();
    let keys = Keys::new(pool.clone());
    keys.authenticate(Some(&known), Utc::now()).await.unwrap();
    pool.close().await;
    // Until the cached answer is no longer fresh, and beyond.
    let end = Instant::now() + tidemill_common::auth::CONFIRMED;
    while Instant::now() < end {
        keys.authenticate(Some(&known), Utc::now()).await.unwrap();
        let refused = keys.authenticate(Some(&other), Utc::now()).await;
        assert!(matches!(refused, Err(AuthError::Unavailable(_))), "{refused:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

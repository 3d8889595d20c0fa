//! What a service says of itself: the endpoints that every service has.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio_util::sync::CancellationToken;

const RECHECK: Duration = Duration::from_secs(2);

/// What a service says of itself. Cheap to clone.
#[derive(Clone)]
pub struct Health {
    started: Instant,
    checks: Arc<Mutex<BTreeMap<&'static str, Check>>>,
}

#[derive(Clone)]
struct Check {
    essential: bool,
    problem: Option<String>,
}

impl Health {
    /// No checks yet.
    #[allow(clippy::new_without_default)] // it takes the time, so it is not a plain value
    pub fn new() -> Self {
        Self { started: Instant::now(), checks: Arc::default() }
    }

    /// Sets a check's state. Without an essential one the service is not ready; without another it is
    /// degraded but works.
    pub fn set(&self, name: &'static str, essential: bool, state: Result<(), String>) {
        let problem = state.err();
        let before = self.checks().insert(name, Check { essential, problem: problem.clone() });
        let was_up = before.is_none_or(|check| check.problem.is_none());
        match problem {
            Some(problem) if was_up => tracing::warn!(check = name, problem, "check failed"),
            None if !was_up => tracing::info!(check = name, "check is good again"),
            _ => {}
        }
    }

    /// Runs a check again and again until shutdown.
    pub fn watch<F, E>(
        &self,
        name: &'static str,
        essential: bool,
        shutdown: &CancellationToken,
        check: impl Fn() -> F + Send + 'static,
    ) where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display,
    {
        self.set(name, essential, Err("not checked yet".to_owned()));
        let (health, shutdown) = (self.clone(), shutdown.clone());
        tokio::spawn(async move {
            while !shutdown.is_cancelled() {
                let state = match tokio::time::timeout(RECHECK, check()).await {
                    Ok(state) => state.map_err(|error| error.to_string()),
                    Err(_) => Err("no answer in time".to_owned()),
                };
                health.set(name, essential, state);
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = tokio::time::sleep(RECHECK) => {}
                }
            }
        });
    }

    /// Whether all essential checks are good.
    pub fn ready(&self) -> bool {
        self.checks().values().all(|check| !check.essential || check.problem.is_none())
    }

    fn checks(&self) -> MutexGuard<'_, BTreeMap<&'static str, Check>> {
        self.checks.lock().expect("no holder panics")
    }

    /// `/health`, `/livez`, `/readyz` and `/metrics`.
    pub fn routes(&self) -> Router {
        let metrics = crate::telemetry::metrics();
        Router::new()
            .route("/health", get(health))
            .route("/livez", get(|| async { "ok" }))
            .route("/readyz", get(readyz))
            .with_state(self.clone())
            .route(
                "/metrics",
                get(move || async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()) }),
            )
    }
}

async fn health(State(health): State<Health>) -> Response {
    let checks: BTreeMap<&str, String> = health
        .checks()
        .iter()
        .map(|(name, check)| (*name, check.problem.clone().unwrap_or_else(|| "ok".to_owned())))
        .collect();
    let status = match (health.ready(), checks.values().all(|state| state == "ok")) {
        (true, true) => "ok",
        (true, false) => "degraded",
        (false, _) => "unavailable",
    };
    let body = json!({
        "status": status,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime": health.started.elapsed().as_secs(),
        "checks": checks,
    });
    let code = if status == "unavailable" { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (code, Json(body)).into_response()
}

async fn readyz(State(health): State<Health>) -> Response {
    if health.ready() {
        (StatusCode::OK, "ready").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready; /health says why").into_response()
    }
}

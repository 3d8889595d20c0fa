//! What a service says of itself: the endpoints that every service has.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

const RECHECK: Duration = Duration::from_secs(2);

/// What a service says of itself. Cheap to clone.
#[derive(Clone)]
pub struct Health {
    started: Instant,
    checks: Arc<Mutex<BTreeMap<&'static str, Check>>>,
    measures: Arc<Mutex<Vec<Measure>>>,
}

type Measure = Box<dyn Fn() -> String + Send>;

#[derive(Clone)]
struct Check {
    essential: bool,
    problem: Option<String>,
}

impl Health {
    /// No checks yet.
    #[allow(clippy::new_without_default)] // it takes the time, so it is not a plain value
    pub fn new() -> Self {
        Self { started: Instant::now(), checks: Arc::default(), measures: Arc::default() }
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

    /// Adds lines to `/metrics`: of series that come and go, which the recorder would keep for ever.
    pub fn also_measure(&self, lines: impl Fn() -> String + Send + 'static) {
        self.measures.lock().expect("no holder panics").push(Box::new(lines));
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
        self.documented().into()
    }

    /// The same, with their descriptions for an OpenAPI document.
    pub fn documented(&self) -> OpenApiRouter {
        crate::telemetry::metrics();
        OpenApiRouter::default()
            .routes(routes!(health))
            .routes(routes!(livez))
            .routes(routes!(readyz))
            .routes(routes!(metrics))
            .with_state(self.clone())
    }
}

/// How a service is.
#[derive(Serialize, ToSchema)]
#[schema(as = Health)]
struct Report {
    /// `degraded`: it works, without something that it can do without for a while.
    #[schema(value_type = Status)]
    status: &'static str,
    version: &'static str,
    /// Seconds since its start.
    uptime: u64,
    /// What it stands on: `ok`, or what is wrong with it.
    #[schema(value_type = BTreeMap<String, String>)]
    checks: BTreeMap<&'static str, String>,
}

/// The words for it.
#[derive(ToSchema)]
#[schema(as = HealthStatus, rename_all = "lowercase")]
#[allow(dead_code)] // a description
enum Status {
    Ok,
    Degraded,
    Unavailable,
}

/// How the service and what it stands on are
#[utoipa::path(get, path = "/health", tag = "operations", responses(
    (status = 200, description = "It works", body = Report),
    (status = 503, description = "It does not", body = Report),
))]
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
    let uptime = health.started.elapsed().as_secs();
    let code = if status == "unavailable" { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (code, Json(Report { status, version: env!("CARGO_PKG_VERSION"), uptime, checks })).into_response()
}

/// Whether the process lives
#[utoipa::path(get, path = "/livez", tag = "operations", responses((status = 200, description = "It does", body = String)))]
async fn livez() -> &'static str {
    "ok"
}

/// Whether requests should come here
#[utoipa::path(get, path = "/readyz", tag = "operations", responses(
    (status = 200, description = "They should", body = String),
    (status = 503, description = "They should not; /health says why", body = String),
))]
async fn readyz(State(health): State<Health>) -> Response {
    if health.ready() {
        (StatusCode::OK, "ready").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready; /health says why").into_response()
    }
}

/// Metrics for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "operations", responses(
    (status = 200, description = "In the text format, version 0.0.4", body = String),
))]
async fn metrics(State(health): State<Health>) -> Response {
    let mut text = crate::telemetry::metrics().render();
    health.measures.lock().expect("no holder panics").iter().for_each(|lines| text.push_str(&lines()));
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

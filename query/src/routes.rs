//! The endpoints. Every one of them answers for the project of the caller's key, and for no other.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use chrono::Utc;
use serde::Deserialize;
use sqlx::PgPool;
use tidemill_common::auth::{Keys, Scope, credential};
use tidemill_common::problem::Problem;
use tidemill_common::projects::{self, Project};
use tidemill_common::redis::Redis;

use crate::freshness::Freshness;
use crate::{metrics, postgres, sessions, sql};

/// What the endpoints work with.
pub struct Service {
    pub keys: Keys,
    pub pool: PgPool,
    pub redis: Redis,
    pub freshness: Freshness,
    pub sql: sql::Engine,
}

type Shared = State<Arc<Service>>;
type Params = Query<HashMap<String, String>>;

/// All routes but the health ones.
pub fn routes(service: Arc<Service>) -> Router {
    Router::new()
        .route("/v1/metrics", get(list_metrics))
        .route("/v1/metrics/{name}", get(metric))
        .route("/v1/sessions/{id}", get(session))
        .route("/v1/query", get(query).post(post_query))
        .method_not_allowed_fallback(|| async {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "Method not allowed",
                "read with GET; SQL also with POST /v1/query",
            )
        })
        .fallback(|| async {
            Problem::new(
                StatusCode::NOT_FOUND,
                "not-found",
                "No such endpoint",
                "there are /v1/metrics, /v1/metrics/{name}, /v1/sessions/{id} and /v1/query",
            )
        })
        .with_state(service)
}

async fn list_metrics(State(service): Shared, Caller(project): Caller) -> Response {
    observed("metrics_list", async {
        let names = metrics::names(&service.pool, &project).await?;
        Ok(Json(serde_json::json!({ "metrics": names })))
    })
    .await
}

async fn metric(
    State(service): Shared,
    Caller(project): Caller,
    Path(name): Path<String>,
    Query(params): Params,
) -> Response {
    observed("metrics", async {
        let request = metrics::Request::parse(&name, &params, Utc::now())?;
        Ok(Json(metrics::answer(&service, &project, request).await?))
    })
    .await
}

async fn session(State(service): Shared, Caller(project): Caller, Path(id): Path<String>) -> Response {
    observed("sessions", async {
        Ok(Json(sessions::answer(&service.pool, &service.redis, &project, &id, Utc::now()).await?))
    })
    .await
}

async fn query(State(service): Shared, Caller(project): Caller, Query(params): Params) -> Response {
    observed("query", async {
        let sql = params.get("sql").ok_or_else(|| sql::missing("the parameter 'sql' is missing"))?;
        run_sql(&service, &project, sql).await
    })
    .await
}

async fn post_query(State(service): Shared, Caller(project): Caller, body: Result<Bytes, BytesRejection>) -> Response {
    #[derive(Deserialize)]
    struct Body {
        sql: String,
    }
    observed("query", async {
        let body = body.map_err(|error| sql::missing(&error.to_string()))?;
        let body: Body = serde_json::from_slice(&body).map_err(|error| sql::missing(&error.to_string()))?;
        run_sql(&service, &project, &body.sql).await
    })
    .await
}

async fn run_sql(service: &Service, project: &Project, sql: &str) -> Result<impl IntoResponse + use<>, Problem> {
    let answer = service.sql.run(project, sql).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], answer))
}

/// The project of the caller's key.
struct Caller(Project);

impl FromRequestParts<Arc<Service>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, service: &Arc<Service>) -> Result<Self, Problem> {
        let key = service.keys.authenticate(credential(&parts.headers), Utc::now()).await?;
        key.require(Scope::Read)?;
        let project = projects::load(&service.pool, &key.project).await.map_err(postgres::problem)?;
        project.map(Self).ok_or_else(|| {
            Problem::new(StatusCode::NOT_FOUND, "no-project", "No such project", "the key's project has been deleted")
        })
    }
}

/// Counts and times an answer.
async fn observed<T: IntoResponse>(
    endpoint: &'static str,
    answer: impl Future<Output = Result<T, Problem>>,
) -> Response {
    let started = Instant::now();
    let response = match answer.await {
        Ok(answer) => answer.into_response(),
        Err(problem) => problem.into_response(),
    };
    let status = response.status().as_u16().to_string();
    ::metrics::counter!("analytics_api_requests_total", "endpoint" => endpoint, "status" => status).increment(1);
    ::metrics::histogram!("analytics_api_latency_seconds", "endpoint" => endpoint).record(started.elapsed());
    response
}

//! The endpoints. Every one of them answers for the project of the caller's key, and for no other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use chrono::Utc;
use sqlx::PgPool;
use tidemill_common::auth::{Keys, Scope, credential};
use tidemill_common::problem::Problem;
use tidemill_common::projects::{self, Project};
use tidemill_common::redis::Redis;
use tidemill_stream::metric::Definitions;

use crate::freshness::Freshness;
use crate::postgres::in_time;
use crate::{carts, metrics, postgres, sessions, sql};

/// What the endpoints work with.
pub struct Service {
    pub keys: Keys,
    pub pool: PgPool,
    pub redis: Redis,
    pub freshness: Freshness,
    pub definitions: Definitions,
    pub sql: sql::Engine,
}

type Shared = State<Arc<Service>>;
type Name = Result<Path<String>, PathRejection>;
type Params = Result<Query<HashMap<String, String>>, QueryRejection>;
type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;
type Answer = Result<Response, Problem>;

/// All routes but the health ones.
pub fn routes(service: Arc<Service>) -> Router {
    Router::new()
        .route("/v1/metrics", get(list_metrics))
        .route("/v1/metrics/{name}", get(metric).put(declare_metric).delete(undeclare_metric))
        .route("/v1/sessions", get(list_sessions))
        .route("/v1/sessions/{id}", get(session))
        .route("/v1/sessions/{id}/cart", get(cart))
        .route("/v1/query", get(query).post(post_query))
        .route_layer(middleware::from_fn(observed))
        .method_not_allowed_fallback(|| async {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "Method not allowed",
                "read with GET; SQL also with POST /v1/query; metrics are declared with PUT, and taken back with DELETE",
            )
        })
        .fallback(|| async {
            Problem::new(
                StatusCode::NOT_FOUND,
                "not-found",
                "No such endpoint",
                "there are /v1/metrics, /v1/metrics/{name}, /v1/sessions, /v1/sessions/{id}, /v1/sessions/{id}/cart and /v1/query",
            )
        })
        .with_state(service)
}

async fn list_metrics(State(service): Shared, Caller(project): Caller) -> Answer {
    let list = in_time(async {
        let definitions = service.definitions.current().await.map_err(postgres::problem)?;
        metrics::list(&service.pool, &project, &definitions).await
    });
    Ok(Json(list.await?).into_response())
}

async fn metric(State(service): Shared, Caller(project): Caller, name: Name, params: Pairs) -> Answer {
    let (Path(name), Query(pairs)) = (name.map_err(unreadable)?, params.map_err(unreadable)?);
    let params = metrics::once(pairs)?;
    let answer = in_time(async {
        let definitions = service.definitions.current().await.map_err(postgres::problem)?;
        let request = metrics::Request::parse(&name, &params, Utc::now(), definitions.project(&project.id))?;
        metrics::answer(&service, &project, request).await
    });
    Ok(Json(answer.await?).into_response())
}

async fn declare_metric(
    State(service): Shared,
    Admin(project): Admin,
    name: Name,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let Path(name) = name.map_err(unreadable)?;
    let body = body.map_err(unreadable)?;
    let (is_new, answer) = in_time(metrics::declare(&service.pool, &project, &name, &body)).await?;
    // So that the caller sees it here at once.
    in_time(async { service.definitions.refresh().await.map_err(postgres::problem) }).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(answer)).into_response())
}

async fn undeclare_metric(State(service): Shared, Admin(project): Admin, name: Name) -> Answer {
    let Path(name) = name.map_err(unreadable)?;
    in_time(metrics::undeclare(&service.pool, &project, &name)).await?;
    in_time(async { service.definitions.refresh().await.map_err(postgres::problem) }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn list_sessions(State(service): Shared, Caller(project): Caller, params: Params) -> Answer {
    let Query(params) = params.map_err(unreadable)?;
    let answer = sessions::active(&service.pool, &project, &params, Utc::now());
    Ok(Json(in_time(answer).await?).into_response())
}

async fn cart(State(service): Shared, Caller(project): Caller, id: Name) -> Answer {
    let Path(id) = id.map_err(unreadable)?;
    let answer = carts::answer(&service.pool, &service.redis, &project, &id, Utc::now());
    Ok(Json(in_time(answer).await?).into_response())
}

async fn session(State(service): Shared, Caller(project): Caller, id: Name) -> Answer {
    let Path(id) = id.map_err(unreadable)?;
    let answer = sessions::answer(&service.pool, &service.redis, &project, &id, Utc::now());
    Ok(Json(in_time(answer).await?).into_response())
}

async fn query(State(service): Shared, Caller(project): Caller, params: Params, headers: HeaderMap) -> Answer {
    let Query(params) = params.map_err(unreadable)?;
    let request = sql::Request::of_params(&params, accept(&headers))?;
    service.sql.run(&project, request).await
}

async fn post_query(
    State(service): Shared,
    Caller(project): Caller,
    params: Params,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let Query(params) = params.map_err(unreadable)?;
    let body = body.map_err(unreadable)?;
    let request = sql::Request::of_body(&body, &params, accept(&headers))?;
    service.sql.run(&project, request).await
}

fn accept(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok())
}

/// A path or parameters that are not text.
fn unreadable(error: impl std::fmt::Display) -> Problem {
    let detail = format!("{error}; percent-encode the URL's parts as UTF-8");
    Problem::new(StatusCode::BAD_REQUEST, "bad-url", "Bad URL", detail)
}

/// The project of the caller's key, which may read.
struct Caller(Project);

/// The project of the caller's key, which may change what is declared.
struct Admin(Project);

impl FromRequestParts<Arc<Service>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, service: &Arc<Service>) -> Result<Self, Problem> {
        project(parts, service, Scope::Read).await.map(Self)
    }
}

impl FromRequestParts<Arc<Service>> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, service: &Arc<Service>) -> Result<Self, Problem> {
        project(parts, service, Scope::Admin).await.map(Self)
    }
}

async fn project(parts: &Parts, service: &Service, scope: Scope) -> Result<Project, Problem> {
    let key = service.keys.authenticate(credential(&parts.headers), Utc::now()).await?;
    key.require(scope)?;
    let load = projects::load(&service.pool, &key.project);
    in_time(async { load.await.map_err(postgres::problem) }).await?.ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, "no-project", "No such project", "the key's project has been deleted")
    })
}

/// Counts and times every answer of an endpoint, refusals too.
async fn observed(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let endpoint = match request.uri().path().split('/').nth(2) {
        Some("metrics") if request.uri().path() == "/v1/metrics" => "metrics_list",
        Some("metrics") => "metrics",
        Some("sessions") => "sessions",
        _ => "query",
    };
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    ::metrics::counter!("analytics_api_requests_total", "endpoint" => endpoint, "status" => status).increment(1);
    ::metrics::histogram!("analytics_api_latency_seconds", "endpoint" => endpoint).record(started.elapsed());
    response
}

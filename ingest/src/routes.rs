//! All routes, and what comes before a request's events are looked at.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tidemill_common::auth::ApiKey;
use tidemill_common::http::Health;
use tidemill_common::problem::Problem;

use crate::admit::admit;
use crate::answer;
use crate::auth;
use crate::body;
use crate::gateway::Gateway;
use crate::idempotency;
use crate::json_schemas;
use crate::meters::EndpointMeters;
use crate::outcome::Answered;
use crate::overload::{Overload, Share};
use crate::parse;
use crate::stages::Receipt;

/// What the gateway serves.
pub fn routes(gateway: Arc<Gateway>, health: &Health) -> Router {
    Router::new()
        .route("/v1/events", post(events))
        .route("/collect", post(events))
        .merge(json_schemas::routes::routes())
        .layer(middleware::from_fn(measure))
        .with_state(gateway)
        .merge(health.routes())
        .method_not_allowed_fallback(async || {
            let detail = "this path takes other methods; events are sent by POST";
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail)
        })
        .fallback(async || {
            let detail = "there is nothing at this path; events are sent by POST to /v1/events";
            Problem::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
        })
}

/// Takes one event or an array of them.
async fn events(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let Some(share) = gateway.overload.enter() else { return body::overloaded().into_response() };
    let (head, body) = request.into_parts();
    let peer = head.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    let receipt = Receipt::now(peer, gateway.config.client_address, &head.headers);
    let caller = match caller(&gateway, &head.headers, &head.uri).await {
        Ok(caller) => caller,
        Err(problem) => {
            drop(share); // callers that are not let in must not take the places of those who are
            return refuse(problem, &gateway.overload, &head.headers, body).await;
        }
    };
    let (body, share) = match body::read(body, &gateway.config, &gateway.overload, share).await {
        Ok(read) => read,
        Err(problem) => return problem.into_response(),
    };
    let again = match idempotency::Request::of(&head.headers, &caller.project, &body) {
        Ok(again) => again,
        Err(problem) => return problem.into_response(),
    };
    let request = Accompanied { caller: &caller, receipt: &receipt, again, share: Arc::new(share) };
    let mut response = respond(&gateway, &request, &body).await;
    gateway.limits.tell(&caller, response.headers_mut());
    response
}

/// What goes with a request's events.
struct Accompanied<'a> {
    caller: &'a ApiKey,
    receipt: &'a Receipt,
    again: Option<idempotency::Request>,
    share: Arc<Share>,
}

async fn respond(gateway: &Gateway, request: &Accompanied<'_>, body: &[u8]) -> Response {
    let answers = match parse::json(body) {
        Err(error) => return body::bad(format!("the body is not JSON: {error}")).into_response(),
        Ok(parse::Body::One(event)) => {
            return match answers(gateway, request, vec![event]).await.map(|mut answers| answers.pop()) {
                Ok(Some(answered)) => answer::one(answered),
                Ok(None) => Problem::internal("an event without an answer").into_response(),
                Err(problem) => problem.into_response(),
            };
        }
        Ok(parse::Body::Many(events)) if events.is_empty() => {
            return body::bad("the array is empty; send at least one event".to_owned()).into_response();
        }
        Ok(parse::Body::Many(events)) if events.len() > gateway.config.max_events => {
            let (sent, most) = (events.len(), gateway.config.max_events);
            let detail = format!("the array has {sent} events; send at most {most} at once");
            return body::too_large(detail).into_response();
        }
        Ok(parse::Body::Many(events)) => answers(gateway, request, events).await,
    };
    match answers {
        Ok(answers) => answer::many(answers),
        Err(problem) => problem.into_response(),
    }
}

/// Admits what has no final answer from an earlier try of the same request.
async fn answers(
    gateway: &Gateway,
    request: &Accompanied<'_>,
    events: Vec<parse::Parsed<'_>>,
) -> Result<Vec<Answered>, Problem> {
    let Accompanied { caller, receipt, again, share } = request;
    let Some(again) = again else { return Ok(admit(gateway, caller, receipt, events, share).await) };
    let first = gateway.idempotency.first_answers(again, events.len()).await?;
    let open = events.into_iter().zip(&first).filter(|(_, first)| first.is_none()).map(|(event, _)| event).collect();
    let mut admitted = admit(gateway, caller, receipt, open, share).await.into_iter();
    let answers: Vec<Answered> = first.into_iter().filter_map(|first| first.or_else(|| admitted.next())).collect();
    gateway.idempotency.keep(again, &answers).await;
    Ok(answers)
}

async fn caller(gateway: &Gateway, headers: &HeaderMap, uri: &Uri) -> Result<Arc<ApiKey>, Problem> {
    let caller = auth::writer(&gateway.keys, headers, uri).await?;
    body::check_headers(headers)?;
    Ok(caller)
}

/// Refuses a request whose body has not been read. One that waits for "100 Continue" sends none.
async fn refuse(problem: Problem, overload: &Overload, headers: &HeaderMap, body: Body) -> Response {
    if !headers.contains_key(header::EXPECT) {
        body::linger(body.into_data_stream(), overload).await;
    }
    problem.into_response()
}

async fn measure(request: Request, next: Next) -> Response {
    static EVENTS: EndpointMeters = EndpointMeters::new("/v1/events");
    static SCHEMAS: EndpointMeters = EndpointMeters::new("/v1/schemas");
    static COLLECT: EndpointMeters = EndpointMeters::new("/collect");
    let started = Instant::now();
    let endpoint = match request.uri().path() {
        "/collect" => &COLLECT,
        path if path.starts_with("/v1/schemas") => &SCHEMAS,
        _ => &EVENTS,
    };
    let response = next.run(request).await;
    endpoint.answered(response.status().as_u16(), started.elapsed());
    response
}

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
use crate::meters::EndpointMeters;
use crate::overload::{Overload, Share};
use crate::parse;
use crate::stages::Receipt;

/// What the gateway serves.
pub fn routes(gateway: Arc<Gateway>, health: &Health) -> Router {
    Router::new()
        .route("/v1/events", post(events))
        .route("/collect", post(events))
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
    respond(&gateway, &caller, &receipt, &body, &Arc::new(share)).await
}

async fn respond(gateway: &Gateway, caller: &ApiKey, receipt: &Receipt, body: &[u8], share: &Arc<Share>) -> Response {
    match parse::json(body) {
        Err(error) => body::bad(format!("the body is not JSON: {error}")).into_response(),
        Ok(parse::Body::One(event)) => match admit(gateway, caller, receipt, vec![event], share).await.pop() {
            Some(answered) => answer::one(answered),
            None => Problem::internal("an event without an answer").into_response(),
        },
        Ok(parse::Body::Many(events)) if events.is_empty() => {
            body::bad("the array is empty; send at least one event".to_owned()).into_response()
        }
        Ok(parse::Body::Many(events)) if events.len() > gateway.config.max_events => {
            let (sent, most) = (events.len(), gateway.config.max_events);
            body::too_large(format!("the array has {sent} events; send at most {most} at once")).into_response()
        }
        Ok(parse::Body::Many(events)) => answer::many(admit(gateway, caller, receipt, events, share).await),
    }
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
    static COLLECT: EndpointMeters = EndpointMeters::new("/collect");
    let started = Instant::now();
    let endpoint = if request.uri().path() == "/collect" { &COLLECT } else { &EVENTS };
    let response = next.run(request).await;
    endpoint.answered(response.status().as_u16(), started.elapsed());
    response
}

//! All routes, and what comes before a request's events are looked at.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use tidemill_common::auth::ApiKey;
use tidemill_common::http::Health;
use tidemill_common::problem::Problem;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::admit::admit;
use crate::answer;
use crate::around::around;
use crate::auth;
use crate::body;
use crate::decompress::{Chunks, Coding};
use crate::docs;
use crate::formats::{Format, segment};
use crate::gateway::Gateway;
use crate::idempotency;
use crate::json_schemas;
use crate::openapi::{self, EventAnswers, EventHeaders, SegmentAnswers, SegmentHeaders};
use crate::outcome::Answered;
use crate::overload::{Overload, Share};
use crate::parse::{Body, NotJson, Parsed};
use crate::stages::Receipt;
use crate::streamed;

/// What the gateway serves.
pub fn routes(gateway: Arc<Gateway>, health: &Health) -> anyhow::Result<Router> {
    let (routes, document) = documented().split_for_parts();
    let (health, of_health) = health.documented().split_for_parts();
    let around = middleware::from_fn_with_state(Arc::clone(&gateway), around);
    let measured = routes.method_not_allowed_fallback(other_method).layer(around).with_state(gateway);
    let others = health.merge(docs::routes(document.merge_from(of_health))?).method_not_allowed_fallback(other_method);
    Ok(measured.merge(others).fallback(async || {
        let detail = "there is nothing at this path; events are sent by POST to /v1/events";
        Problem::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
    }))
}

/// What callers with an API key are served. Every route comes with its description for the OpenAPI document.
fn documented() -> OpenApiRouter<Arc<Gateway>> {
    let routes = OpenApiRouter::with_openapi(openapi::document())
        .routes(routes!(events))
        .routes(openapi::at("/collect", routes!(events)))
        .routes(routes!(segment_batch));
    let call = |call| openapi::at(&format!("/v1/{call}"), routes!(segment_call));
    let routes = SEGMENT.into_iter().map(call).fold(routes, OpenApiRouter::routes);
    routes.merge(json_schemas::routes::routes())
}

async fn other_method() -> Problem {
    let detail = "this path takes other methods; events are sent by POST";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail)
}

/// Segment's calls of one message; each has a path of its own.
const SEGMENT: [&str; 6] = ["track", "page", "screen", "identify", "group", "alias"];

/// A request that has been let in, and whose body is still to come.
struct Entered {
    caller: Arc<ApiKey>,
    receipt: Receipt,
    headers: HeaderMap,
    format: Format,
    chunks: Chunks,
    share: Share,
}

/// Send events
///
/// One, or several in an array, by line or as CloudEvents; each gets its verdict, and a bad one costs its neighbours
/// nothing. Without a `Content-Type` the body is taken for JSON. With `ce-*` headers and a JSON body it is a CloudEvent
/// in binary mode. `text/plain` is JSON as `navigator.sendBeacon` sends it. `/collect` is another name of `/v1/events`.
#[utoipa::path(post, path = "/v1/events", tag = "events",
    params(EventHeaders),
    request_body(content(
        (openapi::Events = "application/json"),
        (openapi::Lines = "application/x-ndjson", example = json!(openapi::LINES)),
        (openapi::CloudEvent = "application/cloudevents+json"),
        (openapi::CloudEvents = "application/cloudevents-batch+json"),
        (openapi::Events = "text/plain", example = json!({"eventId": "leave-1", "eventType": "page_leave"})),
    )),
    responses(EventAnswers),
    security(("bearer" = []), ("key" = []), ("basic" = []), ("url" = [])),
)]
async fn events(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let Entered { caller, receipt, headers, format, chunks, share } = match enter(&gateway, request).await {
        Ok(entered) => entered,
        Err(refusal) => return refusal,
    };
    if format == Format::Ndjson {
        let response = streamed::ndjson(&gateway, &caller, receipt, chunks, share).await;
        return told(&gateway, &caller, response);
    }
    let (body, share) = match body::read(chunks, &gateway.config, &gateway.overload, share).await {
        Ok(read) => read,
        Err(problem) => return problem.into_response(),
    };
    let again = match repeated(format, &headers, &caller.project, &body) {
        Ok(again) => again,
        Err(problem) => return problem.into_response(),
    };
    let parsed = format.parse(&headers, &body, gateway.config.cloudevents_subject_is_user);
    let request = Accompanied { caller: &caller, receipt: &receipt, again, share: Arc::new(share) };
    told(&gateway, &caller, respond(&gateway, &request, parsed).await)
}

/// With how the caller's limits stand.
fn told(gateway: &Gateway, caller: &ApiKey, mut response: Response) -> Response {
    gateway.limits.tell(caller, response.headers_mut());
    response
}

/// A binary CloudEvent is not its body alone; its own id tells whether it has been here before.
fn repeated(
    format: Format,
    headers: &HeaderMap,
    project: &str,
    body: &[u8],
) -> Result<Option<idempotency::Request>, Problem> {
    if format == Format::BinaryCloudEvent { Ok(None) } else { idempotency::Request::of(headers, project, body) }
}

/// What goes with a request's events.
struct Accompanied<'a> {
    caller: &'a ApiKey,
    receipt: &'a Receipt,
    again: Option<idempotency::Request>,
    share: Arc<Share>,
}

async fn respond(gateway: &Gateway, request: &Accompanied<'_>, parsed: Result<Body<'_>, NotJson>) -> Response {
    let answers = match parsed {
        Err(error) => Err(not_json(&error)),
        Ok(Body::One(event)) => {
            return match answers(gateway, request, vec![event]).await.map(|mut answers| answers.pop()) {
                Ok(Some(answered)) => answer::one(answered),
                Ok(None) => Problem::internal("an event without an answer").into_response(),
                Err(problem) => problem.into_response(),
            };
        }
        Ok(Body::Many(events)) => match check_number(&events, gateway) {
            Ok(()) => answers(gateway, request, events).await,
            Err(problem) => Err(problem),
        },
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
    events: Vec<Parsed<'_>>,
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

/// Send messages of any kind
#[utoipa::path(post, path = "/v1/batch", tag = "Segment",
    params(SegmentHeaders), request_body = openapi::SegmentBatch, responses(SegmentAnswers),
    security(("basic" = []), ("bearer" = []), ("key" = []), ("url" = [])),
)]
async fn segment_batch(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    segment(gateway, request, None).await
}

/// Send a message of the kind that the path names
#[utoipa::path(post, path = "/v1/track", tag = "Segment",
    params(SegmentHeaders), request_body = openapi::SegmentMessage, responses(SegmentAnswers),
    security(("basic" = []), ("bearer" = []), ("key" = []), ("url" = [])),
)]
async fn segment_call(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let call = SEGMENT.into_iter().find(|call| request.uri().path().strip_prefix("/v1/") == Some(call));
    segment(gateway, request, call).await
}

async fn segment(gateway: Arc<Gateway>, request: Request, call: Option<&'static str>) -> Response {
    let Entered { caller, receipt, format, chunks, share, .. } = match enter(&gateway, request).await {
        Ok(entered) => entered,
        Err(refusal) => return refusal,
    };
    let (body, share) = match body::read(chunks, &gateway.config, &gateway.overload, share).await {
        Ok(read) => read,
        Err(problem) => return problem.into_response(),
    };
    if format != Format::Json {
        return body::unsupported("this path takes application/json".to_owned(), "Content-Type").into_response();
    }
    let parsed = match call {
        None => segment::batch(&body),
        Some(call) => segment::single(&body, call),
    };
    let events = match parsed {
        Ok(events) => events,
        Err(error) => return not_json(&error).into_response(),
    };
    let response = match check_number(&events, &gateway) {
        Ok(()) => answer::batch(admit(&gateway, &caller, &receipt, events, &Arc::new(share)).await),
        Err(problem) => problem.into_response(),
    };
    told(&gateway, &caller, response)
}

fn not_json(error: &NotJson) -> Problem {
    body::bad(format!("the body is not JSON as it should be: {error}"))
}

fn check_number(events: &[Parsed<'_>], gateway: &Gateway) -> Result<(), Problem> {
    let (sent, most) = (events.len(), gateway.config.max_events);
    match sent {
        0 => Err(body::bad("there is no event in the body; send at least one".to_owned())),
        _ if sent > most => Err(body::too_large(format!("the array has {sent} events; send at most {most} at once"))),
        _ => Ok(()),
    }
}

/// Everything that is known before the body comes.
async fn enter(gateway: &Gateway, request: Request) -> Result<Entered, Response> {
    let (head, body) = request.into_parts();
    let headers = head.headers;
    let Some(share) = gateway.overload.enter() else {
        return Err(refuse(body::overloaded(), &gateway.overload, &headers, body));
    };
    let peer = head.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    let receipt = Receipt::now(peer, gateway.config.client_address, &headers);
    match allowed(gateway, &headers, &head.uri).await {
        Ok((caller, format, coding)) => {
            let config = &gateway.config;
            let most = if format == Format::Ndjson { config.max_ndjson_bytes } else { config.max_body_bytes };
            let chunks = Chunks::new(body, coding, most);
            Ok(Entered { caller, receipt, headers, format, chunks, share })
        }
        Err(problem) => {
            drop(share); // callers that are not let in must not take the places of those who are
            Err(refuse(problem, &gateway.overload, &headers, body))
        }
    }
}

async fn allowed(gateway: &Gateway, headers: &HeaderMap, uri: &Uri) -> Result<(Arc<ApiKey>, Format, Coding), Problem> {
    let caller = auth::writer(&gateway.keys, headers, uri).await?;
    Ok((caller, Format::of(headers)?, Coding::of(headers)?))
}

/// Refuses a request whose body has not been read. One that waits for "100 Continue" sends none.
fn refuse(problem: Problem, overload: &Overload, headers: &HeaderMap, body: axum::body::Body) -> Response {
    if !headers.contains_key(header::EXPECT) {
        body::linger(Some(body.into_data_stream()), overload);
    }
    problem.into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_in_the_document() {
        check(documented(), "/v1/events");
        check(docs::documented(), "/docs");
        check(Health::new().documented(), "/livez");
    }

    /// axum does not list its routes, but it shows them.
    fn check<S: Clone + Send + Sync + 'static>(routes: OpenApiRouter<S>, one: &str) {
        let (routes, document) = routes.split_for_parts();
        let shown = format!("{routes:?}");
        let own = |path: &str| path == "/" || path.contains("__private_"); // axum's, for its fallback
        let paths = shown.split('"').filter(|text| text.starts_with('/') && !own(text));
        let served: BTreeSet<&str> = paths.collect();
        let described: BTreeSet<&str> = document.paths.paths.keys().map(String::as_str).collect();
        assert!(served.contains(one), "{shown}");
        assert_eq!(served, described);
    }
}

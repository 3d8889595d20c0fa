//! All routes, and what comes before a request's events are looked at.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
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
use crate::cors::Origins;
use crate::decompress::{Chunks, Coding};
use crate::formats::{Format, segment};
use crate::gateway::Gateway;
use crate::idempotency;
use crate::json_schemas;
use crate::meters::EndpointMeters;
use crate::outcome::Answered;
use crate::overload::{Overload, Share};
use crate::parse::{Body, NotJson, Parsed};
use crate::stages::Receipt;
use crate::streamed;

/// What the gateway serves.
pub fn routes(gateway: Arc<Gateway>, health: &Health) -> Router {
    let mut routes = Router::new().route("/v1/events", post(events)).route("/collect", post(events));
    for (path, call) in SEGMENT {
        routes = routes.route(path, post(move |State(gateway), request| segment(gateway, request, call)));
    }
    routes
        .merge(json_schemas::routes::routes())
        .method_not_allowed_fallback(other_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&gateway), around))
        .with_state(gateway)
        .merge(health.routes().method_not_allowed_fallback(other_method))
        .fallback(async || {
            let detail = "there is nothing at this path; events are sent by POST to /v1/events";
            Problem::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
        })
}

async fn other_method() -> Problem {
    let detail = "this path takes other methods; events are sent by POST";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail)
}

/// Segment's paths; all but the first are for one message, whose type the path says.
const SEGMENT: [(&str, Option<&str>); 7] = [
    ("/v1/batch", None),
    ("/v1/track", Some("track")),
    ("/v1/page", Some("page")),
    ("/v1/screen", Some("screen")),
    ("/v1/identify", Some("identify")),
    ("/v1/group", Some("group")),
    ("/v1/alias", Some("alias")),
];

/// A request that has been let in, and whose body is still to come.
struct Entered {
    caller: Arc<ApiKey>,
    receipt: Receipt,
    headers: HeaderMap,
    format: Format,
    chunks: Chunks,
    share: Share,
}

/// Takes one event or several of them, in any format.
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

/// Takes what Segment's libraries send.
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

/// Measures a request, and lets pages of other origins read the answer where they may.
async fn around(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let path = request.uri().path();
    let endpoint = endpoint(path);
    // Pages send events; schemas are no business of theirs.
    let origin = Origins::origin(request.headers()).filter(|_| !path.starts_with("/v1/schemas"));
    let preflight = origin.is_some().then(|| gateway.origins.preflight(&request)).flatten();
    let mut response = match preflight {
        Some(response) => response,
        None => next.run(request).await,
    };
    if let Some(origin) = origin {
        gateway.origins.allow(&origin, response.headers_mut());
    }
    endpoint.answered(response.status().as_u16(), started.elapsed());
    response
}

fn endpoint(path: &str) -> &'static EndpointMeters {
    static EVENTS: EndpointMeters = EndpointMeters::new("/v1/events");
    static COLLECT: EndpointMeters = EndpointMeters::new("/collect");
    static SCHEMAS: EndpointMeters = EndpointMeters::new("/v1/schemas");
    static BATCH: EndpointMeters = EndpointMeters::new("/v1/batch");
    static SINGLE: EndpointMeters = EndpointMeters::new("/v1/{track,page,screen,identify,group,alias}");
    match path {
        "/v1/events" => &EVENTS,
        "/collect" => &COLLECT,
        "/v1/batch" => &BATCH,
        path if path.starts_with("/v1/schemas") => &SCHEMAS,
        _ => &SINGLE,
    }
}

//! What goes on around every request with an API key.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use crate::cors::Origins;
use crate::gateway::Gateway;
use crate::meters::EndpointMeters;

/// Measures a request, and lets pages of other origins read the answer where they may.
pub async fn around(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
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

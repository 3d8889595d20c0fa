//! The OpenAPI document: what stands in it beside the descriptions at the routes. It is made once, at the start.

mod answers;
mod bodies;

use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi as _};
use utoipa_axum::router::UtoipaMethodRouter;

pub use self::answers::{AdminRefusals, EventAnswers, SegmentAnswers};
pub use self::bodies::{
    CloudEvent, CloudEvents, EventHeaders, Events, LINES, Lines, SegmentBatch, SegmentHeaders, SegmentMessage,
};

/// The document without routes.
pub fn document() -> OpenApi {
    Document::openapi()
}

/// What holds for all routes.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Tidemill ingestion gateway",
        description = "Takes events and says of each of them what became of it. `accepted` means that it is durable. \
            Whoever gets 429, 5xx or the verdict `retry` or `limited` sends the same event again, with the same \
            `eventId`, not before `Retry-After` is over: events are told apart by their ids, so nothing counts twice.\n\n\
            Errors are `application/problem+json` (RFC 9457); their `type` is stable. Other methods than those below \
            are answered 405, other paths 404, both with such a problem.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "events", description = "For keys with the scope `write`"),
        (name = "Segment", description = "For Segment's client libraries, with a key of the scope `write`"),
        (name = "schemas", description = "JSON Schemas of events' properties, for keys with the scope `admin`"),
        (name = "operations", description = "For those who run the gateway, and without a key"),
    ),
    components(schemas(
        tidemill_common::problem::Problem,
        crate::answer::Accepted,
        crate::answer::Items,
        crate::answer::Item,
        crate::answer::Taken,
        crate::answer::BrokenOff,
    )),
    modifiers(&Credentials),
)]
struct Document;

struct Credentials;

impl Modify for Credentials {
    fn modify(&self, document: &mut OpenApi) {
        let http = |scheme, description: &str| {
            let mut http = Http::new(scheme);
            http.description = Some(description.to_owned());
            SecurityScheme::Http(http)
        };
        let header = ApiKeyValue::with_description("X-API-Key", "An API key");
        let query = ApiKeyValue::with_description(
            "api_key",
            "An API key that can do nothing but write, for beacons: logs and proxies see what stands in a URL",
        );
        document.components.get_or_insert_default().add_security_schemes_from_iter([
            ("bearer", http(HttpAuthScheme::Bearer, "An API key")),
            ("basic", http(HttpAuthScheme::Basic, "An API key as the user name, as Segment's libraries send it")),
            ("key", SecurityScheme::ApiKey(ApiKey::Header(header))),
            ("url", SecurityScheme::ApiKey(ApiKey::Query(query))),
        ]);
    }
}

/// The same route at another path, whose last part names it.
pub fn at<S>(path: &str, (schemas, mut paths, methods): UtoipaMethodRouter<S>) -> UtoipaMethodRouter<S> {
    for (_, mut item) in std::mem::take(&mut paths.paths) {
        if let Some(operation) = &mut item.post {
            operation.operation_id = path.rsplit('/').next().map(str::to_owned);
        }
        paths.paths.insert(path.to_owned(), item);
    }
    (schemas, paths, methods)
}

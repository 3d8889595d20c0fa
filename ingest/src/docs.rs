//! `/openapi.json`, and `/docs` that shows it: Swagger UI, from this binary and nowhere else.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tidemill_common::problem::Problem;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{OpenApi, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::Config;

/// The page loads what this gateway serves and talks to nobody else: whoever tries a call on it types in an API key.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Its paths are relative, so that it also works behind a proxy with a path of its own.
const PAGE: &str = include_str!("docs.html");
const FILES: [&str; 5] = [
    "favicon-32x32.png",
    "swagger-initializer.js",
    "swagger-ui-bundle.js",
    "swagger-ui-standalone-preset.js",
    "swagger-ui.css",
];

/// The name of one of them.
struct File;

impl ToSchema for File {}

impl PartialSchema for File {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(FILES)).into()
    }
}

/// What they show.
#[derive(Clone)]
pub struct Docs {
    document: Bytes,
    ui: Arc<Config<'static>>,
}

/// Routes that show a document, with themselves in it.
pub fn routes(mut document: OpenApi) -> Result<Router, serde_json::Error> {
    let (routes, own) = documented().split_for_parts();
    document.merge(own);
    // A badge would send the document's address to a server that checks it.
    let ui = Arc::new(Config::from("openapi.json").validator_url("none").use_base_layout());
    Ok(routes.with_state(Docs { document: Bytes::from(document.to_json()?), ui }))
}

/// The routes with their descriptions.
pub fn documented() -> OpenApiRouter<Docs> {
    OpenApiRouter::default().routes(routes!(openapi)).routes(routes!(page)).routes(routes!(file))
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "operations", responses(
    (status = 200, description = "OpenAPI 3.1", body = Object, content_type = "application/json"),
))]
async fn openapi(State(docs): State<Docs>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], docs.document).into_response()
}

/// This document, to read and to try
#[utoipa::path(get, path = "/docs", tag = "operations", responses(
    (status = 200, description = "A page", body = String, content_type = "text/html"),
))]
async fn page() -> Response {
    guarded("text/html; charset=utf-8", PAGE)
}

/// What the page is made of
#[utoipa::path(get, path = "/docs/{file}", tag = "operations", params(("file" = inline(File), Path)), responses(
    (status = 200, description = "The file", content(
        (String = "text/javascript"), (String = "text/css"), (String = "image/png")),
    ),
    (status = 404, description = "There is none of this name",
        body = Problem, content_type = "application/problem+json"),
))]
async fn file(State(docs): State<Docs>, name: Result<Path<String>, PathRejection>) -> Response {
    let name = name.ok().filter(|Path(name)| FILES.contains(&name.as_str()));
    let found = name.and_then(|Path(name)| utoipa_swagger_ui::serve(&name, docs.ui).ok().flatten());
    match found {
        Some(file) => guarded(&file.content_type, file.bytes.into_owned()),
        None => {
            let detail = "there is no such file; the page is at /docs";
            Problem::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail).into_response()
        }
    }
}

fn guarded(content_type: &str, body: impl IntoResponse) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, body).into_response()
}

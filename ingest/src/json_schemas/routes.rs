//! `/v1/schemas`, for keys with the scope `admin`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tidemill_common::auth::{ApiKey, Scope, credential};
use tidemill_common::problem::Problem;
use tidemill_common::projects::SchemaMode;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::schema::MOST_BYTES;
use super::store::{self, Listed, Registered, Registration, SchemaError, Shown};
use crate::body::{bad, overloaded, too_large};
use crate::gateway::Gateway;
use crate::openapi::AdminRefusals;

/// A schema and what stands around it.
const MOST_BODY_BYTES: usize = MOST_BYTES + 4_096;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::default()
        .routes(routes!(register, list))
        .routes(routes!(set_mode, show_type_named_mode))
        .routes(routes!(show))
}

/// A JSON Schema to register.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = NewSchema, example = json!({
    "eventType": "purchase",
    "schema": {"type": "object", "properties": {"price": {"type": "number"}}, "required": ["price"]},
}))]
struct Registering<'a> {
    /// Whose events it describes.
    #[schema(min_length = 1, max_length = 100)]
    event_type: String,
    /// A JSON Schema of their `properties`: draft 2020-12, or 2019-09 or draft-07 where `$schema` says so; at most
    /// 64 KiB, without recursion or references to elsewhere.
    #[schema(value_type = Object)]
    #[serde(borrow)]
    schema: &'a RawValue,
}

#[derive(Deserialize, IntoParams, Default)]
#[serde(rename_all = "camelCase", default)]
#[into_params(parameter_in = Query)]
struct HowToRegister {
    /// Register it even if events that were valid could be invalid.
    force: bool,
    /// Only say what would be.
    dry_run: bool,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Which {
    /// The newest, if absent.
    #[param(nullable = false, minimum = 1, maximum = 2_147_483_647)]
    version: Option<i32>,
}

/// What the project does with events that break their schemas: nothing, accept and count them, or refuse them.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Mode {
    #[schema(value_type = SchemaMode)]
    mode: String,
}

/// A project's schemas.
#[derive(Serialize, ToSchema)]
#[schema(as = Schemas)]
struct All {
    #[schema(value_type = SchemaMode)]
    mode: &'static str,
    schemas: Vec<Listed>,
}

type Shared = State<Arc<Gateway>>;

/// Register a JSON Schema
///
/// Events of the type are held to its newest version, within seconds in every gateway, as the project's mode has it.
#[utoipa::path(post, path = "/v1/schemas", tag = "schemas", params(HowToRegister), request_body = Registering<'_>,
    responses(
        (status = 200, description = "It is the newest version already, or was only looked at", body = Registered),
        (status = 201, description = "It is the newest version now", body = Registered),
        (status = 400, description = "The body or the query is not as it should be",
            body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Events that are valid now could be invalid, or there are too many schemas",
            body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "It is too large", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "It cannot be a schema", body = Problem, content_type = "application/problem+json"),
        AdminRefusals,
    ),
    security(("bearer" = []), ("key" = [])),
)]
async fn register(
    State(gateway): Shared,
    how: Result<Query<HowToRegister>, QueryRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let Query(how) = how.map_err(|error| bad_query(&error))?;
    let (admin, body) = read(&gateway, request).await?;
    let new: Registering<'_> = serde_json::from_slice(&body)
        .map_err(|error| bad(format!("must be {{\"eventType\": \"…\", \"schema\": {{…}}}}: {error}")))?;
    let registration = Registration {
        project: &admin.project,
        event_type: &new.event_type,
        schema: new.schema.get(),
        force: how.force,
        dry_run: how.dry_run,
    };
    let registered: Registered = store::register(&mut *gateway.connection().await?, &registration).await?;
    let status = if registered.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(registered)).into_response())
}

/// List the schemas
#[utoipa::path(get, path = "/v1/schemas", tag = "schemas",
    responses((status = 200, description = "All versions", body = All), AdminRefusals),
    security(("bearer" = []), ("key" = [])),
)]
async fn list(State(gateway): Shared, headers: HeaderMap) -> Result<Json<All>, Problem> {
    let admin = admin(&gateway, &headers).await?;
    let mut db = gateway.connection().await?;
    let mode = store::mode(&mut db, &admin.project).await?.as_str();
    Ok(Json(All { mode, schemas: store::list(&mut db, &admin.project).await? }))
}

/// Show a schema
#[utoipa::path(get, path = "/v1/schemas/{event_type}", tag = "schemas",
    params(("event_type" = String, Path, description = "Whose events it describes"), Which),
    responses(
        (status = 200, description = "The version", body = Shown),
        (status = 400, description = "The query is not as it should be",
            body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "No event can have this type",
            body = Problem, content_type = "application/problem+json"),
        AdminRefusals,
    ),
    security(("bearer" = []), ("key" = [])),
)]
async fn show(
    State(gateway): Shared,
    event_type: Result<Path<String>, PathRejection>,
    which: Result<Query<Which>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<Shown>, Problem> {
    let admin = admin(&gateway, &headers).await?;
    let Path(event_type) = event_type.map_err(|error| bad_query(&error))?;
    let Query(which) = which.map_err(|error| bad_query(&error))?;
    if event_type.contains('\0') {
        return Err(SchemaError::BadEventType.into());
    }
    let shown = store::show(&mut *gateway.connection().await?, &admin.project, &event_type, which.version).await?;
    Ok(Json(shown))
}

/// Show the schema of the event type `mode`
///
/// There may be an event type of this name.
#[utoipa::path(get, path = "/v1/schemas/mode", tag = "schemas", params(Which),
    responses(
        (status = 200, description = "The version", body = Shown),
        (status = 400, description = "The query is not as it should be",
            body = Problem, content_type = "application/problem+json"),
        AdminRefusals,
    ),
    security(("bearer" = []), ("key" = [])),
)]
async fn show_type_named_mode(
    state: Shared,
    which: Result<Query<Which>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<Shown>, Problem> {
    show(state, Ok(Path("mode".to_owned())), which, headers).await
}

/// Say what becomes of events that break their schemas
#[utoipa::path(put, path = "/v1/schemas/mode", tag = "schemas", request_body = Mode,
    responses(
        (status = 200, description = "The mode now", body = Mode),
        (status = 400, description = "The body is not as it should be",
            body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large",
            body = Problem, content_type = "application/problem+json"),
        AdminRefusals,
    ),
    security(("bearer" = []), ("key" = [])),
)]
async fn set_mode(State(gateway): Shared, request: Request) -> Result<Json<Mode>, Problem> {
    let (admin, body) = read(&gateway, request).await?;
    let wanted = serde_json::from_slice(&body).ok().and_then(|Mode { mode }| SchemaMode::parse(&mode));
    let mode = wanted.ok_or_else(|| bad("must be {\"mode\": \"off\"}, or \"warn\" or \"strict\"".to_owned()))?;
    store::set_mode(&mut *gateway.connection().await?, &admin.project, mode).await?;
    Ok(Json(Mode { mode: mode.as_str().to_owned() }))
}

async fn admin(gateway: &Gateway, headers: &HeaderMap) -> Result<Arc<ApiKey>, Problem> {
    let key = gateway.keys.authenticate(credential(headers), Utc::now()).await?;
    key.require(Scope::Admin)?;
    Ok(key)
}

/// An admin's request, as one of those that the gateway takes on at once.
async fn read(gateway: &Gateway, request: Request<Body>) -> Result<(Arc<ApiKey>, Vec<u8>), Problem> {
    let (head, body) = request.into_parts();
    let admin = admin(gateway, &head.headers).await?;
    let _share = gateway.overload.enter().ok_or_else(overloaded)?;
    let limit = Duration::from_millis(gateway.config.body_timeout_ms);
    match tokio::time::timeout(limit, axum::body::to_bytes(body, MOST_BODY_BYTES)).await {
        Ok(Ok(body)) => Ok((admin, body.to_vec())),
        Ok(Err(_)) => {
            let detail = format!("the body broke off or has more than {MOST_BODY_BYTES} bytes; send a smaller schema");
            Err(too_large(detail))
        }
        Err(_) => Err(bad(format!("did not arrive within {} s", limit.as_secs()))),
    }
}

fn bad_query(error: &impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-request", "Bad request", error.to_string())
}

impl From<SchemaError> for Problem {
    fn from(error: SchemaError) -> Self {
        let (conflict, unprocessable) = (StatusCode::CONFLICT, StatusCode::UNPROCESSABLE_ENTITY);
        let detail = error.to_string();
        match error {
            SchemaError::Postgres(error) => Self::unavailable("the store of JSON Schemas", error),
            SchemaError::Bad(_) => Self::new(unprocessable, "invalid-schema", "Invalid schema", detail).field("schema"),
            SchemaError::BadEventType => {
                Self::new(unprocessable, "invalid-schema", "Invalid schema", detail).field("eventType")
            }
            SchemaError::Incompatible { .. } => {
                let detail = detail.replace("or force it", "or register it with ?force=true");
                Self::new(conflict, "schema-incompatible", "Incompatible schema", detail).field("schema")
            }
            SchemaError::TooMany { .. } => Self::new(conflict, "too-many-schemas", "Too many schemas", detail),
            SchemaError::NoProject(_) | SchemaError::NoSchema(_) => {
                Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
            }
        }
    }
}

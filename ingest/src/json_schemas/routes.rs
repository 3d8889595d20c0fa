//! `/v1/schemas`, for keys with the scope `admin`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use chrono::Utc;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tidemill_common::auth::{ApiKey, Scope, credential};
use tidemill_common::problem::Problem;
use tidemill_common::projects::SchemaMode;

use super::schema::MOST_BYTES;
use super::store::{self, Listed, Registered, Registration, SchemaError, Shown};
use crate::body::{bad, overloaded, too_large};
use crate::gateway::Gateway;

/// A schema and what stands around it.
const MOST_BODY_BYTES: usize = MOST_BYTES + 4_096;

/// The routes.
pub fn routes() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/v1/schemas", post(register).get(list))
        .route("/v1/schemas/mode", put(set_mode).get(show_type_named_mode))
        .route("/v1/schemas/{event_type}", get(show))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Registering<'a> {
    event_type: String,
    #[serde(borrow)]
    schema: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct HowToRegister {
    force: bool,
    dry_run: bool,
}

#[derive(Deserialize)]
struct Which {
    version: Option<i32>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Mode {
    mode: String,
}

#[derive(Serialize)]
struct All {
    mode: &'static str,
    schemas: Vec<Listed>,
}

type Shared = State<Arc<Gateway>>;

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

async fn list(State(gateway): Shared, headers: HeaderMap) -> Result<Json<All>, Problem> {
    let admin = admin(&gateway, &headers).await?;
    let mut db = gateway.connection().await?;
    let mode = store::mode(&mut db, &admin.project).await?.as_str();
    Ok(Json(All { mode, schemas: store::list(&mut db, &admin.project).await? }))
}

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

/// There may be an event type of this name.
async fn show_type_named_mode(
    state: Shared,
    which: Result<Query<Which>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<Shown>, Problem> {
    show(state, Ok(Path("mode".to_owned())), which, headers).await
}

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

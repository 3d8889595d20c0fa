//! Registered schemas, as Postgres has them: what the gateway's admin routes and `tidemill schemas` do.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::{Connection, PgConnection, PgPool};
use tidemill_common::event::MAX_EVENT_TYPE;
use tidemill_common::projects::SchemaMode;
use utoipa::ToSchema;

use super::compat;
use super::schema::{self, BadSchema};
use crate::{keys, sql};

/// Most event types with a schema in a project, and most versions of all of them.
const MOST_TYPES: i64 = 1_000;
const MOST_VERSIONS: i64 = 10_000;

/// Something to register.
#[derive(Debug)]
pub struct Registration<'a> {
    /// Whose it is.
    pub project: &'a str,
    /// Whose events it describes.
    pub event_type: &'a str,
    /// The schema's text.
    pub schema: &'a str,
    /// Whether it may be incompatible with the newest one.
    pub force: bool,
    /// Whether it is only looked at.
    pub dry_run: bool,
}

/// What became of it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = RegisteredSchema, description = "What became of a schema.")]
pub struct Registered {
    /// Whose it is.
    pub project: String,
    /// Whose events it describes.
    pub event_type: String,
    /// Its version: a new one, or that of the newest if it is the same; the one it would get where it is only looked at.
    pub version: i32,
    /// Whether it is there now and was not before.
    pub created: bool,
}

/// A version, without its schema.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ListedSchema)]
pub struct Listed {
    /// Whose events it describes.
    pub event_type: String,
    /// Its version.
    pub version: i32,
    /// When it was registered.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: DateTime<Utc>,
}

/// A version.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Schema)]
pub struct Shown {
    /// Whose it is.
    pub project: String,
    /// Whose events it describes.
    pub event_type: String,
    /// Its version.
    pub version: i32,
    /// The JSON Schema.
    #[schema(value_type = Object)]
    pub schema: Value,
    /// When it was registered.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: DateTime<Utc>,
}

/// Why something about schemas could not be done.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Nobody has it.
    #[error("there is no project {0:?}; make it with 'tidemill projects create {0}'")]
    NoProject(String),
    /// No event can have this type.
    #[error("an event type has 1 to {MAX_EVENT_TYPE} characters other than U+0000; give the one that events have")]
    BadEventType,
    /// It cannot be a schema.
    #[error(transparent)]
    Bad(#[from] BadSchema),
    /// Events that were valid could be invalid.
    #[error("events that are valid under version {version} could be invalid under this schema: {}; allow what was \
             allowed before, or force it if no producer sends such events", .reasons.join("; "))]
    Incompatible {
        /// The newest version.
        version: i32,
        /// Where, and why.
        reasons: Vec<String>,
    },
    /// Each takes memory on every gateway.
    #[error(
        "the project has {types} event types with schemas and {versions} versions of them; there may be \
             {MOST_TYPES} and {MOST_VERSIONS}, so put what differs into properties instead of event types"
    )]
    TooMany {
        /// With schemas.
        types: i64,
        /// Of all of them.
        versions: i64,
    },
    /// There is none.
    #[error("event type {0:?} has no such schema; list them to see which there are")]
    NoSchema(String),
    /// It does not answer, or refuses.
    #[error("Postgres: {0}")]
    Postgres(#[from] sqlx::Error),
}

/// Registers a schema, unless it is what the event type has already.
pub async fn register(db: &mut PgConnection, new: &Registration<'_>) -> Result<Registered, SchemaError> {
    if !(1..=MAX_EVENT_TYPE).contains(&new.event_type.chars().count()) || new.event_type.contains('\0') {
        return Err(SchemaError::BadEventType);
    }
    let document = schema::read(new.schema)?;
    let mut transaction = db.begin().await?;
    if !sql::lock_project(&mut transaction, new.project).await? {
        return Err(SchemaError::NoProject(new.project.to_owned()));
    }
    let newest = sql::schema(&mut transaction, new.project, new.event_type, None).await?;
    let registered = |version, created| Registered {
        project: new.project.to_owned(),
        event_type: new.event_type.to_owned(),
        version,
        created,
    };
    let version = match &newest {
        Some(newest) if newest.schema == document => return Ok(registered(newest.version, false)),
        Some(newest) => newest.version + 1,
        None => 1,
    };
    if let Some(newest) = newest.as_ref().filter(|_| !new.force) {
        let reasons = compat::reasons(&newest.schema, &document);
        if !reasons.is_empty() {
            return Err(SchemaError::Incompatible { version: newest.version, reasons });
        }
    }
    let (types, versions) = sql::count_schemas(&mut transaction, new.project).await?;
    if versions >= MOST_VERSIONS || (newest.is_none() && types >= MOST_TYPES) {
        return Err(SchemaError::TooMany { types, versions });
    }
    if !new.dry_run {
        sql::insert_schema(&mut transaction, new.project, new.event_type, version, &document).await?;
        transaction.commit().await?;
    }
    Ok(registered(version, !new.dry_run))
}

/// A project's schemas.
pub async fn list(db: &mut PgConnection, project: &str) -> Result<Vec<Listed>, SchemaError> {
    let rows = sql::schemas(db, project).await?;
    Ok(rows.into_iter().map(|(event_type, version, created_at)| Listed { event_type, version, created_at }).collect())
}

/// A version of an event type's schema, or the newest.
pub async fn show(
    db: &mut PgConnection,
    project: &str,
    event_type: &str,
    version: Option<i32>,
) -> Result<Shown, SchemaError> {
    let row = sql::schema(db, project, event_type, version).await?;
    let row = row.ok_or_else(|| SchemaError::NoSchema(event_type.to_owned()))?;
    Ok(Shown {
        project: project.to_owned(),
        event_type: row.event_type,
        version: row.version,
        schema: row.schema,
        created_at: row.created_at,
    })
}

/// What a project does with events that break their schemas.
pub async fn mode(db: &mut PgConnection, project: &str) -> Result<SchemaMode, SchemaError> {
    let name = sql::schema_mode(db, project).await?.ok_or_else(|| SchemaError::NoProject(project.to_owned()))?;
    Ok(SchemaMode::parse(&name).unwrap_or_default())
}

/// Changes it. Gateways know within seconds.
pub async fn set_mode(db: &mut PgConnection, project: &str, mode: SchemaMode) -> Result<(), SchemaError> {
    match sql::set_schema_mode(db, project, mode.as_str()).await? {
        true => Ok(()),
        false => Err(SchemaError::NoProject(project.to_owned())),
    }
}

/// A newest schema as gateways cache it in Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// Its key there.
    pub key: String,
    /// Its text.
    pub value: String,
    /// How long it stands, in seconds.
    pub seconds: u64,
}

/// What Redis should have of a project's schemas; nothing where events are not checked.
pub async fn cached(pool: &PgPool, project: &str) -> Result<Vec<Cached>, sqlx::Error> {
    let of = |(event_type, schema, changed): (String, Value, DateTime<Utc>)| Cached {
        key: keys::newest_schema(project, &event_type, changed.timestamp_micros()),
        value: schema.to_string(),
        seconds: keys::SCHEMA_S,
    };
    Ok(sql::checked_schemas(pool, project).await?.into_iter().map(of).collect())
}

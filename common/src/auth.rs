//! API keys: who calls, for which project, and what they may do.
//!
//! Keys lie in Postgres, which keeps only their SHA-256. Answers are cached for a few seconds, so that a
//! revoked key stops working within [`CONFIRMED`]; while Postgres cannot be asked, known keys go on working.

mod cache;
mod environment;
mod form;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode, header};
use chrono::{DateTime, Utc};
use sqlx::PgPool;
use sqlx::types::Json;
use subtle::ConstantTimeEq;

pub use self::cache::{CONFIRMED, FRESH};
use self::cache::{Cache, Found};
pub use self::environment::EnvironmentError;
use self::environment::EnvironmentKey;
pub use self::form::{NewKey, generate};
use self::form::{hash, prefix};
use crate::home::Route;
use crate::problem::Problem;
use crate::projects::SchemaMode;

/// How long Postgres may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);
/// Whether a key is revoked is judged by the clock that wrote when.
const BY_PREFIX: &str = "SELECT k.hash, k.project, p.partitions, tidemill_routes(p.id) AS routes, \
     p.quota_per_second, k.scopes, k.rate_limit, k.expires_at, \
     k.revoked_at IS NOT NULL AND k.revoked_at <= now() AS revoked, p.suspended_at IS NOT NULL AS suspended, \
     p.schema_mode, p.schemas_changed_at \
     FROM api_keys k JOIN projects p ON p.id = k.project AND p.deleted_at IS NULL WHERE k.prefix = $1";

/// The same for a key from the environment, which only needs its project.
const PROJECT: &str = "SELECT $1::bytea AS hash, id AS project, partitions, \
     tidemill_routes(id) AS routes, quota_per_second, \
     $2::text[] AS scopes, NULL::integer AS rate_limit, NULL::timestamptz AS expires_at, false AS revoked, \
     suspended_at IS NOT NULL AS suspended, schema_mode, schemas_changed_at FROM projects WHERE id = $3 AND deleted_at IS NULL";

/// What a key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Sending events.
    Write,
    /// Reading metrics, sessions and events.
    Read,
    /// Operating the project.
    Admin,
}

impl Scope {
    /// The name in rows and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }

    /// The scope with this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Write, Self::Read, Self::Admin].into_iter().find(|scope| scope.as_str() == name)
    }
}

/// A key as Postgres has it.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// Its first characters, which may be shown and logged.
    pub prefix: String,
    /// Whose key it is.
    pub project: Arc<str>,
    /// How many partitions the project's own topic has.
    pub partitions: i32,
    /// The project's routes.
    pub routes: Vec<Route>,
    /// What it allows.
    pub scopes: Vec<Scope>,
    /// Events per second; `None` is no limit.
    pub rate_limit: Option<NonZeroU32>,
    /// Events per second of the whole project, over all gateways; `None` is no limit.
    pub quota: Option<NonZeroU32>,
    /// What the project does with events that break their JSON Schema.
    pub schema_mode: SchemaMode,
    /// When the project's JSON Schemas last changed, in microseconds since 1970.
    pub schemas_changed: i64,
    /// Whether the project takes no events.
    pub suspended: bool,
    hash: [u8; 32],
    expires_at: Option<DateTime<Utc>>,
    revoked: bool,
}

impl ApiKey {
    /// Refuses a caller whose key lacks a scope, or whose project takes no events.
    pub fn require(&self, scope: Scope) -> Result<(), AuthError> {
        match scope {
            _ if !self.scopes.contains(&scope) => Err(AuthError::Forbidden(scope)),
            Scope::Write if self.suspended => Err(AuthError::Suspended),
            _ => Ok(()),
        }
    }
}

/// Why a caller is not let in.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// No key was sent.
    #[error("no API key; send it as 'Authorization: Bearer <key>' or 'X-API-Key: <key>'")]
    Missing,
    /// Nobody has this key.
    #[error("this API key is unknown; check it, or make one with 'tidemill keys create'")]
    Unknown,
    /// Its time is over.
    #[error("this API key has expired; make a new one with 'tidemill keys create'")]
    Expired,
    /// It was taken back.
    #[error("this API key has been revoked; make a new one with 'tidemill keys create'")]
    Revoked,
    /// It is good, but not for this.
    #[error("this API key lacks the scope '{}'; use a key that has it", .0.as_str())]
    Forbidden(Scope),
    /// Its project takes no events for now.
    #[error("this project is suspended and takes no events; keep them until 'tidemill projects resume'")]
    Suspended,
    /// Postgres cannot be asked, and the key is not known from before.
    #[error("API keys cannot be looked up: {0}")]
    Unavailable(String),
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Unavailable(cause) => Self::unavailable("the store of API keys", cause),
            AuthError::Forbidden(_) => forbidden(error.to_string()),
            AuthError::Suspended => {
                Self::new(StatusCode::FORBIDDEN, "project-suspended", "Suspended", error.to_string())
            }
            _ => Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "Not authenticated", error.to_string())
                .field("Authorization"),
        }
    }
}

/// For a caller whose key is good, but not for this.
pub fn forbidden(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "forbidden", "Not allowed with this key", detail).field("Authorization")
}

/// The key in a request's headers: `Authorization: Bearer …`, else `X-API-Key`.
pub fn credential(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer.or_else(|| headers.get("x-api-key")?.to_str().ok().map(str::trim)).filter(|key| !key.is_empty())
}

/// The keys of all projects. Cheap to clone.
#[derive(Clone)]
pub struct Keys {
    pool: PgPool,
    cache: Arc<RwLock<Cache<Arc<ApiKey>>>>,
    /// By SHA-256.
    environment: Arc<HashMap<[u8; 32], EnvironmentKey>>,
}

impl Keys {
    /// Keys that are looked up with this pool.
    pub fn new(pool: PgPool) -> Self {
        Self { pool, cache: Arc::default(), environment: Arc::default() }
    }

    /// These, and keys for development from the environment: `key:project[:scope+scope],…`.
    pub fn with_environment(self, api_keys: Option<&str>) -> Result<Self, EnvironmentError> {
        let keys = environment::parse(api_keys.unwrap_or_default())?;
        if !keys.is_empty() {
            tracing::warn!(keys = keys.len(), "keys from API_KEYS are let in; they are for development only");
        }
        Ok(Self { environment: Arc::new(keys), ..self })
    }

    /// Who calls with this credential (see [`credential`]) at this time.
    pub async fn authenticate(&self, credential: Option<&str>, now: DateTime<Utc>) -> Result<Arc<ApiKey>, AuthError> {
        let presented = credential.ok_or(AuthError::Missing)?;
        let hash = hash(presented);
        let environment = self.environment.get(&hash);
        let own = environment.map(|key| key.prefix.as_str());
        let prefix = own.or_else(|| prefix(presented)).ok_or(AuthError::Unknown)?;
        let known = match self.known(prefix) {
            Some(known) => known,
            None => self.find(prefix, environment.map(|key| (hash, key))).await?,
        };
        check(known.ok_or(AuthError::Unknown)?, &hash, now)
    }

    /// What most callers need: many can look at once.
    fn known(&self, prefix: &str) -> Option<Option<Arc<ApiKey>>> {
        self.cache.read().expect("no holder panics").peek(prefix, Instant::now())
    }

    async fn find(&self, prefix: &str, environment: Environment<'_>) -> Result<Option<Arc<ApiKey>>, AuthError> {
        let asked = Instant::now();
        let found = self.cache().find(prefix, asked);
        match found {
            Found::Use(known) => Ok(known),
            Found::Down => Err(AuthError::Unavailable("Postgres did not answer a moment ago".to_owned())),
            Found::Ask(stale) => match self.look_up(prefix, environment).await {
                Ok(known) => {
                    self.cache().confirm(prefix, known.clone(), asked);
                    Ok(known)
                }
                Err(error) => {
                    self.cache().failed(Instant::now());
                    tracing::warn!(%error, "API keys cannot be looked up");
                    stale.ok_or(AuthError::Unavailable(error)).map(Some)
                }
            },
        }
    }

    async fn look_up(&self, prefix: &str, environment: Environment<'_>) -> Result<Option<Arc<ApiKey>>, String> {
        let query = match environment {
            None => sqlx::query_as::<_, Row>(BY_PREFIX).bind(prefix),
            Some((hash, key)) => {
                let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.as_str()).collect();
                sqlx::query_as(PROJECT).bind(hash).bind(scopes).bind(&key.project)
            }
        };
        let row = query.fetch_optional(&self.pool);
        match tokio::time::timeout(LOOKUP_TIMEOUT, row).await {
            Ok(Ok(row)) => Ok(row.and_then(|row| row.into_key(prefix)).map(Arc::new)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} ms", LOOKUP_TIMEOUT.as_millis())),
        }
    }

    fn cache(&self) -> RwLockWriteGuard<'_, Cache<Arc<ApiKey>>> {
        self.cache.write().expect("no holder panics")
    }
}

/// A key from the environment, with its hash.
type Environment<'a> = Option<([u8; 32], &'a EnvironmentKey)>;

/// Nothing about a key is told before its hash matches.
fn check(known: Arc<ApiKey>, presented: &[u8; 32], now: DateTime<Utc>) -> Result<Arc<ApiKey>, AuthError> {
    if !bool::from(known.hash.ct_eq(presented)) {
        Err(AuthError::Unknown)
    } else if known.revoked {
        Err(AuthError::Revoked)
    } else if known.expires_at.is_some_and(|at| at <= now) {
        Err(AuthError::Expired)
    } else {
        Ok(known)
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    hash: Vec<u8>,
    project: String,
    partitions: i32,
    routes: Json<Vec<Route>>,
    scopes: Vec<String>,
    rate_limit: Option<i32>,
    quota_per_second: Option<i32>,
    expires_at: Option<DateTime<Utc>>,
    revoked: bool,
    suspended: bool,
    schema_mode: String,
    schemas_changed_at: DateTime<Utc>,
}

impl Row {
    /// A row whose hash is no SHA-256 is nobody's key.
    fn into_key(self, prefix: &str) -> Option<ApiKey> {
        let rate = |limit: i32| u32::try_from(limit).ok().and_then(NonZeroU32::new);
        Some(ApiKey {
            prefix: prefix.to_owned(),
            project: Arc::from(self.project),
            partitions: self.partitions,
            routes: self.routes.0,
            scopes: self.scopes.iter().filter_map(|scope| Scope::parse(scope)).collect(),
            rate_limit: self.rate_limit.and_then(rate),
            quota: self.quota_per_second.and_then(rate),
            schema_mode: SchemaMode::parse(&self.schema_mode).unwrap_or_default(),
            schemas_changed: self.schemas_changed_at.timestamp_micros(),
            suspended: self.suspended,
            hash: self.hash.try_into().ok()?,
            expires_at: self.expires_at,
            revoked: self.revoked,
        })
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::form::{LENGTH, PREFIX};
    use super::*;

    fn key(new: &NewKey) -> ApiKey {
        ApiKey {
            prefix: new.prefix.clone(),
            project: Arc::from("shop"),
            partitions: 4,
            routes: Vec::new(),
            scopes: vec![Scope::Read],
            rate_limit: None,
            quota: None,
            schema_mode: SchemaMode::Off,
            schemas_changed: 0,
            suspended: false,
            hash: new.hash,
            expires_at: None,
            revoked: false,
        }
    }

    #[test]
    fn only_the_whole_key_is_good_and_only_in_its_time() {
        let (new, now) = (generate(), Utc::now());
        let ask = |key: ApiKey, presented: &str| check(Arc::new(key), &hash(presented), now);
        assert!(ask(key(&new), &new.key).is_ok());
        let same_prefix = format!("{}{}", new.prefix, "A".repeat(LENGTH - PREFIX));
        assert!(matches!(ask(key(&new), &same_prefix), Err(AuthError::Unknown)));
        let revoked = ApiKey { revoked: true, ..key(&new) };
        assert!(matches!(ask(revoked.clone(), &new.key), Err(AuthError::Revoked)));
        assert!(matches!(ask(revoked, &same_prefix), Err(AuthError::Unknown)), "a guess learns nothing");
        let expired = ApiKey { expires_at: Some(now), ..key(&new) };
        assert!(matches!(ask(expired.clone(), &new.key), Err(AuthError::Expired)));
        assert!(check(Arc::new(expired), &new.hash, now - TimeDelta::milliseconds(1)).is_ok());
    }

    #[test]
    fn scopes_are_kept() {
        let reader = key(&generate());
        assert!(reader.require(Scope::Read).is_ok());
        assert!(matches!(reader.require(Scope::Write), Err(AuthError::Forbidden(Scope::Write))));
        let both = ApiKey { scopes: vec![Scope::Read, Scope::Write], ..reader };
        assert!(both.require(Scope::Write).is_ok());
        let suspended = ApiKey { suspended: true, ..both };
        assert!(suspended.require(Scope::Read).is_ok());
        assert!(matches!(suspended.require(Scope::Write), Err(AuthError::Suspended)));
    }

    #[test]
    fn the_credential_stands_in_either_header() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            pairs.iter().map(|(name, value)| (name.parse().expect("name"), value.parse().expect("value"))).collect()
        };
        let found = |pairs: &[(&'static str, &'static str)]| credential(&headers(pairs)).map(str::to_owned);
        assert_eq!(found(&[("authorization", "bearer  k1")]), Some("k1".to_owned()));
        assert_eq!(found(&[("x-api-key", "k2")]), Some("k2".to_owned()));
        assert_eq!(found(&[("authorization", "Basic abc"), ("x-api-key", "k2")]), Some("k2".to_owned()));
        assert_eq!(found(&[("authorization", "Bearer ")]), None);
        assert_eq!(found(&[]), None);
    }
}

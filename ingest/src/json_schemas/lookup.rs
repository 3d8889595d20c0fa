//! Where newest schemas are looked up: in Redis, then in Postgres.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jsonschema::Validator;
use serde_json::Value;
use sqlx::PgPool;
use tidemill_common::breaker::Breaker;
use tidemill_common::redis::{Redis, RedisFailure};

use super::cache::Known;
use super::schema;
use crate::{keys, sql};

const TIMEOUT: Duration = Duration::from_secs(1);

/// Redis and Postgres.
pub struct Lookup {
    redis: Redis,
    pool: PgPool,
    breaker: Breaker,
}

impl Lookup {
    /// Looks up schemas there.
    pub fn new(redis: Redis, pool: PgPool) -> Self {
        Self { redis, pool, breaker: Breaker::new("the store of JSON Schemas", TIMEOUT) }
    }

    /// The newest schemas of event types, as of the project's last registration; those that nobody can tell now are
    /// missing.
    pub async fn newest(&self, project: &str, changed: i64, types: Vec<String>) -> HashMap<String, Known<Validator>> {
        let mut found = HashMap::with_capacity(types.len());
        let mut missing = Vec::new();
        let cached = self.cached(project, changed, &types).await;
        for (event_type, cached) in types.into_iter().zip(cached) {
            match cached.as_deref().and_then(read) {
                Some(known) => drop(found.insert(event_type, known)),
                None => missing.push(event_type),
            }
        }
        if !missing.is_empty() {
            self.stored(project, changed, missing, &mut found).await;
        }
        found
    }

    async fn cached(&self, project: &str, changed: i64, types: &[String]) -> Vec<Option<String>> {
        let mut pipeline = redis::pipe();
        for event_type in types {
            pipeline.cmd("GET").arg(keys::newest_schema(project, event_type, changed));
        }
        let read = |answer: Result<redis::Value, RedisFailure>| match answer {
            Ok(value) => redis::from_redis_value(value).ok().flatten(),
            Err(failure) => {
                tracing::debug!(%failure, "going on without redis");
                None
            }
        };
        self.redis.run_each(&pipeline).await.into_iter().map(read).collect()
    }

    async fn stored(
        &self,
        project: &str,
        changed: i64,
        types: Vec<String>,
        found: &mut HashMap<String, Known<Validator>>,
    ) {
        let rows = match self.breaker.call(sql::newest_schemas(&self.pool, project, &types)).await {
            Ok(rows) => rows,
            Err(error) => return tracing::warn!(%error, project, "JSON Schemas cannot be looked up"),
        };
        let mut rows: HashMap<String, Value> = rows.into_iter().collect();
        let mut pipeline = redis::pipe();
        for event_type in types {
            let (value, seconds, known) = match rows.remove(&event_type) {
                None => (keys::NO_SCHEMA.to_owned(), keys::NO_SCHEMA_S, None),
                Some(document) => match compile(&document) {
                    Some(validator) => (document.to_string(), keys::SCHEMA_S, Some(validator)),
                    None => continue,
                },
            };
            let key = keys::newest_schema(project, &event_type, changed);
            pipeline.cmd("SET").arg(key).arg(value).arg("EX").arg(seconds).ignore();
            found.insert(event_type, known);
        }
        let redis = self.redis.clone();
        tokio::spawn(async move { drop(redis.run::<()>(&pipeline).await) }); // nobody waits for a cache
    }
}

/// A value that is neither form is as good as none.
fn read(cached: &str) -> Option<Known<Validator>> {
    if cached == keys::NO_SCHEMA {
        return Some(None);
    }
    compile(&serde_json::from_str(cached).ok()?).map(Some)
}

/// Nothing that does not compile is registered, so this is about a schema that a newer version took.
fn compile(document: &Value) -> Option<Arc<Validator>> {
    schema::compile(document)
        .inspect_err(|error| tracing::error!(%error, "a registered schema is unusable"))
        .ok()
        .map(Arc::new)
}

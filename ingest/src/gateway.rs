//! The gateway's parts, and how they come and go.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use sqlx::PgPool;
use sqlx::pool::PoolConnection;
use tidemill_common::auth::Keys;
use tidemill_common::config::Connections;
use tidemill_common::http::Health;
use tidemill_common::kafka::{KafkaConfig, Producer};
use tidemill_common::postgres;
use tidemill_common::redis::Redis;
use tidemill_common::registry::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admit::Lanes;
use crate::batches::Batches;
use crate::claims::Claims;
use crate::config::Config;
use crate::cors::Origins;
use crate::event_types::EventTypes;
use crate::idempotency::Idempotency;
use crate::incarnations::Incarnations;
use crate::json_schemas::{JsonSchemas, SchemaError};
use crate::limits::Limits;
use crate::meters::Meters;
use crate::overload::Overload;
use crate::schemas::Schemas;
use crate::spooling::{self, Spooling};
use crate::sql;

/// Shorter than a claim, with time to confirm.
const DELIVERY: Duration = Duration::from_secs(5);
/// Requests end within the timeouts of their steps; this is beyond their sum.
const DRAIN: Duration = Duration::from_secs(15);
const DATABASE_CONNECTIONS: u32 = 5;

/// Everything that a request needs.
pub struct Gateway {
    /// Settings.
    pub config: Config,
    /// Whose pages may send events.
    pub origins: Origins,
    /// API keys.
    pub keys: Keys,
    /// What callers may send.
    pub limits: Limits,
    /// What is told of batches.
    pub batches: Batches,
    /// Schema ids.
    pub schemas: Schemas,
    /// JSON Schemas of events' properties.
    pub json_schemas: JsonSchemas,
    /// Claims on eventIds.
    pub claims: Claims,
    /// First answers to requests that are sent again.
    pub idempotency: Idempotency,
    /// Where events wait while Kafka is down, if there is such a place.
    pub spooling: Option<Spooling>,
    /// The way into the log.
    pub producer: Producer,
    /// Topics' incarnations.
    pub incarnations: Incarnations,
    /// What is taken on at once.
    pub overload: Overload,
    /// Counters.
    pub event_types: EventTypes,
    /// What is measured.
    pub meters: Meters,
    /// Where requests wait to be claimed and settled together.
    pub lanes: Lanes,
    /// Events between claim and confirm.
    pub tasks: TaskTracker,
    stop_lanes: CancellationToken,
    pool: PgPool,
    redis: Redis,
    kafka: KafkaConfig,
}

impl Gateway {
    /// Sets up clients; they connect when they are first used. Needs a tokio runtime.
    pub async fn new(config: Config, connections: &Connections) -> anyhow::Result<Arc<Self>> {
        let pool = postgres::pool(&connections.database_url, DATABASE_CONNECTIONS)?;
        let redis = Redis::new(&connections.redis_url)?;
        let (lanes, ends) = Lanes::new();
        let gateway = Arc::new(Self {
            origins: Origins::parse(&config.cors_origins)?,
            keys: Keys::new(pool.clone()).with_environment(connections.api_keys.as_deref())?,
            limits: Limits::new(&config, redis.clone()),
            batches: Batches::new(pool.clone()),
            schemas: Schemas::new(Registry::new(&connections.registry_url)?),
            json_schemas: JsonSchemas::new(redis.clone(), pool.clone()),
            claims: Claims::new(redis.clone()),
            idempotency: Idempotency::new(redis.clone()),
            spooling: Spooling::open(&config).await?,
            producer: Producer::new(&connections.kafka, DELIVERY)?,
            incarnations: Incarnations::default(),
            overload: Overload::new(config.max_requests, config.max_bytes_in_flight),
            event_types: EventTypes::default(),
            meters: Meters::new(),
            lanes,
            stop_lanes: CancellationToken::new(),
            tasks: TaskTracker::new(),
            pool,
            redis,
            kafka: connections.kafka.clone(),
            config,
        });
        ends.work(&gateway, &gateway.stop_lanes);
        Ok(gateway)
    }

    /// Starts what runs beside the requests, until shutdown.
    pub fn start(self: &Arc<Self>, health: &Health, shutdown: &CancellationToken) {
        if let Some(spooling) = &self.spooling {
            spooling.watch(health, shutdown);
            let drain = spooling::drain(Arc::clone(self), self.producer.clone(), shutdown.clone());
            self.tasks.spawn(drain);
        }
        tokio::spawn(self.incarnations.clone().follow(self.kafka.clone(), shutdown.clone()));
        self.limits.start(self.pool.clone(), shutdown);
        self.batches.start(shutdown);
        self.watch_kafka(health, shutdown);
        self.watch_postgres(health, shutdown);
        let redis = self.redis.clone();
        health.watch("redis", false, shutdown, move || {
            let redis = redis.clone();
            async move { redis.ping().await }
        });
        let gateway = Arc::clone(self);
        health.watch("registry", false, shutdown, move || {
            let gateway = Arc::clone(&gateway);
            async move { gateway.schemas.ping().await }
        });
    }

    /// Without Kafka nothing can be accepted, unless there is a spool. A producer that failed for good ends this
    /// process: whoever started it starts another.
    fn watch_kafka(&self, health: &Health, shutdown: &CancellationToken) {
        let (producer, stop) = (self.producer.clone(), shutdown.clone());
        health.watch("kafka", self.spooling.is_none(), shutdown, move || {
            let (producer, fatal) = (producer.clone(), fatal(&producer).inspect_err(|_| stop.cancel()));
            async move {
                fatal?;
                // Of the very client that sends: others may reach Kafka while it does not.
                Ok::<(), anyhow::Error>(tokio::task::spawn_blocking(move || producer.ping()).await??)
            }
        });
    }

    /// Without Postgres known keys go on working, but a gateway that has never reached it knows none: it is
    /// not ready until then.
    fn watch_postgres(&self, health: &Health, shutdown: &CancellationToken) {
        health.set("api_keys", true, Err("not known until Postgres has been reached once".to_owned()));
        let (pool, outer) = (self.pool.clone(), health.clone());
        health.watch("postgres", false, shutdown, move || {
            let (pool, health) = (pool.clone(), outer.clone());
            async move {
                sql::ping(&pool).await?;
                health.set("api_keys", true, Ok(()));
                Ok::<(), sqlx::Error>(())
            }
        });
    }

    /// A connection to Postgres, for what operators ask.
    pub async fn connection(&self) -> Result<PoolConnection<sqlx::Postgres>, SchemaError> {
        Ok(self.pool.acquire().await?)
    }

    /// Waits for events whose clients have gone, then until the producer holds nothing: dropping it before
    /// would throw records away.
    pub async fn drain(&self) -> anyhow::Result<()> {
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!(requests = self.tasks.len(), "some requests did not end in time");
        }
        self.stop_lanes.cancel();
        self.batches.finish().await;
        let flushed = self.producer.flush(DRAIN).await;
        fatal(&self.producer)?;
        Ok(flushed?)
    }
}

fn fatal(producer: &Producer) -> anyhow::Result<()> {
    match producer.fatal_error() {
        Some(error) => bail!("the producer can never send to Kafka again, start the gateway anew: {error}"),
        None => Ok(()),
    }
}

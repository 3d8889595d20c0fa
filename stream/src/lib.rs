//! The stream worker: a consumer group that turns the log into sessions and metrics, exactly once in effect.

mod apply;
pub mod cache;
mod config;
pub mod decimal;
pub mod dlq;
pub mod emit;
pub mod enrich;
mod filling;
pub mod fold;
pub mod forget;
mod generation;
pub mod histogram;
pub mod hot;
mod kept;
pub mod keys;
pub mod lag;
pub mod ledger;
mod letters;
mod live;
pub mod live_session;
pub mod metric;
mod outbox;
pub mod packed;
mod poison;
mod project;
pub mod properties;
pub mod publish;
mod quick_map;
pub mod replay;
pub mod session_key;
pub mod sketch;
mod sort;
mod state;
pub mod store;
mod time;
pub mod timeline;
pub mod window;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use sqlx::PgPool;
use tidemill_common::codec::Decoder;
use tidemill_common::config::Connections;
use tidemill_common::http::{Health, Listener, serve};
use tidemill_common::kafka::{GroupConsumer, History, Producer};
use tidemill_common::postgres;
use tidemill_common::progress::{self, Positions};
use tidemill_common::redis::Redis;
use tidemill_common::registry::Registry;
use tidemill_common::seen::{Checkpoints, Filler, Limits, SeenStores, keep_checkpoints};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use apply::Applier;
pub use config::{Config, OnGap};
use enrich::Enricher;
use filling::Filling;
use hot::{Guard, Mixes, Webhook};
use letters::Letters;
use live::Preparer;
use metric::Definitions;
use outbox::Post;
use poison::Limit;
use project::{Intervals, Projector, Writer};
use publish::{Outlet, Publisher};
use sort::Sorter;
use state::State;
use store::{RawEvents, SHARDS, Shards, Store};
use worker::{Failures, Worker};

/// A processed record, a stray or a dead letter is delivered, or given up, within this time.
const DELIVERY: Duration = Duration::from_secs(30);
/// What is sent on waits this long for company. A batch that counts it is seldom that far.
const LINGER: Duration = Duration::from_millis(25);

/// Runs a worker until shutdown.
pub async fn run(
    config: Config,
    connections: Connections,
    listener: Listener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let health = Health::new();
    let pool = postgres::pool(&connections.database_url, 4)?;
    let redis = Redis::background(&connections.redis_url)?;
    let registry = Registry::new(&connections.registry_url)?;
    let decoder = Decoder::new(registry.clone());
    let history = History::new(connections.kafka.clone());
    let limits = Limits { flush_ms: config.checkpoint_interval_ms, ..Limits::default() };
    let stores = SeenStores::open(&config.seen_dir, limits)?;
    let every = Duration::from_millis(config.checkpoint_interval_ms);
    let checkpoints = Checkpoints::of(config.checkpoint_url.as_deref(), &connections.warehouse)?;
    let definitions = Definitions::new(pool.clone(), config.metrics_dir.as_deref())?;
    definitions.watch(shutdown.clone());
    let raw_events = config.raw_events.then(|| RawEvents::new(config.raw_events_days));
    if let Some(raw_events) = &raw_events {
        raw_events.drop_old(pool.clone(), shutdown.clone());
    }
    let producer = Producer::lingering(&connections.kafka, DELIVERY, LINGER)?;
    let publisher = config.publish.then(Publisher::default);
    if let Some(publisher) = &publisher {
        let (pool, producer, registry) = (pool.clone(), producer.clone(), registry.clone());
        publisher.run(Outlet { pool, producer, registry, kafka: connections.kafka.clone() }, shutdown.clone());
    }
    let store = Store::new(pool.clone(), definitions.clone(), Shards::new(SHARDS))
        .with_raw_events(raw_events)
        .with_publisher(publisher);
    watch_stores(&health, &shutdown, &pool, &redis);
    let positions = Positions::default();
    let stall = Duration::from_millis(config.stall_ms);
    let watching = progress::Watch {
        name: "stream",
        history: history.clone(),
        health: health.clone(),
        patience: stall,
        every: Duration::from_millis(config.lag_interval_ms),
    };
    let (looks, look) = watch::channel(Arc::default());
    tokio::spawn(watching.run(positions.clone(), looks, shutdown.clone()));
    let mixes = Mixes::default();
    let webhook = config.hot_webhook_url.as_deref().map(|url| Webhook::start(url, shutdown.clone())).transpose()?;
    let threshold = config.hot_threshold();
    let guard = Guard::new(pool.clone(), history.clone(), mixes.clone(), webhook, threshold, &health);
    tokio::spawn(guard.run(look, shutdown.clone()));
    let intervals = Intervals {
        round: Duration::from_millis(config.hot_key_interval_ms),
        audit: Duration::from_millis(config.audit_interval_ms),
    };
    tokio::spawn(prune_carts(pool.clone(), shutdown.clone()));
    tokio::spawn(dlq::watch::watch(pool.clone(), shutdown.clone()));
    tokio::spawn(dlq::prune::keep_pruning(pool.clone(), history.clone(), shutdown.clone()));
    tokio::spawn(replay::watch::watch(pool.clone(), shutdown.clone()));
    let worker = Worker {
        consumer: GroupConsumer::join(
            &connections.kafka,
            &config.group,
            &config.topics,
            Duration::from_millis(config.session_timeout_ms),
        )?,
        preparer: Preparer {
            pool: pool.clone(),
            filler: Filler {
                history,
                decoder: decoder.clone(),
                pool: pool.clone(),
                stores: stores.clone(),
                checkpoints: checkpoints.clone(),
                health: health.clone(),
            },
            on_gap: config.on_gap,
            definitions: definitions.clone(),
            shutdown: shutdown.clone(),
        },
        applier: Applier { store: Arc::new(store), pool: pool.clone(), post: Post { pool: pool.clone(), producer } },
        under_way: None,
        sorter: Sorter::new(
            Letters::new(pool.clone()),
            decoder,
            emit::Emitter::new(registry),
            Enricher::new(&config.conversion_types, config.geoip_file.as_deref())?,
            Duration::from_millis(config.unknown_schema_wait_ms),
            Limit { share: config.poison_share, records: config.poison_records },
            mixes,
        ),
        projector: Projector::start(
            Writer { pool: pool.clone(), redis, definitions, compress_above: config.compress_sessions_above },
            intervals,
        ),
        positions,
        health: health.clone(),
        shutdown: shutdown.clone(),
        state: State::default(),
        filling: Filling::default(),
        failures: Failures::default(),
        config,
    };
    let stop = shutdown.child_token();
    let server = tokio::spawn(serve(listener, health.routes(), stop.clone()));
    let kept = tokio::spawn(keep_checkpoints(stores.clone(), checkpoints, "stream", every, stop.clone()));
    let ended = worker.run().await;
    stop.cancel();
    server.await??;
    kept.await?;
    // The worker is gone, and what it had not written yet is on its way to disk.
    tokio::task::spawn_blocking(move || stores.close()).await??;
    Ok(ended?)
}

/// Clears away what no cart needs any more, now and then; any worker may do it, at any time.
async fn prune_carts(pool: PgPool, shutdown: CancellationToken) {
    const EVERY: Duration = Duration::from_secs(600);
    const MOST: i64 = 10_000;
    while shutdown.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        while let Ok(pruned) = store::carts::prune(&pool, Utc::now(), MOST).await {
            if pruned < MOST as u64 {
                break;
            }
        }
    }
}

fn watch_stores(health: &Health, shutdown: &CancellationToken, pool: &PgPool, redis: &Redis) {
    for check in [worker::BATCHES, worker::PARTITIONS, worker::POISON] {
        health.set(check, true, Ok(()));
    }
    let (pool, redis) = (pool.clone(), redis.clone());
    health.watch("postgres", true, shutdown, move || {
        let pool = pool.clone();
        async move { sqlx::query("SELECT 1").execute(&pool).await.map(drop) }
    });
    health.watch("redis", false, shutdown, move || {
        let redis = redis.clone();
        async move { redis.ping().await }
    });
}

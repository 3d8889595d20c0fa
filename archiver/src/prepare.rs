//! Before a project's partitions are read: its table, where it stands, and what was seen before that.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use iceberg::table::Table;
use sqlx::PgPool;
use tidemill_common::codec::Decoder;
use tidemill_common::config::Connections;
use tidemill_common::home::Layout;
use tidemill_common::http::Health;
use tidemill_common::kafka::{History, KafkaConfig, TopicPartition, topic_incarnations};
use tidemill_common::projects::{self, Project};
use tidemill_common::registry::Registry;
use tidemill_common::seen::{Checkpoints, Fill, Filler, Limits, SeenStore, SeenStores, StoreKey};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, OnGap};
use crate::error::ArchiveError;
use crate::positions::{self, Start, start};
use crate::table::Tables;

/// Sightings in memory: 45 bytes each.
const SIGHTINGS: usize = 150_000;
const KAFKA_TIMEOUT: Duration = Duration::from_secs(10);

/// What all archives share. Cheap to clone.
#[derive(Clone)]
pub struct Shared {
    pub config: Arc<Config>,
    pub kafka: KafkaConfig,
    pub pool: PgPool,
    pub tables: Tables,
    pub history: History,
    pub filler: Filler,
    /// Told when a commit gets on.
    pub progress: Arc<Notify>,
    /// For what takes processor time, memory or connections.
    pub writers: Arc<Semaphore>,
}

impl Shared {
    /// Clients that connect when they are first used.
    pub fn new(config: Config, connections: &Connections, health: &Health) -> anyhow::Result<Self> {
        let history = History::new(connections.kafka.clone());
        let pool = tidemill_common::postgres::pool(&connections.database_url, 4)?;
        let limits = Limits { flush_ms: config.checkpoint_interval_ms, buffered: SIGHTINGS, ..Limits::default() };
        let filler = Filler {
            history: history.clone(),
            decoder: Decoder::new(Registry::new(&connections.registry_url)?),
            pool: pool.clone(),
            stores: SeenStores::open(&config.seen_dir, limits)?,
            checkpoints: Checkpoints::of(config.checkpoint_url.as_deref(), &connections.warehouse)?,
            health: health.clone(),
        };
        let writers = Arc::new(Semaphore::new(config.concurrency.max(1)));
        Ok(Self {
            config: Arc::new(config),
            kafka: connections.kafka.clone(),
            pool,
            tables: Tables::new(connections),
            history,
            filler,
            progress: Arc::default(),
            writers,
        })
    }
}

/// Sightings by partition, of one incarnation of a topic.
#[derive(Default)]
pub struct Seen {
    pub incarnation: String,
    pub stores: HashMap<i32, SeenStore>,
}

/// A project that can be archived.
pub struct Prepared {
    pub project: Project,
    pub layout: Arc<Layout>,
    /// The table whose positions the starts are.
    pub table: Table,
    pub starts: BTreeMap<i32, i64>,
    pub seen: Seen,
}

/// Finds out where to read `partitions` of a project's topic, and fills their seen stores up to there.
pub async fn prepare(
    shared: Shared,
    project: String,
    topic: Arc<str>,
    partitions: Vec<i32>,
    known: Seen,
    cancel: CancellationToken,
) -> Result<Prepared, ArchiveError> {
    let known_project =
        async || projects::load(&shared.pool, &project).await?.ok_or_else(|| ArchiveError::NoProject(project.clone()));
    known_project().await?; // else it gets no table
    let table = shared.tables.load_or_create(&project).await?;
    // Asked for after the table: it knows every era that lies before its positions.
    let project = known_project().await?;
    let at: Vec<_> = partitions.iter().map(|&partition| TopicPartition { topic: topic.clone(), partition }).collect();
    let (incarnations, bounds) = look_at_log(&shared, &project, at.clone()).await?;
    let incarnation = incarnations.get(&*topic).ok_or_else(|| ArchiveError::NoTopic(topic.to_string()))?.clone();
    let positions = positions::read(table.metadata().properties(), &topic)?;
    let mut starts = BTreeMap::new();
    for at in at {
        let bounds = *bounds.get(&at).ok_or_else(|| ArchiveError::NoTopic(topic.to_string()))?;
        let start = start(positions.get(&at.partition), &incarnation, bounds);
        starts.insert(at.partition, resolve(at, start, shared.config.on_gap)?);
    }
    let layout = Arc::new(project.layout(&incarnations));
    let mut known = if known.incarnation == incarnation { known.stores } else { HashMap::new() };
    let fills = starts.iter().map(|(&partition, &next)| Fill {
        key: StoreKey { topic: topic.to_string(), incarnation: incarnation.clone(), partition },
        next,
        again_from: next,
        layout: Arc::clone(&layout),
        window_ms: project.dedupe_window_ms,
        seen: known.remove(&partition),
    });
    let fills: Vec<Fill> = fills.collect();
    let filled = tokio::task::spawn_blocking(move || shared.filler.fill(fills, &cancel, |_, _| ())).await??;
    let stores = filled.into_iter().map(|(at, seen)| (at.partition, seen)).collect();
    Ok(Prepared { project, layout, table, starts, seen: Seen { incarnation, stores } })
}

type Bounds = HashMap<TopicPartition, (i64, i64)>;

async fn look_at_log(
    shared: &Shared,
    project: &Project,
    at: Vec<TopicPartition>,
) -> Result<(HashMap<String, String>, Bounds), ArchiveError> {
    let (kafka, history, topics) = (shared.kafka.clone(), shared.history.clone(), project.topics());
    tokio::task::spawn_blocking(move || Ok((topic_incarnations(&kafka, &topics, KAFKA_TIMEOUT)?, history.bounds(&at)?)))
        .await?
}

fn resolve(at: TopicPartition, start: Start, on_gap: OnGap) -> Result<i64, ArchiveError> {
    match (start, on_gap) {
        (Start::At(offset), _) => Ok(offset),
        (Start::Gap { position, low }, OnGap::Skip) => {
            tracing::error!(topic = %at.topic, partition = at.partition, position, low, "skipped what retention deleted");
            Ok(low)
        }
        (Start::Gap { position, low }, OnGap::Stop) => Err(ArchiveError::Gap { at, position, low }),
        (Start::Ahead { position, high }, _) => Err(ArchiveError::Ahead { at, position, high }),
    }
}

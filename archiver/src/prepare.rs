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
use tidemill_common::kafka::{History, KafkaConfig, TopicPartition};
use tidemill_common::projects::{self, Project};
use tidemill_common::registry::Registry;
use tidemill_common::seen::{Checkpoints, Fill, Filler, Limits, SeenStore, SeenStores, StoreKey};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::commit::commit;
use crate::config::{Config, OnGap};
use crate::error::ArchiveError;
use crate::positions::{self, Position, Positions};
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
    pub table: Table,
    /// What it says of the topic's partitions; the starts follow it.
    pub positions: Positions,
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
    let mut table = shared.tables.load_or_create(&project).await?;
    // Asked for after the table: it knows every era that lies before its positions.
    let project = known_project().await?;
    let (history, topics) = (shared.history.clone(), project.topics());
    let ask = move || history.incarnations(&topics, KAFKA_TIMEOUT);
    let incarnations = tokio::task::spawn_blocking(ask).await??;
    let incarnation = incarnations.get(&*topic).ok_or_else(|| ArchiveError::NoTopic(topic.to_string()))?.clone();
    let mut positions = positions::read(table.metadata().properties(), &topic)?;
    // One in another incarnation of the topic says nothing about this one.
    let is_ours = |position: &&Position| position.incarnation == incarnation;
    let reached = |partition| positions.get(&partition).filter(is_ours).map(Position::reached);
    let at = |partition| TopicPartition { topic: topic.clone(), partition };
    let asked: Vec<_> = partitions.iter().map(|&partition| (at(partition), reached(partition))).collect();
    let history = shared.history.clone();
    let found = tokio::task::spawn_blocking(move || history.starts(&asked)).await??;
    let layout = Arc::new(project.layout(&incarnations));
    let mut known = if known.incarnation == incarnation { known.stores } else { HashMap::new() };
    let (mut starts, mut fills, mut bridged) = (BTreeMap::new(), Vec::new(), Positions::new());
    for partition in partitions {
        let at = at(partition);
        let start = *found.get(&at).ok_or_else(|| ArchiveError::NoTopic(topic.to_string()))?;
        let next = match start {
            Ok(next) => next,
            Err(gap) if shared.config.on_gap == OnGap::Stop => return Err(ArchiveError::Gap { at, gap }),
            Err(gap) => {
                tracing::error!(%topic, partition, %gap, "going on all the same, as on_gap = skip says");
                let position = positions.get(&partition).cloned();
                bridged.extend(position.map(|position| (partition, Position { next: gap.behind(), ..position })));
                gap.behind()
            }
        };
        starts.insert(partition, next);
        fills.push(Fill {
            key: StoreKey { topic: topic.to_string(), incarnation: incarnation.clone(), partition },
            next,
            again_from: next,
            layout: Arc::clone(&layout),
            window_ms: project.dedupe_window_ms,
            seen: known.remove(&partition),
        });
    }
    if !bridged.is_empty() {
        // At once, so that it has to be said only once, however long no record comes.
        let catalog = shared.tables.catalog().await?;
        table = commit(catalog, table.identifier(), &topic, &positions, &bridged, &[]).await?;
        positions.extend(bridged);
    }
    let filled = tokio::task::spawn_blocking(move || shared.filler.fill(fills, &cancel, |_, _| ())).await??;
    let stores = filled.into_iter().map(|(at, seen)| (at.partition, seen)).collect();
    Ok(Prepared { project, layout, table, positions, starts, seen: Seen { incarnation, stores } })
}

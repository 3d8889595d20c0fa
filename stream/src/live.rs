//! Making partitions live: their position from the ledger, their seen store complete, Redis caught up.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use sqlx::PgPool;
use tidemill_common::dead_letters::unknown_schemas;
use tidemill_common::kafka::{KafkaConfig, TopicPartition, topic_incarnations};
use tidemill_common::names::project_of;
use tidemill_common::projects::{self, Project};
use tidemill_common::seen::{Fill, Filler, SeenStore, StoreKey};
use tokio_util::sync::CancellationToken;

use crate::config::OnGap;
use crate::fold::rollups::Changes;
use crate::ledger::{self, Advance, Place, Position};
use crate::sort::Transient;
use crate::store::Touched;

type Places = HashMap<TopicPartition, (Place, Arc<Project>)>;

const KAFKA_TIMEOUT: Duration = Duration::from_secs(10);

/// A partition that is being counted.
pub struct Live {
    /// Its place in the ledger.
    pub place: Place,
    /// Its project.
    pub project: Arc<Project>,
    /// The end of the last batch that went through.
    pub next: i64,
    /// The end of what has been sorted: where the next batch goes on.
    pub read: i64,
    /// Its next record cannot be judged yet; it gives nothing until it goes on from the ledger.
    pub held: bool,
    /// Up to where Redis shows everything.
    pub projected: i64,
    /// Up to where the ledger knows of it, but for what a batch tells it.
    pub marked: i64,
    /// What has been seen.
    pub seen: SeenStore,
}

/// What making live needs.
pub struct Preparer {
    /// The ledger's database.
    pub pool: PgPool,
    /// The brokers.
    pub kafka: KafkaConfig,
    /// Completes what was seen, and reads the log's past.
    pub filler: Filler,
    /// What to do about gaps.
    pub on_gap: OnGap,
    /// Ends long reads.
    pub shutdown: CancellationToken,
}

/// Stores of partitions that are not live, each with the incarnation of its topic; worth keeping until those
/// come back.
pub type Parked = HashMap<TopicPartition, (String, SeenStore)>;

/// What preparing gives.
#[derive(Default)]
pub struct Prepared {
    /// The partitions that can be counted.
    pub live: HashMap<TopicPartition, Live>,
    /// What Redis may not show yet.
    pub touched: Touched,
    /// Partitions about which a person has to decide: which, and what to do.
    pub stuck: Vec<String>,
}

impl Preparer {
    /// Makes partitions live. Those of unknown projects are left out, and those whose log does not fit their
    /// ledger; the others do not wait for them.
    pub async fn prepare(
        &self,
        partitions: &BTreeSet<TopicPartition>,
        parked: &mut Parked,
    ) -> Result<Prepared, Transient> {
        let mut prepared = Prepared::default();
        let places = self.places(partitions).await?;
        if places.is_empty() {
            return Ok(prepared);
        }
        let lows = self.bounds(&places).await?;
        let begins: Vec<(Place, i64)> =
            places.iter().filter_map(|(at, (place, _))| Some((place.clone(), lows.get(at)?.0))).collect();
        let positions = ledger::open(&self.pool, &begins).await?;
        // Asked again: another worker may have counted what came since.
        let bounds = self.bounds(&places).await?;
        let dead = self.dead_letters(&places).await?;
        let mut fills = Vec::new();
        let mut live = HashMap::new();
        for (at, (place, project)) in places {
            let (Some(&position), Some(&bounds)) = (positions.get(&place), bounds.get(&at)) else { continue };
            let position = match self.bridge_gap(&place, position, bounds).await? {
                Ok(position) => position,
                Err(gap) => {
                    tracing::error!(%gap, "a partition is stuck");
                    prepared.stuck.push(gap);
                    continue;
                }
            };
            let kept = parked.remove(&at).filter(|(incarnation, _)| *incarnation == place.incarnation);
            fills.push(Fill {
                key: StoreKey {
                    topic: place.topic.clone(),
                    incarnation: place.incarnation.clone(),
                    partition: place.partition,
                },
                next: position.next,
                again_from: position.projected.min(position.next),
                partitions: project.partitions,
                window_ms: project.dedupe_window_ms,
                dead: dead.get(&at).cloned().unwrap_or_default(),
                seen: kept.map(|(_, seen)| seen),
            });
            live.insert(at, (place, project, position));
        }
        let (mut stores, touched) = self.fill(fills).await?;
        prepared.touched = touched;
        for (at, (place, project, position)) in live {
            let Some(seen) = stores.remove(&at) else { continue };
            let Position { next, projected } = position;
            let live = Live { place, project, next, read: next, held: false, projected, marked: projected, seen };
            prepared.live.insert(at, live);
        }
        Ok(prepared)
    }

    async fn places(&self, partitions: &BTreeSet<TopicPartition>) -> Result<Places, Transient> {
        let topics: BTreeSet<String> = partitions.iter().map(|at| at.topic.to_string()).collect();
        let mut projects = HashMap::new();
        for topic in topics {
            let Some(project) = project_of(&topic) else { continue };
            if let Some(project) = projects::load(&self.pool, project).await? {
                projects.insert(topic, Arc::new(project));
            }
        }
        if projects.is_empty() {
            return Ok(Places::new());
        }
        let incarnations = self.incarnations(projects.keys().cloned().collect()).await?;
        let place = |at: &TopicPartition| {
            let (topic, project) = projects.get_key_value(&*at.topic)?;
            let incarnation = incarnations.get(topic)?.clone();
            let place =
                Place { topic: topic.clone(), partition: at.partition, incarnation, generation: project.generation };
            Some((at.clone(), (place, Arc::clone(project))))
        };
        Ok(partitions.iter().filter_map(place).collect())
    }

    /// The topics' ids; those that do not exist are left out.
    pub async fn incarnations(&self, topics: Vec<String>) -> Result<HashMap<String, String>, Transient> {
        let kafka = self.kafka.clone();
        let ask = move || {
            let names: Vec<&str> = topics.iter().map(String::as_str).collect();
            topic_incarnations(&kafka, &names, KAFKA_TIMEOUT)
        };
        Ok(blocking(ask).await??)
    }

    async fn bounds(&self, places: &Places) -> Result<HashMap<TopicPartition, (i64, i64)>, Transient> {
        let partitions: Vec<TopicPartition> = places.keys().cloned().collect();
        let history = self.filler.history.clone();
        Ok(blocking(move || history.bounds(&partitions)).await??)
    }

    async fn dead_letters(&self, places: &Places) -> Result<HashMap<TopicPartition, BTreeSet<i64>>, Transient> {
        let topics: BTreeSet<_> = places.values().map(|(place, _)| (&place.topic, &place.incarnation)).collect();
        let mut dead = HashMap::new();
        for (topic, incarnation) in topics {
            dead.extend(unknown_schemas(&self.pool, topic, incarnation).await?);
        }
        Ok(dead)
    }

    /// Retention may have passed the ledger's position, or the log may have lost its end: then it is for a
    /// person to decide, and the inner error says what.
    async fn bridge_gap(
        &self,
        place: &Place,
        position: Position,
        (low, high): (i64, i64),
    ) -> Result<Result<Position, String>, Transient> {
        let (next, at) = (position.next, format!("{}/{}", place.topic, place.partition));
        if next > high {
            return Ok(Err(format!(
                "{at}: the ledger has counted up to offset {next}, but the log ends at {high}: it has lost its end. \
                 Restore the topic, or count it anew: delete its row from `ledger`"
            )));
        }
        if next >= low {
            return Ok(Ok(position));
        }
        if self.on_gap == OnGap::Stop {
            return Ok(Err(format!(
                "{at}: the ledger has counted up to offset {next}, but the log begins at {low}: {} records were \
                 deleted by retention before they were counted. To go on behind them, start the worker with \
                 TIDEMILL_STREAM__ON_GAP=skip",
                low - next
            )));
        }
        tracing::error!(%at, next, low, "skipping records that retention has deleted");
        // Nothing is said of a time up to which all is counted.
        let as_of = DateTime::UNIX_EPOCH;
        let step = Advance { place: place.clone(), start: next, next: low, projected: low, as_of };
        let mut tx = self.pool.begin().await?;
        let moved = ledger::advance(&mut tx, &[step]).await?;
        tx.commit().await?;
        if !moved {
            return Err(Transient::NotReady(format!("{at} has moved meanwhile")));
        }
        Ok(Ok(Position { next: low, projected: low }))
    }

    async fn fill(&self, fills: Vec<Fill>) -> Result<(HashMap<TopicPartition, SeenStore>, Touched), Transient> {
        let (filler, shutdown) = (self.filler.clone(), self.shutdown.clone());
        let read = move || {
            let mut touched = Touched::default();
            let mut changes = Changes::default();
            let stores = filler.fill(fills, &shutdown, |record, event| {
                let Some(project) = project_of(&record.topic) else { return };
                changes.count_event(project, event);
                let key = |id: &String| (project.to_owned(), id.clone());
                touched.sessions.extend(event.session_id.as_ref().map(key));
                touched.users.extend(event.user_id.as_ref().map(key));
            });
            touched.windows = changes.0.into_keys().collect();
            stores.map(|stores| (stores, touched))
        };
        Ok(blocking(read).await??)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Transient> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Transient::NotReady(error.to_string()))
}

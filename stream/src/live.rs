//! Making partitions live: their position from the ledger, their seen store complete, Redis caught up.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tidemill_common::codec::Decoder;
use tidemill_common::first_sight::SeenStore;
use tidemill_common::kafka::{History, KafkaConfig, TopicPartition, topic_incarnations};
use tidemill_common::names::project_of;
use tidemill_common::projects::{self, Project};
use tidemill_common::sightings::{Fill, fill};
use tokio_util::sync::CancellationToken;

use crate::config::OnGap;
use crate::fold::rollups::Changes;
use crate::ledger::{self, Advance, Place, Position};
use crate::sort::Transient;
use crate::store::Touched;

const KAFKA_TIMEOUT: Duration = Duration::from_secs(10);

/// A partition that is being counted.
pub struct Live {
    /// Its place in the ledger.
    pub place: Place,
    /// Its project.
    pub project: Arc<Project>,
    /// The end of the last batch that went through.
    pub next: i64,
    /// Up to where Redis shows everything.
    pub projected: i64,
    /// What has been seen.
    pub seen: SeenStore,
}

/// What making live needs.
pub struct Preparer {
    /// The ledger's database.
    pub pool: PgPool,
    /// The brokers.
    pub kafka: KafkaConfig,
    /// The log's past.
    pub history: History,
    /// Reads the log's past.
    pub decoder: Decoder,
    /// What to do about gaps.
    pub on_gap: OnGap,
    /// Ends long reads.
    pub shutdown: CancellationToken,
}

/// What stops the worker, since only a person can decide.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// Wait and try again.
    #[error(transparent)]
    Transient(#[from] Transient),
    /// The log does not fit the ledger.
    #[error(
        "{topic}/{partition}: the ledger stands at offset {next}, but the log holds {low} to {high}: {missing} \
         records can never be counted. To go on behind the gap, start the worker with \
         TIDEMILL_STREAM__ON_GAP=skip"
    )]
    Gap {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The ledger's position.
        next: i64,
        /// The log's first offset.
        low: i64,
        /// The log's next offset.
        high: i64,
        /// How many were lost.
        missing: i64,
    },
}

impl Preparer {
    /// Makes partitions live; those of unknown projects are left out. Also gives what Redis may not show yet.
    pub async fn prepare(
        &self,
        partitions: &BTreeSet<TopicPartition>,
        seen: &mut HashMap<TopicPartition, SeenStore>,
    ) -> Result<(HashMap<TopicPartition, Live>, Touched), LiveError> {
        let places = self.places(partitions).await?;
        if places.is_empty() {
            return Ok(Default::default());
        }
        let bounds = self.bounds(places.keys().cloned().collect()).await?;
        let begins: Vec<(Place, i64)> =
            places.iter().map(|(at, (place, _))| (place.clone(), bounds.get(at).map_or(0, |(low, _)| *low))).collect();
        let positions = ledger::open(&self.pool, &begins).await.map_err(Transient::from)?;
        let mut fills = Vec::new();
        let mut live = HashMap::new();
        for (at, (place, project)) in places {
            let (Some(&position), Some(&bounds)) = (positions.get(&place), bounds.get(&at)) else { continue };
            let position = self.bridge_gap(&place, position, bounds).await?;
            fills.push(Fill {
                at: at.clone(),
                next: position.next,
                again_from: position.projected.min(position.next),
                partitions: project.partitions,
                window_ms: project.dedupe_window_ms,
                seen: seen.remove(&at).unwrap_or_else(|| SeenStore::new(project.dedupe_window_ms)),
            });
            live.insert(at, (place, project, position));
        }
        let (mut stores, touched) = self.fill(fills).await?;
        let live = live
            .into_iter()
            .filter_map(|(at, (place, project, position))| {
                let seen = stores.remove(&at)?;
                Some((at, Live { place, project, next: position.next, projected: position.projected, seen }))
            })
            .collect();
        Ok((live, touched))
    }

    async fn places(
        &self,
        partitions: &BTreeSet<TopicPartition>,
    ) -> Result<HashMap<TopicPartition, (Place, Arc<Project>)>, Transient> {
        let topics: BTreeSet<String> = partitions.iter().map(|at| at.topic.to_string()).collect();
        let mut projects = HashMap::new();
        for topic in topics {
            let Some(project) = project_of(&topic) else { continue };
            if let Some(project) = projects::load(&self.pool, project).await? {
                projects.insert(topic, Arc::new(project));
            }
        }
        if projects.is_empty() {
            return Ok(HashMap::new());
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

    async fn incarnations(&self, topics: Vec<String>) -> Result<HashMap<String, String>, Transient> {
        let kafka = self.kafka.clone();
        let ask = move || {
            let names: Vec<&str> = topics.iter().map(String::as_str).collect();
            topic_incarnations(&kafka, &names, KAFKA_TIMEOUT)
        };
        Ok(blocking(ask).await??)
    }

    async fn bounds(&self, partitions: Vec<TopicPartition>) -> Result<HashMap<TopicPartition, (i64, i64)>, Transient> {
        let history = self.history.clone();
        Ok(blocking(move || history.bounds(&partitions)).await??)
    }

    /// Retention may have passed the ledger's position; or the log is not the one that was counted.
    async fn bridge_gap(&self, place: &Place, position: Position, bounds: (i64, i64)) -> Result<Position, LiveError> {
        let (low, high) = bounds;
        if (low..=high).contains(&position.next) {
            return Ok(position);
        }
        let missing = if position.next < low { low - position.next } else { 0 };
        if self.on_gap == OnGap::Stop || position.next > high {
            let (topic, partition, next) = (place.topic.clone(), place.partition, position.next);
            return Err(LiveError::Gap { topic, partition, next, low, high, missing });
        }
        tracing::error!(?place, next = position.next, low, missing, "skipping records that retention has deleted");
        let step = Advance {
            place: place.clone(),
            start: position.next,
            next: low,
            projected: low,
            as_of: chrono::Utc::now(),
        };
        let skip = async {
            let mut tx = self.pool.begin().await?;
            let moved = ledger::advance(&mut tx, &[step]).await?;
            tx.commit().await.map(|()| moved)
        };
        match skip.await.map_err(Transient::from)? {
            true => Ok(Position { next: low, projected: low }),
            false => Err(Transient::NotReady(format!("{} moved meanwhile", place.topic)).into()),
        }
    }

    async fn fill(&self, fills: Vec<Fill>) -> Result<(HashMap<TopicPartition, SeenStore>, Touched), Transient> {
        let (history, decoder, shutdown) = (self.history.clone(), self.decoder.clone(), self.shutdown.clone());
        let read = move || {
            let mut touched = Touched::default();
            let mut changes = Changes::default();
            let stores = fill(&history, &decoder, fills, &shutdown, |record, event| {
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

//! The log as a replay reads it: in stretches between two known offsets, never beyond where the live generation stands.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tidemill_common::dead_letters::dead;
use tidemill_common::home::Layout;
use tidemill_common::kafka::{Record, Span, TopicPartition};
use tidemill_common::projects::{self, Project};
use tidemill_common::seen::{Fill, Filler, SeenStore, StoreKey};
use tokio_util::sync::CancellationToken;

use super::positions::{ARCHIVE, now};
use super::{Replay, ReplayError, blocking, refused};
use crate::ledger::{self, Place};
use crate::sort::Transient;

/// Most records of a batch: they wait in memory while they are counted.
const BATCH: i64 = 20_000;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where a replay reads, and where it finds what it has to know for that.
pub struct Log {
    pub pool: PgPool,
    pub filler: Filler,
    /// Ends long reads.
    pub stop: CancellationToken,
}

/// A partition that we count.
pub struct Ours {
    pub place: Place,
    pub project: Arc<Project>,
    pub layout: Arc<Layout>,
    /// The first offset that is not counted.
    pub next: i64,
    pub seen: SeenStore,
}

/// A part of a partition that is read next.
pub struct Stretch {
    pub at: TopicPartition,
    pub from: i64,
    pub to: i64,
    /// Which of its records are dead letters.
    pub dead: BTreeSet<i64>,
}

impl Log {
    /// Opens partitions: their position from the ledger, their seen store complete.
    pub async fn open(
        &self,
        replay: &Replay,
        partitions: &BTreeSet<TopicPartition>,
        parked: &mut HashMap<TopicPartition, SeenStore>,
    ) -> Result<BTreeMap<TopicPartition, Ours>, ReplayError> {
        self.same_topic(replay).await?;
        let place = |at| Some((at, replay.place(TopicPartition::number(at))?));
        let places: HashMap<&TopicPartition, Place> = partitions.iter().filter_map(place).collect();
        let positions = self.positions(replay, places.values().cloned().collect()).await?;
        // Asked for after the positions: it knows every era that lies before them.
        let Some(project) = projects::load(&self.pool, &replay.project).await? else {
            return refused(format!("project {} was deleted", replay.project));
        };
        let layout = Arc::new(project.layout(&*replay.topics));
        let mut fills = Vec::new();
        for (at, place) in &places {
            let Some(&next) = positions.get(place) else { continue };
            let Place { topic, incarnation, partition, .. } = place.clone();
            fills.push(Fill {
                key: StoreKey { topic, incarnation, partition },
                next,
                again_from: next,
                layout: Arc::clone(&layout),
                window_ms: project.dedupe_window_ms,
                seen: parked.remove(*at),
            });
        }
        let (filler, stop) = (self.filler.clone(), self.stop.clone());
        let stores = blocking(move || filler.fill(fills, &stop, |_, _| {})).await?.map_err(Transient::from)?;
        let project = Arc::new(project);
        let ours = |(at, seen): (TopicPartition, SeenStore)| {
            let (place, project, layout) = (places.get(&at)?.clone(), Arc::clone(&project), Arc::clone(&layout));
            let next = *positions.get(&place)?;
            Some((at, Ours { place, project, layout, next, seen }))
        };
        Ok(stores.into_iter().filter_map(ours).collect())
    }

    /// The layout's version. What the live generation has counted it has judged by a layout that is known by now, so
    /// nobody need be waited for.
    pub async fn layout(&self, replay: &Replay) -> Result<Option<i32>, ReplayError> {
        let layout = sqlx::query_scalar("SELECT layout FROM projects WHERE id = $1").bind(&replay.project);
        Ok(layout.fetch_optional(&self.pool).await?)
    }

    /// Where the replay goes on. An aborted one must not get rows in the ledger again.
    async fn positions(&self, replay: &Replay, places: Vec<Place>) -> Result<HashMap<Place, i64>, ReplayError> {
        let mut tx = self.pool.begin().await?;
        let open = "SELECT 1 FROM replays WHERE id = $1 AND state = 'running' FOR SHARE";
        if sqlx::query(open).bind(replay.id).fetch_optional(&mut *tx).await?.is_none() {
            return Ok(HashMap::new());
        }
        let found = ledger::open(&self.pool, &places).await?.positions;
        tx.commit().await?;
        Ok(found.into_iter().map(|(place, position)| (place, position.next)).collect())
    }

    /// A topic that was made again is another log.
    async fn same_topic(&self, replay: &Replay) -> Result<(), ReplayError> {
        let (history, topics) = (self.filler.history.clone(), replay.topics.clone());
        let ask = move || history.incarnations(topics.keys(), TIMEOUT);
        let found = blocking(ask).await??;
        let is_other = |(topic, id): &(&String, &String)| found.get(*topic).is_some_and(|now| now != *id);
        match replay.topics.iter().find(is_other) {
            Some((topic, _)) => refused(format!(
                "topic {topic} was made again since replay {} was planned; abort it and plan another one",
                replay.id
            )),
            None => Ok(()),
        }
    }

    /// Ends a replay that retention has overtaken: no trying again would help.
    pub async fn refuse_deleted(
        &self,
        replay: &Replay,
        positions: Vec<(TopicPartition, i64)>,
    ) -> Result<(), ReplayError> {
        let (history, ats) =
            (self.filler.history.clone(), positions.iter().map(|(at, _)| at.clone()).collect::<Vec<_>>());
        let Ok(bounds) = blocking(move || history.bounds(&ats)).await? else { return Ok(()) };
        let deleted = positions.iter().find(|(at, next)| bounds.get(at).is_some_and(|(low, _)| next < low));
        match deleted {
            Some((at, next)) => refused(format!(
                "{}/{}: Kafka has deleted offset {next}, which replay {} was to read next; abort it, and plan another \
                 one with --from-time",
                at.topic, at.partition, replay.id
            )),
            None => Ok(()),
        }
    }

    /// What is read next from these positions on, and our share of the rate in records per second.
    pub async fn next(
        &self,
        replay: &Replay,
        positions: Vec<(TopicPartition, i64)>,
    ) -> Result<(Vec<Stretch>, Option<f64>), ReplayError> {
        let mut all = now(&self.pool, replay).await?;
        all.retain(|standing| standing.partition != ARCHIVE);
        let ours = positions.len() as f64 / all.len().max(1) as f64;
        let rate = replay.rate.map(|rate| f64::from(rate) * ours);
        let live: HashMap<i32, i64> = all.iter().map(|standing| (standing.partition, standing.live)).collect();
        let stretch = |(at, from): (TopicPartition, i64)| {
            let to = live.get(&at.number()).copied().filter(|live| from < *live)?;
            Some(Stretch { at, from, to, dead: BTreeSet::new() })
        };
        let mut stretches: Vec<Stretch> = positions.into_iter().filter_map(stretch).collect();
        let most = rate.map_or(BATCH, |rate| (rate as i64).clamp(1, BATCH));
        let share = (most / stretches.len().max(1) as i64).max(1);
        for stretch in &mut stretches {
            stretch.to = stretch.to.min(stretch.from + share);
        }
        self.note_dead_letters(replay, &mut stretches).await?;
        Ok((stretches, rate))
    }

    /// The live workers have passed these stretches, so what they have refused is all there, and what became of records
    /// that were sent through again. That is the verdict, whatever the registry or this code say now.
    async fn note_dead_letters(&self, replay: &Replay, stretches: &mut [Stretch]) -> Result<(), ReplayError> {
        for (topic, id) in replay.topics.iter() {
            let of_topic = || stretches.iter().filter(|stretch| *stretch.at.topic == **topic);
            let spans: Vec<_> = of_topic().map(|of| (of.at.partition, of.from..of.to)).collect();
            let mut found = dead(&self.pool, topic, id, &spans).await?;
            for stretch in stretches.iter_mut().filter(|stretch| *stretch.at.topic == **topic) {
                stretch.dead = found.remove(&stretch.at.partition).unwrap_or_default();
            }
        }
        Ok(())
    }

    /// Their records, in order within a partition.
    pub async fn read(&self, stretches: &[Stretch]) -> Result<Vec<Record>, ReplayError> {
        let span = |Stretch { at, from, to, .. }: &Stretch| Span { at: at.clone(), from: *from, to: *to };
        let spans: Vec<Span> = stretches.iter().map(span).collect();
        let (history, stop) = (self.filler.history.clone(), self.stop.clone());
        let read = move || {
            let mut records = Vec::new();
            history.read(&spans, &stop, |record| -> Result<(), ReplayError> {
                records.push(record);
                Ok(())
            })?;
            Ok(records)
        };
        blocking(read).await?
    }
}

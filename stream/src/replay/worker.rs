//! A worker of a replay: it reads the log up to where the live generation stands, and counts in the replay's.
//!
//! Its position is in the ledger, as a live worker's is, so it may end at any time and several may work at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use futures::FutureExt;
use tidemill_common::codec::Decoder;
use tidemill_common::failpoint::hit;
use tidemill_common::http::Health;
use tidemill_common::kafka::{GroupConsumer, GroupEvent, History, Reached, Record, TopicPartition};
use tidemill_common::postgres;
use tidemill_common::registry::Registry;
use tidemill_common::seen::{Checkpoints, Filler, Limits, SeenStore, SeenStores, fingerprint};
use tidemill_common::verdict::{Verdict, judge};
use tokio_util::sync::CancellationToken;

use super::archive::{self, Archive, Source};
use super::log::{Log, Ours, Stretch};
use super::rebuild::Setup;
use super::{Replay, ReplayError, find};
use crate::apply::{COMMIT, within};
use crate::enrich::Enricher;
use crate::kept::Keeping;
use crate::ledger::{Advance, Place};
use crate::metric::Definitions;
use crate::sort::Transient;
use crate::store::{Batch, RawEvents, SHARDS, Shards, Store};

/// While there is nothing to do, and after a failure.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_FAILED: Duration = Duration::from_secs(1);

/// A worker.
pub(super) struct Worker {
    replay: Replay,
    pub(super) log: Log,
    store: Arc<Store>,
    enricher: Enricher,
    consumer: GroupConsumer,
    /// Assigned to us, but not opened.
    waiting: BTreeSet<TopicPartition>,
    ours: BTreeMap<TopicPartition, Ours>,
    /// The stores of those that wait.
    parked: HashMap<TopicPartition, SeenStore>,
    /// When the next batch may begin, by the rate.
    not_before: Instant,
    stop: CancellationToken,
}

/// What came of a turn.
enum Turn {
    Worked,
    /// Nothing to do for so long.
    Idle(Duration),
    /// The replay is switched or aborted.
    Over,
}

impl Worker {
    pub(super) fn new(setup: &Setup, replay: Replay, stop: CancellationToken) -> Result<Self, ReplayError> {
        let Setup { connections, config } = setup;
        let pool = postgres::pool(&connections.database_url, 4)?;
        let definitions = Definitions::new(pool.clone(), config.metrics_dir.as_deref()).map_err(why)?;
        definitions.watch(stop.clone());
        let raw_events = config.raw_events.then(|| RawEvents::new(config.raw_events_days));
        let store = Store::new(pool.clone(), definitions, Shards::new(SHARDS));
        let limits = Limits { flush_ms: config.checkpoint_interval_ms, ..Limits::default() };
        let topics: Vec<String> = replay.topics.keys().map(|topic| topic.replace('.', "\\.")).collect();
        let topics = format!("^({})$", topics.join("|"));
        let session = Duration::from_millis(config.session_timeout_ms);
        Ok(Self {
            store: Arc::new(store.with_raw_events(raw_events).rebuilding()),
            enricher: Enricher::new(&config.conversion_types, config.geoip_file.as_deref()).map_err(why)?,
            consumer: GroupConsumer::join(&connections.kafka, &replay.group(), &topics, session)?,
            log: Log {
                pool: pool.clone(),
                filler: Filler {
                    history: History::new(connections.kafka.clone()),
                    pool,
                    decoder: Decoder::new(Registry::new(&connections.registry_url).map_err(why)?),
                    stores: SeenStores::open(&setup.folder(&replay), limits).map_err(Transient::from)?,
                    checkpoints: Checkpoints::of(config.checkpoint_url.as_deref(), &connections.warehouse)
                        .map_err(why)?,
                    health: Health::new(),
                },
                stop: stop.clone(),
            },
            replay,
            waiting: BTreeSet::new(),
            ours: BTreeMap::new(),
            parked: HashMap::new(),
            not_before: Instant::now(),
            stop,
        })
    }

    pub(super) fn archive(&self, setup: &Setup, snapshot: i64, source: Source) -> Result<Archive, ReplayError> {
        let config = &setup.config;
        Ok(Archive {
            pool: self.log.pool.clone(),
            store: Arc::clone(&self.store),
            enricher: Enricher::new(&config.conversion_types, config.geoip_file.as_deref()).map_err(why)?,
            place: archive::place(&self.replay, snapshot),
            replay: self.replay.clone(),
            source,
            stop: self.stop.clone(),
        })
    }

    pub(super) async fn run(mut self, archive: Option<Archive>) -> Result<(), ReplayError> {
        let stop = self.stop.clone();
        let archived = async {
            match archive {
                Some(archive) => archive.work().await.inspect_err(|_| stop.cancel()),
                None => Ok(()),
            }
        };
        let (ended, archived) = tokio::join!(self.work(), archived);
        let ended = ended.and(archived);
        let Self { consumer, log, ours, parked, .. } = self;
        consumer.leave().await;
        drop((ours, parked)); // what they have not written yet is on its way to disk
        super::blocking(move || log.filler.stores.close()).await?.map_err(Transient::from)?;
        ended
    }

    async fn work(&mut self) -> Result<(), ReplayError> {
        while !self.stop.is_cancelled() {
            while let Some(event) = self.consumer.next().now_or_never() {
                self.take(event);
            }
            let pause = match self.turn().await {
                Ok(Turn::Over) => {
                    self.stop.cancel();
                    return Ok(());
                }
                Ok(Turn::Worked) => continue,
                Ok(Turn::Idle(pause)) => pause,
                Err(error @ ReplayError::Refused(_)) => {
                    self.stop.cancel();
                    return Err(error);
                }
                Err(_) if self.stop.is_cancelled() => return Ok(()),
                Err(error) => {
                    tracing::error!(%error, replay = self.replay.id, "trying again from the ledger");
                    self.log.refuse_deleted(&self.replay, self.positions()).await?;
                    self.reset();
                    PAUSE_FAILED
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
                event = self.consumer.next() => self.take(event),
            }
        }
        Ok(())
    }

    fn take(&mut self, event: Option<GroupEvent>) {
        match event {
            Some(GroupEvent::Assigned(partitions)) => self.waiting.extend(partitions),
            Some(GroupEvent::Revoked(partitions)) => {
                self.waiting.retain(|at| !partitions.contains(at));
                self.ours.retain(|at, _| !partitions.contains(at));
                self.parked.retain(|at, _| !partitions.contains(at));
            }
            // Nothing is ever started: spans are read outside of the group.
            Some(GroupEvent::Records(_) | GroupEvent::Failed(_)) => {}
            None => self.stop.cancel(),
        }
    }

    /// Every partition goes on from the ledger.
    fn reset(&mut self) {
        for (at, ours) in std::mem::take(&mut self.ours) {
            self.parked.insert(at.clone(), ours.seen);
            self.waiting.insert(at);
        }
    }

    /// Counts what comes next.
    async fn turn(&mut self) -> Result<Turn, ReplayError> {
        self.replay = find(&self.log.pool, self.replay.id).await?;
        if !self.replay.is_open() {
            return Ok(Turn::Over);
        }
        if let Some(early) = self.not_before.checked_duration_since(Instant::now()).filter(|early| !early.is_zero()) {
            return Ok(Turn::Idle(early.min(PAUSE_FAILED)));
        }
        if !self.waiting.is_empty() {
            let opened = self.log.open(&self.replay, &self.waiting, &mut self.parked).await?;
            self.ours.extend(opened);
            self.waiting.clear();
        }
        let (stretches, rate) = self.log.next(&self.replay, self.positions()).await?;
        if stretches.is_empty() {
            return Ok(Turn::Idle(PAUSE));
        }
        let records = self.log.read(&stretches).await?;
        if let Some(rate) = rate {
            self.not_before = Instant::now() + Duration::from_secs_f64(records.len() as f64 / rate);
        }
        let batch = self.sort(&records, &stretches).await?;
        let layout = self.log.layout(&self.replay).await?;
        if self.ours.values().any(|ours| Some(ours.layout.version) != layout) {
            self.reset(); // they were judged by a layout that is over
            return Ok(Turn::Worked);
        }
        hit("replay.sorted").await.map_err(Transient::from)?;
        let in_hand = self.consumer.in_hand();
        let committed = within(COMMIT, self.store.commit(&batch)).await?;
        drop(in_hand);
        hit("replay.committed").await.map_err(Transient::from)?;
        if committed.is_none() {
            self.reset(); // another worker was faster, or it is over
            return Ok(Turn::Worked);
        }
        let by_place: HashMap<&Place, Reached> = batch.steps.iter().map(|step| (&step.place, step.reached())).collect();
        for ours in self.ours.values_mut() {
            if let Some(&reached) = by_place.get(&ours.place) {
                ours.next = reached.next;
                ours.seen.advance(reached);
            }
        }
        self.ours.values_mut().for_each(|ours| ours.seen.tick(Utc::now().timestamp_millis()));
        self.consumer.commit(self.positions());
        Ok(Turn::Worked)
    }

    fn positions(&self) -> Vec<(TopicPartition, i64)> {
        self.ours.iter().map(|(at, ours)| (at.clone(), ours.next)).collect()
    }

    /// What counts of these records. Strays count at home; what is no dead letter and is refused now, since this code
    /// judges otherwise, does not count either.
    async fn sort(&mut self, records: &[Record], stretches: &[Stretch]) -> Result<Batch, ReplayError> {
        let (mut batch, mut refused) = (Batch::default(), 0);
        let (mut kept, mut newest) = (HashMap::new(), HashMap::new());
        let stretches: HashMap<&TopicPartition, &Stretch> = stretches.iter().map(|each| (&each.at, each)).collect();
        for record in records {
            let at = record.topic_partition();
            let newest_ms: &mut i64 = newest.entry(at.clone()).or_default();
            *newest_ms = record.append_ms.max(*newest_ms);
            let (Some(stretch), Some(ours)) = (stretches.get(&at), self.ours.get_mut(&at)) else { continue };
            if stretch.dead.contains(&record.offset) {
                continue;
            }
            // An unknown schema is an error here: the live workers knew it.
            let verdict = judge(&self.log.filler.decoder, record, &ours.layout, ours.project.dedupe_window_ms).await;
            match verdict.map_err(Transient::from)? {
                Verdict::Valid(decoded) => {
                    let event = decoded.event();
                    let sighted = ours.seen.sight(fingerprint(event.event_id), record.offset, record.append_ms);
                    if sighted.map_err(Transient::from)? {
                        let keeping = kept.entry(at).or_insert_with(Keeping::default);
                        keeping.keep(&event, record.into(), |properties| self.enricher.traits(&event, properties));
                    }
                }
                Verdict::Stray { .. } => {}
                Verdict::Rejected(_) => refused += 1,
            }
        }
        for (at, mut keeping) in kept {
            let Some(Ours { project, place, .. }) = self.ours.get(&at) else { continue };
            keeping.take(project.id.as_str().into(), place.generation, &mut batch.events);
        }
        if refused > 0 {
            tracing::error!(refused, replay = self.replay.id, "records that were counted are refused now");
        }
        batch.steps = stretches
            .values()
            .filter_map(|Stretch { at, to, .. }| {
                let Ours { place, next, .. } = self.ours.get(at)?;
                Some(Advance {
                    place: place.clone(),
                    start: *next,
                    next: *to,
                    projected: *to, // Redis is projected as a whole after the switch
                    newest_ms: *newest.get(at).unwrap_or(&0),
                })
            })
            .collect();
        Ok(batch)
    }
}

/// A setting is wrong.
fn why(error: impl std::fmt::Display) -> ReplayError {
    ReplayError::Refused(error.to_string())
}

//! Making partitions live: their position from the ledger, their seen store complete, Redis caught up.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use sqlx::PgPool;
use tidemill_common::home::Layout;
use tidemill_common::kafka::{Gap, Reached, TopicPartition};
use tidemill_common::names::project_of;
use tidemill_common::projects::{self, Project};
use tidemill_common::seen::{Fill, Filler, SeenStore, StoreKey};
use tokio_util::sync::CancellationToken;

use crate::config::OnGap;
use crate::fold::carts::CART_EVENTS;
use crate::fold::guard::Guard;
use crate::fold::rollups::Changes;
use crate::ledger::{self, Place, Position, Standing};
use crate::metric::{Definitions, Subject};
use crate::project::list;
use crate::properties::Fields;
use crate::session_key;
use crate::sort::Transient;
use crate::store::{self, Touched};
use crate::timeline::{self, Timeline};

type Places = HashMap<TopicPartition, (Place, Arc<Project>)>;

const KAFKA_TIMEOUT: Duration = Duration::from_secs(10);
/// Redis is caught up by reading what it lacks again, unless that is more than this: then all that is live is
/// projected, which costs no memory.
const MOST_AGAIN: i64 = 100_000;

/// A partition that is being counted.
pub struct Live {
    /// Its place in the ledger.
    pub place: Place,
    /// Its project.
    pub project: Arc<Project>,
    /// The project's id, for its events.
    pub project_id: Arc<str>,
    /// How its events are spread.
    pub layout: Arc<Layout>,
    /// The end of the last batch that went through.
    pub next: i64,
    /// The end of what has been sorted: where the next batch goes on.
    pub read: i64,
    /// Its next record cannot be judged yet; it gives nothing until it goes on from the ledger.
    pub held: bool,
    /// Up to where Redis shows everything.
    pub projected: i64,
    /// What has been seen.
    pub seen: SeenStore,
}

/// What making live needs.
pub struct Preparer {
    /// The ledger's database.
    pub pool: PgPool,
    /// Completes what was seen, and reads the log's past.
    pub filler: Filler,
    /// What to do about gaps.
    pub on_gap: OnGap,
    /// The declared metrics.
    pub definitions: Definitions,
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
    /// Projects of which Redis may miss anything.
    pub all_of: BTreeSet<String>,
    /// Partitions about which a person has to decide: which, and what to do.
    pub stuck: Vec<String>,
}

impl Preparer {
    /// Makes partitions live. Those of unknown projects are left out, and those whose log does not fit their
    /// ledger; the others do not wait for them. `timeline` is what we know of the ledger, and goes on in the epoch that
    /// holds now.
    pub async fn prepare(
        &self,
        partitions: &BTreeSet<TopicPartition>,
        parked: &mut Parked,
        timeline: &mut Timeline,
    ) -> Result<Prepared, Transient> {
        let mut prepared = Prepared::default();
        let places = self.places(partitions).await?;
        if places.is_empty() {
            return Ok(prepared);
        }
        let opened: Vec<Place> = places.values().map(|(place, _)| place.clone()).collect();
        let standing = ledger::open(&self.pool, &opened).await?;
        let epoch = match timeline.broken(&standing) {
            Some(reason) => timeline::raise(&self.pool, standing.epoch, timeline.epoch.unwrap_or(0), &reason).await?,
            None => standing.epoch,
        };
        timeline.enter(epoch);
        // Asked after the ledger, which may have been brought here meanwhile.
        let layouts = self.layouts(places.values().map(|(_, project)| project.id.clone()).collect()).await?;
        let starts = self.starts(&places, &standing).await?;
        let (mut again, mut behind) = (0, BTreeSet::new());
        let mut fills = Vec::new();
        let mut live = HashMap::new();
        for (at, (place, project)) in places {
            let (Some(&position), Some(&start)) = (standing.positions.get(&place), starts.get(&at)) else { continue };
            let Some((project, layout)) = layouts.get(&project.id).cloned() else { continue };
            let bridged = match start {
                Ok(_) => Ok(position),
                Err(gap) => self.bridge(&place, position.next, gap).await?,
            };
            let position = match bridged {
                Ok(position) => position,
                Err(gap) => {
                    tracing::error!(%gap, "a partition is stuck");
                    prepared.stuck.push(gap);
                    continue;
                }
            };
            timeline.reached(&place, position.next);
            again += (position.next - position.projected).max(0);
            if position.projected < position.next {
                behind.insert(project.id.clone());
            }
            if again > MOST_AGAIN {
                prepared.all_of.insert(project.id.clone());
            }
            let kept = parked.remove(&at).filter(|(incarnation, _)| *incarnation == place.incarnation);
            fills.push(Fill {
                key: StoreKey {
                    topic: place.topic.clone(),
                    incarnation: place.incarnation.clone(),
                    partition: place.partition,
                },
                next: position.next,
                again_from: if again > MOST_AGAIN { position.next } else { position.projected.min(position.next) },
                layout: Arc::clone(&layout),
                window_ms: project.dedupe_window_ms,
                seen: kept.map(|(_, seen)| seen),
            });
            live.insert(at, (place, project, layout, position));
        }
        let (mut stores, touched) = self.fill(fills).await?;
        prepared.touched = touched;
        // An event may have taken `isNew` from a session that it is not in itself.
        let renewed = store::live_sessions(&self.pool, &prepared.touched.users, Utc::now()).await?;
        prepared.touched.sessions.extend(renewed);
        // Nor does it say in which windows it has changed what sessions count for.
        let behind: Vec<String> = behind.into_iter().collect();
        prepared.touched.windows.extend(list::windows_of_sessions(&self.pool, &behind, Utc::now()).await?);
        for (at, (place, project, layout, position)) in live {
            let Some(seen) = stores.remove(&at) else { continue };
            let Position { next, projected } = position;
            let project_id = project.id.as_str().into();
            let live = Live { place, project, project_id, layout, next, read: next, held: false, projected, seen };
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

    /// These projects, as they are now, and their layouts. They are asked for after the ledger: whoever has moved it has
    /// known every era that lies before its position.
    async fn layouts(&self, ids: BTreeSet<String>) -> Result<HashMap<String, (Arc<Project>, Arc<Layout>)>, Transient> {
        let mut projects = Vec::new();
        for id in ids {
            projects.extend(projects::load(&self.pool, &id).await?);
        }
        let incarnations = self.incarnations(projects.iter().flat_map(Project::topics).collect()).await?;
        let layout = |project: Project| {
            let layout = Arc::new(project.layout(&incarnations));
            (project.id.clone(), (Arc::new(project), layout))
        };
        Ok(projects.into_iter().map(layout).collect())
    }

    /// The topics' ids; those that do not exist are left out.
    pub async fn incarnations(&self, topics: Vec<String>) -> Result<HashMap<String, String>, Transient> {
        let history = self.filler.history.clone();
        let ask = move || history.incarnations(&topics, KAFKA_TIMEOUT);
        Ok(blocking(ask).await??)
    }

    /// Where the log says that each of these goes on, or why it does not; absent where there is no such partition.
    async fn starts(
        &self,
        places: &Places,
        standing: &Standing,
    ) -> Result<HashMap<TopicPartition, Result<i64, Gap>>, Transient> {
        let reached = |place: &Place| {
            let (position, newest_ms) = (standing.positions.get(place)?, *standing.newest_ms.get(place)?);
            Some(Reached { next: position.next, newest_ms })
        };
        let partitions: Vec<_> = places.iter().map(|(at, (place, _))| (at.clone(), reached(place))).collect();
        let history = self.filler.history.clone();
        Ok(blocking(move || history.starts(&partitions)).await??)
    }

    /// Retention may have passed the ledger's position, or the log may have lost its end: then it is for a
    /// person to decide, and the inner error says what.
    async fn bridge(&self, place: &Place, next: i64, gap: Gap) -> Result<Result<Position, String>, Transient> {
        let (at, behind) = (format!("{}/{}", place.topic, place.partition), gap.behind());
        if self.on_gap == OnGap::Stop {
            return Ok(Err(format!(
                "{at}: {gap}. To go on at offset {behind}, start the worker once with TIDEMILL_STREAM__ON_GAP=skip"
            )));
        }
        if !ledger::skip(&self.pool, place, next, behind).await? {
            return Err(Transient::NotReady(format!("{at} has moved meanwhile")));
        }
        tracing::error!(%at, %gap, behind, "going on all the same, as on_gap = skip says");
        if let Gap::Deleted { from, to } = gap {
            metrics::counter!("tidemill_stream_skipped_records_total").increment((to - from).unsigned_abs());
        }
        Ok(Ok(Position { next: behind, projected: behind }))
    }

    async fn fill(&self, fills: Vec<Fill>) -> Result<(HashMap<TopicPartition, SeenStore>, Touched), Transient> {
        let (filler, shutdown) = (self.filler.clone(), self.shutdown.clone());
        let definitions = self.definitions.current().await?;
        let read = move || {
            let (mut touched, mut fields) = (Touched::default(), Fields::default());
            // Only which windows change is of interest here, so one generation stands for all.
            let (mut changes, mut guard) = (Changes::new(0, Arc::clone(&definitions)), Guard::default());
            let stores = filler.fill(fills, &shutdown, |record, event| {
                let Some(project) = project_of(&record.topic) else { return };
                let text = event.properties.unwrap_or_default();
                fields.clear();
                fields.add(text);
                changes.count_event(project, Subject::new(*event, fields.of(text)), &mut guard);
                let key = |id: &str| (project.to_owned(), id.to_owned());
                let session = session_key::of(event).map(|key| (project.to_owned(), key.into_owned()));
                if CART_EVENTS.contains(&event.event_type) {
                    touched.carts.extend(session.clone());
                }
                touched.sessions.extend(session);
                touched.users.extend(event.user_id.map(key));
            });
            let windows = changes.settle().into_iter().map(|(key, _)| key);
            touched.windows = windows.filter(|key| key.has_copy(&definitions)).collect();
            stores.map(|stores| (stores, touched))
        };
        Ok(blocking(read).await??)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Transient> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Transient::NotReady(error.to_string()))
}

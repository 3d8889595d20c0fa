//! Projects, as Postgres has them.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;
use sqlx::types::Json;
use sqlx::{PgConnection, PgExecutor, Row};
use utoipa::ToSchema;

use crate::home::{Era, Layout, Route, Spread};
use crate::kafka::TopicPartition;
use crate::names::{ROUTE, events_topic, route_topic};

/// Begins the numbers of the locks that hold projects as they are; it stands for "gene".
pub const LOCK: i32 = 0x6765_6e65;

/// A project's settings that the log's readers and writers must agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Its id.
    pub id: String,
    /// What home partitions are computed from.
    pub partitions: i32,
    /// Partitions of its dead-letter topic.
    pub dlq_partitions: i32,
    /// Copies of an eventId at most this far apart count once, in milliseconds.
    pub dedupe_window_ms: i64,
    /// The live generation of everything derived.
    pub generation: i32,
    /// How often the way in which its events are spread has changed.
    pub layout: i32,
    /// Its routes, in their order.
    pub routes: Vec<Route>,
    /// The eras that are over, the oldest first.
    pub eras: Vec<EraOf>,
}

/// An era of one topic of a project.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct EraOf {
    /// Which era.
    pub version: usize,
    /// 0: the project's own topic; else the number of its route.
    pub topic: usize,
    /// Kafka's id of the topic. Offsets in another one are others.
    pub incarnation: String,
    /// How events were spread.
    #[serde(flatten)]
    pub spread: Spread,
    /// By partition, see [`Era::cutoffs`].
    pub cutoffs: Vec<i64>,
}

impl Project {
    /// The topics of its events: its own, then those of its routes in their order.
    pub fn topics(&self) -> Vec<String> {
        topics(&self.id, &self.routes)
    }

    /// The topic in which a partition of this number is, and the partition there.
    pub fn place(&self, number: i32) -> (String, i32) {
        let route = usize::try_from(number / ROUTE).unwrap_or(0);
        let topic = match route.checked_sub(1).and_then(|index| self.routes.get(index)) {
            Some(of) => route_topic(&self.id, route, &of.name),
            None => events_topic(&self.id),
        };
        (topic, number % ROUTE)
    }

    /// All partitions of its events' topics.
    pub fn partitions_of_events(&self) -> Vec<TopicPartition> {
        partitions_of_events(&self.id, self.partitions, &self.routes)
    }

    /// How events are and were spread over the partitions of these incarnations of its topics.
    pub fn layout<'a>(&self, incarnations: impl IntoIterator<Item = (&'a String, &'a String)>) -> Layout {
        let (topics, incarnations) = (self.topics(), HashMap::<_, _>::from_iter(incarnations));
        let mut eras = vec![Era::default(); usize::try_from(self.layout).unwrap_or(0)];
        for of in &self.eras {
            let Some(era) = eras.get_mut(of.version) else { continue };
            era.spread = of.spread;
            era.cutoffs.resize(topics.len(), Vec::new());
            if topics.get(of.topic).is_some_and(|topic| incarnations.get(topic) == Some(&&of.incarnation)) {
                era.cutoffs[of.topic].clone_from(&of.cutoffs);
            }
        }
        Layout::new(self.partitions, self.routes.clone(), eras)
    }
}

/// The topics of a project's events: its own, then those of these routes.
pub fn topics(project: &str, routes: &[Route]) -> Vec<String> {
    let of_routes = (1..).zip(routes).map(|(number, route)| route_topic(project, number, &route.name));
    std::iter::once(events_topic(project)).chain(of_routes).collect()
}

/// How many partitions each of them has, where the project's own has so many.
pub fn counts(partitions: i32, routes: &[Route]) -> impl Iterator<Item = i32> {
    std::iter::once(1).chain(routes.iter().map(|route| route.times)).map(move |times| partitions * times)
}

/// All partitions of them.
pub fn partitions_of_events(project: &str, partitions: i32, routes: &[Route]) -> Vec<TopicPartition> {
    let of = |(topic, count): (String, i32)| {
        let topic: Arc<str> = topic.into();
        (0..count).map(move |partition| TopicPartition { topic: Arc::clone(&topic), partition })
    };
    topics(project, routes).into_iter().zip(counts(partitions, routes)).flat_map(of).collect()
}

/// What becomes of events that break their type's JSON Schema.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum SchemaMode {
    /// Nobody looks.
    #[default]
    Off,
    /// They are accepted and counted.
    Warn,
    /// They are invalid.
    Strict,
}

impl SchemaMode {
    /// The name in rows, over HTTP and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Warn => "warn",
            Self::Strict => "strict",
        }
    }

    /// The mode with this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Off, Self::Warn, Self::Strict].into_iter().find(|mode| mode.as_str() == name)
    }
}

/// A project that exists and is not deleted.
pub async fn load(db: impl PgExecutor<'_>, id: &str) -> Result<Option<Project>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT p.id, p.partitions, p.dlq_partitions, p.dedupe_window_ms, p.generation, p.layout,
                tidemill_routes(p.id),
                (SELECT coalesce(json_agg(json_build_object(
                            'version', e.version, 'topic', e.topic, 'incarnation', e.topic_incarnation,
                            'partitions', e.partitions, 'routes', e.routes, 'cutoffs', e.cutoffs)
                        ORDER BY e.version, e.topic), '[]')
                 FROM eras e WHERE e.project = p.id)
         FROM projects p WHERE p.id = $1 AND p.deleted_at IS NULL",
    )
    .bind(id)
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(Project {
            id: row.try_get(0)?,
            partitions: row.try_get(1)?,
            dlq_partitions: row.try_get(2)?,
            dedupe_window_ms: row.try_get(3)?,
            generation: row.try_get(4)?,
            layout: row.try_get(5)?,
            routes: row.try_get::<Json<_>, _>(6)?.0,
            eras: row.try_get::<Json<_>, _>(7)?.0,
        })
    })
    .transpose()
}

/// The live generation of each project.
pub async fn generations(db: impl PgExecutor<'_>) -> Result<HashMap<String, i32>, sqlx::Error> {
    let rows = sqlx::query("SELECT id, generation FROM projects WHERE deleted_at IS NULL").fetch_all(db).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// The versions of the layouts of these projects, which are sorted, asked after any change that is under way. What was
/// read before it was asked, and judged by that layout, is judged rightly for good: where it changes behind the answer, it
/// does so behind those records.
pub async fn layouts_now(db: impl PgExecutor<'_>, projects: &[&str]) -> Result<HashMap<String, i32>, sqlx::Error> {
    let asked = sqlx::query("SELECT id, layout FROM tidemill_layouts($1, $2)").bind(LOCK).bind(projects);
    asked.fetch_all(db).await?.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Holds a project as it is, alone: waits until no batch of its live generation is under way, and keeps others, and who
/// asks for its layout, waiting until the transaction ends.
pub async fn hold(tx: &mut PgConnection, project: &str) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_advisory_xact_lock($1, hashtext($2))").bind(LOCK).bind(project).execute(tx).await.map(drop)
}

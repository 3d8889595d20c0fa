//! What a replay is going to do, and its entry as one.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgPool, Row};
use tidemill_common::kafka::{History, KafkaConfig};
use tidemill_common::names::{events_topic, partition_number};
use tidemill_common::projects;

use super::starts::{Start, starts};
use super::{Replay, ReplayError, archive, blocking, refused};
use crate::ledger::{self, Place};

const TIMEOUT: Duration = Duration::from_secs(10);
/// From where on a project is rebuilt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// All of it.
    Beginning,
    /// What was appended at this time or later.
    Time(DateTime<Utc>),
    /// What stands in these partitions at these offsets or behind them; other partitions from their beginning.
    Offsets(BTreeMap<i32, i64>),
}

impl std::fmt::Display for From {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Beginning => write!(f, "the beginning"),
            Self::Time(time) => write!(f, "{}", time.to_rfc3339_opts(SecondsFormat::Secs, true)),
            Self::Offsets(offsets) => {
                let each: Vec<String> = offsets.iter().map(|(partition, at)| format!("{partition}:{at}")).collect();
                write!(f, "offsets {}", each.join(", "))
            }
        }
    }
}

/// What a replay is going to do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Whose events.
    pub project: String,
    /// From where on, for people.
    pub begins: String,
    /// What is live.
    pub replaces: i32,
    /// Records per second; none: no limit.
    pub rate: Option<i32>,
    /// Records to read, as of now.
    pub records: i64,
    /// What will not be in the new generation, since the replay begins behind it: such records, as far as Kafka knows of
    /// them.
    pub left_out: i64,
    /// Files of the archive that have what is before that; none: nothing is taken from there.
    pub archive_files: Option<i64>,
    /// Where each partition begins.
    pub partitions: Vec<Start>,
    #[serde(skip)]
    topics: BTreeMap<String, String>,
    #[serde(skip)]
    archive_snapshot: Option<i64>,
    #[serde(skip)]
    archive_since: Option<DateTime<Utc>>,
}

/// What an archive has to offer.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Its newest snapshot.
    pub snapshot: i64,
    /// How many files it has.
    pub files: i64,
    /// By the partition's number: Kafka's id of the topic, and the first offset that is not archived.
    pub positions: BTreeMap<i32, (String, i64)>,
}

/// Plans a replay. Changes nothing. `archive`: the project's, if there is one.
pub async fn plan(
    pool: &PgPool,
    kafka: &KafkaConfig,
    project: &str,
    (from, archive): (&From, Option<&Offer>),
    rate: Option<i32>,
) -> Result<Plan, ReplayError> {
    let Some(project) = projects::load(pool, project).await? else {
        return refused(format!("there is no project {project:?}; see 'tidemill projects list'"));
    };
    refuse_second(pool, &project.id).await?;
    let (history, topics, own) = (History::new(kafka.clone()), project.topics(), events_topic(&project.id));
    let asking = history.clone();
    let ask = move || asking.incarnations(&topics, TIMEOUT);
    let topics = blocking(ask).await??;
    if !topics.contains_key(&own) {
        return refused(format!("Kafka has no topic {own}; see 'tidemill topics plan'"));
    }
    let live = live(pool, &topics, project.generation).await?;
    if live.is_empty() {
        return refused(format!("nothing of {own} is counted yet, so there is nothing to rebuild; see 'tidemill lag'"));
    }
    let before = counted_before(pool, &topics, project.generation).await?;
    if *from == From::Beginning && before > 0 {
        return refused(format!(
            "a topic of {own} was made again, and {before} records of the log before it are counted, which Kafka does not \
             hold any more; rebuild from a time with --from-time"
        ));
    }
    let (of, begin, layout) = (project.clone(), from.clone(), project.layout(&topics));
    // What the archive has of another log would be taken for this one's.
    let is_now = |id: &String| topics.values().any(|now| now == id);
    let archived: BTreeMap<i32, i64> = match archive.filter(|_| before == 0) {
        Some(offer) => offer.positions.iter().filter(|(_, (id, _))| is_now(id)).map(|(p, (_, n))| (*p, *n)).collect(),
        None => BTreeMap::new(),
    };
    let starting = move || starts(&history, &live, &begin, &archived, (&of, &layout));
    let partitions = blocking(starting).await??;
    let joined = partitions.iter().any(|start| start.joined);
    let archive = archive.filter(|_| joined);
    Ok(Plan {
        begins: from.to_string(),
        replaces: project.generation,
        rate,
        records: partitions.iter().map(|start| start.live - start.from).sum(),
        left_out: partitions.iter().filter(|start| !start.joined).map(|start| start.from).sum(),
        archive_files: archive.map(|offer| offer.files),
        archive_snapshot: archive.map(|offer| offer.snapshot),
        archive_since: match from {
            From::Time(time) if joined => Some(*time),
            _ => None,
        },
        partitions,
        topics: topics.into_iter().collect(),
        project: project.id,
    })
}

async fn refuse_second(pool: &PgPool, project: &str) -> Result<(), ReplayError> {
    let open: Option<i64> =
        sqlx::query_scalar("SELECT id FROM replays WHERE project = $1 AND state IN ('planned', 'running')")
            .bind(project)
            .fetch_optional(pool)
            .await?;
    if let Some(id) = open {
        return refused(format!("replay {id} of project {project} is not over; go on with it, or abort it"));
    }
    let kept = "SELECT r.id FROM replays r JOIN projects p ON p.id = r.project AND p.kept_generation = r.replaces
                WHERE r.project = $1 AND r.state = 'switched' ORDER BY r.id DESC LIMIT 1";
    let kept: Option<i64> = sqlx::query_scalar(kept).bind(project).fetch_optional(pool).await?;
    match kept {
        Some(id) => refused(format!(
            "what replay {id} has replaced is still kept; give it up first, with 'tidemill replay drop {id}'"
        )),
        None => Ok(()),
    }
}

/// Where the live generation stands in these topics, by the numbers of their partitions.
async fn live(
    pool: &PgPool,
    topics: &HashMap<String, String>,
    generation: i32,
) -> Result<BTreeMap<i32, i64>, ReplayError> {
    let (names, ids): (Vec<&String>, Vec<&String>) = topics.iter().unzip();
    let rows = sqlx::query(
        "SELECT l.topic, l.partition, l.next_offset
         FROM ledger l JOIN unnest($1::text[], $2::text[]) AS w(topic, incarnation)
           ON l.topic = w.topic AND l.topic_incarnation = w.incarnation
         WHERE l.view = 'stream' AND l.generation = $3",
    )
    .bind(names)
    .bind(ids)
    .bind(generation)
    .fetch_all(pool)
    .await?;
    let live = |row: &PgRow| Ok((partition_number(row.try_get(0)?, row.try_get(1)?), row.try_get(2)?));
    Ok(rows.iter().map(live).collect::<Result<_, sqlx::Error>>()?)
}

/// Records that are counted of logs that these topics had before they were made again.
async fn counted_before(pool: &PgPool, topics: &HashMap<String, String>, generation: i32) -> Result<i64, ReplayError> {
    let (names, ids): (Vec<&String>, Vec<&String>) = topics.iter().unzip();
    let before = sqlx::query_scalar(
        "SELECT coalesce(sum(next_offset), 0)::bigint FROM ledger
         WHERE view = 'stream' AND topic = ANY ($1) AND topic_incarnation <> ALL ($2) AND generation = $3",
    )
    .bind(names)
    .bind(ids)
    .bind(generation)
    .fetch_one(pool)
    .await?;
    Ok(before)
}

/// Enters a plan, with a generation of its own.
pub async fn enter(pool: &PgPool, plan: &Plan, who: &str) -> Result<Replay, ReplayError> {
    let mut tx = pool.begin().await?;
    let live: i32 = sqlx::query_scalar("SELECT generation FROM projects WHERE id = $1 FOR UPDATE")
        .bind(&plan.project)
        .fetch_one(&mut *tx)
        .await?;
    if live != plan.replaces {
        return refused(format!("another generation of project {} is live by now; plan again", plan.project));
    }
    let starts: BTreeMap<i32, i64> = plan.partitions.iter().map(|start| (start.partition, start.from)).collect();
    let entered: Result<Replay, sqlx::Error> = sqlx::query_as(
        "INSERT INTO replays (project, generation, replaces, topics, begins, starts, rate, who,
                              archive_snapshot, archive_files, archive_since)
         SELECT $1, 1 + greatest($2, (SELECT max(generation) FROM replays WHERE project = $1)), $2, $3, $4, $5, $6, $7,
                $8, $9, $10
         RETURNING *",
    )
    .bind(&plan.project)
    .bind(plan.replaces)
    .bind(Json(&plan.topics))
    .bind(&plan.begins)
    .bind(Json(&starts))
    .bind(plan.rate)
    .bind(who)
    .bind(plan.archive_snapshot)
    .bind(plan.archive_files)
    .bind(plan.archive_since)
    .fetch_one(&mut *tx)
    .await;
    let replay = match entered {
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
            return refused(format!("another replay of project {} was planned just now", plan.project));
        }
        entered => entered?,
    };
    let place = |(number, offset): (&i32, &i64)| Some((replay.place(*number)?, *offset));
    let mut starts: Vec<(Place, i64)> = starts.iter().filter_map(place).collect();
    starts.extend(replay.archive_snapshot.map(|snapshot| (archive::place(&replay, snapshot), 0)));
    ledger::begin(&mut tx, &starts).await?;
    tx.commit().await?;
    Ok(replay)
}

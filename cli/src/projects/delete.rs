//! `tidemill projects delete`

use std::sync::Arc;

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sqlx::PgConnection;
use tidemill_archiver::table::Tables;
use tidemill_common::config::Connections;
use tidemill_common::kafka::{History, TopicPartition};
use tidemill_common::names::{dlq_topic, processed_topic};
use tidemill_common::redis::Redis;
use tidemill_common::registry::Registry;
use tidemill_stream::forget;
use tidemill_topics::Cluster;

use crate::audit;
use crate::consent::Consent;
use crate::output::{Output, json_line, spinner, told};
use crate::store::{self, explain};

/// How many rows an archive has, by the table itself.
const TOTAL_RECORDS: &str = "total-records";

/// A topic that goes.
#[derive(Serialize)]
struct Topic {
    name: String,
    /// 0: it is gone already.
    partitions: i32,
    /// About as many as its log holds.
    records: i64,
}

/// Rows that go.
#[derive(Serialize)]
struct Rows {
    table: String,
    rows: i64,
}

/// What goes, or has gone.
#[derive(Serialize)]
struct Deleted {
    project: String,
    applied: bool,
    topics: Vec<Topic>,
    subjects: Vec<String>,
    /// In Postgres.
    tables: Vec<Rows>,
    /// All of them; once they have gone, how many those were.
    rows: u64,
    /// Events in the archive, which stays; none: there is none, or it cannot be looked at.
    archived: Option<u64>,
}

/// A line of the plan, for people.
#[derive(Serialize)]
struct Line {
    what: &'static str,
    name: String,
    holds: String,
}

/// From the outside in: nobody can send, then nothing can be read, then nothing is left.
pub async fn run(id: &str, consent: Consent, connections: &Connections, output: Output) -> anyhow::Result<()> {
    let mut db = store::connect(&connections.database_url).await?;
    let project = store::project(&mut db, id).await?.ok_or_else(|| store::no_project(id))?;
    let bar = spinner("looking at what there is");
    let planned = plan(id, &project.topics(), connections, &mut db).await;
    bar.finish_and_clear();
    let mut plan = planned?;
    if matches!(output, Output::Table) {
        output.things(&plan.lines(), &["what", "name", "holds"])?;
    }
    let question = format!("Delete project {id} with all of its events, sessions and metrics, for ever?");
    if consent.given(&question)? {
        let entry = audit::begin(&mut db, "projects delete", Some(id), &plan).await?;
        let done = delete(&mut db, &plan, connections).await;
        let done = done.map_err(|error| anyhow!("{}; run it again, and it goes on from here", told(&error)));
        plan.rows = entry.end(&mut db, done).await?;
        plan.applied = true;
    }
    match output {
        Output::Json => json_line(&plan),
        Output::Table if plan.applied => output.thing(&plan, &["project", "rows"]),
        Output::Table => output.ended(&plan, false),
    }
}

async fn plan(
    id: &str,
    topics: &[String],
    connections: &Connections,
    db: &mut PgConnection,
) -> anyhow::Result<Deleted> {
    let mut names = topics.to_vec();
    names.extend([processed_topic(id), dlq_topic(id)]);
    let subjects = topics.iter().chain([&processed_topic(id)]).map(|topic| format!("{topic}-value")).collect();
    let counts = Cluster::new(&connections.kafka)?.partitions(&names).await?;
    let history = History::new(connections.kafka.clone());
    let ats: Vec<TopicPartition> = counts
        .iter()
        .flat_map(|(name, partitions)| {
            let topic: Arc<str> = name.as_str().into();
            (0..*partitions).map(move |partition| TopicPartition { topic: Arc::clone(&topic), partition })
        })
        .collect();
    let look = move || if ats.is_empty() { Ok(Default::default()) } else { history.bounds(&ats) };
    let bounds = tokio::task::spawn_blocking(look).await??;
    let records =
        |name: &str| bounds.iter().filter(|(at, _)| *at.topic == *name).map(|(_, (low, high))| high - low).sum();
    let topic = |name: String| {
        let (partitions, records) = (counts.get(&name).copied().unwrap_or(0), records(&name));
        Topic { name, partitions, records }
    };
    let tables = forget::rows(db, id).await.map_err(explain)?;
    let tables: Vec<Rows> = tables.into_iter().map(|(table, rows)| Rows { table, rows }).collect();
    let rows = tables.iter().map(|table| table.rows.unsigned_abs()).sum();
    let archived = archived(id, connections).await;
    Ok(Deleted {
        project: id.to_owned(),
        applied: false,
        topics: names.into_iter().map(topic).collect(),
        subjects,
        tables,
        rows,
        archived,
    })
}

/// It is left as it is, so nobody's word depends on this.
async fn archived(id: &str, connections: &Connections) -> Option<u64> {
    let table = Tables::new(connections).load(id).await.ok()??;
    let summary = table.metadata().current_snapshot()?.summary();
    summary.additional_properties.get(TOTAL_RECORDS)?.parse().ok()
}

impl Deleted {
    fn lines(&self) -> Vec<Line> {
        let topic = |topic: &Topic| Line {
            what: "topic",
            name: topic.name.clone(),
            holds: match topic.partitions {
                0 => "gone already".to_owned(),
                partitions => format!("{} records in {partitions} partitions", topic.records),
            },
        };
        let subject = |name: &String| Line { what: "schema", name: name.clone(), holds: "its versions".to_owned() };
        let rows = |table: &Rows| Line { what: "rows", name: table.table.clone(), holds: table.rows.to_string() };
        let mut lines: Vec<Line> = self.topics.iter().map(topic).collect();
        lines.extend(self.subjects.iter().map(subject));
        lines.extend(self.tables.iter().map(rows));
        if let Some(archived) = self.archived {
            let name = format!("tidemill.{}.events", self.project);
            lines.push(Line { what: "archive", name, holds: format!("{archived} events, which stay") });
        }
        lines
    }
}

async fn delete(db: &mut PgConnection, plan: &Deleted, connections: &Connections) -> anyhow::Result<u64> {
    store::delete_project(db, &plan.project).await?;
    let cluster = Cluster::new(&connections.kafka)?;
    let topics: Vec<&str> = plan.topics.iter().map(|topic| topic.name.as_str()).collect();
    let (events, sent_on) = topics.split_at(1);
    cluster.delete(events).await?;
    let registry = Registry::new(&connections.registry_url)?;
    for subject in &plan.subjects {
        registry.remove(subject).await?;
    }
    forget::seen_users(&Redis::new(&connections.redis_url)?, &plan.project).await?;
    let bar =
        ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {human_pos} rows deleted")?);
    let mut rows = 0;
    let deleted = forget::project(db, &plan.project, |more| {
        rows += more;
        bar.set_position(rows);
        bar.tick();
    });
    deleted.await.map_err(explain)?;
    bar.finish_and_clear();
    // Only now does no worker send anything on any more: it would wait for topics that are not there, with all of a batch.
    cluster.delete(sent_on).await?;
    Ok(rows)
}

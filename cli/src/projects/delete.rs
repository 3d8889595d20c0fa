//! `tidemill projects delete`

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sqlx::PgConnection;
use tidemill_common::config::Connections;
use tidemill_common::names::{dlq_topic, events_topic, processed_topic};
use tidemill_common::redis::Redis;
use tidemill_common::registry::Registry;
use tidemill_stream::forget;
use tidemill_topics::Cluster;

use crate::audit;
use crate::consent::Consent;
use crate::output::Output;
use crate::store::{self, explain};

/// What goes, or has gone.
#[derive(Serialize)]
struct Deleted {
    project: String,
    applied: bool,
    topics: Vec<String>,
    subjects: Vec<String>,
    /// In Postgres; known when they have gone.
    rows: Option<u64>,
}

const FIELDS: [&str; 5] = ["project", "applied", "topics", "subjects", "rows"];

/// From the outside in: nobody can send, then nothing can be read, then nothing is left.
pub async fn run(id: &str, consent: Consent, connections: &Connections, output: Output) -> anyhow::Result<()> {
    let mut db = store::connect(&connections.database_url).await?;
    store::project(&mut db, id).await?.ok_or_else(|| store::no_project(id))?;
    let topics = vec![events_topic(id), processed_topic(id), dlq_topic(id)];
    let subjects = topics[..2].iter().map(|topic| format!("{topic}-value")).collect();
    let mut plan = Deleted { project: id.to_owned(), applied: false, topics, subjects, rows: None };
    let question = format!("Delete project {id} with all of its events, sessions and metrics, for ever?");
    if consent.given(&question)? {
        let entry = audit::begin(&mut db, "projects delete", Some(id), &plan).await?;
        let done = delete(&mut db, &plan, connections).await;
        plan.rows = Some(entry.end(&mut db, done).await?);
        plan.applied = true;
    }
    output.thing(&plan, &FIELDS)
}

async fn delete(db: &mut PgConnection, plan: &Deleted, connections: &Connections) -> anyhow::Result<u64> {
    store::delete_project(db, &plan.project).await?;
    let topics: Vec<&str> = plan.topics.iter().map(String::as_str).collect();
    Cluster::new(&connections.kafka)?.delete(&topics).await?;
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
    Ok(rows)
}

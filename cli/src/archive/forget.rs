//! `tidemill archive forget`

use std::process::Stdio;

use anyhow::{Context, bail};
use chrono::Utc;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use tidemill_archiver::forget;
use tidemill_archiver::maintain::forget_past;
use tidemill_archiver::table::Tables;
use tidemill_common::config::Connections;
use tidemill_common::redis::Redis;
use tidemill_query::drop_answers;
use tidemill_stream::forget::Removed;
use tokio::process;

use super::projects;
use crate::audit;
use crate::consent::Consent;
use crate::output::{Output, spinner};
use crate::store::{self, explain};

const PLAN: [&str; 5] = ["project", "archived", "raw_events", "sessions", "first_seen"];
const FORGOTTEN: [&str; 7] =
    ["project", "archived", "raw_events", "sessions", "first_seen", "snapshots", "removed_files"];

#[derive(Args)]
pub struct Forget {
    /// The project's id
    #[arg(long)]
    project: String,
    /// The user's id
    #[arg(long)]
    user: String,
    /// How Spark runs `maintain.py`, e.g. "spark-submit … archiver/maintenance/maintain.py"; without it you are told
    /// what to run
    #[arg(long, env = "TIDEMILL_ARCHIVE_SPARK", value_name = "COMMAND")]
    spark: Option<String>,
    #[command(flatten)]
    consent: Consent,
}

/// What is there of a user, or was.
#[derive(Serialize)]
struct Forgotten {
    project: String,
    /// Rows in the archive.
    archived: u64,
    #[serde(flatten)]
    rows: Removed,
    /// Of the table; they go with their files.
    snapshots: usize,
    removed_files: usize,
    applied: bool,
}

pub async fn run(who: &Forget, connections: &Connections, output: Output) -> anyhow::Result<()> {
    projects(Some(&who.project), connections).await?;
    let mut db = store::connect(&connections.database_url).await?;
    let tables = Tables::new(connections);
    let bar = spinner("looking for him");
    let archived = forget::archived(&tables, &who.project, &who.user).await;
    let rows = tidemill_stream::forget::kept(&mut db, &who.project, &who.user).await;
    bar.finish_and_clear();
    let (archived, rows) = (archived?, rows.map_err(explain)?);
    let mut forgotten =
        Forgotten { project: who.project.clone(), archived, rows, snapshots: 0, removed_files: 0, applied: false };
    output.plan(&forgotten, &PLAN)?;
    let question = format!(
        "Forget user {:?} of project {} for ever, and with him what the archive was like before?",
        who.user, who.project
    );
    if !who.consent.given(&question)? {
        return output.ended(&forgotten, false);
    }
    // The book must not remember whom everybody else has forgotten; whoever asks for this user can still be answered.
    let user = format!("{:x}", Sha256::digest(who.user.as_bytes()));
    let plan = json!({ "user_sha256": user, "rows": forgotten });
    let redis = Redis::new(&connections.redis_url)?;
    let entry = audit::begin(&mut db, "archive forget", Some(&who.project), &plan).await?;
    let done = forget(who, &tables, &mut db, &redis, &mut forgotten).await;
    entry.end(&mut db, done).await?;
    forgotten.applied = true;
    output.thing(&forgotten, &FORGOTTEN)
}

async fn forget(
    who: &Forget,
    tables: &Tables,
    db: &mut PgConnection,
    redis: &Redis,
    forgotten: &mut Forgotten,
) -> anyhow::Result<()> {
    let (rows, named) = tidemill_stream::forget::user(db, &who.project, &who.user).await?;
    forgotten.rows = rows;
    let copies = tidemill_stream::forget::copies(redis, &who.project, &who.user, &named).await;
    copies.context("Postgres has forgotten him, Redis not yet; run this again when it answers")?;
    if forgotten.archived > 0 {
        delete_with_spark(who, forgotten.archived).await?;
        let left = forget::archived(tables, &who.project, &who.user).await?;
        anyhow::ensure!(left == 0, "{left} of his events are in the archive still; run this again");
    }
    let past = forget_past(tables, &who.project, Utc::now().timestamp_millis()).await?.unwrap_or_default();
    (forgotten.snapshots, forgotten.removed_files) = (past.snapshots, past.expired_files);
    // Last: until now a query could make one of him.
    let dropped = drop_answers(redis, &who.project).await;
    dropped.context("answers of queries that were given before are in Redis still; run this again when it answers")
}

async fn delete_with_spark(who: &Forget, archived: u64) -> anyhow::Result<()> {
    let arguments = ["forget", "--project", &who.project, "--user", &who.user];
    let Some(spark) = &who.spark else {
        let quoted = who.user.replace('\'', r"'\''");
        bail!(
            "{archived} of his events are in the archive: delete them with 'maintain.py forget --project {} --user \
             '{quoted}'' (see archiver/maintenance/), then run this again; or let this run it with --spark",
            who.project
        );
    };
    let mut words = spark.split_whitespace();
    let program = words.next().context("--spark is empty; give the command that runs maintain.py")?;
    let status = process::Command::new(program)
        .args(words)
        .args(arguments)
        .stdout(Stdio::null()) // ours is for the result
        .status()
        .await
        .with_context(|| format!("{program} cannot be started; correct --spark"))?;
    anyhow::ensure!(status.success(), "{spark} forget failed ({status}); what it printed says why");
    Ok(())
}

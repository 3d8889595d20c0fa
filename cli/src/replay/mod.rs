//! `tidemill replay`

mod archive;
mod build;
mod give_up;
mod plan;
mod reset;

use std::path::PathBuf;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use tidemill_common::config::Settings;
use tidemill_common::postgres;
use tidemill_stream::replay::{self, Difference, Progress, Replay, ReplayError, Setup};

use crate::consent::Consent;
use crate::output::{Output, json_line};
use crate::store;
use give_up::Giving;

const STATUS: [&str; 12] = [
    "id",
    "project",
    "state",
    "begins",
    "done",
    "left",
    "files_left",
    "rate",
    "replaces",
    "generation",
    "differences",
    "compared_at",
];
const DIFFERENCE: [&str; 5] = ["what", "day", "live", "rebuilt", "rows"];

#[derive(Subcommand)]
pub enum Command {
    /// Plan a rebuild of a project's sessions and metrics from the log, into a generation beside the live one
    ///
    /// Nothing that is live changes. Kafka has to hold one dedupe window before the first record that is read; the
    /// command says from when on it does. From the beginning, the archive has what Kafka does not hold any more.
    Plan(plan::Args),
    /// Work on replays until they are level with what is live, then compare both
    ///
    /// Live processing goes on. It can be ended and run again at any time, and on several machines at once. What it
    /// keeps on disk lies beside TIDEMILL_STREAM__SEEN_DIR; it counts with the settings of the stream workers, so run it
    /// with the same ones.
    Run {
        /// The replays' numbers [default: all that are not over, one after the other]
        ids: Vec<i64>,
        /// Records per second, over all workers, instead of what was planned; 0 is no limit
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
        rate: Option<i32>,
        /// Go on following what is live, until the replay is switched or aborted
        #[arg(long)]
        follow: bool,
    },
    /// List replays; of one, show how it differed from what is live, by metric and day
    Status {
        /// The replay's number
        id: Option<i64>,
        /// Only this project's
        #[arg(long)]
        project: Option<String>,
    },
    /// Put what a replay has built in the place of what is live, in one transaction
    ///
    /// Both are brought level and compared before you are asked. Live workers wait for a second or so. What was live is
    /// kept until `tidemill replay drop`.
    Switch {
        /// The replay's number
        id: i64,
        #[command(flatten)]
        consent: Consent,
    },
    /// End a replay and delete what it has built
    Abort {
        /// The replay's number
        id: i64,
        #[command(flatten)]
        consent: Consent,
    },
    /// Delete what a switched replay has replaced
    Drop {
        /// The replay's number
        id: i64,
        #[command(flatten)]
        consent: Consent,
    },
    /// Move the committed offsets of a consumer group that has no members
    ///
    /// For consumers that go by them. Tidemill's own views do not: their offsets in Kafka are for lag displays only, and
    /// moving them rebuilds nothing. Where the group was is written to a file, for --undo.
    Reset(reset::Reset),
}

#[derive(Serialize)]
struct Status {
    #[serde(flatten)]
    replay: Replay,
    #[serde(flatten)]
    progress: Progress,
    /// Metrics and days that differed at the last comparison; none: nobody has compared.
    differences: Option<usize>,
}

/// What the verbs work with.
struct Desk {
    db: PgConnection,
    pool: PgPool,
    setup: Setup,
    output: Output,
}

pub async fn run(command: Command, settings: &Settings, output: Output) -> anyhow::Result<()> {
    let connections = settings.connections();
    if let Command::Reset(reset) = command {
        return reset::run(reset, &connections, output).await;
    }
    let db = store::connect(&connections.database_url).await?; // tells at once when nobody is there
    let pool = postgres::pool(&connections.database_url, 4)?;
    let mut desk = Desk { db, pool, setup: Setup { config: settings.section("stream")?, connections }, output };
    match command {
        Command::Plan(args) => plan::run(&args, &mut desk).await,
        Command::Run { ids, rate, follow } => build::run(&ids, rate, follow, &mut desk).await,
        Command::Status { id, project } => {
            store::known(&mut desk.db, project.as_deref()).await?;
            status(id, project.as_deref(), &desk).await
        }
        Command::Switch { id, consent } => build::switch(id, consent, &mut desk).await,
        Command::Abort { id, consent } => give_up::run(Giving::Aborted, id, consent, &mut desk).await,
        Command::Drop { id, consent } => give_up::run(Giving::Kept, id, consent, &mut desk).await,
        Command::Reset(_) => Ok(()), // done before
    }
}

async fn status(id: Option<i64>, project: Option<&str>, desk: &Desk) -> anyhow::Result<()> {
    let Desk { pool, output, .. } = desk;
    let Some(id) = id else {
        let mut shown = Vec::new();
        for replay in replay::list(pool, project).await.map_err(explain)? {
            shown.push(status_of(replay, pool).await?);
        }
        return output.things(&shown, &STATUS);
    };
    let replay = replay::find(pool, id).await.map_err(explain)?;
    let differences = replay.comparison.clone();
    let status = status_of(replay, pool).await?;
    if matches!(output, Output::Json) {
        let mut whole = serde_json::to_value(&status)?;
        whole["comparison"] = differences.unwrap_or_default();
        return json_line(&whole);
    }
    output.thing(&status, &STATUS)?;
    match differences {
        Some(differences) => output.things(&serde_json::from_value::<Vec<Difference>>(differences)?, &DIFFERENCE),
        None => Ok(()),
    }
}

async fn status_of(replay: Replay, pool: &PgPool) -> anyhow::Result<Status> {
    // What is over has nothing to catch up with.
    let progress = if replay.is_open() { replay::progress(pool, &replay).await? } else { Progress::default() };
    let differences = replay.comparison.as_ref().and_then(|found| Some(found.as_array()?.len()));
    Ok(Status { replay, progress, differences })
}

/// What is left of it takes room and does no harm.
async fn remove_folder(folder: PathBuf) {
    if let Err(error) = tokio::fs::remove_dir_all(&folder).await
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, folder = %folder.display(), "the replay's folder stays");
    }
}

/// The library shows nothing where standard error is no terminal.
fn bar(style: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(style).expect("the template is valid");
    ProgressBar::new(0).with_style(style)
}

fn explain(error: ReplayError) -> anyhow::Error {
    match error {
        ReplayError::Postgres(error) => store::explain(error),
        error => error.into(),
    }
}

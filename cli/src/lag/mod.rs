//! `tidemill lag`

mod hot;
mod look;

use std::io::IsTerminal;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use tidemill_common::config::Connections;
use tidemill_common::progress::PartitionLag;

use self::look::Looker;
use crate::output::{Output, spinner};

const FIELDS: [&str; 11] =
    ["view", "topic", "partition", "offset", "end", "lag", "seconds", "rate", "arriving", "leader_changes", "hot"];

/// How far each view is behind the log, by partition
///
/// `seconds` is how long the first record has stood in the log that the view has not reached; `rate` and `arriving` are
/// records a second that it takes and that come, measured for as long as this command looks (an archiver moves when it
/// commits); `leader_changes` counts since the topic was made.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Lag {
    #[command(subcommand)]
    command: Option<Command>,
    /// Only this project's topic
    #[arg(long)]
    project: Option<String>,
    /// Only this view
    #[arg(long, value_enum)]
    view: Option<View>,
    /// Only partitions in which it is behind
    #[arg(long)]
    behind: bool,
    /// How long rates are measured, in seconds; 0: not at all
    #[arg(long, value_name = "SECONDS", default_value_t = 2, conflicts_with = "watch")]
    measure: u64,
    /// Look again and again, every so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "5",
          value_parser = clap::value_parser!(u64).range(1..))]
    watch: Option<u64>,
}

#[derive(Subcommand)]
enum Command {
    /// Partitions that are far more behind than the others of their topic: why, and what can be done
    Hot {
        /// Those of the last 30 days, too
        #[arg(long)]
        all: bool,
    },
}

/// Who reads the log.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum View {
    /// Sessions and metrics in Postgres
    Stream,
    /// The Iceberg tables
    Archiver,
}

impl View {
    /// As rows and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Archiver => "archiver",
        }
    }
}

/// A row, with numbers that can be read.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    lag: PartitionLag,
    hot: bool,
}

impl Row {
    fn new((lag, hot): (PartitionLag, bool)) -> Self {
        let rounded = |number: Option<f64>| number.map(|number| (number * 10.0).round() / 10.0);
        let (seconds, rate, arriving) = (rounded(lag.seconds), rounded(lag.rate), rounded(lag.arriving));
        Self { lag: PartitionLag { seconds, rate, arriving, ..lag }, hot }
    }
}

pub async fn run(lag: Lag, connections: &Connections, output: Output) -> anyhow::Result<()> {
    if let Some(Command::Hot { all }) = lag.command {
        return hot::run(all, connections, output).await;
    }
    let views = lag.view.map_or(vec![View::Stream, View::Archiver], |view| vec![view]);
    let mut looker = Looker::new(connections, lag.project, &views).await?;
    let behind = |rows: Vec<(PartitionLag, bool)>| -> Vec<Row> {
        rows.into_iter().filter(|(row, _)| !lag.behind || row.lag > 0).map(Row::new).collect()
    };
    if let Some(seconds) = lag.watch {
        loop {
            looker.look().await?;
            let rows = behind(looker.rows().await?);
            if matches!(output, Output::Table) && std::io::stdout().is_terminal() {
                print!("\x1b[2J\x1b[H"); // a new screen
            }
            output.things(&rows, &FIELDS)?;
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        }
    }
    let progress = spinner("looking");
    looker.look().await?;
    if lag.measure > 0 {
        tokio::time::sleep(Duration::from_secs(lag.measure)).await;
        looker.look().await?;
    }
    let rows = behind(looker.rows().await?);
    progress.finish_and_clear();
    output.things(&rows, &FIELDS)
}

//! `tidemill-drills`: fault drills. `dev/drill` starts the components and runs it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tidemill_drills::drill::Options;
use tidemill_drills::run::{self, Pick};
use tokio::signal::unix::{SignalKind, signal};

/// Breaks running services in every way that is promised to be harmless, and compares everything afterwards.
///
/// A line per row; the last line on standard output is a JSON object. Ends with 1 when a row has differences or a
/// planted mutant is not caught.
#[derive(Parser)]
#[command(name = "tidemill-drills")]
struct Cli {
    /// Rows to run, separated by commas; a `*` at the end stands for anything (default: all about the stream, and all
    /// mutants)
    #[arg(long, env = "ROWS", value_delimiter = ',')]
    rows: Vec<String>,
    /// All rows about the archive, if `--rows` says nothing
    #[arg(long)]
    archive: bool,
    /// All rows about what operators do, if `--rows` says nothing
    #[arg(long, conflicts_with = "archive")]
    operators: bool,
    /// The short selection, whatever `--rows` says
    #[arg(long)]
    short: bool,
    /// Repeats a run's traffic and random choices
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
    /// Print the names of all rows
    #[arg(long)]
    list: bool,
    /// The tidemill binary, a debug build (default: beside this one)
    #[arg(long, env = "TIDEMILL_BIN")]
    binary: Option<PathBuf>,
    /// Folder for journals and the processes' logs; those of failed rows stay
    #[arg(long, env = "TIDEMILL_DRILL_LOGS")]
    logs: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match start(Cli::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn start(cli: Cli) -> anyhow::Result<bool> {
    if cli.list {
        run::names().iter().for_each(|name| println!("{name}"));
        return Ok(true);
    }
    let rows: Vec<String> =
        cli.rows.into_iter().map(|row| row.trim().to_owned()).filter(|row| !row.is_empty()).collect();
    let pick = match (cli.short, rows.is_empty()) {
        (true, _) => Pick::Short,
        (false, true) if cli.archive => Pick::Archive,
        (false, true) if cli.operators => Pick::Operators,
        (false, true) => Pick::Stream,
        (false, false) => Pick::Named(rows),
    };
    let beside = std::env::current_exe()?.with_file_name("tidemill");
    let options = Options {
        seed: cli.seed.unwrap_or_else(rand::random),
        binary: cli.binary.unwrap_or(beside),
        logs: cli.logs.unwrap_or_else(|| std::env::temp_dir().join("tidemill-drills")),
        mutant: None,
    };
    // A row that panics is told of in its line.
    std::panic::set_hook(Box::new(|_| {}));
    eprintln!("SEED={}  logs and journals: {}", options.seed, options.logs.display());
    let summary = until_signal(run::run(&pick, &options)).await?;
    println!("{}", serde_json::to_string(&summary)?);
    Ok(summary.good())
}

/// Ends early on SIGINT and SIGTERM; what was started ends with us.
async fn until_signal<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = work => result,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
    }
    .context("the drills were not finished")
}

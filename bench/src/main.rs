//! `tidemill-bench`: what the gateway, the stream worker, the archiver and SQL over the archive cost, each beside a bare
//! limit or a peer. `dev/bench` prepares everything it needs and runs it.

mod archive;
mod bare;
mod figures;
mod http;
mod ingest;
mod log;
mod process;
mod random;
mod seen;
mod stream;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use ingest::{limit, rounds, soak};
use tokio::signal::unix::{SignalKind, signal};

/// Benchmarks. Run it through `dev/bench`, which starts the components and makes projects and keys.
#[derive(Parser)]
#[command(name = "tidemill-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure a bare producer, Benthos and the gateway in turn; the last line on standard output is JSON
    Run(rounds::Options),
    /// Load the gateway for long: its memory has to stay flat
    Soak(soak::Options),
    /// Measure the seen store: CPU, disk and memory per eventId; the last line on standard output is JSON
    Seen(seen::Options),
    /// The bare producer, as a process of its own
    #[command(hide = true)]
    Limit(limit::Options),
    /// Measure a bare consumer, Kafka Streams and the stream worker on one topic; the last line is JSON
    Stream(stream::Options),
    /// The bare consumer, as a process of its own
    #[command(hide = true)]
    StreamLimit(stream::limit::Options),
    /// Measure bare decoding and writing, Kafka Connect and the archiver on one topic; the last line is JSON
    Archive(archive::Options),
    /// Bare decoding and writing, as a process of its own
    #[command(hide = true)]
    ArchiveLimit(archive::limit::Options),
    /// Measure SQL over an archive beside DuckDB on the same files; the last line is JSON
    Query(archive::query::Options),
}

fn main() -> ExitCode {
    match start(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One thread for all of it: what the generator uses is missing to the servers.
fn start(command: Command) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        Command::Run(options) => runtime.block_on(until_signal(rounds::run(&options))),
        Command::Soak(options) => runtime.block_on(until_signal(soak::run(&options))),
        Command::Seen(options) => {
            println!("{}", serde_json::to_string(&seen::run(&options)?)?);
            Ok(true)
        }
        Command::Limit(options) => {
            println!("{}", serde_json::to_string(&limit::run(&options)?)?);
            Ok(true)
        }
        Command::Stream(options) => runtime.block_on(until_signal(stream::run(&options))),
        Command::StreamLimit(options) => {
            println!("{}", serde_json::to_string(&runtime.block_on(stream::limit::run(&options))?)?);
            Ok(true)
        }
        Command::Archive(options) => runtime.block_on(until_signal(archive::run(&options))),
        Command::ArchiveLimit(options) => {
            println!("{}", serde_json::to_string(&archive::limit::run(&options)?)?);
            Ok(true)
        }
        Command::Query(options) => runtime.block_on(until_signal(archive::query::run(&options))),
    }
}

/// Ends early on SIGINT and SIGTERM; the servers end with what started them.
async fn until_signal(work: impl Future<Output = anyhow::Result<bool>>) -> anyhow::Result<bool> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = work => result,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
    }
    .context("the benchmark did not finish")
}

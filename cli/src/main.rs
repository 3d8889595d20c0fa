//! The one binary: it runs the services and is the operators' tool. This file only parses and dispatches.

mod archive;
mod audit;
mod cache;
mod completion;
mod consent;
mod dlq;
mod doctor;
mod keys;
mod lag;
mod limits;
mod loadgen;
mod memory;
mod migrate;
mod output;
mod position;
mod projects;
mod replay;
mod routes;
mod schemas;
mod services;
mod setting;
mod signals;
mod spool;
mod store;
mod topics;
mod warehouse;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tidemill_common::config::Settings;
use tidemill_common::failpoint;
use tidemill_common::telemetry::start_logging;

use crate::cache::Wrong;
use crate::consent::Declined;
use crate::output::{Output, told};
use crate::services::Service;
use crate::topics::Differs;

/// What operators' commands log: their errors are told in one line, clients' chatter is not needed.
const OPERATOR_LOG: &str = "error,rdkafka=off,librdkafka=off";
const SETTINGS: &str = "\
Settings come from environment variables, over the TOML file that TIDEMILL_CONFIG names:
  KAFKA_BROKERS, DATABASE_URL, REDIS_URL, SCHEMA_REGISTRY_URL, WAREHOUSE_URL, LOG_LEVEL, PORT, SPOOL_DIR,
  others as TIDEMILL_<SECTION>__<NAME>, e.g. TIDEMILL_ARCHIVER__COMMIT_INTERVAL_MS.

Exit codes: 0 done, 1 failed, 2 a mistake in the command line, 3 nothing changed because nobody said yes,
4 a check found something to do.
What changes something shows what it is going to do and asks; --yes goes ahead, --dry-run only shows. Every change is
entered in the table `audit`, by the name in TIDEMILL_OPERATOR or else the login's.";
/// The exit code of a change that was not agreed to.
const DECLINED: u8 = 3;
/// The exit code of a check that found something to do.
const DIFFERS: u8 = 4;

/// Tidemill: event analytics on Kafka.
#[derive(Parser)]
#[command(name = "tidemill", version, propagate_version = true, after_help = SETTINGS)]
struct Cli {
    /// How results are printed: `json` is one line on standard output.
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway: takes events over HTTP and writes them to Kafka (port 4001)
    #[command(after_help = services::HELP)]
    Ingest,
    /// Run a stream worker: turns events into sessions and metrics (port 4004: health and metrics only)
    #[command(after_help = services::HELP)]
    Stream,
    /// Run an archiver: keeps every event in an Iceberg table (port 4005: health and metrics only)
    #[command(after_help = services::HELP)]
    Archiver,
    /// Run the query service: metrics, sessions and SQL over HTTP (port 4002)
    #[command(after_help = services::HELP)]
    Query,
    /// Create the database if it is missing and bring its schema up to date
    ///
    /// It only ever goes forward, and whoever installs a version needs it, so it does not ask.
    Migrate(migrate::Migrate),
    /// Declared topics
    #[command(subcommand)]
    Topics(topics::Command),
    /// Projects: the tenants
    #[command(subcommand)]
    Projects(projects::Command),
    /// Topics of their own for single event types
    #[command(subcommand)]
    Routes(routes::Command),
    /// API keys
    #[command(subcommand)]
    Keys(keys::Command),
    Lag(lag::Lag),
    /// Limits of single event types and users, effective within seconds
    #[command(subcommand)]
    Limits(limits::Command),
    /// Look at everything that Tidemill stands on, and say what to do about what is wrong
    ///
    /// Connections, versions, settings of topics and brokers, schemas, migrations, permissions, storage, clocks. The exit
    /// code is 1 if a check failed; warnings are fine.
    Doctor(doctor::Doctor),
    /// What a gateway keeps on disk while Kafka is down
    Spool(spool::Spool),
    /// JSON Schemas of events' properties
    #[command(subcommand)]
    Schemas(schemas::Command),
    /// The archive: maintenance, retention, and deletion of a user's events
    #[command(subcommand)]
    Archive(archive::Command),
    /// Hot copies in Redis: fill it, compare it with Postgres, look at its nodes
    #[command(subcommand)]
    Cache(cache::Command),
    /// Dead letters: records that were no events, until they are sent through again or discarded
    #[command(subcommand)]
    Dlq(dlq::Command),
    /// Rebuild sessions and metrics from the log beside what is live, compare, and switch
    #[command(subcommand)]
    Replay(replay::Command),
    /// Print what a shell needs to complete these commands
    ///
    /// bash: `source <(tidemill completion bash)`; zsh: into a file `_tidemill` on $fpath; fish: into
    /// ~/.config/fish/completions/tidemill.fish.
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Send e-commerce-like traffic with current timestamps to a gateway
    ///
    /// Visitors of a shop: sessions of up to some minutes with page views, searches, carts and purchases. What
    /// the gateway could not take (429, 5xx, `retry`, a lost connection) is sent again with the same eventId,
    /// after 1, 2 and 4 s or what the gateway asks for. The last line on standard output is a JSON object with
    /// the counts; SIGINT or SIGTERM end the run early and print it too.
    Loadgen(loadgen::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", told(&error));
            match error {
                error if error.is::<Declined>() => DECLINED.into(),
                error if error.is::<Differs>() || error.is::<Wrong>() => DIFFERS.into(),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

async fn dispatch(cli: Cli) -> anyhow::Result<()> {
    let service = match cli.command {
        Command::Ingest => Service::Ingest,
        Command::Stream => Service::Stream,
        Command::Archiver => Service::Archiver,
        Command::Query => Service::Query,
        Command::Completion { shell } => return completion::run(shell),
        operators => return operate(operators, cli.output).await,
    };
    services::run(service).await
}

async fn operate(command: Command, output: Output) -> anyhow::Result<()> {
    start_logging(OPERATOR_LOG);
    failpoint::arm()?;
    let settings = Settings::load("cli")?;
    let connections = settings.connections();
    match command {
        Command::Migrate(migrate) => migrate::run(&migrate, &connections, output).await,
        Command::Topics(command) => topics::run(command, &connections, output).await,
        Command::Projects(command) => projects::run(command, &connections, output).await,
        Command::Routes(command) => routes::run(command, &connections, output).await,
        Command::Keys(command) => keys::run(command, &connections, output).await,
        Command::Doctor(doctor) => doctor::run(doctor, &connections, output).await,
        Command::Lag(lag) => lag::run(lag, &connections, output).await,
        Command::Limits(command) => limits::run(command, &connections, output).await,
        Command::Spool(spool) => spool::run(spool, &connections, output).await,
        Command::Schemas(command) => schemas::run(command, &connections, output).await,
        Command::Archive(command) => archive::run(command, &connections, output).await,
        Command::Cache(command) => cache::run(command, &settings, output).await,
        Command::Dlq(command) => dlq::run(command, &connections, output).await,
        Command::Replay(command) => replay::run(command, &settings, output).await,
        Command::Loadgen(args) => loadgen::run(args).await,
        // Dispatched before.
        Command::Ingest | Command::Stream | Command::Archiver | Command::Query | Command::Completion { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// What only looks, and what runs or sends until it is ended.
    const CHANGE_NOTHING: [&str; 24] = [
        "ingest",
        "stream",
        "archiver",
        "query",
        "topics plan",
        "projects list",
        "routes list",
        "keys list",
        "lag",
        "lag hot",
        "limits list",
        "doctor",
        "spool list",
        "schemas check",
        "schemas list",
        "schemas show",
        "archive warehouse-setup",
        "dlq list",
        "dlq show",
        "replay status",
        "cache status",
        "completion",
        "loadgen",
        "help",
    ];
    /// `migrate` is for installers; `run` does what was agreed to when the replay was planned, beside what is live.
    const DO_NOT_ASK: [&str; 2] = ["migrate", "replay run"];

    fn leaves(command: &clap::Command, name: &str, found: &mut Vec<(String, bool)>) {
        let asks = ["dry_run", "yes"].iter().all(|id| command.get_arguments().any(|argument| argument.get_id() == id));
        if !command.has_subcommands() || command.get_arguments().any(|argument| argument.get_id() == "watch") {
            found.push((name.to_owned(), asks));
        }
        for verb in command.get_subcommands() {
            leaves(verb, format!("{name} {}", verb.get_name()).trim_start(), found);
        }
    }

    #[test]
    fn whatever_changes_something_asks() {
        Cli::command().debug_assert();
        let mut found = Vec::new();
        leaves(&Cli::command(), "", &mut found);
        assert!(found.len() > 35, "{found:?}");
        for (name, asks) in found {
            let known = CHANGE_NOTHING.contains(&&*name) || DO_NOT_ASK.contains(&&*name);
            assert_eq!(
                asks, !known,
                "{name}: give it --dry-run and --yes (consent.rs) and an entry in the book \
                (audit.rs), or name it here as one that changes nothing"
            );
        }
    }
}

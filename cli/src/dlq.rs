//! `tidemill dlq`

mod arguments;
mod desk;
mod letter;

use std::time::Duration;

use clap::Subcommand;
use tidemill_common::config::Connections;
use tidemill_common::registry::Registry;
use tidemill_stream::dlq::{self, Filter};

use self::arguments::{State, Which, position, reason};
use self::desk::Desk;
use crate::consent::Consent;
use crate::output::Output;
use crate::store::{self, explain};

const COUNTS: [&str; 8] = ["project", "state", "reason", "stage", "count", "attempts", "oldest", "newest"];
const RECORDS: [&str; 8] = ["project", "partition", "offset", "state", "reason", "attempts", "created_at", "detail"];

#[derive(Subcommand)]
pub enum Command {
    /// Count dead letters by what they are, or list them
    List {
        /// Only this project's
        #[arg(long)]
        project: Option<String>,
        #[command(flatten)]
        which: Which,
        /// Which are shown
        #[arg(long, value_enum, default_value_t)]
        state: State,
        /// The letters themselves, the newest first
        #[arg(long)]
        records: bool,
        /// At most so many of them
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..))]
        limit: i64,
    },
    /// Show one: its record, decoded if it can be, why it was refused and what can be done
    Show {
        /// Where its record stands, as `list --records` says: <partition>:<offset>
        #[arg(value_parser = position)]
        letter: (i32, i64),
        /// Its project
        #[arg(long)]
        project: String,
    },
    /// Send open letters through again, once what was wrong is mended
    ///
    /// Each goes back to its partition and counts if its letter is still open when the stream comes to it; what is
    /// refused again stays open, with one more attempt. A run that was ended can simply be run again: nothing counts
    /// twice.
    Redrive {
        /// Whose
        #[arg(long)]
        project: String,
        #[command(flatten)]
        which: Which,
        /// At most so many a second
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        rate: u32,
        /// Wait so long for what the stream makes of them
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        wait: u64,
        #[command(flatten)]
        consent: Consent,
    },
    /// Give up open letters for good
    Discard {
        /// Whose
        #[arg(long)]
        project: String,
        #[command(flatten)]
        which: Which,
        /// Why; it is kept with the letters and in the table `audit`
        #[arg(long, value_name = "TEXT", value_parser = reason)]
        why: String,
        #[command(flatten)]
        consent: Consent,
    },
}

pub async fn run(command: Command, connections: &Connections, output: Output) -> anyhow::Result<()> {
    match command {
        Command::List { project, which, state, records, limit } => {
            let mut db = store::connect(&connections.database_url).await?;
            store::known(&mut db, project.as_deref()).await?;
            let filter = Filter { state: state.name(), ..which.filter(project) };
            if records {
                let letters = dlq::list(&mut db, &filter, limit).await.map_err(explain)?;
                return output.things(&letters, &RECORDS);
            }
            output.things(&dlq::counts(&mut db, &filter).await.map_err(explain)?, &COUNTS)
        }
        Command::Show { letter, project } => {
            let desk = Desk::open(connections, &project).await?;
            let registry = Registry::new(&connections.registry_url)?;
            letter::show(&desk, letter, registry, output).await
        }
        Command::Redrive { project, which, rate, wait, consent } => {
            let desk = Desk::open(connections, &project).await?;
            desk.redrive(which, rate, Duration::from_secs(wait), consent, output).await
        }
        Command::Discard { project, which, why, consent } => {
            let desk = Desk::open(connections, &project).await?;
            desk.discard(which, &why, consent, output).await
        }
    }
}

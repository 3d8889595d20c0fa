//! `tidemill dlq`

mod letter;

use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sqlx::PgPool;
use tidemill_common::config::Connections;
use tidemill_common::projects::{self, Project};
use tidemill_common::{postgres, registry::Registry};
use tidemill_stream::dlq::redrive::{self, Redriver, Report, Step};
use tidemill_stream::dlq::{self, Count, Filter};

use crate::audit;
use crate::consent::Consent;
use crate::output::{Output, json_line};
use crate::store::{self, explain};

const COUNTS: [&str; 8] = ["project", "state", "reason", "stage", "count", "attempts", "oldest", "newest"];
const RECORDS: [&str; 8] = ["project", "partition", "offset", "state", "reason", "attempts", "created_at", "detail"];
const REDRIVEN: [&str; 7] = ["sent", "counted", "duplicate", "refused", "discarded", "under_way", "gone"];

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

/// Filters.
#[derive(Args)]
pub struct Which {
    /// Only those refused for this reason, e.g. unknown-schema
    #[arg(long)]
    reason: Option<String>,
    /// Only those refused by this step: decode or validate
    #[arg(long)]
    stage: Option<String>,
    /// Only those refused first at this time or later: RFC 3339, or e.g. 2h ago as 2h
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<DateTime<Utc>>,
    /// Only those refused first before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<DateTime<Utc>>,
    /// Only the one whose record stands there
    #[arg(long, value_name = "PARTITION:OFFSET", value_parser = position)]
    at: Option<(i32, i64)>,
}

#[derive(Clone, Copy, Default, ValueEnum)]
pub enum State {
    /// Nobody has decided yet
    #[default]
    Open,
    /// Sent through again, and counts
    Counted,
    /// Sent through again, when a copy had counted
    Duplicate,
    /// Given up
    Discarded,
    /// All of them
    All,
}

/// What is going to change, and what has.
#[derive(Serialize)]
struct Change<'a> {
    filter: &'a Filter,
    /// Why they are discarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    /// At most so many a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u32>,
    letters: i64,
    /// Letters that match and are not sent: the stream has yet to say what they are.
    under_way: i64,
    by_reason: &'a [Count],
    applied: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a Report>,
}

pub async fn run(command: Command, connections: &Connections, output: Output) -> anyhow::Result<()> {
    match command {
        Command::List { project, which, state, records, limit } => {
            let mut db = store::connect(&connections.database_url).await?;
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

/// A project's letters, and what it takes to handle them.
struct Desk {
    url: String,
    redriver: Redriver,
}

impl Desk {
    async fn open(connections: &Connections, project: &str) -> anyhow::Result<Self> {
        let mut db = store::connect(&connections.database_url).await?;
        let project: Project = projects::load(&mut db, project)
            .await
            .map_err(explain)?
            .with_context(|| format!("there is no project {project:?}; see 'tidemill projects list'"))?;
        let pool = postgres::pool(&connections.database_url, 2)?;
        let redriver = Redriver { pool, kafka: connections.kafka.clone(), project };
        Ok(Self { url: connections.database_url.clone(), redriver })
    }

    fn pool(&self) -> &PgPool {
        &self.redriver.pool
    }

    fn project(&self) -> &str {
        &self.redriver.project.id
    }

    /// The open letters that match now. What is refused from now on is not part of the plan.
    async fn open_letters(&self, which: Which) -> anyhow::Result<(Filter, Vec<Count>)> {
        let now: DateTime<Utc> = sqlx::query_scalar("SELECT now()").fetch_one(self.pool()).await.map_err(explain)?;
        let mut filter = Filter { state: State::Open.name(), ..which.filter(Some(self.project().to_owned())) };
        filter.until = Some(filter.until.map_or(now, |until| until.min(now)));
        let counts = dlq::counts(self.pool(), &filter).await.map_err(explain)?;
        Ok((filter, counts))
    }

    async fn redrive(
        &self,
        which: Which,
        rate: u32,
        wait: Duration,
        consent: Consent,
        output: Output,
    ) -> anyhow::Result<()> {
        let (filter, by_reason) = self.open_letters(which).await?;
        let planned = redrive::plan(self.pool(), &filter).await.map_err(explain)?;
        let (letters, under_way) = (planned.letters, planned.under_way);
        let (filter, by_reason) = (&filter, &*by_reason);
        let mut change =
            Change { filter, why: None, rate: Some(rate), letters, under_way, by_reason, applied: false, result: None };
        let question = format!(
            "Send {letters} dead letters of {} through again, {rate} a second ({under_way} are under way)?",
            self.project()
        );
        if !self.agreed(&change, &question, consent, output)? {
            return output.change(&change);
        }
        let mut db = store::connect(&self.url).await?;
        let entry = audit::begin(&mut db, "dlq redrive", Some(self.project()), &change).await?;
        let bar = Bar::new();
        let report = self.redriver.run(filter, rate, wait, |step| bar.show(step)).await;
        bar.0.finish_and_clear();
        let report = entry.end(&mut db, report.map_err(Into::into)).await?;
        match output {
            Output::Table => output.thing(&report, &REDRIVEN),
            Output::Json => {
                (change.applied, change.result) = (true, Some(&report));
                output.change(&change)
            }
        }
    }

    async fn discard(&self, which: Which, why: &str, consent: Consent, output: Output) -> anyhow::Result<()> {
        let (filter, by_reason) = self.open_letters(which).await?;
        let letters: i64 = by_reason.iter().map(|count| count.count).sum();
        let (filter, by_reason) = (&filter, &*by_reason);
        let (why, under_way) = (Some(why), 0);
        let mut change =
            Change { filter, why, rate: None, letters, under_way, by_reason, applied: false, result: None };
        let question = format!("Discard {letters} dead letters of {} for good?", self.project());
        if !self.agreed(&change, &question, consent, output)? {
            return output.change(&change);
        }
        let mut db = store::connect(&self.url).await?;
        let entry = audit::begin(&mut db, "dlq discard", Some(self.project()), &change).await?;
        let bar = Bar::new();
        let discarded = dlq::discard(self.pool(), filter, why.unwrap_or_default()).await.map_err(explain);
        bar.0.finish_and_clear();
        // Fewer than planned, when some were closed meanwhile.
        change.letters = entry.end(&mut db, discarded).await? as i64;
        change.applied = true;
        output.change(&change)
    }

    /// Shows the plan to people and asks them; nothing to do needs nobody's word.
    fn agreed(&self, change: &Change<'_>, question: &str, consent: Consent, output: Output) -> anyhow::Result<bool> {
        if let Output::Table = output {
            output.things(change.by_reason, &COUNTS)?;
        }
        Ok(change.letters > 0 && consent.given(question)?)
    }
}

impl Output {
    /// How a change went, or would go.
    fn change(self, change: &Change<'_>) -> anyhow::Result<()> {
        match self {
            Self::Json => json_line(change),
            Self::Table => self.thing(change, &["letters", "under_way", "applied"]),
        }
    }
}

/// How far it is; the library shows nothing where standard error is no terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    fn show(&self, step: Step) {
        let (done, of, what) = match step {
            Step::Sent(done, of) => (done, of, "sent"),
            Step::Decided(done, of) => (done, of, "decided by the stream"),
        };
        if self.0.length() != Some(of.unsigned_abs()) {
            let style = ProgressStyle::with_template("{bar:30} {human_pos}/{human_len}  {elapsed_precise}  {msg}");
            self.0.set_style(style.expect("the template is valid"));
            self.0.set_length(of.unsigned_abs());
        }
        self.0.set_message(what);
        self.0.set_position(done.unsigned_abs());
    }
}

impl Which {
    fn filter(self, project: Option<String>) -> Filter {
        let Self { reason, stage, since, until, at } = self;
        Filter { project, reason, stage, state: None, since, until, at }
    }
}

impl State {
    fn name(self) -> Option<String> {
        let name = match self {
            Self::Open => "open",
            Self::Counted => "counted",
            Self::Duplicate => "duplicate",
            Self::Discarded => "discarded",
            Self::All => return None,
        };
        Some(name.to_owned())
    }
}

fn position(text: &str) -> Result<(i32, i64), String> {
    let parse = || {
        let (partition, offset) = text.split_once(':')?;
        Some((partition.parse().ok()?, offset.parse().ok()?))
    };
    parse().filter(|(partition, offset)| *partition >= 0 && *offset >= 0).ok_or_else(|| {
        "give <partition>:<offset> of the record in the events topic, e.g. 3:17, as 'tidemill dlq list --records' shows"
            .to_owned()
    })
}

fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() { Err("say why, for those who come later".to_owned()) } else { Ok(text.to_owned()) }
}

/// A moment, or how long ago it was.
fn time(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    let seconds = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)].into_iter().find_map(|(unit, seconds)| {
        let number: i64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(seconds).filter(|seconds| (0..=36_500 * 86_400).contains(seconds))
    });
    let ago = seconds.map(|seconds| Utc::now() - TimeDelta::seconds(seconds));
    ago.ok_or_else(|| "give a time like 2026-01-31T12:00:00Z, or how long ago it was: 7d, 2h, 30m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_moments_or_how_long_ago_they_were() {
        let hour_ago = time("1h").map(|time| (Utc::now() - time).num_minutes());
        assert_eq!(hour_ago, Ok(60));
        assert_eq!(
            time("2026-01-31T12:00:00+01:00").map(|time| time.to_rfc3339()),
            Ok("2026-01-31T11:00:00+00:00".into())
        );
        for text in ["", "1", "-1h", "1w", "99999999999999d", "yesterday"] {
            assert!(time(text).is_err(), "{text}");
        }
        assert_eq!(position("3:17"), Ok((3, 17)));
        for text in ["", "3", "3:", "-1:2", "1:-2", "1:2:3"] {
            assert!(position(text).is_err(), "{text}");
        }
    }
}

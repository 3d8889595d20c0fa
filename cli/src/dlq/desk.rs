//! Changes to a project's letters: planned, agreed to, entered, made.

use std::time::Duration;

use chrono::{DateTime, Utc};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sqlx::PgPool;
use tidemill_common::config::Connections;
use tidemill_common::postgres;
use tidemill_common::projects::{self, Project};
use tidemill_stream::dlq::redrive::{self, Redriver, Report, Step};
use tidemill_stream::dlq::{self, Count, Filter};

use super::COUNTS;
use super::arguments::{State, Which};
use crate::audit;
use crate::consent::Consent;
use crate::output::{Output, json_line};
use crate::store::{self, explain};

const REDRIVEN: [&str; 7] = ["sent", "counted", "duplicate", "refused", "discarded", "under_way", "gone"];

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

/// A project's letters, and what it takes to handle them.
pub struct Desk {
    url: String,
    pub redriver: Redriver,
}

impl Desk {
    pub async fn open(connections: &Connections, project: &str) -> anyhow::Result<Self> {
        let mut db = store::connect(&connections.database_url).await?;
        let project: Project =
            projects::load(&mut db, project).await.map_err(explain)?.ok_or_else(|| store::no_project(project))?;
        let pool = postgres::pool(&connections.database_url, 2)?;
        let redriver = Redriver { pool, kafka: connections.kafka.clone(), project };
        Ok(Self { url: connections.database_url.clone(), redriver })
    }

    pub fn pool(&self) -> &PgPool {
        &self.redriver.pool
    }

    pub fn project(&self) -> &str {
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

    pub async fn redrive(
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

    pub async fn discard(&self, which: Which, why: &str, consent: Consent, output: Output) -> anyhow::Result<()> {
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
pub struct Bar(pub ProgressBar);

impl Bar {
    pub fn new() -> Self {
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

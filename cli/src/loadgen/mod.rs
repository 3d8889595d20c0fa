//! `tidemill loadgen`: made-up visitors ([`generator`]) whose events are sent like a careful client would
//! ([`sender`]), at a given pace ([`pacer`]), with an account of each ([`account`]).

mod account;
mod generator;
mod pacer;
mod sender;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use self::account::Account;
use self::generator::{Generator, Shape};
use self::pacer::Pacer;
use self::sender::{Delivered, Patience, Sender};
use crate::output::json_line;
use crate::signals::Signals;

/// Batches that may be on their way or waiting for another try; above it no fresh ones are made.
const MAX_UNDER_WAY: usize = 1_000;
const DEFAULT_DURATION: Duration = Duration::from_secs(60);
/// How many events per second visits are made for where the rate is not limited.
const UNLIMITED_RATE: f64 = 10_000.0;

/// What to send, and where to.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The gateway
    #[arg(long, default_value = "http://127.0.0.1:4001")]
    url: String,
    /// An API key with the scope `write`
    #[arg(long, env = "TIDEMILL_KEY", hide_env_values = true)]
    key: String,
    /// Events per second; 0 is as fast as it goes
    #[arg(long, default_value_t = 500.0, value_parser = rate)]
    rate: f64,
    /// How long to go on, e.g. 500ms, 60s, 5m, 1h [default: 60s, or until --events are sent]
    #[arg(long, value_parser = duration)]
    duration: Option<Duration>,
    /// Stop after this many events; the intended duplicates come on top
    #[arg(long, value_name = "N")]
    events: Option<u64>,
    /// Events per request
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Users that come and go
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    users: u32,
    /// Event types
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    types: u32,
    /// The share of events that is sent a second time, some seconds after the first was answered
    #[arg(long, default_value_t = 0.02, value_parser = share)]
    duplicates: f64,
    /// Decides all but the timestamps and the run's name
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stands in all event and session ids [default: random, so that runs do not repeat each other]
    #[arg(long)]
    run: Option<String>,
    /// Requests at a time
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Further tries for what the gateway could not take, after 1, 2, 4, then 8 s, or later where it says so
    #[arg(long, default_value_t = 3)]
    retries: u32,
    /// Write what became of each event to this file, a JSON object a line
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let sender = Sender::new(&args.url, &args.key, args.connections as usize, Patience::new(args.retries))?;
    let mut account = Account::open(args.journal.as_deref())?;
    let mut pacer = Pacer::new(Generator::new(args.shape()), args.rate, args.batch as usize, args.limits());
    let mut signals = Signals::new()?;
    let bar = args.progress_bar();
    let mut under_way: JoinSet<anyhow::Result<Delivered>> = JoinSet::new();
    while pacer.has_more() || !under_way.is_empty() {
        let turn = async {
            sleep_until(pacer.due()).await;
            sender.connection().await
        };
        tokio::select! {
            Some(delivered) = under_way.join_next() => {
                account.settle(delivered.context("a sender failed")??, &mut pacer)?;
                bar.set_position(account.events());
                bar.set_message(account.to_string());
            }
            connection = turn, if pacer.has_more() && under_way.len() < MAX_UNDER_WAY => {
                let batch = pacer.next_batch();
                if !batch.is_empty() {
                    let sender = sender.clone();
                    under_way.spawn(async move { sender.deliver(batch, connection).await });
                }
            }
            _ = signals.next() => {
                anyhow::ensure!(!pacer.stopped(), "ended before all answers were in");
                pacer.stop();
            }
        }
    }
    bar.finish_and_clear();
    let summary = account.close(pacer.elapsed())?;
    json_line(&summary)?;
    anyhow::ensure!(
        !summary.all_failed(),
        "no event got through; is {0} a gateway that is up, and may the key write? 'curl {0}/health' tells",
        args.url.trim_end_matches('/')
    );
    Ok(())
}

impl Args {
    fn shape(&self) -> Shape {
        Shape {
            seed: self.seed,
            run: self.run.clone().unwrap_or_else(|| format!("{:08x}", rand::random::<u32>())),
            users: self.users,
            types: self.types,
            rate: if self.rate > 0.0 { self.rate } else { UNLIMITED_RATE },
            duplicates: self.duplicates,
        }
    }

    /// How many events, and for how long.
    fn limits(&self) -> (Option<u64>, Option<Duration>) {
        let endless = self.events.is_none() && self.duration.is_none();
        (self.events, if endless { Some(DEFAULT_DURATION) } else { self.duration })
    }

    /// The library shows nothing where standard error is no terminal.
    fn progress_bar(&self) -> ProgressBar {
        let (events, duration) = self.limits();
        let by_time = duration.filter(|_| self.rate > 0.0).map(|time| (time.as_secs_f64() * self.rate) as u64);
        let Some(expected) = events.into_iter().chain(by_time).min() else { return ProgressBar::new_spinner() };
        let style = ProgressStyle::with_template("{bar:30} {human_pos}/{human_len}  {elapsed_precise}  {msg}");
        ProgressBar::new(expected).with_style(style.expect("the template is valid"))
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate >= 0.0);
    rate.ok_or_else(|| "must be a number of events per second, or 0 for no limit".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share: &f64| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "must lie between 0 and 1".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let number_ends = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_ends);
    let seconds = match unit {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err(format!("{unit:?} is no unit of time; use ms, s, m or h")),
    };
    let number: f64 = number.parse().map_err(|_| "must be a number with a unit, e.g. 60s".to_owned())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("60"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(duration("s").is_err());
        assert!(duration("5 days").is_err());
        assert!(duration("").is_err());
    }

    #[test]
    fn rates_and_shares_have_limits() {
        assert_eq!(rate("0"), Ok(0.0));
        assert!(rate("-1").is_err());
        assert!(rate("inf").is_err());
        assert_eq!(share("0.02"), Ok(0.02));
        assert!(share("1.1").is_err());
    }
}

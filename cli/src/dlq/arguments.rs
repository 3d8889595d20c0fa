//! Which letters, as it is typed.

use chrono::{DateTime, TimeDelta, Utc};
use clap::{Args, ValueEnum};
use tidemill_stream::dlq::Filter;

use crate::position;

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

impl Which {
    /// With the project's part.
    pub fn filter(self, project: Option<String>) -> Filter {
        let Self { reason, stage, since, until, at } = self;
        Filter { project, reason, stage, state: None, since, until, at }
    }
}

impl State {
    /// As rows have it; none: any.
    pub fn name(self) -> Option<String> {
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

pub fn position(text: &str) -> Result<(i32, i64), String> {
    position::parse(text).ok_or_else(|| {
        "give <partition>:<offset> of the record in the events topic, e.g. 3:17, as 'tidemill dlq list --records' shows"
            .to_owned()
    })
}

pub fn reason(text: &str) -> Result<String, String> {
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

//! Runs rows and mutants, tells of each in a line, and sums up.

use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use futures::FutureExt;
use serde::Serialize;

use crate::drill::{Options, Outcome};
use crate::rows::{self, ARCHIVE, MUTANTS, Mutant, OPERATORS, Row};

/// So many differences of a row are printed.
const PRINTED: usize = 30;
const MUTANT: &str = "mutant:";

/// The last line.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    rows: usize,
    failed: usize,
    differences: usize,
    mutants: usize,
    mutants_caught: usize,
    seconds: u64,
}

impl Summary {
    /// Whether every row was without a difference and every mutant was caught.
    pub fn good(&self) -> bool {
        self.failed == 0 && self.mutants_caught == self.mutants
    }
}

/// What is to be run.
pub enum Pick {
    /// Everything about the stream.
    Stream,
    /// Everything about the archive.
    Archive,
    /// What operators find out and do.
    Operators,
    /// The short selection.
    Short,
    /// By name; a `*` at the end stands for anything.
    Named(Vec<String>),
}

impl Pick {
    /// Whether it takes a row of this name, or what is caught by one.
    fn takes(&self, name: &str, row: &str, short: bool) -> bool {
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        };
        match self {
            Self::Stream => !row.starts_with(ARCHIVE) && !OPERATORS.contains(&row),
            Self::Operators => OPERATORS.contains(&row),
            Self::Archive => row.starts_with(ARCHIVE),
            Self::Short => short,
            Self::Named(patterns) => patterns.iter().any(matches),
        }
    }
}

/// The names of all rows and mutants.
pub fn names() -> Vec<String> {
    let mutants = MUTANTS.iter().map(|mutant| format!("{MUTANT}{}", mutant.name));
    rows::all().into_iter().map(|row| row.name).chain(mutants).collect()
}

/// Runs what is picked, one after the other.
pub async fn run(pick: &Pick, options: &Options) -> anyhow::Result<Summary> {
    let (all, began) = (rows::all(), Instant::now());
    let picked: Vec<&Row> = all.iter().filter(|row| pick.takes(&row.name, &row.name, row.short)).collect();
    let mutants: Vec<&Mutant> =
        MUTANTS.iter().filter(|m| pick.takes(&format!("{MUTANT}{}", m.name), m.row, m.short)).collect();
    if picked.is_empty() && mutants.is_empty() {
        bail!("no row has such a name; there are: {}", names().join(", "));
    }
    let mut summary = Summary::default();
    for row in picked {
        let options = &of_its_own(options, &row.name);
        let outcome = one(row, options, None).await;
        if good(&outcome) {
            tidy(options);
        }
        summary.rows += 1;
        summary.failed += usize::from(!good(&outcome));
        summary.differences += outcome.as_ref().map_or(0, |outcome| outcome.differences.len());
        tell(&row.name, &outcome)?;
    }
    for mutant in mutants {
        let row = all.iter().find(|row| row.name == mutant.row).ok_or_else(|| anyhow!("no row {}", mutant.row))?;
        let options = &of_its_own(options, mutant.name);
        let outcome = one(row, options, Some(mutant.name)).await;
        let caught = caught(mutant, &outcome)?;
        if caught {
            tidy(options);
        }
        summary.mutants += 1;
        summary.mutants_caught += usize::from(caught);
    }
    summary.seconds = began.elapsed().as_secs();
    Ok(summary)
}

fn good(outcome: &anyhow::Result<Outcome>) -> bool {
    outcome.as_ref().is_ok_and(|outcome| outcome.differences.is_empty())
}

/// The same with a folder for one row's logs, by its name.
fn of_its_own(options: &Options, name: &str) -> Options {
    Options { logs: options.logs.join(name.replace(':', "-")), ..options.clone() }
}

/// What is as it should be need not be looked into.
fn tidy(options: &Options) {
    let _ = std::fs::remove_dir_all(&options.logs);
}

async fn one(row: &Row, options: &Options, mutant: Option<&'static str>) -> anyhow::Result<Outcome> {
    // A row picked alone is the same as among all of them.
    let seed = row.name.bytes().fold(options.seed, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let options = Options { seed, mutant, ..options.clone() };
    let work = AssertUnwindSafe((row.run)(options)).catch_unwind();
    match tokio::time::timeout(row.limit, work).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panic)) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(anyhow!("it panicked: {}", text.unwrap_or("without a word")))
        }
        Err(_) => Err(anyhow!("it was not done within {:?}", row.limit)),
    }
}

fn tell(name: &str, outcome: &anyhow::Result<Outcome>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match outcome {
        Err(error) => writeln!(out, "FAIL  {name:<24} {error:#}")?,
        Ok(Outcome { differences, recovery, facts }) => {
            let (verdict, found) = match differences.len() {
                0 => ("ok", String::new()),
                n => ("FAIL", format!("{n} differences, ")),
            };
            let recovery = seconds(*recovery);
            writeln!(out, "{verdict:<5} {name:<24} {found}recovery {recovery} s, {}", facts.join(", "))?;
            for difference in differences.iter().take(PRINTED) {
                writeln!(out, "        {difference}")?;
            }
            if differences.len() > PRINTED {
                writeln!(out, "        … and {} more", differences.len() - PRINTED)?;
            }
        }
    }
    Ok(out.flush()?)
}

/// A mutant is caught by differences; a row that could not be run says nothing.
fn caught(mutant: &Mutant, outcome: &anyhow::Result<Outcome>) -> anyhow::Result<bool> {
    let mut out = std::io::stdout().lock();
    let name = format!("{MUTANT}{}", mutant.name);
    let caught = matches!(outcome, Ok(outcome) if !outcome.differences.is_empty());
    match outcome {
        Err(error) => writeln!(out, "FAIL  {name:<24} by {}: {error:#}", mutant.row)?,
        Ok(outcome) => match outcome.differences.first() {
            Some(first) => {
                let found = outcome.differences.len();
                writeln!(out, "ok    {name:<24} caught by {}: {found} differences, such as: {first}", mutant.row)?;
            }
            None => writeln!(out, "FAIL  {name:<24} not caught by {}", mutant.row)?,
        },
    }
    out.flush()?;
    Ok(caught)
}

fn seconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_picked_by_name() {
        let pick = Pick::Named(vec!["clean".to_owned(), "abort:*".to_owned()]);
        assert!(pick.takes("clean", "clean", false) && pick.takes("abort:stream.sent", "abort:stream.sent", false));
        assert!(!pick.takes("cleaner", "cleaner", false) && !pick.takes("mutant:a", "clean", true));
        assert!(
            Pick::Archive.takes("mutant:a", "archive:clean", false)
                && !Pick::Stream.takes("mutant:a", "archive:b", false)
        );
        assert!(Pick::Short.takes("errors", "errors", true) && !Pick::Short.takes("errors", "errors", false));
        let of = |pick: Pick| pick.takes("hot-partition", "hot-partition", false);
        assert!(of(Pick::Operators) && !of(Pick::Stream) && !of(Pick::Archive));
    }

    #[test]
    fn names_are_unique_and_mutants_have_their_rows() {
        let mut names = names();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(MUTANTS.iter().all(|mutant| names.contains(&mutant.row.to_owned())));
    }
}

//! Named points at which a drill makes this process abort, pause or fail, and planted mutants: faults in the code
//! that the drills have to notice.
//!
//! `TIDEMILL_FAILPOINTS=stream.sorted=abort@3,stream.sent=pause:2000` arms points. `@3` means at the third passage
//! only, `@3+` from the third on; without it, at every one. `TIDEMILL_MUTANT=<name>` plants a mutant. Both exist in
//! debug builds only: in a release build [`hit`] and [`mutant`] are constants, and [`arm`] refuses to start a process
//! that is asked for either.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use metrics::counter;

const FAILPOINTS: &str = "TIDEMILL_FAILPOINTS";
const MUTANT: &str = "TIDEMILL_MUTANT";
/// How often an armed point has done what it is armed for.
const HITS: &str = "tidemill_failpoint_hits_total";

/// Nothing is armed until [`arm`] is called: reading this is all that a point costs.
static ARMED: OnceLock<Vec<Point>> = OnceLock::new();
static PLANTED: OnceLock<String> = OnceLock::new();

/// An error that a point was armed to give.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the failpoint {0} was armed to fail")]
pub struct Injected(&'static str);

impl From<Injected> for sqlx::Error {
    fn from(injected: Injected) -> Self {
        Self::Protocol(injected.to_string())
    }
}

/// Failpoints that cannot be armed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFailpoints {
    /// It is not of the form that is understood.
    #[error(
        "{FAILPOINTS}: {0:?} is not <point>=<action>[@<passage>[+]] with an action of abort, error or \
         pause:<milliseconds>"
    )]
    Malformed(String),
    /// This build has none.
    #[error("{FAILPOINTS} and {MUTANT} are for drills with debug builds; unset them, or start a debug build")]
    ReleaseBuild,
}

#[derive(Debug)]
struct Point {
    name: String,
    action: Action,
    /// The passages, counted from 1, at which it acts.
    first: u64,
    last: u64,
    passed: AtomicU64,
}

#[derive(Debug, PartialEq, Eq)]
enum Action {
    Abort,
    Error,
    Pause(Duration),
}

/// Arms what the environment asks for. Services and commands call this when they start.
pub fn arm() -> Result<(), BadFailpoints> {
    let (points, mutant) = (std::env::var(FAILPOINTS).ok(), std::env::var(MUTANT).ok());
    if points.is_none() && mutant.is_none() {
        return Ok(());
    }
    if !cfg!(debug_assertions) {
        return Err(BadFailpoints::ReleaseBuild);
    }
    tracing::warn!(?points, ?mutant, "this process is part of a drill");
    if let Some(points) = points {
        let _ = ARMED.set(parse(&points)?); // a second call changes nothing
    }
    if let Some(mutant) = mutant {
        let _ = PLANTED.set(mutant);
    }
    Ok(())
}

/// Passes a point; an error where it is armed for one.
pub async fn hit(name: &'static str) -> Result<(), Injected> {
    if !cfg!(debug_assertions) {
        return Ok(());
    }
    let Some(points) = ARMED.get() else { return Ok(()) };
    for point in points.iter().filter(|point| point.name == name && point.acts()) {
        tracing::warn!(name, action = ?point.action, "failpoint");
        counter!(HITS, "name" => name).increment(1);
        match point.action {
            Action::Abort => std::process::abort(),
            Action::Error => return Err(Injected(name)),
            Action::Pause(time) => tokio::time::sleep(time).await,
        }
    }
    Ok(())
}

/// Whether this mutant is planted.
pub fn mutant(name: &str) -> bool {
    cfg!(debug_assertions) && PLANTED.get().is_some_and(|planted| planted == name)
}

/// What a mutant of this name does: dedupe by mere existence, which takes a redelivery for a copy.
pub fn existed(name: &str, event_id: &str) -> bool {
    static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    mutant(name) && !SEEN.lock().expect("no holder panics").insert(event_id.to_owned())
}

impl Point {
    /// Counts a passage.
    fn acts(&self) -> bool {
        let passage = self.passed.fetch_add(1, Ordering::Relaxed) + 1;
        (self.first..=self.last).contains(&passage)
    }
}

fn parse(points: &str) -> Result<Vec<Point>, BadFailpoints> {
    let point = |text: &str| parse_point(text).ok_or_else(|| BadFailpoints::Malformed(text.to_owned()));
    points.split(',').map(str::trim).filter(|text| !text.is_empty()).map(point).collect()
}

fn parse_point(text: &str) -> Option<Point> {
    let (name, rest) = text.split_once('=')?;
    let (action, passage) = rest.split_once('@').unwrap_or((rest, "1+"));
    let action = match action {
        "abort" => Action::Abort,
        "error" => Action::Error,
        other => Action::Pause(Duration::from_millis(other.strip_prefix("pause:")?.parse().ok()?)),
    };
    let (first, last) = match passage.strip_suffix('+') {
        Some(first) => (first.parse().ok()?, u64::MAX),
        None => (passage.parse().ok()?, passage.parse().ok()?),
    };
    Some(Point { name: name.to_owned(), action, first, last, passed: AtomicU64::new(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_act_at_their_passages() {
        let points = parse("a=abort@3, b=pause:20@2+,c=error").expect("well formed");
        let acts = |point: &Point| (1..=5).filter(|_| point.acts()).count();
        assert_eq!(points.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(points.iter().map(acts).collect::<Vec<_>>(), [1, 4, 5]);
        assert_eq!(points[1].action, Action::Pause(Duration::from_millis(20)));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for bad in ["a", "a=explode", "a=pause", "a=abort@x", "a=abort@"] {
            assert_eq!(parse(bad).expect_err(bad), BadFailpoints::Malformed(bad.to_owned()));
        }
    }

    #[tokio::test]
    async fn nothing_happens_unless_it_is_armed() {
        assert_eq!(hit("a").await, Ok(()));
        assert!(!mutant("a"));
    }
}

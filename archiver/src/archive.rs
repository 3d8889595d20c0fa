//! A project's archive: what it is doing, and what comes next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::DropGuard;

use crate::error::ArchiveError;
use crate::live::Live;
use crate::prepare::{Prepared, Seen, Shared};

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// The last commit gets this long.
pub const LAST_COMMIT: Duration = Duration::from_secs(10);
/// Until a topic without a project is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// A project's archive.
pub struct Archive {
    pub project: String,
    pub topic: Arc<str>,
    /// The partitions that are ours.
    pub partitions: Vec<i32>,
    /// Kept while nothing is being read.
    pub seen: Seen,
    pub state: State,
    /// Since the last commit.
    failures: u32,
    /// The last of them.
    failure: String,
}

/// What an archive is doing.
pub enum State {
    /// Nothing: no partitions are ours.
    Idle,
    /// Getting ready, under a number. Leaving this state ends the work.
    Preparing { number: u64, _cancel: DropGuard },
    /// Reading.
    Live(Box<Live>),
    /// Something failed; it will get ready again then.
    Waiting(Instant),
    /// A person has to decide.
    Stopped(ArchiveError),
}

impl Archive {
    pub fn new(project: &str, topic: Arc<str>) -> Self {
        let (partitions, seen, state) = (Vec::new(), Seen::default(), State::Idle);
        let (failures, failure) = (0, String::new());
        Self { project: project.to_owned(), topic, partitions, seen, state, failures, failure }
    }

    /// Ends what was going on. What was buffered is dropped: it will be read again.
    pub fn enter(&mut self, state: State) {
        if let State::Live(live) = std::mem::replace(&mut self.state, state) {
            let (rows, is_ending) = (live.buffer().rows(), live.is_ending());
            if rows > 0 || is_ending {
                tracing::info!(
                    project = self.project,
                    rows,
                    is_ending,
                    "what is not committed is dropped; the log is read again from where the table stands"
                );
            }
            self.seen = live.into_seen();
        }
    }

    pub fn go_live(&mut self, prepared: Prepared) {
        self.enter(State::Live(Box::new(Live::new(self.topic.clone(), prepared))));
    }

    /// Stops for a person to decide, or waits and then starts again where the table is.
    pub fn fail(&mut self, error: ArchiveError) {
        let project = &self.project;
        if let ArchiveError::NoProject(_) | ArchiveError::NoTopic(_) = error {
            // Made in another order, or another's: nothing is wrong with this archiver.
            self.failures = 0;
            tracing::debug!(project, %error, "nothing to archive yet");
            self.enter(State::Waiting(Instant::now() + LOOK_AGAIN));
            return;
        }
        self.failures += 1;
        self.failure = error.to_string();
        if error.is_final() {
            tracing::error!(project, %error, "the archive stops");
            self.enter(State::Stopped(error));
        } else {
            let wait = (FIRST_WAIT * 2u32.saturating_pow(self.failures - 1).min(1_000)).min(LONGEST_WAIT);
            tracing::warn!(project, %error, wait_ms = wait.as_millis() as u64, "the archive starts again from its table");
            self.enter(State::Waiting(Instant::now() + wait));
        }
    }

    /// Writes and commits what it is time to; gives the partitions' positions when something was committed.
    pub async fn step(&mut self, shared: &Shared, now: Instant, everything: bool) -> Option<BTreeMap<i32, i64>> {
        let State::Live(live) = &mut self.state else { return None };
        let settled = live.settle(false).await;
        // What follows a commit that failed must not be committed without it.
        let handed_over = if settled.is_ok() { live.hand_over(shared, now, everything).await } else { Ok(()) };
        let moved = self.settled(settled);
        if let Err(error) = handed_over {
            self.fail(error);
        }
        moved
    }

    /// Commits everything that it has, and waits for that.
    pub async fn finish(&mut self, shared: &Shared) -> BTreeMap<i32, i64> {
        let mut all = BTreeMap::new();
        loop {
            let State::Live(live) = &mut self.state else { return all };
            let handed_over = live.hand_over(shared, Instant::now(), true).await;
            let settled = live.settle(true).await;
            let settled = handed_over.and(settled);
            match self.settled(settled) {
                Some(moved) => all.extend(moved),
                None => return all,
            }
        }
    }

    fn settled(&mut self, settled: Result<Option<BTreeMap<i32, i64>>, ArchiveError>) -> Option<BTreeMap<i32, i64>> {
        match settled {
            Ok(moved) => {
                self.failures *= u32::from(moved.is_none());
                moved
            }
            Err(error) => {
                self.fail(error);
                None
            }
        }
    }

    /// Goes on with partitions that waited for a record to become readable.
    pub async fn release(&mut self, shared: &Shared) -> Vec<(i32, i64)> {
        let State::Live(live) = &mut self.state else { return Vec::new() };
        match live.release(shared).await {
            Ok(released) => released,
            Err(error) => {
                if error.is_final() {
                    // What does not get through by then is read again by whoever starts next.
                    let _ = tokio::time::timeout(LAST_COMMIT, self.finish(shared)).await;
                }
                self.fail(error);
                Vec::new()
            }
        }
    }

    /// Lets what was seen do what time brings.
    pub fn tick(&mut self, now_ms: i64) {
        let seen = if let State::Live(live) = &mut self.state { live.seen() } else { &mut self.seen };
        seen.stores.values_mut().for_each(|seen| seen.tick(now_ms));
    }

    /// How many bytes of rows are in memory.
    pub fn bytes(&self) -> usize {
        if let State::Live(live) = &self.state { live.bytes() } else { 0 }
    }

    /// Whether some of that is about to be freed.
    pub fn is_ending(&self) -> bool {
        matches!(&self.state, State::Live(live) if live.is_ending())
    }

    /// Shows how many files the table has, from time to time. False: not now.
    pub fn show_table(&mut self, shared: &Shared) -> bool {
        if let State::Live(live) = &mut self.state { live.show_table(shared) } else { false }
    }

    /// Shows how many rows wait for the next commit.
    pub fn show(&self) {
        let rows = if let State::Live(live) = &self.state { live.buffer().rows() } else { 0 };
        metrics::gauge!("tidemill_archiver_buffered_rows", "project" => self.project.clone()).set(rows as f64);
    }

    /// What keeps it from archiving, if that is not just for a moment.
    pub fn problem(&self) -> Option<String> {
        match &self.state {
            State::Stopped(error) => Some(error.to_string()),
            State::Live(live) if live.unconfirmed() => {
                Some(format!("{}: a commit waits for Kafka, which does not answer", self.topic))
            }
            // While it tries again, too: else the problem would come and go.
            State::Waiting(_) | State::Preparing { .. } if self.failures > 2 => {
                Some(format!("{}: {}", self.topic, self.failure))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tidemill_common::kafka::{Gap, TopicPartition};
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn a_problem_stays_visible_while_the_archive_tries_again() {
        let topic: Arc<str> = "events.shop".into();
        let mut archive = Archive::new("shop", topic.clone());
        for failures in 1..6 {
            let at = TopicPartition { topic: topic.clone(), partition: 3 };
            archive.fail(ArchiveError::Gap { at, gap: Gap::Cut { from: 4, to: 9 } });
            let waiting = archive.problem();
            assert_eq!(waiting.is_some(), failures > 2, "not for a moment's failure");
            assert!(waiting.as_ref().is_none_or(|problem| problem.contains("Restore the topic")), "{waiting:?}");
            archive.enter(State::Preparing { number: 1, _cancel: CancellationToken::new().drop_guard() });
            assert_eq!(archive.problem(), waiting);
        }
        archive.enter(State::Idle);
        assert_eq!(archive.problem(), None, "its partitions are another's now");
    }
}

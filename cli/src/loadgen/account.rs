//! What became of each event: counts, and a line of the journal.

use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use super::pacer::Pacer;
use super::sender::{Delivered, Delivery, Status};

/// Counts of a run, and its journal.
pub struct Account {
    summary: Summary,
    journal: Option<(PathBuf, BufWriter<File>)>,
}

/// What a run came to. `sent` counts events and intended copies, not retries, and is the sum of the next four.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    sent: u64,
    accepted: u64,
    duplicates: u64,
    invalid: u64,
    failed: u64,
    seconds: f64,
    /// Sent per second.
    rate: f64,
    /// Different events.
    events: u64,
    /// Requests beyond a batch's first.
    retries: u64,
}

impl Summary {
    /// Whether nothing that was sent was answered as it is by a gateway at work.
    pub fn all_failed(&self) -> bool {
        self.sent > 0 && self.failed == self.sent
    }
}

/// A line of the journal: an event, what became of it the first time, and of its copy if it had one.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    event_id: &'a str,
    event_type: &'a str,
    user_id: &'a str,
    session_id: &'a str,
    timestamp: &'a str,
    status: Status,
    position: Option<&'a str>,
    copy: Option<Status>,
}

impl Account {
    /// With a journal, if one is wanted; it replaces a file of that name.
    pub fn open(journal: Option<&Path>) -> anyhow::Result<Self> {
        let create = |path: &Path| -> anyhow::Result<_> {
            let file = File::create(path).with_context(|| format!("the journal {} cannot be made", path.display()))?;
            Ok((path.to_owned(), BufWriter::new(file)))
        };
        Ok(Self { summary: Summary::default(), journal: journal.map(create).transpose()? })
    }

    /// Enters what became of a batch. Events that are to be sent twice go back to the pacer, and into the
    /// journal when they come again.
    pub fn settle(&mut self, delivered: Delivered, pacer: &mut Pacer) -> anyhow::Result<()> {
        self.summary.retries += delivered.retries;
        for delivery in delivered.deliveries {
            self.count(&delivery);
            // Only of a settled event a copy has a certain answer.
            if delivery.again && matches!(delivery.fate.status, Status::Accepted | Status::Duplicate) {
                pacer.send_again(delivery);
            } else {
                self.write(&delivery)?;
            }
        }
        Ok(())
    }

    /// How many different events have their fate.
    pub fn events(&self) -> u64 {
        self.summary.events
    }

    /// Finishes the journal and gives the counts.
    pub fn close(mut self, elapsed: Duration) -> anyhow::Result<Summary> {
        if let Some((path, file)) = &mut self.journal {
            file.flush().with_context(|| format!("the journal {} cannot be written", path.display()))?;
        }
        let seconds = elapsed.as_secs_f64();
        self.summary.seconds = (seconds * 1_000.0).round() / 1_000.0;
        self.summary.rate = (self.summary.sent as f64 / seconds.max(0.001) * 10.0).round() / 10.0;
        Ok(self.summary)
    }

    fn count(&mut self, delivery: &Delivery) {
        self.summary.sent += 1;
        self.summary.events += u64::from(delivery.first.is_none());
        let counter = match delivery.fate.status {
            Status::Accepted => &mut self.summary.accepted,
            Status::Duplicate => &mut self.summary.duplicates,
            Status::Invalid => &mut self.summary.invalid,
            Status::Failed => &mut self.summary.failed,
        };
        *counter += 1;
    }

    fn write(&mut self, delivery: &Delivery) -> anyhow::Result<()> {
        let Some((path, file)) = &mut self.journal else { return Ok(()) };
        let event = &delivery.event;
        let (fate, copy) = match &delivery.first {
            Some(first) => (first, Some(delivery.fate.status)),
            None => (&delivery.fate, None),
        };
        let line = Line {
            event_id: &event.event_id,
            event_type: &event.event_type,
            user_id: &event.user_id,
            session_id: &event.session_id,
            timestamp: &event.timestamp,
            status: fate.status,
            position: fate.position.as_deref(),
            copy,
        };
        serde_json::to_writer(&mut *file, &line)
            .map_err(std::io::Error::from)
            .and_then(|()| file.write_all(b"\n"))
            .with_context(|| format!("the journal {} cannot be written", path.display()))
    }
}

/// For the progress bar.
impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { accepted, duplicates, invalid, failed, retries, .. } = &self.summary;
        write!(f, "accepted {accepted}, duplicates {duplicates}, invalid {invalid}, failed {failed}, retries {retries}")
    }
}

//! The journal: everything that was sent, and what was answered. It is kept in memory and, a line of JSON each, in a
//! file, so that a drill that fails can be looked into.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Context;
use serde::Serialize;
use tidemill_common::event::Event;

/// What became of something that was sent, as its sender knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It is in the log.
    Accepted,
    /// The gateway says that it was in the log already.
    Duplicate,
    /// The gateway refuses it.
    Invalid,
    /// Nothing is known of it: it may be in the log or not.
    Unknown,
}

/// Which way it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// Through the gateway.
    Http,
    /// Straight to Kafka.
    Native,
}

/// One thing sent.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The event's id, or the key of what is no event.
    pub event_id: String,
    /// Which way it went.
    pub via: Via,
    /// What was answered.
    pub answer: Answer,
    /// Partition and offset, where the answer names them.
    pub position: Option<(i32, i64)>,
    /// The event; nothing when it was none.
    pub event: Option<Event>,
}

/// A journal. Cheap to clone.
#[derive(Clone)]
pub struct Journal(Arc<Mutex<Inner>>);

struct Inner {
    entries: Vec<Entry>,
    file: BufWriter<File>,
}

impl Journal {
    /// A journal in a new file.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(Arc::new(Mutex::new(Inner { entries: Vec::new(), file: BufWriter::new(file) }))))
    }

    /// Notes what was sent.
    pub fn add(&self, entry: Entry) -> anyhow::Result<()> {
        let mut inner = self.inner();
        serde_json::to_writer(&mut inner.file, &entry)?;
        inner.file.write_all(b"\n")?;
        inner.entries.push(entry);
        Ok(())
    }

    /// All entries so far; the file has them too.
    pub fn entries(&self) -> anyhow::Result<Vec<Entry>> {
        let mut inner = self.inner();
        inner.file.flush()?;
        Ok(inner.entries.clone())
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.inner().entries.len()
    }

    /// Whether nothing was sent yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder panics")
    }
}

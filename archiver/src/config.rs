//! The archiver's settings: section `archiver`.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use tidemill_common::names::{ARCHIVER_GROUP, EVENT_TOPICS};

use crate::buffer::Limits;

/// A commit writes a file per day, one after the other; it must come to its end in time.
const MAX_DAYS: usize = 1_000;
const MIB: usize = 1024 * 1024;

/// Settings of an archiver.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Port for health and metrics.
    pub port: u16,
    /// The consumer group.
    pub group: String,
    /// Regular expression of the topics to read.
    pub topics: String,
    /// After this long without a heartbeat Kafka gives an archiver's partitions to others, in milliseconds.
    pub session_timeout_ms: u64,
    /// Longest time from a record's arrival to its commit, in milliseconds.
    pub commit_interval_ms: u64,
    /// A project's rows are committed when there are this many of them,
    pub batch_size: usize,
    /// or when their files have this many bytes. No file gets much larger.
    pub file_bytes: usize,
    /// Rows are sorted and written as a row group when they take this many bytes in memory.
    pub row_group_bytes: usize,
    /// With this many bytes of rows in memory, of all projects together, nothing more is read until some of them are
    /// written.
    pub max_bytes_total: usize,
    /// Files that are written, or commits that are made, at the same time.
    pub concurrency: usize,
    /// What to do when retention has passed a table's position.
    pub on_gap: OnGap,
    /// A folder on local disk for what was seen. Archivers on one machine share it.
    pub seen_dir: PathBuf,
    /// Where checkpoints of it are kept: `file:///folder` or `s3://bucket/folder`. None: an archiver without its
    /// disk reads the log instead.
    pub checkpoint_url: Option<String>,
    /// How often checkpoints are written, and what is only in memory is written to disk, in milliseconds. A
    /// checkpoint is at most twice as old, and as long as it takes to write it.
    pub checkpoint_interval_ms: u64,
}

/// What to do where the log and the table do not meet: records were deleted before they were archived, or the log has lost
/// its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnGap {
    /// Stop with an error that names the gap.
    Stop,
    /// Go on behind the gap.
    Skip,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            port: 4005,
            group: ARCHIVER_GROUP.to_owned(),
            topics: EVENT_TOPICS.to_owned(),
            session_timeout_ms: 10_000,
            commit_interval_ms: 60_000,
            batch_size: 5_000_000,
            file_bytes: 128 * MIB,
            row_group_bytes: 8 * MIB,
            max_bytes_total: 64 * MIB,
            concurrency: 4,
            on_gap: OnGap::Stop,
            seen_dir: "/var/lib/tidemill/seen/archiver".into(),
            checkpoint_url: None,
            checkpoint_interval_ms: 120_000,
        }
    }
}

impl Config {
    /// When a project's buffer is to be committed.
    pub(crate) fn limits(&self) -> Limits {
        Limits { interval: Duration::from_millis(self.commit_interval_ms), rows: self.batch_size, days: MAX_DAYS }
    }
}

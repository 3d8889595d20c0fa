//! The stream's settings: section `stream`.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use tidemill_common::names::{EVENT_TOPICS, STREAM_GROUP};

use crate::hot::Threshold;

/// Settings of a stream worker.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The consumer group.
    pub group: String,
    /// Regular expression of the topics to read.
    pub topics: String,
    /// Most records in a batch. One takes what came while the one before was applied.
    pub batch_size: usize,
    /// So many bytes of their keys and values make it full, too. Of either, what came with the last record comes along.
    pub batch_bytes: usize,
    /// How long a batch waits for more while nothing else is applied, in milliseconds; at least a second while the worker
    /// is behind.
    pub batch_wait_ms: u64,
    /// After this long without a heartbeat Kafka gives a worker's partitions to others, in milliseconds.
    pub session_timeout_ms: u64,
    /// How long an unknown schema id is asked for before its record is a dead letter, in milliseconds.
    pub unknown_schema_wait_ms: u64,
    /// What to do when retention has passed the ledger's position.
    pub on_gap: OnGap,
    /// A folder on local disk for what was seen. Workers on one machine share it.
    pub seen_dir: PathBuf,
    /// Where checkpoints of it are kept: `file:///folder` or `s3://bucket/folder`. None: a worker without its
    /// disk reads the log instead.
    pub checkpoint_url: Option<String>,
    /// How often checkpoints are written, and what is only in memory is written to disk, in milliseconds. A
    /// checkpoint is at most twice as old, and as long as it takes to write it.
    pub checkpoint_interval_ms: u64,
    /// Partitions wait when more than this share of what came lately would be dead letters; 1 lets everything pass.
    pub poison_share: f64,
    /// Of at least so many records.
    pub poison_records: usize,
    /// Shortest time between two writes of one Redis key, in milliseconds; at least two seconds while the worker is
    /// behind.
    pub hot_key_interval_ms: u64,
    /// Copies of sessions with more bytes of text than this are compressed; none: no copy is.
    pub compress_sessions_above: Option<usize>,
    /// How often a sample of Redis is compared with Postgres, in milliseconds.
    pub audit_interval_ms: u64,
    /// How long a partition may stand still while the log goes on, before the worker is not ready, in milliseconds.
    pub stall_ms: u64,
    /// How often it is looked how far the worker is behind, in milliseconds.
    pub lag_interval_ms: u64,
    /// A partition is hot when it is more behind than so many times the average of its topic,
    pub hot_factor: f64,
    /// by at least so many records,
    pub hot_min_records: i64,
    /// for so long, in milliseconds.
    pub hot_after_ms: u64,
    /// Where hot partitions are told of: a JSON object is posted to it.
    pub hot_webhook_url: Option<String>,
    /// Event types that are conversions; in an environment variable with commas between them.
    #[serde(deserialize_with = "names")]
    pub conversion_types: Vec<String>,
    /// A file that knows the countries of addresses, in MaxMind's format; without it sessions have none.
    pub geoip_file: Option<PathBuf>,
    /// Folder with declared metrics for all projects (`*.yaml`), in place of those in the binary.
    pub metrics_dir: Option<PathBuf>,
    /// Whether changes of metrics are published to `metrics.*`, for live readers.
    pub publish: bool,
    /// Whether every event is kept in Postgres, too, in the table `raw_events`. It is several times the work.
    pub raw_events: bool,
    /// For how many days of receipt they are kept.
    pub raw_events_days: u32,
}

/// What to do where the log and the ledger do not meet: records were deleted before they were counted, or the log has
/// lost records that were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnGap {
    /// The partition waits, and health names the gap.
    Stop,
    /// Go on with what the log has. Each gap is logged, counted and kept in the table `gaps`.
    Skip,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            group: STREAM_GROUP.to_owned(),
            topics: EVENT_TOPICS.to_owned(),
            batch_size: 100_000,
            batch_bytes: 48 * 1024 * 1024,
            batch_wait_ms: 100,
            session_timeout_ms: 10_000,
            unknown_schema_wait_ms: 60_000,
            on_gap: OnGap::Stop,
            seen_dir: "/var/lib/tidemill/seen/stream".into(),
            checkpoint_url: None,
            checkpoint_interval_ms: 120_000,
            poison_share: 0.5,
            poison_records: 1_000,
            hot_key_interval_ms: 400,
            compress_sessions_above: None,
            audit_interval_ms: 60_000,
            stall_ms: 60_000,
            lag_interval_ms: 5_000,
            hot_factor: 2.0,
            hot_min_records: 10_000,
            hot_after_ms: 300_000,
            hot_webhook_url: None,
            conversion_types: ["purchase", "order_completed", "Order Completed", "conversion"]
                .map(str::to_owned)
                .into(),
            geoip_file: None,
            metrics_dir: None,
            publish: true,
            raw_events: false,
            raw_events_days: 90,
        }
    }
}

/// A list, or a text with commas.
fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Names {
        List(Vec<String>),
        Text(String),
    }
    Ok(match Names::deserialize(deserializer)? {
        Names::List(names) => names,
        Names::Text(text) => {
            text.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
        }
    })
}

impl Config {
    /// What counts as a hot partition.
    pub fn hot_threshold(&self) -> Threshold {
        let after = Duration::from_millis(self.hot_after_ms);
        Threshold { factor: self.hot_factor, records: self.hot_min_records, after }
    }

    /// [`Self::batch_wait_ms`].
    pub fn batch_wait(&self) -> Duration {
        Duration::from_millis(self.batch_wait_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_are_listed_either_way() {
        let types = |json: &str| serde_json::from_str::<Config>(json).expect("settings").conversion_types;
        assert_eq!(types(r#"{"conversion_types":"signup, purchase,"}"#), ["signup", "purchase"]);
        assert_eq!(types(r#"{"conversion_types":["signup"]}"#), ["signup"]);
        assert_eq!(types("{}").len(), 4);
    }
}

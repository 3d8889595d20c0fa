//! What keeps a project's archive from going on.

use tidemill_common::failpoint::Injected;
use tidemill_common::kafka::{Gap, TopicPartition};
use tidemill_common::seen::{FillError, SeenError};

use crate::commit::CommitError;
use crate::positions::BadPosition;

/// Why an archive cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Retention was faster than we, or the log has lost its end.
    #[error(
        "{} partition {}: {gap}. To go on at offset {}, start the archiver once with TIDEMILL_ARCHIVER__ON_GAP=skip",
        at.topic, at.partition, gap.behind()
    )]
    Gap {
        /// Where.
        at: TopicPartition,
        /// What is lacking.
        gap: Gap,
    },
    /// The stream could read a record that we cannot.
    #[error(
        "{} partition {} offset {offset}: {reason}, and the record is no dead letter, so the stream could read \
         it; give the registry its schema back, then start the archiver again",
        at.topic, at.partition
    )]
    Unreadable {
        /// Where.
        at: TopicPartition,
        /// The record.
        offset: i64,
        /// What the decoder said.
        reason: String,
    },
    /// Its topic exists, but not the project.
    #[error("there is no project {0:?}; make it with 'tidemill projects create'")]
    NoProject(String),
    /// What is in hand was judged by a layout that is over.
    #[error("the project of {0} has got more partitions or a route since its records were read; they are read again")]
    Grown(String),
    /// What is in hand may be of another log.
    #[error(
        "the topic {topic} was deleted and made again since its records were read: the {rows} rows of the commit that was \
         being made, and what was read behind them, may be of either log and are dropped; the new log is read from its beginning"
    )]
    MadeAgain {
        /// Which.
        topic: String,
        /// How many rows the commit had.
        rows: usize,
    },
    /// The topic is gone.
    #[error("the topic {0} does not exist (any more)")]
    NoTopic(String),
    /// Kafka cannot be asked.
    #[error("kafka cannot be asked: {0}")]
    Kafka(#[from] rdkafka::error::KafkaError),
    /// Postgres cannot be asked.
    #[error("postgres cannot be asked: {0}")]
    Postgres(#[from] sqlx::Error),
    /// The table or its files cannot be read or written.
    #[error("the table cannot be used: {0}")]
    Table(#[from] iceberg::Error),
    /// The table's positions are broken.
    #[error(transparent)]
    Position(#[from] BadPosition),
    /// The seen stores cannot be filled.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// The seen stores cannot be asked.
    #[error(transparent)]
    Seen(#[from] SeenError),
    /// The commit did not happen, or nobody knows.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// A drill asked for it.
    #[error(transparent)]
    Injected(#[from] Injected),
    /// Something took too long.
    #[error("{0} took longer than {1} s")]
    Slow(&'static str, u64),
    /// Nobody waits for the commit any more.
    #[error("the commit was given up")]
    Abandoned,
    /// A task ended by a panic.
    #[error("a task failed: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// Health and metrics cannot be served.
    #[error("health and metrics cannot be served: {0}")]
    Serve(#[from] std::io::Error),
    /// The consumer's thread is gone.
    #[error("the kafka consumer has ended")]
    ConsumerEnded,
}

impl ArchiveError {
    /// Whether trying again is pointless: a person has to decide. A lost end may come back.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Gap { gap: Gap::Deleted { .. }, .. } | Self::Unreadable { .. })
    }
}

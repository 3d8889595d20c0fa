//! Kafka clients: settings, a producer that awaits delivery, a consumer group whose positions come from the
//! views, reads of the past, followers of what comes, and seeks of other groups.

mod follow;
mod gap;
mod group;
mod history;
mod leader_changes;
mod native;
mod producer;
mod seek;
mod topic_id;
mod uncommit;
mod way_back;

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{BorrowedMessage, Headers, Message};

pub use follow::{Followed, Follower};
pub use gap::{Gap, Reached};
pub use group::{GroupConsumer, GroupEvent, InHand, Room};
pub use history::{End, History, Span};
pub use producer::{Deliveries, Delivery, Outgoing, Producer, Recipient, Sending};
pub use seek::{IdleGroup, Seek, SeekError, SeekTo};
use uncommit::uncommit;

use crate::names::partition_number;
pub use way_back::look_after;

/// Clients know of a topic's new partitions after this time, at the latest.
pub const METADATA: Duration = Duration::from_secs(5);

/// Where Kafka is.
#[derive(Debug, Clone)]
pub struct KafkaConfig {
    /// `host:port`, comma-separated.
    pub brokers: String,
}

impl KafkaConfig {
    /// What every client of ours starts from.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "tidemill")
            .set("allow.auto.create.topics", "false")
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.ms", "100")
            .set("reconnect.backoff.max.ms", "2000");
        config
    }
}

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number.
    pub partition: i32,
}

impl TopicPartition {
    /// Its number in its project.
    pub fn number(&self) -> i32 {
        partition_number(&self.topic, self.partition)
    }
}

/// A record as a view reads it.
#[derive(Debug, Clone)]
pub struct Record {
    /// The topic it stands in.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// When the broker appended it, in milliseconds since 1970.
    pub append_ms: i64,
    /// Its headers, in order.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Its key and its value, in one piece of memory, since one thread takes it and another gives it back.
    bytes: Box<[u8]>,
    /// Where the key ends, if it has one.
    key_end: Option<usize>,
}

impl Record {
    /// A record at this offset of a partition.
    pub fn new(
        TopicPartition { topic, partition }: TopicPartition,
        offset: i64,
        append_ms: i64,
        (key, value): (Option<&[u8]>, &[u8]),
        headers: Vec<(String, Vec<u8>)>,
    ) -> Self {
        let bytes = [key.unwrap_or_default(), value].concat().into();
        Self { topic, partition, offset, append_ms, headers, bytes, key_end: key.map(<[u8]>::len) }
    }

    fn of(topic: Arc<str>, message: &BorrowedMessage<'_>) -> Self {
        let header = |h: rdkafka::message::Header<'_, &[u8]>| (h.key.to_owned(), h.value.unwrap_or_default().to_vec());
        Self::new(
            TopicPartition { topic, partition: message.partition() },
            message.offset(),
            message.timestamp().to_millis().unwrap_or(0),
            (message.key(), message.payload().unwrap_or_default()),
            message.headers().map(|headers| headers.iter().map(header).collect()).unwrap_or_default(),
        )
    }

    /// Its key.
    pub fn key(&self) -> Option<&[u8]> {
        self.key_end.map(|end| &self.bytes[..end])
    }

    /// Its value; a tombstone's is empty.
    pub fn value(&self) -> &[u8] {
        &self.bytes[self.key_end.unwrap_or(0)..]
    }

    /// Bytes of its key and value.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The partition it stands in.
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition { topic: Arc::clone(&self.topic), partition: self.partition }
    }

    /// The number that its partition has in its project.
    pub fn number_of_partition(&self) -> i32 {
        partition_number(&self.topic, self.partition)
    }

    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }
}

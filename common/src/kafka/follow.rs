//! Reading a topic on and on, outside any consumer group. It blocks; call it from a thread of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{KafkaConfig, Record};

/// What a follower comes by.
#[derive(Debug)]
pub enum Followed {
    /// The next record of a partition.
    Record(Record),
    /// The brokers cannot be reached; the client tries on by itself.
    Lost,
}

/// The ends of partitions are news to readers and no errors.
pub(super) struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        let is_end = matches!(error, KafkaError::Global(RDKafkaErrorCode::PartitionEOF));
        if !is_end {
            tracing::warn!(%error, reason, "a reader's client");
        }
    }
}

impl ConsumerContext for Quiet {}

/// Reads partitions of a topic from given offsets, and goes on with what is appended.
pub struct Follower {
    topic: Arc<str>,
    consumer: BaseConsumer<Quiet>,
}

impl Follower {
    /// Starts at these offsets; other partitions are not read. It holds at most some `buffer_kb` that nobody has
    /// asked for yet.
    pub fn new(kafka: &KafkaConfig, topic: &str, starts: &BTreeMap<i32, i64>, buffer_kb: usize) -> KafkaResult<Self> {
        let mut config = kafka.client();
        config
            // Required by the client, but nothing is ever committed under it.
            .set("group.id", "tidemill.follow")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            .set("queued.max.messages.kbytes", buffer_kb.to_string())
            .set("fetch.queue.backoff.ms", "20")
            .set("fetch.wait.max.ms", "250");
        let consumer: BaseConsumer<Quiet> = config.create_with_context(Quiet)?;
        let mut list = TopicPartitionList::new();
        for (&partition, &start) in starts {
            list.add_partition_offset(topic, partition, Offset::Offset(start))?;
        }
        consumer.assign(&list)?;
        Ok(Self { topic: topic.into(), consumer })
    }

    /// What comes next, if it comes within `wait`. After an error, start again with a new follower.
    pub fn next(&self, wait: Duration) -> KafkaResult<Option<Followed>> {
        match self.consumer.poll(wait) {
            None => Ok(None),
            Some(Ok(message)) => Ok(Some(Followed::Record(Record::of(Arc::clone(&self.topic), &message)))),
            Some(Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure,
            ))) => Ok(Some(Followed::Lost)),
            Some(Err(error)) => Err(error),
        }
    }
}

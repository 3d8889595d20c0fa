//! Moving a group's committed offsets, which Kafka allows only while the group has no members. Views of ours do not go
//! by them; other consumers do. Everything here blocks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use super::{History, KafkaConfig, TopicPartition, uncommit};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Where a group goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTo {
    /// At the first record that the log holds.
    Beginning,
    /// Behind the last one.
    End,
    /// At the first record appended at this time (milliseconds since 1970) or later; behind the last where there is none.
    Time(i64),
    /// At this offset, or where the log begins or ends, if that is nearer.
    Offset(i64),
}

/// A partition's step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seek {
    /// The topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// What was committed; none: nothing.
    pub from: Option<i64>,
    /// What will be; none: nothing, so that the group begins where its own settings say.
    pub to: Option<i64>,
}

/// Why a group is not moved.
#[derive(Debug, thiserror::Error)]
pub enum SeekError {
    /// Somebody would not notice.
    #[error(
        "group {group:?} is active ({state}, {members} members); stop its consumers first, since they would go on where \
         they are and commit over it"
    )]
    Active {
        /// Which.
        group: String,
        /// Kafka's word.
        state: String,
        /// How many are in it.
        members: usize,
    },
    /// Misspelt, most likely.
    #[error("there is no topic {0:?}; is its name right, and KAFKA_BROKERS the cluster that has it?")]
    NoTopic(String),
    /// Kafka.
    #[error("Kafka: {0}; is KAFKA_BROKERS right and Kafka up?")]
    Kafka(#[from] KafkaError),
}

/// A group whose members are gone.
pub struct IdleGroup {
    consumer: BaseConsumer,
    history: History,
    group: String,
}

impl IdleGroup {
    /// Connects; refused while the group has members.
    pub fn find(kafka: &KafkaConfig, group: &str) -> Result<Self, SeekError> {
        let mut config = kafka.client();
        config.set("group.id", group).set("enable.auto.commit", "false");
        let idle = Self { consumer: config.create()?, history: History::new(kafka.clone()), group: group.to_owned() };
        idle.refuse_active()?;
        Ok(idle)
    }

    fn refuse_active(&self) -> Result<(), SeekError> {
        let groups = self.consumer.client().fetch_group_list(Some(&self.group), TIMEOUT)?;
        let Some(found) = groups.groups().iter().find(|found| found.name() == self.group) else { return Ok(()) };
        if matches!(found.state(), "Empty" | "Dead" | "") && found.members().is_empty() {
            return Ok(());
        }
        let (group, state, members) = (self.group.clone(), found.state().to_owned(), found.members().len());
        Err(SeekError::Active { group, state, members })
    }

    /// What it would mean to go on there, for all partitions of these topics.
    pub fn plan(&self, topics: &[String], to: SeekTo) -> Result<Vec<Seek>, SeekError> {
        let mut partitions = Vec::new();
        for topic in topics {
            partitions.extend(self.partitions(topic)?);
        }
        let bounds = self.history.bounds(&partitions)?;
        let at_time = match to {
            SeekTo::Time(ms) => {
                self.history.offsets_at(&partitions.iter().map(|at| (at.clone(), ms)).collect::<Vec<_>>())?
            }
            _ => Default::default(),
        };
        let committed = self.committed(&partitions)?;
        let seek = |at: TopicPartition| {
            let (low, high) = *bounds.get(&at)?;
            let to = match to {
                SeekTo::Beginning => low,
                SeekTo::End => high,
                SeekTo::Time(_) => at_time.get(&at).copied().unwrap_or(high),
                SeekTo::Offset(offset) => offset.clamp(low, high),
            };
            let from = committed.get(&at).copied();
            Some(Seek { topic: at.topic.to_string(), partition: at.partition, from, to: Some(to) })
        };
        Ok(partitions.into_iter().filter_map(seek).collect())
    }

    /// The way back from these steps, from where the group is now.
    pub fn undo(&self, seeks: &[Seek]) -> Result<Vec<Seek>, SeekError> {
        let partitions: Vec<TopicPartition> = seeks.iter().map(at).collect();
        let committed = self.committed(&partitions)?;
        let back = |seek: &Seek| Seek { from: committed.get(&at(seek)).copied(), to: seek.from, ..seek.clone() };
        Ok(seeks.iter().map(back).collect())
    }

    /// Takes these steps. Kafka itself refuses if a member has come meanwhile.
    pub fn seek(&self, seeks: &[Seek]) -> Result<(), SeekError> {
        self.refuse_active()?;
        let (mut list, mut nothing) = (TopicPartitionList::new(), TopicPartitionList::new());
        for seek in seeks {
            match seek.to {
                Some(to) => list.add_partition_offset(&seek.topic, seek.partition, Offset::Offset(to))?,
                None if seek.from.is_some() => drop(nothing.add_partition(&seek.topic, seek.partition)),
                None => {}
            }
        }
        let refused = |error: KafkaError| {
            self.refuse_active()?;
            Err(SeekError::from(error))
        };
        if list.count() > 0 {
            self.consumer.commit(&list, CommitMode::Sync).or_else(refused)?;
        }
        if nothing.count() > 0 {
            uncommit(self.consumer.client(), &self.group, &nothing, TIMEOUT).or_else(refused)?;
        }
        Ok(())
    }

    fn partitions(&self, topic: &str) -> Result<Vec<TopicPartition>, SeekError> {
        let metadata = self.consumer.fetch_metadata(Some(topic), TIMEOUT)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic && !found.partitions().is_empty());
        let Some(found) = found else { return Err(SeekError::NoTopic(topic.to_owned())) };
        let topic: Arc<str> = Arc::from(topic);
        let mut numbers: Vec<i32> = found.partitions().iter().map(|partition| partition.id()).collect();
        numbers.sort_unstable();
        Ok(numbers.into_iter().map(|partition| TopicPartition { topic: Arc::clone(&topic), partition }).collect())
    }

    fn committed(&self, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, i64>, SeekError> {
        let mut list = TopicPartitionList::new();
        for at in partitions {
            list.add_partition(&at.topic, at.partition);
        }
        let answer = self.consumer.committed_offsets(list, TIMEOUT)?;
        let mut committed = BTreeMap::new();
        for element in answer.elements() {
            match element.error() {
                Ok(()) => {}
                Err(KafkaError::OffsetFetch(RDKafkaErrorCode::UnknownTopicOrPartition)) => continue,
                Err(error) => return Err(error.into()),
            }
            if let Offset::Offset(offset) = element.offset() {
                let topic = Arc::from(element.topic());
                committed.insert(TopicPartition { topic, partition: element.partition() }, offset);
            }
        }
        Ok(committed)
    }
}

fn at(seek: &Seek) -> TopicPartition {
    TopicPartition { topic: Arc::from(seek.topic.as_str()), partition: seek.partition }
}

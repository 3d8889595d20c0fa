//! Kafka, as far as topics go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigSource, NewPartitions, NewTopic, OwnedResourceSpecifier,
    ResourceSpecifier, TopicReplication, TopicResult,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataTopic};
use tidemill_common::kafka::KafkaConfig;

use crate::{Change, Existing, Topic};

const TIMEOUT: Duration = Duration::from_secs(15);
/// How long changes may take to show, and created topics to get their leaders.
const SHOWN: Duration = Duration::from_secs(30);
const LOOK: &str = "look at the brokers' logs";
const POLL: Duration = Duration::from_millis(50);

/// A cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    admin: Arc<AdminClient<DefaultClientContext>>,
    brokers: String,
}

/// What Kafka refused, or why it did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No answer.
    #[error("Kafka at {brokers} does not answer: {error}; is KAFKA_BROKERS right and Kafka up?")]
    Unavailable {
        /// The addresses that were tried.
        brokers: String,
        /// What the client said.
        error: KafkaError,
    },
    /// A topic was not created or changed.
    #[error("topic {topic} {what}: {code}; {hint}")]
    Refused {
        /// Its name.
        topic: String,
        /// What did not happen.
        what: &'static str,
        /// Kafka's reason.
        code: RDKafkaErrorCode,
        /// What may help.
        hint: &'static str,
    },
    /// What was done does not show.
    #[error("topics that are not as they should be after {} s: {topics}; look at the brokers' logs", SHOWN.as_secs())]
    NotShown {
        /// Their names.
        topics: String,
    },
}

impl Cluster {
    /// A client; it connects when it is first used.
    pub fn new(kafka: &KafkaConfig) -> Result<Self, ClusterError> {
        let admin = kafka
            .client()
            .create()
            .map_err(|error| ClusterError::Unavailable { brokers: kafka.brokers.clone(), error })?;
        Ok(Self { admin: Arc::new(admin), brokers: kafka.brokers.clone() })
    }

    /// How many brokers are up.
    pub async fn brokers(&self) -> Result<usize, ClusterError> {
        self.metadata(|metadata| metadata.brokers().len()).await
    }

    /// Those of the declared topics that exist, by name.
    pub async fn existing(&self, declared: &[Topic]) -> Result<BTreeMap<String, Existing>, ClusterError> {
        self.existing_of(|name| declared.iter().any(|topic| topic.name == name)).await
    }

    /// How many partitions those of these topics have that exist, by name.
    pub async fn partitions(&self, names: &[String]) -> Result<BTreeMap<String, i32>, ClusterError> {
        let mut counts = self.counts().await?;
        counts.retain(|name, _| names.contains(name));
        Ok(counts.into_iter().map(|(name, found)| (name, found.partitions)).collect())
    }

    async fn existing_of(&self, wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Existing>, ClusterError> {
        let mut topics = self.counts().await?;
        topics.retain(|name, _| wanted(name));
        if topics.is_empty() {
            return Ok(topics);
        }
        let resources: Vec<String> = topics.keys().cloned().collect();
        let resources: Vec<_> = resources.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let described = self.admin.describe_configs(&resources, &options()).await;
        // A topic that was deleted meanwhile has no settings; its counts alone are compared then.
        for resource in described.map_err(|error| self.unavailable(error))?.into_iter().flatten() {
            let OwnedResourceSpecifier::Topic(name) = resource.specifier else { continue };
            if let Some(topic) = topics.get_mut(&name) {
                topic.config = resource.entries.into_iter().filter_map(|e| Some((e.name, e.value?))).collect();
            }
        }
        Ok(topics)
    }

    /// Does what is to be done, and waits until it shows and created topics can be used. Drift is left as it is.
    pub async fn apply(&self, changes: &[Change]) -> Result<(), ClusterError> {
        let (mut created, mut settings, mut grown) =
            (Vec::new(), BTreeMap::<&str, Vec<(&str, &str)>>::new(), Vec::new());
        for change in changes {
            match change {
                Change::Create(topic) => created.push(topic),
                Change::Set { topic, setting, to, .. } => settings.entry(topic).or_default().push((setting, to)),
                Change::Grow { topic, to, .. } => grown.push(NewPartitions::new(topic, *to as usize)),
                Change::Drift { .. } => {}
            }
        }
        for (topic, settings) in settings {
            self.set(topic, &settings).await?;
        }
        if !grown.is_empty() {
            let grown = self.admin.create_partitions(&grown, &options()).await;
            let results = grown.map_err(|error| self.unavailable(error))?.into_iter().map(|result| result.map(drop));
            all_done(results, "did not get its partitions", LOOK)?;
        }
        if !created.is_empty() {
            self.create(&created).await?;
        }
        self.await_shown(changes).await
    }

    /// Kafka's client can only replace all of a topic's own settings, so those that stay are given again.
    async fn set(&self, topic: &str, settings: &[(&str, &str)]) -> Result<(), ClusterError> {
        let described = self.admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options()).await;
        let own = described.map_err(|error| self.unavailable(error))?.into_iter().flatten().flat_map(|r| r.entries);
        let own = own.filter(|entry| entry.source == ConfigSource::DynamicTopic);
        let mut all: BTreeMap<String, String> = own.filter_map(|entry| Some((entry.name, entry.value?))).collect();
        all.extend(settings.iter().map(|&(setting, to)| (setting.to_owned(), to.to_owned())));
        let alter = AlterConfig::new(ResourceSpecifier::Topic(topic));
        let alter = all.iter().fold(alter, |alter, (setting, to)| alter.set(setting, to));
        let altered = self.admin.alter_configs([&alter], &options()).await.map_err(|error| self.unavailable(error))?;
        let results = altered.into_iter().map(|r| r.map(drop).map_err(|(_, code)| (topic.to_owned(), code)));
        all_done(results, "did not get its settings", "correct its declaration")
    }

    /// Deletes topics, and all that is in them, if they are there.
    pub async fn delete(&self, names: &[&str]) -> Result<(), ClusterError> {
        let results = self.admin.delete_topics(names, &options()).await.map_err(|error| self.unavailable(error))?;
        let gone = |result: &TopicResult| matches!(result, Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)));
        let results = results.into_iter().filter(|result| !gone(result)).map(|result| result.map(drop));
        all_done(results, "was not deleted", LOOK)
    }

    async fn create(&self, topics: &[&Topic]) -> Result<(), ClusterError> {
        let new: Vec<NewTopic<'_>> = topics
            .iter()
            .map(|topic| {
                let new = NewTopic::new(&topic.name, topic.partitions, TopicReplication::Fixed(topic.replication));
                topic.config.iter().fold(new, |new, (key, value)| new.set(key, value))
            })
            .collect();
        let results = self.admin.create_topics(&new, &options()).await.map_err(|error| self.unavailable(error))?;
        // Somebody else may apply the same declarations.
        let exists = |result: &TopicResult| matches!(result, Err((_, RDKafkaErrorCode::TopicAlreadyExists)));
        let results = results.into_iter().filter(|result| !exists(result)).map(|result| result.map(drop));
        all_done(results, "was not created", "with too few brokers, pass a lower --replication")
    }

    /// Changes are answered before the brokers have taken them over.
    async fn await_shown(&self, changes: &[Change]) -> Result<(), ClusterError> {
        let to_do: Vec<(&str, &Change)> = changes.iter().filter_map(|change| Some((change.topic()?, change))).collect();
        if to_do.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + SHOWN;
        loop {
            let existing = self.existing_of(|name| to_do.iter().any(|(topic, _)| *topic == name)).await?;
            let shows =
                |(topic, change): &&(&str, &Change)| existing.get(*topic).is_some_and(|found| change.shows(found));
            let waiting: Vec<&str> = to_do.iter().filter(|change| !shows(change)).map(|(topic, _)| *topic).collect();
            if waiting.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(ClusterError::NotShown { topics: waiting.join(", ") });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn counts(&self) -> Result<BTreeMap<String, Existing>, ClusterError> {
        self.metadata(|metadata| {
            let counts = |topic: &MetadataTopic| Existing {
                partitions: topic.partitions().len() as i32,
                replication: topic.partitions().first().map_or(0, |partition| partition.replicas().len() as i32),
                led: !topic.partitions().is_empty()
                    && topic.partitions().iter().all(|partition| partition.leader() >= 0),
                config: BTreeMap::new(),
            };
            metadata.topics().iter().map(|topic| (topic.name().to_owned(), counts(topic))).collect()
        })
        .await
    }

    async fn metadata<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Metadata) -> T + Send + 'static,
    ) -> Result<T, ClusterError> {
        let admin = Arc::clone(&self.admin);
        let fetch = move || admin.inner().fetch_metadata(None, TIMEOUT).map(|metadata| read(&metadata));
        let answer = tokio::task::spawn_blocking(fetch).await.unwrap_or(Err(KafkaError::Canceled));
        answer.map_err(|error| self.unavailable(error))
    }

    fn unavailable(&self, error: KafkaError) -> ClusterError {
        ClusterError::Unavailable { brokers: self.brokers.clone(), error }
    }
}

fn all_done(
    mut results: impl Iterator<Item = Result<(), (String, RDKafkaErrorCode)>>,
    what: &'static str,
    hint: &'static str,
) -> Result<(), ClusterError> {
    let refused = |(topic, code)| ClusterError::Refused { topic, what, code, hint };
    results.try_for_each(|result| result.map_err(refused))
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT))
}

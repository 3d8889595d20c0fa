//! Kafka, as far as topics go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataTopic};
use tidemill_common::kafka::KafkaConfig;

use crate::{Change, Existing, Topic};

const TIMEOUT: Duration = Duration::from_secs(15);
/// How long created topics may take to get their leaders.
const LEADERS: Duration = Duration::from_secs(30);
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
    /// A topic was not created.
    #[error("topic {topic} was not created: {code}; with too few brokers, pass a lower --replication")]
    Refused {
        /// Its name.
        topic: String,
        /// Kafka's reason.
        code: RDKafkaErrorCode,
    },
    /// Created topics are not to be used yet.
    #[error("topics without a leader after {} s: {topics}; look at the brokers' logs", LEADERS.as_secs())]
    Leaderless {
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
        let mut topics = self.counts().await?;
        topics.retain(|name, _| declared.iter().any(|topic| topic.name == *name));
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

    /// Creates what is to be created and waits until all of it can be used. Drift is left as it is.
    pub async fn apply(&self, changes: &[Change]) -> Result<(), ClusterError> {
        let created: Vec<&Topic> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Create(topic) => Some(topic),
                Change::Drift { .. } => None,
            })
            .collect();
        if created.is_empty() {
            return Ok(());
        }
        self.create(&created).await?;
        self.await_leaders(&created).await
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
        for result in results {
            match result {
                Ok(topic) => tracing::debug!(topic, "created"),
                // Somebody else applies the same declarations.
                Err((topic, RDKafkaErrorCode::TopicAlreadyExists)) => tracing::debug!(topic, "exists by now"),
                Err((topic, code)) => return Err(ClusterError::Refused { topic, code }),
            }
        }
        Ok(())
    }

    /// Creation is answered before the brokers have taken the partitions over.
    async fn await_leaders(&self, topics: &[&Topic]) -> Result<(), ClusterError> {
        let names: Vec<String> = topics.iter().map(|topic| topic.name.clone()).collect();
        let deadline = Instant::now() + LEADERS;
        loop {
            let wanted = names.clone();
            let waiting = self.metadata(move |metadata| leaderless(metadata, wanted)).await?;
            if waiting.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(ClusterError::Leaderless { topics: waiting.join(", ") });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn counts(&self) -> Result<BTreeMap<String, Existing>, ClusterError> {
        self.metadata(|metadata| {
            let counts = |topic: &MetadataTopic| Existing {
                partitions: topic.partitions().len() as i32,
                replication: topic.partitions().first().map_or(0, |partition| partition.replicas().len() as i32),
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

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT))
}

fn leaderless(metadata: &Metadata, mut names: Vec<String>) -> Vec<String> {
    let led = |topic: &MetadataTopic| {
        !topic.partitions().is_empty() && topic.partitions().iter().all(|partition| partition.leader() >= 0)
    };
    names.retain(|name| !metadata.topics().iter().any(|topic| topic.name() == name && led(topic)));
    names
}

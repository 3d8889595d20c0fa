//! The incarnations of the topics in use: asked for in the background, so that no request waits for them.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tidemill_common::kafka::{KafkaConfig, topic_incarnations};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const TIMEOUT: Duration = Duration::from_secs(5);
/// A topic that is deleted and made again is noticed after this time.
const REFRESH: Duration = Duration::from_secs(60);
/// Between two questions, however many new topics come.
const PAUSE: Duration = Duration::from_secs(1);

/// Incarnations by topic. Cheap to clone.
#[derive(Clone, Default)]
pub struct Incarnations {
    /// Blank until known.
    known: Arc<RwLock<HashMap<String, String>>>,
    new_topic: Arc<Notify>,
}

impl Incarnations {
    /// A topic's incarnation, blank if it is not known yet.
    pub fn of(&self, topic: &str) -> String {
        if let Some(incarnation) = self.known.read().expect("no holder panics").get(topic) {
            return incarnation.clone();
        }
        self.known.write().expect("no holder panics").entry(topic.to_owned()).or_default();
        self.new_topic.notify_one();
        String::new()
    }

    /// Keeps them up to date until shutdown.
    pub async fn follow(self, kafka: KafkaConfig, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.new_topic.notified() => {}
                () = tokio::time::sleep(REFRESH) => {}
            }
            self.refresh(kafka.clone()).await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn refresh(&self, kafka: KafkaConfig) {
        let topics: Vec<String> = self.known.read().expect("no holder panics").keys().cloned().collect();
        let ask = move || {
            let names: Vec<&str> = topics.iter().map(String::as_str).collect();
            topic_incarnations(&kafka, &names, TIMEOUT)
        };
        match tokio::task::spawn_blocking(ask).await {
            Ok(Ok(found)) => self.known.write().expect("no holder panics").extend(found),
            Ok(Err(error)) => tracing::warn!(%error, "topic ids are not known; confirmations go without them"),
            Err(error) => tracing::error!(%error, "asking for topic ids failed"),
        }
    }
}

//! The incarnations of the topics in use: asked for in the background, so that no request waits for them.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tidemill_common::kafka::{KafkaConfig, topic_incarnations};
use tidemill_common::names::events_topic;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::flight::Log;

const TIMEOUT: Duration = Duration::from_secs(5);
/// A topic that is deleted and made again is noticed after this time.
const REFRESH: Duration = Duration::from_secs(60);
/// Between two questions, however many new topics come.
const PAUSE: Duration = Duration::from_secs(1);

/// Logs by project. Cheap to clone.
#[derive(Clone, Default)]
pub struct Incarnations {
    /// Incarnations are blank until known.
    known: Arc<RwLock<HashMap<Arc<str>, Log>>>,
    new_topic: Arc<Notify>,
}

impl Incarnations {
    /// The log of a project.
    pub fn log(&self, project: &Arc<str>) -> Log {
        if let Some(log) = self.known.read().expect("no holder panics").get(project) {
            return log.clone();
        }
        let log =
            Log { project: Arc::clone(project), topic: events_topic(project).into(), incarnation: Arc::default() };
        self.known.write().expect("no holder panics").entry(Arc::clone(project)).or_insert_with(|| log.clone());
        self.new_topic.notify_one();
        log
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
        let topics: Vec<Arc<str>> =
            self.known.read().expect("no holder panics").values().map(|log| Arc::clone(&log.topic)).collect();
        let ask = move || {
            let names: Vec<&str> = topics.iter().map(AsRef::as_ref).collect();
            topic_incarnations(&kafka, &names, TIMEOUT)
        };
        match tokio::task::spawn_blocking(ask).await {
            Ok(Ok(found)) => {
                for log in self.known.write().expect("no holder panics").values_mut() {
                    if let Some(incarnation) = found.get(&*log.topic) {
                        log.incarnation = incarnation.as_str().into();
                    }
                }
            }
            Ok(Err(error)) => tracing::warn!(%error, "topic ids are not known; confirmations go without them"),
            Err(error) => tracing::error!(%error, "asking for topic ids failed"),
        }
    }
}

//! The incarnations of the topics in use: asked for in the background, so that no request waits for them.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tidemill_common::home::Route;
use tidemill_common::kafka::{History, KafkaConfig};
use tidemill_common::projects::topics;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::flight::{Log, Topic};

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
    /// The log of a project that has these routes, or more.
    pub fn log(&self, project: &Arc<str>, routes: &[Route]) -> Log {
        let known = self.known.read().expect("no holder panics").get(project).cloned();
        if let Some(log) = known.filter(|log| log.topics.len() > routes.len()) {
            return log;
        }
        let topic = |name: String| Topic { name: name.into(), incarnation: Arc::default() };
        let log =
            Log { project: Arc::clone(project), topics: topics(project, routes).into_iter().map(topic).collect() };
        self.known.write().expect("no holder panics").insert(Arc::clone(project), log.clone());
        self.new_topic.notify_one();
        log
    }

    /// Keeps them up to date until shutdown.
    pub async fn follow(self, kafka: KafkaConfig, shutdown: CancellationToken) {
        let history = History::new(kafka);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.new_topic.notified() => {}
                () = tokio::time::sleep(REFRESH) => {}
            }
            self.refresh(history.clone()).await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn refresh(&self, history: History) {
        let names = |log: &Log| log.topics.iter().map(|topic| Arc::clone(&topic.name)).collect::<Vec<_>>();
        let topics: Vec<Arc<str>> = self.known.read().expect("no holder panics").values().flat_map(names).collect();
        let ask = move || {
            let names: Vec<&str> = topics.iter().map(AsRef::as_ref).collect();
            history.incarnations(&names, TIMEOUT)
        };
        match tokio::task::spawn_blocking(ask).await {
            Ok(Ok(found)) => {
                for log in self.known.write().expect("no holder panics").values_mut() {
                    let renewed = |topic: &Topic| Topic {
                        incarnation: found
                            .get(&*topic.name)
                            .map_or(Arc::clone(&topic.incarnation), |id| id.as_str().into()),
                        name: Arc::clone(&topic.name),
                    };
                    log.topics = log.topics.iter().map(renewed).collect();
                }
            }
            Ok(Err(error)) => tracing::warn!(%error, "topic ids are not known; confirmations go without them"),
            Err(error) => tracing::error!(%error, "asking for topic ids failed"),
        }
    }
}

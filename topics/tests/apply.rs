//! Declared topics on a real Kafka.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use tidemill_common::config::Settings;
use tidemill_common::kafka::{KafkaConfig, Outgoing, Producer};
use tidemill_common::names::ProjectId;
use tidemill_topics::{Change, Cluster, Declarations, Topic, plan};

/// A project of one's own, whose topics are removed on drop.
struct Scratch {
    kafka: KafkaConfig,
    cluster: Cluster,
    topics: Vec<Topic>,
}

impl Scratch {
    fn new() -> Self {
        let kafka = Settings::load("test").unwrap().connections().kafka;
        let project = ProjectId::parse(&format!("t-{}", &uuid::Uuid::new_v4().simple().to_string()[..10])).unwrap();
        let declarations = Declarations::embedded().unwrap();
        let topics = declarations.project(&project, declarations.size("small").unwrap(), &[], Some(1));
        Self { cluster: Cluster::new(&kafka).unwrap(), kafka, topics }
    }

    async fn plan(&self, topics: &[Topic]) -> Vec<Change> {
        let existing = self.cluster.existing(topics).await;
        plan(topics, &existing.expect("Kafka; start it with dev/services start"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let admin: AdminClient<DefaultClientContext> = self.kafka.client().create().unwrap();
        let names: Vec<String> = self.topics.iter().map(|topic| topic.name.clone()).collect();
        let delete = move || {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _ = runtime.block_on(admin.delete_topics(&names, &AdminOptions::new()));
        };
        let _ = std::thread::spawn(delete).join();
    }
}

#[tokio::test]
async fn applying_twice_creates_once_and_as_declared() {
    let scratch = Scratch::new();
    let changes = scratch.plan(&scratch.topics).await;
    assert_eq!(changes, scratch.topics.iter().cloned().map(Change::Create).collect::<Vec<_>>());
    scratch.cluster.apply(&changes).await.unwrap();

    let existing = scratch.cluster.existing(&scratch.topics).await.unwrap();
    for topic in &scratch.topics {
        let found = &existing[&topic.name];
        assert_eq!((found.partitions, found.replication), (topic.partitions, 1));
        for (key, value) in &topic.config {
            assert_eq!(found.config.get(key), Some(value), "{key} of {}", topic.name);
        }
        assert_eq!(found.config["message.timestamp.type"], "LogAppendTime");
    }
    assert_eq!(scratch.plan(&scratch.topics).await, []);
    // Somebody who planned before us and applies after us.
    scratch.cluster.apply(&changes).await.unwrap();
}

#[tokio::test]
async fn created_topics_can_be_written_at_once() {
    let scratch = Scratch::new();
    scratch.cluster.apply(&scratch.plan(&scratch.topics).await).await.unwrap();
    let producer = Producer::new(&scratch.kafka, Duration::from_secs(5)).unwrap();
    for topic in &scratch.topics {
        for partition in 0..topic.partitions {
            let record = Outgoing { topic: &topic.name, partition, key: None, value: b"x", headers: &[] };
            assert_eq!(producer.send(&record).await.unwrap(), (partition, 0));
        }
    }
}

#[tokio::test]
async fn settings_are_changed_and_others_kept() {
    let scratch = Scratch::new();
    scratch.cluster.apply(&scratch.plan(&scratch.topics).await).await.unwrap();
    let mut wanted = scratch.topics.clone();
    wanted[0].config.insert("retention.ms".to_owned(), "86400000".to_owned());
    let dlq = wanted.iter_mut().find(|topic| !topic.homes).unwrap();
    dlq.partitions += 1;
    let changes = scratch.plan(&wanted).await;
    assert!(matches!(&changes[..], [Change::Set { .. }, Change::Grow { .. }]), "{changes:?}");
    scratch.cluster.apply(&changes).await.unwrap();
    assert_eq!(scratch.plan(&wanted).await, [], "what was not changed is as before");
}

#[tokio::test]
async fn homes_are_never_moved() {
    let scratch = Scratch::new();
    scratch.cluster.apply(&scratch.plan(&scratch.topics).await).await.unwrap();
    let mut wanted = scratch.topics[0].clone();
    assert!(wanted.homes);
    wanted.partitions += 1;
    let changes = scratch.plan(&[wanted]).await;
    assert!(matches!(&changes[..], [Change::Drift { .. }]), "{changes:?}");
    scratch.cluster.apply(&changes).await.unwrap();
    assert_eq!(scratch.plan(&scratch.topics).await, [], "nothing was changed");
}

#[tokio::test]
async fn more_copies_than_brokers_are_refused_with_advice() {
    let scratch = Scratch::new();
    let mut topic = scratch.topics[0].clone();
    topic.replication = 100;
    let refused = scratch.cluster.apply(&[Change::Create(topic)]).await.unwrap_err().to_string();
    assert!(refused.contains("--replication"), "{refused}");
}

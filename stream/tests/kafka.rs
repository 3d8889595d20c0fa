//! Kafka clients.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use tidemill_common::config::Settings;
use tidemill_common::kafka::{KafkaConfig, look_after};
use tidemill_testkit::{eventually, free_port};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_knows_no_broker_is_shown_the_way() {
    let kafka = Settings::load("test").unwrap().connections().kafka;
    let nowhere = KafkaConfig { brokers: format!("127.0.0.1:{}", free_port()) };
    let client: Arc<BaseConsumer> = Arc::new(nowhere.client().create().unwrap());
    let reaches = || client.fetch_metadata(Some("any"), Duration::from_millis(500)).is_ok();
    assert!(!reaches());
    look_after(&kafka, &client, |client: &BaseConsumer| client.client());
    eventually("the client reaches Kafka", || async { reaches() }).await;
}

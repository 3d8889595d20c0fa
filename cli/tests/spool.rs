//! kill -9 of a gateway that spools and drains: nothing that was acknowledged is lost.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::Value;
use tidemill_testkit::{Stack, eventually_within};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const PARTITIONS: i32 = 6;
const LIVES: usize = 6;

async fn start(stack: &Stack, brokers: &str, spool: &str) -> (Child, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidemill"))
        .arg("ingest")
        .env("PORT", "0")
        .env("TIDEMILL_LISTEN__HOST", "127.0.0.1")
        .env("LOG_LEVEL", "info")
        .env("KAFKA_BROKERS", brokers)
        .env("DATABASE_URL", &stack.connections.database_url)
        .env("SPOOL_DIR", spool)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let address = loop {
        let line = log.next_line().await.unwrap().expect("the gateway ended at once");
        let line: Value = serde_json::from_str(&line).unwrap();
        if line["fields"]["message"] == "listening" {
            break line["fields"]["address"].as_str().unwrap().to_owned();
        }
    };
    tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} }); // or the pipe fills up
    (child, address)
}

/// Sends batches until the gateway is gone; notes what it acknowledged, and whether as spooled.
async fn send(address: String, key: String, life: String, acknowledged: Arc<Mutex<HashSet<String>>>) -> usize {
    let (client, url) = (reqwest::Client::new(), format!("http://{address}/v1/events"));
    let mut spooled = 0;
    for batch in 0.. {
        let ids: Vec<String> = (0..20).map(|i| format!("{life}-{batch}-{i}")).collect();
        let events: Vec<Value> = ids.iter().map(|id| serde_json::json!({"eventId": id, "eventType": "view"})).collect();
        let Ok(answer) = client.post(&url).bearer_auth(&key).json(&events).send().await else { return spooled };
        let Ok(answer) = answer.json::<Value>().await else { return spooled };
        for result in answer["results"].as_array().into_iter().flatten() {
            if result["status"] == "accepted" {
                spooled += usize::from(result["position"] == "spooled");
                acknowledged.lock().unwrap().insert(result["eventId"].as_str().unwrap().to_owned());
            }
        }
    }
    spooled
}

/// The keys of all records of a topic.
fn keys(brokers: &str, topic: &str) -> HashSet<String> {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", "t").create().unwrap();
    let mut partitions = TopicPartitionList::new();
    let mut left = 0;
    for partition in 0..PARTITIONS {
        partitions.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        left += consumer.fetch_watermarks(topic, partition, Duration::from_secs(10)).unwrap().1;
    }
    consumer.assign(&partitions).unwrap();
    let mut keys = HashSet::new();
    while left > 0 {
        let record = consumer.poll(Duration::from_secs(30)).expect("more records").unwrap();
        keys.insert(String::from_utf8(record.key().unwrap().to_vec()).unwrap());
        left -= 1;
    }
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_while_spooling_and_draining_loses_nothing_acknowledged() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (kafka, stack) = (MockCluster::new(1).unwrap(), Stack::new().await);
    let (topic, brokers) = (format!("events.{}", stack.project), kafka.bootstrap_servers());
    kafka.create_topic(&topic, PARTITIONS, 1).unwrap();
    let key = stack.create_key(&stack.project, &["write"], None).await;
    let folder = std::env::temp_dir().join(format!("spool-{}", uuid::Uuid::new_v4().simple()));
    let acknowledged = Arc::new(Mutex::new(HashSet::new()));
    let mut spooled = 0;
    for life in 0..LIVES {
        kafka.broker_down(1).unwrap();
        let (mut gateway, address) = start(&stack, &brokers, folder.to_str().unwrap()).await;
        let senders: Vec<_> = (0..4)
            .map(|sender| {
                let life = format!("{life}-{sender}");
                tokio::spawn(send(address.clone(), key.clone(), life, Arc::clone(&acknowledged)))
            })
            .collect();
        // The first delivery fails after 5 s; from then on events are spooled at once. When Kafka comes back and
        // when the gateway dies is the randomness of the test.
        tokio::time::sleep(Duration::from_millis(random.random_range(5_000..7_000))).await;
        if life % 2 == 1 {
            kafka.broker_up(1).unwrap();
            tokio::time::sleep(Duration::from_millis(random.random_range(0..1_500))).await;
        }
        gateway.kill().await.unwrap();
        for sender in senders {
            spooled += sender.await.unwrap();
        }
    }
    kafka.broker_up(1).unwrap();
    let (_gateway, _) = start(&stack, &brokers, folder.to_str().unwrap()).await;
    let acknowledged = acknowledged.lock().unwrap().clone();
    println!("{} acknowledged, {spooled} of them as spooled", acknowledged.len());
    assert!(spooled > 1_000, "only {spooled} events were spooled");
    eventually_within(Duration::from_secs(60), "everything acknowledged is in the log", || async {
        let keys = tokio::task::block_in_place(|| keys(&brokers, &topic));
        acknowledged.is_subset(&keys)
    })
    .await;
    std::fs::remove_dir_all(folder).unwrap();
}

//! The clients and the real gateway, with real pauses: Kafka goes away, limits are reached, claims are in flight.

use std::collections::{HashMap, HashSet};

use rdkafka::mocking::MockCluster;
use serde_json::Value;
use tidemill_common::config::Connections;
use tidemill_common::names::events_topic;
use tidemill_ingest::Config;
use tidemill_testkit::{PARTITIONS, Stack, eventually};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::drivers::{CLIENTS, Client, Order, Report};
use crate::event;

/// Starts a gateway; gives its URL.
async fn start(connections: &Connections) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let running =
        tidemill_ingest::run(Config::default(), connections.clone(), listener.into(), CancellationToken::new());
    tokio::spawn(running);
    let ready = format!("{url}/readyz");
    eventually("the gateway is ready", || async {
        reqwest::get(&ready).await.is_ok_and(|answer| answer.status().is_success())
    })
    .await;
    url
}

/// Starts all clients at once, each with so many events of its own.
fn start_clients(url: &str, keys: &[String; 3], events: usize, retries: u32) -> JoinSet<(Client, Report)> {
    let mut clients = JoinSet::new();
    for (client, key) in CLIENTS.into_iter().zip(keys) {
        let events = (0..events).map(|i| event(&id(client, i), "a")).collect();
        let order = Order { url: url.to_owned(), key: key.clone(), retries, timeout: 15, real: true, events };
        clients.spawn(async move { (client, client.run(&order).await) });
    }
    clients
}

fn id(client: Client, number: usize) -> String {
    format!("{client:?}-{number}")
}

/// How often each event is in the log.
async fn in_log(stack: &Stack) -> HashMap<String, usize> {
    let mut log = HashMap::new();
    for record in stack.records(&events_topic(&stack.project)).await {
        *log.entry(String::from_utf8(record.key().unwrap().to_vec()).unwrap()).or_default() += 1;
    }
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_while_kafka_is_away_arrives_once_it_is_back() {
    let (kafka, mut stack) = (MockCluster::new(1).unwrap(), Stack::new().await);
    kafka.create_topic(&events_topic(&stack.project), PARTITIONS, 1).unwrap();
    let mut connections = stack.connections.clone();
    connections.kafka.brokers = kafka.bootstrap_servers();
    let key = stack.create_key(&stack.project, &["write"], None).await;
    let url = start(&connections).await;
    kafka.broker_down(1).unwrap();
    let clients = start_clients(&url, &[key.clone(), key.clone(), key], 300, 5);
    eventually("each client has been told to come again", || async {
        let metrics = reqwest::get(format!("{url}/metrics")).await.unwrap().text().await.unwrap();
        let refused = metrics.lines().find(|line| line.contains(r#"endpoint="/v1/events",status="503""#));
        let number = refused.and_then(|line| line.rsplit(' ').next()).map(|number| number.parse::<u64>().unwrap());
        number >= Some(3)
    })
    .await;
    kafka.broker_up(1).unwrap();
    let mut known = HashSet::new();
    for (client, report) in clients.join_all().await {
        assert!(!report.pauses.is_empty(), "{client:?}");
        for verdict in report.verdicts {
            assert!(["accepted", "duplicate"].contains(&verdict.status.as_str()), "{client:?}: {verdict:?}");
            known.insert(verdict.event_id);
        }
    }
    assert_eq!(known.len(), 900);
    let real = std::mem::replace(&mut stack.connections.kafka.brokers, kafka.bootstrap_servers());
    let log: HashSet<String> = in_log(&stack).await.into_keys().collect();
    stack.connections.kafka.brokers = real; // for the stack to clean up
    assert_eq!(log, known);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_for_now_arrives_a_little_later_and_once() {
    const EVENTS: usize = 150;
    let stack = Stack::new().await;
    let mut keys = [const { String::new() }; 3];
    for key in &mut keys {
        *key = stack.create_key(&stack.project, &["write"], Some(60)).await;
    }
    let url = start(&stack.connections).await;
    let redis = redis::Client::open(stack.connections.redis_url.clone()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    for client in CLIENTS {
        let mut claim = redis::cmd("SET");
        claim.arg(format!("event:{}:{}", stack.project, id(client, 0))).arg("P:another").arg("PX").arg(2_500);
        claim.query_async::<()>(&mut redis).await.unwrap();
    }
    for (client, report) in start_clients(&url, &keys, EVENTS, 5).join_all().await {
        let open: Vec<&Value> = report.verdicts.iter().filter(|v| v.status != "accepted").map(|v| &v.event).collect();
        assert!(open.is_empty(), "{client:?}: {open:?}");
        assert!(report.pauses.len() >= 2 && report.pauses[0] >= 1.0, "{client:?}: {:?}", report.pauses);
    }
    let log = in_log(&stack).await;
    assert_eq!(log.len(), CLIENTS.len() * EVENTS);
    assert!(log.values().all(|times| *times == 1), "{log:?}");
}

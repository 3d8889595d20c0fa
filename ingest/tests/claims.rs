//! Copies of an event that come at the same time, through several gateways.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;

use futures::future::join_all;
use support::{Answer, Gateway, answer, event};

const EVENTS: usize = 100;
const CONNECTIONS: usize = 64;

/// Sends an event until its verdict is final.
async fn send(client: &reqwest::Client, url: &str, key: &str, id: &str) -> Answer {
    loop {
        let answer = answer(client.post(url).bearer_auth(key).json(&event(id))).await;
        if answer.status != 503 {
            return answer;
        }
        assert_eq!(answer.problem(), "retry");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_copies_on_64_connections_to_two_gateways_exactly_one_is_accepted() {
    let gateway = Gateway::start().await;
    let addresses = [gateway.address, gateway.another().await];
    let producer = |number: usize| {
        let (client, key) = (reqwest::Client::new(), gateway.key.clone());
        let url = format!("http://{}/v1/events", addresses[number % 2]);
        async move {
            let mut answers = Vec::new();
            for i in 0..EVENTS {
                answers.push(send(&client, &url, &key, &format!("e-{i}")).await);
            }
            answers
        }
    };
    let answers = join_all((0..CONNECTIONS).map(producer)).await;

    let mut log: HashMap<Vec<u8>, Vec<String>> = HashMap::new();
    for record in gateway.stack.records(&format!("events.{}", gateway.stack.project)).await {
        log.entry(record.key().unwrap().to_vec()).or_default().push(format!("{}:{}", record.partition, record.offset));
    }
    assert_eq!(log.len(), EVENTS);
    for i in 0..EVENTS {
        let id = format!("e-{i}");
        let positions = &log[id.as_bytes()];
        let of_event: Vec<&Answer> = answers.iter().map(|answers| &answers[i]).collect();
        let accepted = of_event.iter().filter(|answer| answer.status == 202).count();
        assert_eq!((accepted, positions.len()), (1, 1), "{id}: {of_event:?}");
        assert!(of_event.iter().all(|answer| answer.status == 202 || answer.problem() == "duplicate"));
        assert!(of_event.iter().all(|answer| answer.body["position"] == positions[0]), "all say where it is");
    }
}

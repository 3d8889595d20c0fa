//! The three clients, made to do the same.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::generator::Event;
use crate::sender::{Delivery, Patience, Sender, Wait};

/// No client takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Client {
    JavaScript,
    Python,
    Loadgen,
}

pub const CLIENTS: [Client; 3] = [Client::JavaScript, Client::Python, Client::Loadgen];

/// What a client is to do.
#[derive(Debug, Clone)]
pub struct Order {
    pub url: String,
    pub key: String,
    pub retries: u32,
    /// In seconds, for one answer.
    pub timeout: u64,
    /// Whether pauses take their time.
    pub real: bool,
    pub events: Vec<Value>,
}

/// What it did.
#[derive(Debug, Deserialize)]
pub struct Report {
    /// In seconds.
    pub pauses: Vec<f64>,
    /// In the order of the events.
    pub verdicts: Vec<Verdict>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    pub event: Value,
    pub event_id: String,
    pub status: String,
    pub position: Option<String>,
    /// Why it is not in the log. The load generator does not tell.
    pub error: Option<Value>,
}

impl Client {
    pub async fn run(self, order: &Order) -> Report {
        match self {
            Client::JavaScript => script("node".to_owned(), "drive.mjs", order).await,
            Client::Python => {
                let python = std::env::var("TIDEMILL_PYTHON");
                let hint = "TIDEMILL_PYTHON; dev/install makes it, dev/services env names it";
                script(python.expect(hint), "drive.py", order).await
            }
            Client::Loadgen => loadgen(order).await,
        }
    }
}

async fn script(program: String, file: &str, order: &Order) -> Report {
    let Order { url, key, retries, timeout, real, events } = order;
    let order =
        json!({ "url": url, "key": key, "retries": retries, "timeout": timeout, "real": real, "events": events });
    let mut child = Command::new(&program)
        .arg(format!("{}/tests/clients/{file}", env!("CARGO_MANIFEST_DIR")))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; dev/install installs it"));
    child.stdin.take().unwrap().write_all(order.to_string().as_bytes()).await.unwrap();
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let output = output.unwrap_or_else(|_| panic!("{file} did not end")).unwrap();
    assert!(output.status.success(), "{file} failed");
    serde_json::from_slice(&output.stdout).expect("a report")
}

/// The load generator has its own words: what the gateway refuses ends it with an error.
async fn loadgen(order: &Order) -> Report {
    let pauses = Arc::new(Mutex::new(Vec::new()));
    let patience = Patience { timeout: Duration::from_secs(order.timeout), ..Patience::new(order.retries) };
    let (noted, real, sleep) = (Arc::clone(&pauses), order.real, Arc::clone(&patience.wait));
    let wait: Wait = Arc::new(move |pause| {
        noted.lock().unwrap().push(pause.as_secs_f64());
        if real { sleep(pause) } else { Box::pin(async {}) }
    });
    let patience = Patience { wait, ..patience };
    let sender = Sender::new(&order.url, &order.key, 1, patience).unwrap();
    let batch = order.events.iter().map(|event| Delivery::new(Arc::new(typed(event)), false)).collect();
    let mut fates = HashMap::new();
    if let Ok(delivered) = sender.deliver(batch, sender.connection().await).await {
        assert_eq!(delivered.retries as usize, pauses.lock().unwrap().len());
        for delivery in delivered.deliveries {
            let status = serde_json::to_value(delivery.fate.status).unwrap();
            let fate = (status.as_str().unwrap().to_owned(), delivery.fate.position);
            assert!(fates.insert(delivery.event.event_id.clone(), fate).is_none(), "one fate each");
        }
    }
    let verdict = |event: &Value| {
        let event_id = event["eventId"].as_str().unwrap().to_owned();
        let (status, position) = fates.get(&event_id).cloned().unwrap_or_else(|| ("refused".to_owned(), None));
        Verdict { event: event.clone(), event_id, status, position, error: None }
    };
    Report { pauses: pauses.lock().unwrap().clone(), verdicts: order.events.iter().map(verdict).collect() }
}

fn typed(event: &Value) -> Event {
    let text = |name: &str| event[name].as_str().unwrap().to_owned();
    Event {
        event_id: text("eventId"),
        event_type: text("eventType"),
        timestamp: text("timestamp"),
        user_id: text("userId"),
        session_id: text("sessionId"),
        properties: event["properties"].clone(),
    }
}

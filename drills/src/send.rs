//! Senders. Each tells the journal what it sent and what it was answered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use reqwest::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use tidemill_common::codec::Encoder;
use tidemill_common::event::Event;
use tidemill_common::home::home_partition;
use tidemill_common::kafka::{Producer, look_after};
use tidemill_common::names::{events_topic, partition_number};
use tidemill_testkit::{PARTITIONS, Stack};

use crate::journal::{Answer, Entry, Journal, Via};
use crate::oracle::AGENTS;
use crate::traffic::{Flaw, Item};

/// A record is delivered, or its fate is unknown, within this time.
const DELIVERY: Duration = Duration::from_secs(60);
/// The gateway answers within this time, or is asked again.
const ANSWER: Duration = Duration::from_secs(10);
/// For so long a client asks again.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// How a native producer chooses partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partitioner {
    /// As the Java client does: every event goes to its home.
    Murmur2,
    /// librdkafka's own default: most go elsewhere.
    Crc32,
}

/// A producer that is no part of Tidemill.
#[derive(Clone)]
pub struct Native {
    producer: Arc<FutureProducer>,
    topic: String,
    encoder: Encoder,
    journal: Journal,
}

impl Native {
    /// A producer for the stack's project.
    pub fn new(stack: &Stack, partitioner: Partitioner, journal: Journal) -> anyhow::Result<Self> {
        let mut config: ClientConfig = Producer::config(&stack.connections.kafka, DELIVERY);
        let partitioner = match partitioner {
            Partitioner::Murmur2 => "murmur2_random",
            Partitioner::Crc32 => "consistent_random",
        };
        let producer: FutureProducer = config.set("partitioner", partitioner).create()?;
        let producer = Arc::new(producer);
        look_after(&stack.connections.kafka, &producer, |producer: &FutureProducer| producer.client());
        Ok(Self { producer, topic: events_topic(&stack.project), encoder: stack.encoder, journal })
    }

    /// The same to another topic.
    pub fn to(self, topic: &str) -> Self {
        Self { topic: topic.to_owned(), ..self }
    }

    /// Sends items and waits for their deliveries.
    pub async fn send(&self, items: &[Item]) -> anyhow::Result<()> {
        let mut queued = Vec::with_capacity(items.len());
        for item in items {
            let (key, value) = self.record(item);
            let record = FutureRecord::to(&self.topic).key(key.as_bytes()).payload(&value);
            let delivery = self.producer.send_result(record).map_err(|(error, _)| error);
            queued.push((item, key, delivery));
        }
        for (item, event_id, delivery) in queued {
            let delivered = match delivery {
                Ok(delivery) => delivery.await.ok().and_then(Result::ok),
                Err(_) => None,
            };
            let position = delivered.map(|at| (partition_number(&self.topic, at.partition), at.offset));
            let answer = if position.is_some() { Answer::Accepted } else { Answer::Unknown };
            let event = match item {
                Item::Event(event) => Some(event.clone()),
                Item::Garbage { .. } => None,
            };
            self.journal.add(Entry { event_id, via: Via::Native, answer, position, event })?;
        }
        Ok(())
    }

    /// Sends events.
    pub async fn send_events(&self, events: &[Event]) -> anyhow::Result<()> {
        let items: Vec<Item> = events.iter().cloned().map(Item::Event).collect();
        self.send(&items).await
    }

    /// Sends events as if a worker had found them elsewhere, so long ago, and sent them home.
    pub async fn send_strays(&self, events: &[Event], age: Duration) -> anyhow::Result<()> {
        let origin_ms = chrono::Utc::now().timestamp_millis() - age.as_millis() as i64;
        for event in events {
            let elsewhere = (home_partition(event.event_id.as_bytes(), PARTITIONS) + 1) % PARTITIONS;
            let source = format!("{elsewhere}:{}:{origin_ms}", i64::MAX);
            let headers = OwnedHeaders::new().insert(Header { key: "source", value: Some(&source) });
            let value = self.encoder.encode(event);
            let record = FutureRecord::to(&self.topic).key(event.event_id.as_bytes()).payload(&value).headers(headers);
            let delivered = self.producer.send(record, DELIVERY).await.map_err(|(error, _)| error)?;
            let position = Some((delivered.partition, delivered.offset));
            let (event_id, event) = (event.event_id.clone(), Some(event.clone()));
            self.journal.add(Entry { event_id, via: Via::Native, answer: Answer::Accepted, position, event })?;
        }
        Ok(())
    }

    fn record(&self, item: &Item) -> (String, Vec<u8>) {
        let good = |key: &str, timestamp| Event { timestamp, ..tidemill_testkit::event(key, "click", 0) };
        match item {
            Item::Event(event) => (event.event_id.clone(), self.encoder.encode(event)),
            Item::Garbage { key, flaw } => {
                let mut value = self.encoder.encode(&good(key, i64::from(u32::MAX)));
                match flaw {
                    Flaw::NotAvro => value[0] = b'{',
                    Flaw::CutShort => value.truncate(value.len() / 2),
                    Flaw::Ancient => {}
                }
                (key.clone(), value)
            }
        }
    }
}

/// A client of the gateway. It sends again what the gateway has not decided on, as clients should.
#[derive(Clone)]
pub struct Http {
    client: Client,
    url: String,
    key: String,
    journal: Journal,
    answered: Arc<Mutex<Answered>>,
}

/// What the gateway's answers were like. 0 stands for a request without one.
#[derive(Debug, Clone, Default)]
pub struct Answered {
    /// Requests by status.
    pub statuses: BTreeMap<u16, usize>,
    /// How long each took.
    pub took: Vec<Duration>,
}

impl Answered {
    /// The time within which this share of requests was answered.
    pub fn within(&self, share: f64) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        took.get((took.len() as f64 * share) as usize).or(took.last()).copied().unwrap_or_default()
    }
}

#[derive(Deserialize)]
struct Answers {
    results: Vec<Verdict>,
}

#[derive(Deserialize)]
struct Verdict {
    index: usize,
    status: String,
    position: Option<String>,
}

impl Http {
    /// A client of the gateway at `url`.
    pub fn new(url: &str, key: &str, journal: Journal) -> anyhow::Result<Self> {
        let client = Client::builder().timeout(ANSWER).build()?;
        Ok(Self { client, url: format!("{url}/v1/events"), key: key.to_owned(), journal, answered: Arc::default() })
    }

    /// Sends events until each has its answer, or the client's patience ends.
    pub async fn send(&self, events: &[Event]) -> anyhow::Result<()> {
        let mut open: Vec<&Event> = events.iter().collect();
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let Some(verdicts) = self.post(&open).await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let mut decided = vec![false; open.len()];
            for verdict in verdicts {
                let answer = match verdict.status.as_str() {
                    "accepted" => Answer::Accepted,
                    "duplicate" => Answer::Duplicate,
                    "invalid" => Answer::Invalid,
                    _ => continue,
                };
                let Some(event) = open.get(verdict.index) else { continue };
                decided[verdict.index] = true;
                self.note(event, answer, verdict.position.as_deref().and_then(position))?;
            }
            let mut decided = decided.into_iter();
            open.retain(|_| !decided.next().unwrap_or_default());
            if open.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        open.into_iter().try_for_each(|event| self.note(event, Answer::Unknown, None))
    }

    /// Sends events once; gives how many were accepted, and how many were over a limit. Those are not sent again, and
    /// not in the journal.
    pub async fn offer(&self, events: &[Event]) -> anyhow::Result<(usize, usize)> {
        let Some(verdicts) = self.post(&events.iter().collect::<Vec<_>>()).await else {
            events.iter().try_for_each(|event| self.note(event, Answer::Unknown, None))?;
            return Ok((0, 0));
        };
        let (mut accepted, mut limited) = (0, 0);
        for verdict in verdicts {
            let Some(event) = events.get(verdict.index) else { continue };
            match verdict.status.as_str() {
                "accepted" => {
                    accepted += 1;
                    self.note(event, Answer::Accepted, verdict.position.as_deref().and_then(position))?;
                }
                "limited" => limited += 1,
                _ => self.note(event, Answer::Unknown, None)?,
            }
        }
        Ok((accepted, limited))
    }

    /// What the answers were like since this was last asked.
    pub fn answered(&self) -> Answered {
        std::mem::take(&mut *self.answered.lock().expect("no holder panics"))
    }

    /// Sends events once more; gives how many the gateway knew. Not in the journal, which has them.
    pub async fn offer_again(&self, events: &[Event]) -> anyhow::Result<usize> {
        let verdicts = self.post(&events.iter().collect::<Vec<_>>()).await.context("the gateway does not answer")?;
        Ok(verdicts.iter().filter(|verdict| verdict.status == "duplicate").count())
    }

    async fn post(&self, events: &[&Event]) -> Option<Vec<Verdict>> {
        let body: Vec<Value> = events.iter().map(|event| json(event)).collect();
        // By what is sent, so that a seed decides it.
        let sum: usize = events.iter().flat_map(|event| event.event_id.bytes()).map(usize::from).sum();
        let request =
            self.client.post(&self.url).bearer_auth(&self.key).header("user-agent", AGENTS[sum % AGENTS.len()].0);
        let began = Instant::now();
        let answer = request.json(&body).send().await;
        {
            let status = answer.as_ref().map_or(0, |answer| answer.status().as_u16());
            let mut answered = self.answered.lock().expect("no holder panics");
            *answered.statuses.entry(status).or_default() += 1;
            answered.took.push(began.elapsed());
        }
        let answer = answer.ok()?;
        if !answer.status().is_success() {
            return None;
        }
        Some(answer.json::<Answers>().await.ok()?.results)
    }

    fn note(&self, event: &Event, answer: Answer, position: Option<(i32, i64)>) -> anyhow::Result<()> {
        let (event_id, event) = (event.event_id.clone(), Some(event.clone()));
        self.journal.add(Entry { event_id, via: Via::Http, answer, position, event })
    }
}

fn json(event: &Event) -> Value {
    let time = chrono::DateTime::from_timestamp_micros(event.timestamp).unwrap_or_default();
    let mut body = json!({
        "eventId": event.event_id,
        "eventType": event.event_type,
        "timestamp": time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true),
    });
    let named = [("userId", &event.user_id), ("sessionId", &event.session_id)];
    for (name, value) in named.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
        body[name] = json!(value);
    }
    if let Some(properties) = event.properties.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok()) {
        body["properties"] = properties;
    }
    body
}

fn position(text: &str) -> Option<(i32, i64)> {
    let (partition, offset) = text.split_once(':')?;
    Some((partition.parse().ok()?, offset.parse().ok()?))
}

//! Traffic written to a project's topic, as a native producer does it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use tidemill_common::codec::{EVENT_SCHEMA, Encoder};
use tidemill_common::event::EventRef;
use tidemill_common::home::home_partition;
use tidemill_common::names::events_topic;
use tidemill_common::registry::Registry;

use super::content::Content;
use super::traffic::{Expected, Sessions, Shape, Traffic};
use crate::bare::BareProducer;
use crate::log::Log;

/// Records between two looks at deliveries.
const STRIDE: usize = 256;

/// A topic that holds traffic.
pub struct Topic {
    /// The project whose topic it is.
    pub project: &'static str,
    /// The topic.
    pub name: String,
    /// The end of each partition.
    pub ends: Vec<i64>,
    /// What has to come out.
    pub expected: Expected,
}

impl Topic {
    /// How many records it holds.
    pub fn records(&self) -> u64 {
        self.ends.iter().map(|end| *end as u64).sum()
    }
}

/// Writes events with their eventId as key to their home partitions.
pub struct EventProducer {
    producer: BareProducer,
    encoder: Encoder,
    topic: String,
    partitions: i32,
    value: Vec<u8>,
}

impl EventProducer {
    /// A producer for a project's topic.
    pub async fn new(brokers: &str, registry: &str, project: &str, partitions: i32) -> anyhow::Result<Self> {
        let topic = events_topic(project);
        let id = Registry::new(registry)?.register(&format!("{topic}-value"), EVENT_SCHEMA).await?;
        let producer = BareProducer::native(brokers)?;
        Ok(Self { producer, encoder: Encoder::new(id), topic, partitions, value: Vec::new() })
    }

    /// Sends an event.
    pub fn send(&mut self, event: &EventRef<'_>) -> anyhow::Result<()> {
        self.value.clear();
        self.encoder.encode_into(event, &mut self.value);
        let key = event.event_id.as_bytes();
        self.producer.send(&self.topic, home_partition(key, self.partitions), key, &self.value)
    }

    /// Looks after deliveries.
    pub fn poll(&self) {
        self.producer.poll();
    }

    /// Waits until everything is delivered.
    pub fn flush(&self) -> anyhow::Result<()> {
        self.producer.flush()
    }
}

/// Fills a project's empty topic with traffic that ends about now.
pub async fn fill(
    brokers: &str,
    registry: &str,
    project: &'static str,
    partitions: i32,
    shape: Shape,
) -> anyhow::Result<Topic> {
    let begun = Instant::now();
    let traffic = Traffic::new(shape);
    let expected = traffic.expected();
    let mut producer = EventProducer::new(brokers, registry, project, partitions).await?;
    let start = now_us() - i64::from(shape.span_ms) * 1_000;
    let mut content = Content::new(&traffic, start);
    for (number, record) in traffic.records.iter().enumerate() {
        producer.send(&content.event(record))?;
        if number % STRIDE == 0 {
            producer.poll();
        }
    }
    producer.flush()?;
    let ends = Log { brokers, topic: &producer.topic, partitions }.ends()?;
    let topic = Topic { project, name: producer.topic, ends, expected };
    let records = topic.records();
    anyhow::ensure!(records == shape.records, "{} holds {records} records, not the ones written", topic.name);
    let kind = if shape.sessions == Sessions::Visits { "visits" } else { "drawn sessions" };
    eprintln!(
        "{}: {records} records ({kind}), {} events, {} sessions, {} users, written in {:.1} s",
        topic.name,
        expected.events,
        expected.sessions,
        traffic.users,
        begun.elapsed().as_secs_f64()
    );
    Ok(topic)
}

/// Sends traffic as it arrives, until it ends: event times are now.
pub async fn play(producer: &mut EventProducer, traffic: &Traffic) -> anyhow::Result<()> {
    let (begun, start_us) = (Instant::now(), now_us());
    let mut content = Content::new(traffic, start_us);
    let mut records = traffic.records.iter().peekable();
    while records.peek().is_some() {
        let due = begun.elapsed().as_millis() as u32;
        while let Some(record) = records.next_if(|record| record.at_ms <= due) {
            producer.send(&content.event(record))?;
        }
        producer.poll();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    producer.flush().context("the traffic was not delivered")
}

/// Now, in microseconds since 1970.
pub fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

//! The limit: what the Kafka client alone costs. A bare producer, in a process of its own, with the gateway's settings and
//! events.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use clap::Args;
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use serde::{Deserialize, Serialize};
use tidemill_common::kafka::{KafkaConfig, Producer};

use crate::events::{self, Ids, Timestamp};
use crate::process;

/// Different events that are sent in turn.
const EVENTS: u64 = 1_024;
/// Longer than any pause of the broker.
const DELIVERY: Duration = Duration::from_secs(30);
/// Records between two looks at the time and at deliveries.
const STRIDE: usize = 64;

/// What the limit program is told.
#[derive(Args)]
pub struct Options {
    #[arg(long)]
    pub brokers: String,
    #[arg(long)]
    pub topic: String,
    #[arg(long)]
    pub partitions: i32,
    #[arg(long)]
    pub warmup: f64,
    #[arg(long)]
    pub seconds: f64,
}

/// What it prints.
#[derive(Debug, Serialize, Deserialize)]
pub struct Limit {
    /// CPU of the process per record delivered, in microseconds.
    pub cpu_us: f64,
    /// Records delivered per second.
    pub per_second: f64,
}

#[derive(Default)]
struct Deliveries {
    delivered: AtomicU64,
    failed: AtomicU64,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let count = if result.is_ok() { &self.delivered } else { &self.failed };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends as fast as the client takes it, and measures after the warm-up.
pub fn run(options: &Options) -> anyhow::Result<Limit> {
    let producer = producer(&options.brokers)?;
    let mut source = Source::new(options);
    source.send_for(&producer, Duration::from_secs_f64(options.warmup))?;
    let (cpu, begin) = (process::cpu_seconds(std::process::id())?, Instant::now());
    let before = delivered(&producer)?;
    source.send_for(&producer, Duration::from_secs_f64(options.seconds))?;
    let records = (delivered(&producer)? - before) as f64;
    let seconds = begin.elapsed().as_secs_f64();
    let cpu = process::cpu_seconds(std::process::id())? - cpu;
    producer.flush(Duration::from_secs(20)).context("the last records were not delivered")?;
    delivered(&producer)?;
    Ok(Limit { cpu_us: cpu * 1e6 / records, per_second: records / seconds })
}

fn producer(brokers: &str) -> anyhow::Result<BaseProducer<Deliveries>> {
    Producer::config(&KafkaConfig { brokers: brokers.to_owned() }, DELIVERY)
        // It is always full here, and a longer one would only be further from the caches.
        .set("queue.buffering.max.messages", "100000")
        .create_with_context(Deliveries::default())
        .context("the bare producer cannot be made")
}

fn delivered(producer: &BaseProducer<Deliveries>) -> anyhow::Result<u64> {
    let failed = producer.context().failed.load(Ordering::Relaxed);
    if failed > 0 {
        bail!("{failed} records were not delivered");
    }
    Ok(producer.context().delivered.load(Ordering::Relaxed))
}

struct Source<'a> {
    topic: &'a str,
    partitions: i32,
    events: Vec<Vec<u8>>,
    ids: Ids,
    timestamp: Timestamp,
    sent: usize,
}

impl<'a> Source<'a> {
    fn new(options: &'a Options) -> Self {
        let events = (0..EVENTS).map(events::template).collect();
        let (topic, partitions) = (options.topic.as_str(), options.partitions);
        Self { topic, partitions, events, ids: Ids::new(), timestamp: Timestamp::new(), sent: 0 }
    }

    fn send_for(&mut self, producer: &BaseProducer<Deliveries>, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.timestamp.set(SystemTime::now());
            for _ in 0..STRIDE {
                self.send(producer)?;
            }
            producer.poll(Duration::ZERO);
        }
        Ok(())
    }

    fn send(&mut self, producer: &BaseProducer<Deliveries>) -> anyhow::Result<()> {
        let number = self.sent % self.events.len();
        let event = &mut self.events[number];
        events::renew(event, &self.ids, &self.timestamp);
        let partition = (self.sent % self.partitions as usize) as i32;
        self.sent += 1;
        loop {
            let record = BaseRecord::to(self.topic).partition(partition).key(events::id(event)).payload(&event[..]);
            match producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    producer.poll(Duration::from_millis(10));
                }
                Err((error, _)) => bail!("the bare producer cannot send: {error}"),
            }
        }
    }
}

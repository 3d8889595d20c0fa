//! The limit: what the Kafka client alone costs. A bare producer, in a process of its own, with the gateway's settings and
//! events.

use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::events::{self, Ids, Timestamp};
use crate::bare::BareProducer;
use crate::process;

/// Different events that are sent in turn.
const EVENTS: u64 = 1_024;
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

/// Sends as fast as the client takes it, and measures after the warm-up.
pub fn run(options: &Options) -> anyhow::Result<Limit> {
    let producer = BareProducer::new(&options.brokers)?;
    let mut source = Source::new(options);
    source.send_for(&producer, Duration::from_secs_f64(options.warmup))?;
    let (cpu, begin) = (process::cpu_seconds(std::process::id())?, Instant::now());
    let before = producer.delivered()?;
    source.send_for(&producer, Duration::from_secs_f64(options.seconds))?;
    let records = (producer.delivered()? - before) as f64;
    let seconds = begin.elapsed().as_secs_f64();
    let cpu = process::cpu_seconds(std::process::id())? - cpu;
    producer.flush()?;
    Ok(Limit { cpu_us: cpu * 1e6 / records, per_second: records / seconds })
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

    fn send_for(&mut self, producer: &BareProducer, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.timestamp.set(SystemTime::now());
            for _ in 0..STRIDE {
                self.send(producer)?;
            }
            producer.poll();
        }
        Ok(())
    }

    fn send(&mut self, producer: &BareProducer) -> anyhow::Result<()> {
        let number = self.sent % self.events.len();
        let event = &mut self.events[number];
        events::renew(event, &self.ids, &self.timestamp);
        let partition = (self.sent % self.partitions as usize) as i32;
        self.sent += 1;
        producer.send(self.topic, partition, events::id(event), event)
    }
}

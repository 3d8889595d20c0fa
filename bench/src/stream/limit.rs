//! The limit: what reading and decoding alone cost. A bare consumer with the worker's settings and decoder, in a
//! process of its own.

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use tidemill_common::codec::Decoder;
use tidemill_common::kafka::{GroupConsumer, KafkaConfig, Room};
use tidemill_common::registry::Registry;

use super::drain::WARM_UP;
use crate::process;

const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);

/// What the limit program is told.
#[derive(Args)]
pub struct Options {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    registry: String,
    #[arg(long)]
    topic: String,
    /// The end of each partition
    #[arg(long, value_delimiter = ',')]
    ends: Vec<i64>,
}

/// What it prints.
#[derive(Debug, Serialize, Deserialize)]
pub struct Limit {
    /// CPU of the process per record, in microseconds.
    pub cpu_us: f64,
    /// Records per second.
    pub per_second: f64,
}

/// Reads and decodes the whole topic, and measures after the warm-up.
pub async fn run(options: &Options) -> anyhow::Result<Limit> {
    let kafka = KafkaConfig { brokers: options.brokers.clone() };
    let config = GroupConsumer::config(&kafka, "tidemill.bench-limit", SESSION_TIMEOUT, Room::default());
    let consumer: BaseConsumer = config.create()?;
    let mut list = TopicPartitionList::new();
    for partition in 0..options.ends.len() {
        list.add_partition_offset(&options.topic, partition as i32, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    let decoder = Decoder::new(Registry::new(&options.registry)?);
    let records = options.ends.iter().sum::<i64>() as u64;
    let warm_up = (records as f64 * WARM_UP) as u64;
    read(&consumer, &decoder, warm_up).await?;
    let (cpu, begin) = (process::cpu_seconds(std::process::id())?, Instant::now());
    read(&consumer, &decoder, records - warm_up).await?;
    let measured = (records - warm_up) as f64;
    let cpu = process::cpu_seconds(std::process::id())? - cpu;
    Ok(Limit { cpu_us: cpu * 1e6 / measured, per_second: measured / begin.elapsed().as_secs_f64() })
}

async fn read(consumer: &BaseConsumer, decoder: &Decoder, records: u64) -> anyhow::Result<()> {
    for _ in 0..records {
        let message = consumer.poll(PATIENCE).context("the broker gives nothing for 30 s")??;
        let event = decoder.decode(message.payload().unwrap_or_default()).await?;
        std::hint::black_box(event);
    }
    Ok(())
}

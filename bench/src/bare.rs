//! A bare producer with the settings of ours.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use tidemill_common::kafka::{KafkaConfig, Producer};

/// Longer than any pause of the broker.
const DELIVERY: Duration = Duration::from_secs(30);

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

/// A producer that only counts deliveries.
pub struct BareProducer {
    inner: BaseProducer<Deliveries>,
}

impl BareProducer {
    /// A producer with our settings.
    pub fn new(brokers: &str) -> anyhow::Result<Self> {
        Self::made(&mut Producer::config(&KafkaConfig { brokers: brokers.to_owned() }, DELIVERY))
    }

    /// A producer that lets records wait for company as Kafka's own does since 4.0.
    pub fn native(brokers: &str) -> anyhow::Result<Self> {
        Self::made(Producer::config(&KafkaConfig { brokers: brokers.to_owned() }, DELIVERY).set("linger.ms", "5"))
    }

    fn made(config: &mut ClientConfig) -> anyhow::Result<Self> {
        let inner = config
            // It is always full here, and a longer one would only be further from the caches.
            .set("queue.buffering.max.messages", "100000")
            .create_with_context(Deliveries::default())
            .context("the bare producer cannot be made")?;
        Ok(Self { inner })
    }

    /// Puts a record into the queue; waits while that is full.
    pub fn send(&self, topic: &str, partition: i32, key: &[u8], value: &[u8]) -> anyhow::Result<()> {
        loop {
            match self.inner.send(BaseRecord::to(topic).partition(partition).key(key).payload(value)) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    self.inner.poll(Duration::from_millis(10));
                }
                Err((error, _)) => bail!("the bare producer cannot send: {error}"),
            }
        }
    }

    /// Looks after deliveries; has to be called now and then.
    pub fn poll(&self) {
        self.inner.poll(Duration::ZERO);
    }

    /// How many records were delivered so far.
    pub fn delivered(&self) -> anyhow::Result<u64> {
        let failed = self.inner.context().failed.load(Ordering::Relaxed);
        if failed > 0 {
            bail!("{failed} records were not delivered");
        }
        Ok(self.inner.context().delivered.load(Ordering::Relaxed))
    }

    /// Waits until everything is delivered.
    pub fn flush(&self) -> anyhow::Result<()> {
        self.inner.flush(Duration::from_secs(20)).context("the last records were not delivered")?;
        self.delivered().map(drop)
    }
}

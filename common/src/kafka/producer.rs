//! A producer that tells of every record's delivery.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};
use tokio::sync::Notify;

use super::KafkaConfig;
use super::way_back::{look_after, ping};

/// How long the local queue may stay full before a send gives up.
const QUEUE_WAIT: Duration = Duration::from_millis(5);
const QUEUE_TRIES: u32 = 40;

/// A record to send.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Where to.
    pub topic: &'a str,
    /// Always explicit: what a client's metadata says never decides it.
    pub partition: i32,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: &'a [u8],
    /// Headers, in order.
    pub headers: &'a [(&'a str, &'a str)],
}

/// Partition and offset of a record once all in-sync replicas hold it. An error means that nothing is known.
pub type Delivery = Result<(i32, i64), KafkaError>;

/// Is told what became of records, by the number each was sent with, on the client's own thread: it must not
/// block.
pub trait Deliveries: Send + Sync {
    /// What became of the record with this number.
    fn delivered(self: Arc<Self>, number: usize, delivery: Delivery);
}

/// Who is told what became of a record, and the number it was sent with. Records can share one.
#[derive(Clone)]
pub struct Recipient {
    /// Who.
    pub deliveries: Arc<dyn Deliveries>,
    /// The number.
    pub number: usize,
}

struct Context;

impl ClientContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = Arc<Recipient>;

    fn delivery(&self, result: &DeliveryResult<'_>, recipient: Arc<Recipient>) {
        let delivery = match result {
            Ok(message) => Ok((message.partition(), message.offset())),
            Err((error, _)) => Err(error.clone()),
        };
        let Recipient { deliveries, number } = Arc::unwrap_or_clone(recipient);
        deliveries.delivered(number, delivery);
    }
}

/// An idempotent producer with `acks=all`. Any error means that the outcome is unknown: the record may or
/// may not be in the log. Cheap to clone.
#[derive(Clone)]
pub struct Producer {
    inner: Arc<ThreadedProducer<Context>>,
}

impl Producer {
    /// A producer whose records are delivered, or given up, within `delivery_timeout`.
    pub fn new(kafka: &KafkaConfig, delivery_timeout: Duration) -> KafkaResult<Self> {
        Self::made(kafka, &Self::config(kafka, delivery_timeout))
    }

    /// A producer that has time: what comes within `linger` shares a batch, which spares the broker requests.
    pub fn lingering(kafka: &KafkaConfig, delivery_timeout: Duration, linger: Duration) -> KafkaResult<Self> {
        let mut config = Self::config(kafka, delivery_timeout);
        Self::made(kafka, config.set("linger.ms", linger.as_millis().to_string()))
    }

    fn made(kafka: &KafkaConfig, config: &ClientConfig) -> KafkaResult<Self> {
        let inner: ThreadedProducer<Context> = config.create_with_context(Context)?;
        let inner = Arc::new(inner);
        look_after(kafka, &inner, |producer| producer.client());
        Ok(Self { inner })
    }

    /// Its settings, for a client of the same kind.
    pub fn config(kafka: &KafkaConfig, delivery_timeout: Duration) -> ClientConfig {
        let mut config = kafka.client();
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("compression.type", "snappy")
            // The brokers' usual limit, less what a batch adds; the client's own default is lower.
            .set("message.max.bytes", "1048000")
            // What comes within this time shares a batch. Longer lets callers wait, and saves no CPU worth it.
            .set("linger.ms", "0.5")
            // A record for a partition that the client does not know of fails at once.
            .set("topic.metadata.refresh.interval.ms", super::METADATA.as_millis().to_string())
            // The caller bounds what is in flight; this only has to hold it.
            .set("queue.buffering.max.messages", "2000000")
            .set("delivery.timeout.ms", delivery_timeout.as_millis().to_string());
        config
    }

    /// Sends a record and gives its partition and offset once all in-sync replicas hold it.
    pub async fn send(&self, record: &Outgoing<'_>) -> Result<(i32, i64), KafkaError> {
        let mut sending = Sending::default();
        sending.add(self, record).await?;
        sending.done().await?.ok_or(KafkaError::Canceled)
    }

    /// Sends all records and waits for all of them; the first error counts.
    pub async fn send_all(&self, records: &[Outgoing<'_>]) -> Result<(), KafkaError> {
        let mut sending = Sending::default();
        for record in records {
            sending.add(self, record).await?;
        }
        sending.done().await.map(drop)
    }

    /// A full queue is waited for briefly, never for ever.
    async fn enqueue_patiently(&self, record: &Outgoing<'_>, recipient: &Arc<Recipient>) -> Result<(), KafkaError> {
        const FULL: KafkaError = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
        for _ in 0..QUEUE_TRIES {
            match self.enqueue(record, Arc::clone(recipient)) {
                Err(error) if error == FULL => tokio::time::sleep(QUEUE_WAIT).await,
                enqueued => return enqueued,
            }
        }
        Err(FULL)
    }

    /// Puts a record into the client's queue, at once or not at all. Of one that is in the queue, `recipient`
    /// will be told.
    pub fn enqueue(&self, record: &Outgoing<'_>, recipient: Arc<Recipient>) -> Result<(), KafkaError> {
        let mut message = BaseRecord::<[u8], [u8], _>::with_opaque_to(record.topic, recipient)
            .partition(record.partition)
            .payload(record.value);
        if let Some(key) = record.key {
            message = message.key(key);
        }
        if !record.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(record.headers.len());
            let add = |headers: OwnedHeaders, (key, value): &(&str, &str)| {
                headers.insert(Header { key, value: Some(*value) })
            };
            message = message.headers(record.headers.iter().fold(headers, add));
        }
        self.inner.send(message).map_err(|(error, _)| error)
    }

    /// Whether the brokers answer it. Blocks for up to two seconds.
    pub fn ping(&self) -> KafkaResult<()> {
        ping(self.inner.client())
    }

    /// Why this producer can never send again, if so. Only a new one can: an idempotent producer that no longer
    /// knows what is in the log stops for good.
    pub fn fatal_error(&self) -> Option<String> {
        self.inner.client().fatal_error().map(|(code, text)| format!("{code}: {text}"))
    }

    /// Records that are queued or in flight.
    pub fn in_flight(&self) -> i32 {
        self.inner.in_flight_count()
    }

    /// Waits until nothing is in flight. Dropping a producer before would throw records away.
    pub async fn flush(&self, timeout: Duration) -> KafkaResult<()> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || inner.flush(timeout)).await.unwrap_or(Err(KafkaError::Canceled))
    }
}

/// Records on their way, to be waited for together. Those of one that is dropped go on alone.
pub struct Sending {
    awaited: Arc<Awaited>,
    recipient: Arc<Recipient>,
}

impl Default for Sending {
    fn default() -> Self {
        let awaited = Arc::<Awaited>::default();
        let deliveries = Arc::clone(&awaited) as Arc<dyn Deliveries>;
        Self { awaited, recipient: Arc::new(Recipient { deliveries, number: 0 }) }
    }
}

impl Sending {
    /// Puts a record into the producer's queue.
    pub async fn add(&mut self, producer: &Producer, record: &Outgoing<'_>) -> Result<(), KafkaError> {
        self.awaited.left.fetch_add(1, Ordering::Relaxed);
        let enqueued = producer.enqueue_patiently(record, &self.recipient).await;
        if enqueued.is_err() {
            self.awaited.left.fetch_sub(1, Ordering::Relaxed);
        }
        enqueued
    }

    /// Waits until all in-sync replicas hold all records, and gives where the last one is; none if there were none.
    /// The first error counts.
    pub async fn done(&self) -> Result<Option<(i32, i64)>, KafkaError> {
        loop {
            let notified = self.awaited.all.notified();
            if self.awaited.left.load(Ordering::Acquire) == 0 {
                break;
            }
            notified.await;
        }
        self.awaited.outcome.lock().expect("no holder panics").clone().transpose()
    }
}

/// How many records are on their way, and what became of those that are not.
#[derive(Default)]
struct Awaited {
    left: AtomicUsize,
    /// The first error, else the last delivery.
    outcome: Mutex<Option<Delivery>>,
    all: Notify,
}

impl Deliveries for Awaited {
    fn delivered(self: Arc<Self>, _: usize, delivery: Delivery) {
        let mut outcome = self.outcome.lock().expect("no holder panics");
        if !matches!(*outcome, Some(Err(_))) {
            *outcome = Some(delivery);
        }
        drop(outcome);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.all.notify_waiters();
        }
    }
}

//! A producer whose every send is awaited.

use std::time::Duration;

use futures::future::join_all;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

use super::KafkaConfig;

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
    pub headers: Vec<(&'a str, String)>,
}

/// An idempotent producer with `acks=all`. Any error means that the outcome is unknown: the record may or
/// may not be in the log. Cheap to clone.
#[derive(Clone)]
pub struct Producer {
    inner: FutureProducer,
}

impl Producer {
    /// A producer whose records are delivered, or given up, within `delivery_timeout`.
    pub fn new(kafka: &KafkaConfig, delivery_timeout: Duration) -> KafkaResult<Self> {
        let inner = Self::config(kafka, delivery_timeout).create()?;
        Ok(Self { inner })
    }

    fn config(kafka: &KafkaConfig, delivery_timeout: Duration) -> ClientConfig {
        let mut config = kafka.client();
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("compression.type", "snappy")
            // The brokers' usual limit, less what a batch adds; the client's own default is lower.
            .set("message.max.bytes", "1048000")
            .set("linger.ms", "2")
            .set("delivery.timeout.ms", delivery_timeout.as_millis().to_string());
        config
    }

    /// Sends a record and gives its partition and offset once all in-sync replicas hold it.
    pub async fn send(&self, record: &Outgoing<'_>) -> Result<(i32, i64), KafkaError> {
        let delivery = self.enqueue(record).await?;
        match delivery.await {
            Ok(Ok(delivered)) => Ok((delivered.partition, delivered.offset)),
            Ok(Err((error, _))) => Err(error),
            Err(_) => Err(KafkaError::Canceled),
        }
    }

    /// Sends all records and waits for all of them; the first error counts.
    pub async fn send_all(&self, records: &[Outgoing<'_>]) -> Result<(), KafkaError> {
        let mut deliveries = Vec::with_capacity(records.len());
        for record in records {
            deliveries.push(self.enqueue(record).await?);
        }
        for delivery in join_all(deliveries).await {
            match delivery {
                Ok(Ok(_)) => {}
                Ok(Err((error, _))) => return Err(error),
                Err(_) => return Err(KafkaError::Canceled),
            }
        }
        Ok(())
    }

    /// Puts a record into the client's queue; a full queue is waited for briefly, never for ever.
    async fn enqueue(&self, record: &Outgoing<'_>) -> Result<DeliveryFuture, KafkaError> {
        for _ in 0..QUEUE_TRIES {
            let mut message =
                FutureRecord::<[u8], [u8]>::to(record.topic).partition(record.partition).payload(record.value);
            if let Some(key) = record.key {
                message = message.key(key);
            }
            if !record.headers.is_empty() {
                let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
                    headers.insert(Header { key, value: Some(value) })
                });
                message = message.headers(headers);
            }
            match self.inner.send_result(message) {
                Ok(delivery) => return Ok(delivery),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    tokio::time::sleep(QUEUE_WAIT).await
                }
                Err((error, _)) => return Err(error),
            }
        }
        Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull))
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
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.flush(timeout)).await.unwrap_or(Err(KafkaError::Canceled))
    }
}

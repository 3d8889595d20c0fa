//! Topics as witnesses of what was written to them.

use std::time::Duration;

use anyhow::{Context, bail};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

const PATIENCE: Duration = Duration::from_secs(10);

/// A topic as a witness of what was accepted.
pub struct Log<'a> {
    /// Kafka's `host:port`.
    pub brokers: &'a str,
    /// The topic that the server writes.
    pub topic: &'a str,
    /// Its partitions.
    pub partitions: i32,
}

impl Log<'_> {
    /// How many records it has ever held.
    pub fn records(&self) -> anyhow::Result<u64> {
        Ok(self.ends()?.into_iter().map(|end| end.max(0) as u64).sum())
    }

    /// The end of each partition.
    pub fn ends(&self) -> anyhow::Result<Vec<i64>> {
        let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", self.brokers).create()?;
        let end = |partition| {
            let (_, high) = consumer
                .fetch_watermarks(self.topic, partition, PATIENCE)
                .with_context(|| format!("cannot ask how long {} is", self.topic))?;
            anyhow::Ok(high)
        };
        (0..self.partitions).map(end).collect()
    }

    /// Checks that what was accepted since it held `before` records is there.
    pub fn holds(&self, before: u64, accepted: u64) -> anyhow::Result<()> {
        let added = self.records()? - before;
        if added < accepted {
            bail!("{accepted} events were accepted, but {} has only {added} records more", self.topic);
        }
        Ok(())
    }
}

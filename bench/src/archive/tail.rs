//! Events that are not archived yet: in the log, and in the processed topic as the stream sends them on.

use std::time::Duration;

use tidemill_common::codec::{EVENT_SCHEMA, Encoder};
use tidemill_common::home::home_partition;
use tidemill_common::kafka::{KafkaConfig, Outgoing, Producer};
use tidemill_common::names::processed_topic;
use tidemill_common::origin::{Origin, SOURCE};
use tidemill_common::registry::Registry;

use crate::stream::content::Content;
use crate::stream::place::Place;
use crate::stream::topic::{Topic, now_us};
use crate::stream::traffic::{Sessions, Shape, Traffic};

const PROCESSED_SCHEMA: &str = include_str!("../../../schemas/processed.avsc");
/// Device, source and country, which the stream finds out: it has found none. A union's branch each.
const NOTHING_FOUND: [u8; 3] = [0; 3];
const DELIVERY: Duration = Duration::from_secs(30);
/// Records under way at a time.
const CHUNK: usize = 10_000;

/// An event's two records.
struct Made {
    partition: i32,
    key: Vec<u8>,
    in_log: Vec<u8>,
    sent_on: Vec<u8>,
    /// Where the first stands.
    source: String,
}

/// Adds so many new events behind those of a topic; `seed` must be another than theirs. Gives how many there are.
pub async fn add(place: &Place, topic: &Topic, events: u64, seed: u64) -> anyhow::Result<u64> {
    let traffic = Traffic::new(Shape { countries: true, ..Shape::dense(events, Sessions::Visits, seed) });
    let originals: Vec<_> = traffic.records.iter().filter(|record| !record.copy).collect();
    let start = now_us() - i64::from(traffic.shape.span_ms) * 1_000;
    let registry = Registry::new(&place.registry)?;
    let processed = processed_topic(topic.project);
    let event = Encoder::new(registry.register(&format!("{}-value", topic.name), EVENT_SCHEMA).await?);
    let found = Encoder::new(registry.register(&format!("{processed}-value"), PROCESSED_SCHEMA).await?);
    let producer = Producer::new(&KafkaConfig { brokers: place.brokers.clone() }, DELIVERY)?;
    let (mut content, mut next) = (Content::new(&traffic, start), topic.ends.clone());
    for chunk in originals.chunks(CHUNK) {
        let append_ms = now_us() / 1_000;
        let made: Vec<Made> = chunk
            .iter()
            .map(|record| {
                let made = content.event(record);
                let (mut in_log, mut sent_on) = (Vec::new(), Vec::new());
                event.encode_into(&made, &mut in_log);
                found.encode_into(&made, &mut sent_on);
                sent_on.extend(NOTHING_FOUND);
                let key = made.event_id.as_bytes().to_vec();
                let partition = home_partition(&key, place.partitions);
                let offset = next[partition as usize];
                next[partition as usize] += 1;
                Made { partition, key, in_log, sent_on, source: Origin { partition, offset, append_ms }.to_string() }
            })
            .collect();
        let headers: Vec<_> = made.iter().map(|made| [(SOURCE, made.source.as_str())]).collect();
        let mut records = Vec::with_capacity(2 * made.len());
        for (Made { partition, key, in_log, sent_on, .. }, headers) in made.iter().zip(&headers) {
            let (partition, key) = (*partition, Some(key.as_slice()));
            records.push(Outgoing { topic: &topic.name, partition, key, value: in_log, headers: &[] });
            records.push(Outgoing { topic: &processed, partition, key, value: sent_on, headers });
        }
        producer.send_all(&records).await?;
    }
    Ok(originals.len() as u64)
}

//! Events that are not archived yet: in the log, and in the processed topic as the stream sends them on.

use std::time::Duration;

use tidemill_common::codec::processed::{self, PROCESSED_SCHEMA};
use tidemill_common::codec::{EVENT_SCHEMA, Encoder};
use tidemill_common::home::home_partition;
use tidemill_common::kafka::{KafkaConfig, Outgoing, Producer};
use tidemill_common::names::processed_topic;
use tidemill_common::origin::Origin;
use tidemill_common::registry::Registry;

use crate::stream::content::Content;
use crate::stream::place::Place;
use crate::stream::topic::{Topic, now_us};
use crate::stream::traffic::{Sessions, Shape, Traffic};

const DELIVERY: Duration = Duration::from_secs(30);
/// Records under way at a time.
const CHUNK: usize = 10_000;

/// An event's two records.
struct Made {
    partition: i32,
    key: Vec<u8>,
    in_log: Vec<u8>,
    sent_on: Vec<u8>,
}

/// Adds so many new events behind those of a topic; `seed` must be another than theirs. Gives how many there are.
pub async fn add(place: &Place, topic: &Topic, events: u64, seed: u64) -> anyhow::Result<u64> {
    let traffic = Traffic::new(Shape { countries: true, ..Shape::dense(events, Sessions::Visits, seed) });
    let originals: Vec<_> = traffic.records.iter().filter(|record| !record.copy).collect();
    let start = now_us() - i64::from(traffic.shape.span_ms) * 1_000;
    let registry = Registry::new(&place.registry)?;
    let processed_topic = processed_topic(topic.project);
    let event = Encoder::new(registry.register(&format!("{}-value", topic.name), EVENT_SCHEMA).await?);
    let found = Encoder::new(registry.register(&format!("{processed_topic}-value"), PROCESSED_SCHEMA).await?);
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
                let key = made.event_id.as_bytes().to_vec();
                let partition = home_partition(&key, place.partitions);
                let offset = next[partition as usize];
                next[partition as usize] += 1;
                let at = Origin { partition, offset, append_ms };
                processed::write(&found, &in_log[Encoder::EVENT_ID..], [None; 3], at, &mut sent_on);
                Made { partition, key, in_log, sent_on }
            })
            .collect();
        let mut records = Vec::with_capacity(2 * made.len());
        for Made { partition, key, in_log, sent_on } in &made {
            let (partition, key) = (*partition, Some(key.as_slice()));
            records.push(Outgoing { topic: &topic.name, partition, key, value: in_log, headers: &[] });
            records.push(Outgoing { topic: &processed_topic, partition, key, value: sent_on, headers: &[] });
        }
        producer.send_all(&records).await?;
    }
    Ok(originals.len() as u64)
}

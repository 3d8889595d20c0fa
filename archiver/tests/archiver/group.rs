//! The consumer that archivers stand on: what it is started with is what it gives, from there on, whole.

use std::collections::BTreeMap;
use std::time::Duration;

use tidemill_common::kafka::{GroupConsumer, GroupEvent, TopicPartition};
use tidemill_common::names::events_topic;
use tidemill_testkit::PARTITIONS;

use crate::support::{World, ends, events_with_copies};

/// Reads until every partition is at its end; gives the offsets in order of arrival.
async fn read(consumer: &mut GroupConsumer, ends: &BTreeMap<i32, i64>) -> BTreeMap<i32, Vec<i64>> {
    let mut offsets: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
    while ends.iter().any(|(partition, end)| offsets.get(partition).and_then(|o| o.last()) != Some(&(end - 1))) {
        match tokio::time::timeout(Duration::from_secs(20), consumer.next()).await.expect("a record") {
            Some(GroupEvent::Records(records)) => {
                for record in records {
                    offsets.entry(record.partition).or_default().push(record.offset);
                }
            }
            other => panic!("{other:?}"),
        }
    }
    offsets
}

fn from(starts: impl Fn(i32) -> i64, ends: &BTreeMap<i32, i64>) -> BTreeMap<i32, Vec<i64>> {
    ends.iter().map(|(&partition, &end)| (partition, (starts(partition)..end).collect())).collect()
}

/// The sooner a start comes after the assignment, the more it meets what the client is still doing.
#[tokio::test(flavor = "multi_thread")]
async fn a_started_partition_gives_every_record_from_there_on() {
    let world = World::new().await;
    world.send_all(&events_with_copies(0, 2_000)).await;
    let ends = ends(&world, &world.project).await;
    let (kafka, topic) = (&world.connections.kafka, events_topic(&world.project));
    for round in 0..15 {
        let group = format!("round-{round}.{}", world.project);
        let timeout = Duration::from_secs(6);
        let mut consumer = GroupConsumer::join(kafka, &group, &format!("^{topic}$"), timeout).unwrap();
        let Some(GroupEvent::Assigned(assigned)) = consumer.next().await else { panic!("no assignment") };
        assert_eq!(assigned.len(), PARTITIONS as usize);
        for at in &assigned {
            consumer.start(at, 0);
        }
        assert_eq!(read(&mut consumer, &ends).await, from(|_| 0, &ends));
        // Back again, in one partition, while the others stand at their ends.
        let at = TopicPartition { topic: topic.as_str().into(), partition: 2 };
        consumer.start(&at, 7);
        let again = BTreeMap::from([(2, ends[&2])]);
        assert_eq!(read(&mut consumer, &again).await, from(|_| 7, &again));
        consumer.leave().await;
    }
}

//! What the stream has sent on: processed events and dead letters.

use std::collections::BTreeMap;

use anyhow::Context;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::{Schema, from_value};
use serde::Deserialize;
use tidemill_common::codec::processed::PROCESSED_SCHEMA;
use tidemill_common::names::{ROUTE, dlq_topic, processed_topic};
use tidemill_testkit::Stack;

use crate::log::{header, origin};

/// A framed value begins with a zero and the schema's id.
const FRAME: usize = 5;

/// A processed event, by what it is known and what was found out about it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Processed {
    /// Which event.
    pub event_id: String,
    /// The kind of device.
    pub device_type: Option<String>,
    /// The traffic source.
    pub traffic_source: Option<String>,
    /// The country.
    pub country: Option<String>,
    /// Where the event stands in the log: the number of its partition,
    pub source_partition: i32,
    /// and its offset.
    pub source_offset: i64,
}

/// What stands in the topics, repeats dropped, by source partition and offset.
#[derive(Debug, Default)]
pub struct Sent {
    /// The processed.
    pub processed: BTreeMap<(i32, i64), Processed>,
    /// The reasons of the dead letters.
    pub dead: BTreeMap<(i32, i64), String>,
    /// What no reader could make sense of.
    pub odd: Vec<String>,
}

/// The processed topic and the dead letters of the stack's project.
pub async fn sent_on(stack: &Stack) -> anyhow::Result<Sent> {
    let schema = Schema::parse_str(PROCESSED_SCHEMA)?;
    let reader = GenericDatumReader::builder(&schema).build()?;
    let mut sent = Sent::default();
    let topic = processed_topic(&stack.project);
    let partitions = stack.partitions_of(&topic);
    for record in stack.records(&topic).await {
        let mut datum = record.value().get(FRAME..).context("a processed record without a frame")?;
        let processed: Processed = from_value(&reader.read_value(&mut datum)?)?;
        let source = (processed.source_partition, processed.source_offset);
        if source.0 % ROUTE % partitions != record.partition {
            sent.odd.push(format!("processed {source:?} stands in partition {}", record.partition));
        }
        let before = sent.processed.insert(source, processed.clone());
        if before.is_some_and(|before| before != processed) {
            sent.odd.push(format!("processed {source:?} stands there in two ways"));
        }
    }
    for record in stack.records(&dlq_topic(&stack.project)).await {
        let source = origin(&record).context("a dead letter without its source")?.at;
        sent.dead.insert(source, header(&record, "reason").unwrap_or_default());
    }
    Ok(sent)
}

//! What the stream has sent on: processed events and dead letters.

use std::collections::BTreeMap;

use anyhow::Context;
use tidemill_common::codec::Decoder;
use tidemill_common::names::{dlq_topic, processed_topic};
use tidemill_common::registry::Registry;
use tidemill_testkit::Stack;

use crate::log::{header, origin};

/// What stands in the topics, repeats dropped, by source partition and offset.
#[derive(Debug, Default)]
pub struct Sent {
    /// The eventIds among the processed.
    pub processed: BTreeMap<(i32, i64), String>,
    /// The reasons of the dead letters.
    pub dead: BTreeMap<(i32, i64), String>,
    /// What no reader could make sense of.
    pub odd: Vec<String>,
}

/// The processed topic and the dead letters of the stack's project.
pub async fn sent_on(stack: &Stack) -> anyhow::Result<Sent> {
    let decoder = Decoder::new(Registry::new(&stack.connections.registry_url)?);
    let mut sent = Sent::default();
    for record in stack.records(&processed_topic(&stack.project)).await {
        let source = origin(&record).context("a processed record without its source")?.at;
        let event = decoder.decode(&record.value).await?;
        if source.0 != record.partition {
            sent.odd.push(format!("processed {source:?} stands in partition {}", record.partition));
        }
        let before = sent.processed.insert(source, event.event_id.clone());
        if before.is_some_and(|before| before != event.event_id) {
            sent.odd.push(format!("processed {source:?} stands there with two eventIds"));
        }
    }
    for record in stack.records(&dlq_topic(&stack.project)).await {
        let source = origin(&record).context("a dead letter without its source")?.at;
        sent.dead.insert(source, header(&record, "reason").unwrap_or_default());
    }
    Ok(sent)
}

//! The log as it stands: every record of a project's events, in all of their topics, decoded.

use tidemill_common::codec::{DecodeError, Decoder, schema_id};
use tidemill_common::event::Event;
use tidemill_common::kafka::Record;
use tidemill_common::registry::Registry;
use tidemill_testkit::Stack;

/// A schema that was registered when all records under it had been refused; those that are sent through again came later.
pub const LATE_SCHEMA: u32 = 4_000_000;

/// One record.
#[derive(Debug, Clone)]
pub struct Line {
    /// The partition's number in the project, and the offset.
    pub at: (i32, i64),
    /// When the broker appended it, in milliseconds since 1970.
    pub append_ms: i64,
    /// Its key, as text.
    pub key: String,
    /// Where it stood before, when it is a stray that was sent home.
    pub origin: Option<Origin>,
    /// Whether it is a dead letter that was sent through again.
    pub redriven: bool,
    /// The event in it, or the reason why there is none.
    pub content: Result<Event, &'static str>,
}

/// Where a stray stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Partition and offset.
    pub at: (i32, i64),
    /// When it was appended there, in milliseconds since 1970.
    pub append_ms: i64,
}

/// The whole log of the stack's project, by partition and offset.
pub async fn read(stack: &Stack) -> anyhow::Result<Vec<Line>> {
    let decoder = Decoder::new(Registry::new(&stack.connections.registry_url)?);
    let mut lines = Vec::new();
    let mut records = Vec::new();
    for topic in stack.project().await.topics() {
        records.extend(stack.records_of_any(&topic).await);
    }
    for record in records {
        let redriven = header(&record, "redrive-of").is_some();
        let too_early = schema_id(record.value()).ok() == Some(LATE_SCHEMA) && !redriven;
        let content = match decoder.decode(record.value()).await {
            Ok(_) if too_early => Err("unknown-schema"),
            Ok(event) => Ok(event),
            Err(DecodeError::Framing) => Err("not-avro"),
            Err(DecodeError::Datum { .. }) => Err("bad-datum"),
            Err(DecodeError::UnknownSchema(_)) => Err("unknown-schema"),
            Err(error) => return Err(error.into()),
        };
        lines.push(Line {
            at: (record.number_of_partition(), record.offset),
            append_ms: record.append_ms,
            key: text(record.key().unwrap_or_default()),
            origin: origin(&record),
            redriven,
            content,
        });
    }
    Ok(lines)
}

/// Which record of the events topic a record stands for, by its header.
pub fn origin(record: &Record) -> Option<Origin> {
    let source = header(record, "source")?;
    let [partition, offset, append_ms] = source.split(':').collect::<Vec<_>>()[..] else { return None };
    Some(Origin { at: (partition.parse().ok()?, offset.parse().ok()?), append_ms: append_ms.parse().ok()? })
}

/// A header of a record, as text.
pub fn header(record: &Record, name: &str) -> Option<String> {
    record.header(name).map(text)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

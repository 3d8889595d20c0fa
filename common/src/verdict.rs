//! What a record of an events topic is. Stream, archiver and replays ask here, so that they agree.

use crate::codec::{DecodeError, Decoder};
use crate::event::Event;
use crate::home::home_partition;
use crate::kafka::Record;

/// Longest key and value together, in bytes. What is sent on gets headers, and must still fit Kafka's usual
/// limit of a mebibyte.
pub const MAX_RECORD: usize = 1_000_000;
/// The reason of records above [`MAX_RECORD`].
pub const TOO_LARGE: &str = "too-large";
/// Longest detail of a rejection, in characters.
const MAX_DETAIL: usize = 1_000;

/// The verdict on one record.
#[derive(Debug)]
pub enum Verdict {
    /// A valid event in its home partition.
    Valid(Event),
    /// A valid event elsewhere: a producer with another partitioner. It counts only in its home partition.
    Stray {
        /// Where it belongs.
        home: i32,
    },
    /// Not an event.
    Rejected(Rejection),
}

/// Why a record is not an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Which step refused it: `decode` or `validate`.
    pub stage: &'static str,
    /// A stable word: `too-large`, `not-avro`, `unknown-schema`, `bad-datum`, `invalid`.
    pub reason: &'static str,
    /// A sentence for people.
    pub detail: String,
}

/// Judges a record. An error means that it cannot be judged now (the registry does not answer): wait and ask
/// again. `UnknownSchema` is such an error too at first; the caller decides when to give up with
/// [`Rejection::unknown_schema`].
pub async fn judge(decoder: &Decoder, record: &Record, partitions: i32) -> Result<Verdict, DecodeError> {
    if !fits(record) {
        return Ok(rejected("decode", TOO_LARGE, format!("key and value have more than {MAX_RECORD} bytes")));
    }
    let event = match decoder.decode(&record.value).await {
        Ok(event) => event,
        Err(error @ DecodeError::Framing) => return Ok(rejected("decode", "not-avro", error)),
        Err(error @ DecodeError::Datum { .. }) => return Ok(rejected("decode", "bad-datum", error)),
        Err(error) => return Err(error),
    };
    if let Err(invalid) = event.validate_appended(record.append_ms) {
        return Ok(rejected("validate", "invalid", invalid));
    }
    let home = home_partition(event.event_id.as_bytes(), partitions);
    if home == record.partition { Ok(Verdict::Valid(event)) } else { Ok(Verdict::Stray { home }) }
}

/// Whether a record is small enough to be sent on.
pub fn fits(record: &Record) -> bool {
    record.value.len() + record.key.as_ref().map_or(0, Vec::len) <= MAX_RECORD
}

impl Rejection {
    /// For a schema id that stayed unknown.
    pub fn unknown_schema(id: u32) -> Self {
        let detail = DecodeError::UnknownSchema(id).to_string();
        Self { stage: "decode", reason: "unknown-schema", detail }
    }
}

fn rejected(stage: &'static str, reason: &'static str, detail: impl ToString) -> Verdict {
    Verdict::Rejected(Rejection { stage, reason, detail: detail.to_string().chars().take(MAX_DETAIL).collect() })
}

//! What a record of an events topic is. Stream, archiver and replays ask here, so that they agree.

use crate::codec::{DecodeError, Decoded, Decoder};
use crate::event::{EventRef, is_object};
use crate::home::Layout;
use crate::kafka::Record;
use crate::origin::Origin;

/// Longest key and value together, in bytes. What is sent on gets headers, and must still fit Kafka's usual
/// limit of a mebibyte.
pub const MAX_RECORD: usize = 1_000_000;
/// The reason of records above [`MAX_RECORD`].
pub const TOO_LARGE: &str = "too-large";
/// The reason of strays that came home too late.
pub const LATE_STRAY: &str = "late-stray";
/// Longest detail of a rejection, in characters.
const MAX_DETAIL: usize = 1_000;

/// The verdict on one record.
#[derive(Debug)]
pub enum Verdict<'a> {
    /// A valid event in its home partition.
    Valid(Decoded<'a>),
    /// A valid event elsewhere: a producer with another partitioner, or one that does not know yet that the project has
    /// got more partitions or a route. It counts only in its home partition.
    Stray {
        /// Where it belongs now: a partition's number in the project.
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
    /// A stable word: `too-large`, `not-avro`, `unknown-schema`, `bad-datum`, `invalid`, `late-stray`.
    pub reason: &'static str,
    /// A sentence for people.
    pub detail: String,
}

/// Judges a record. An error means that it cannot be judged now (the registry does not answer): wait and ask
/// again. `UnknownSchema` is such an error too at first; the caller decides when to give up with
/// [`Rejection::unknown_schema`].
///
/// `layout` is that of the record's project, and `window_ms` says how far apart copies of an event count once.
pub async fn judge<'a>(
    decoder: &Decoder,
    record: &'a Record,
    layout: &Layout,
    window_ms: i64,
) -> Result<Verdict<'a>, DecodeError> {
    judge_with(decoder, record, layout, window_ms, is_object).await
}

/// The same for whoever reads the properties of all events: `is_object` is given them, and says of each what
/// [`is_object`] does.
pub async fn judge_with<'a>(
    decoder: &Decoder,
    record: &'a Record,
    layout: &Layout,
    window_ms: i64,
    is_object: impl FnOnce(&str) -> bool,
) -> Result<Verdict<'a>, DecodeError> {
    if !fits(record) {
        return Ok(rejected("decode", TOO_LARGE, format!("key and value have more than {MAX_RECORD} bytes")));
    }
    let decoded = match decoder.read(record.value()).await {
        Ok(decoded) => decoded,
        Err(error @ DecodeError::Framing) => return Ok(rejected("decode", "not-avro", error)),
        Err(error @ DecodeError::Datum { .. }) => return Ok(rejected("decode", "bad-datum", error)),
        Err(error) => return Err(error),
    };
    let event = decoded.event();
    if let Err(invalid) = event.validate_appended(record.append_ms, is_object) {
        return Ok(rejected("validate", "invalid", invalid));
    }
    if !layout.is_home(&event, record.number_of_partition(), record.offset) {
        return Ok(Verdict::Stray { home: layout.home(&event) });
    }
    if let Some(late) = late_stray(record, &event, layout, window_ms) {
        return Ok(rejected("validate", LATE_STRAY, late));
    }
    Ok(Verdict::Valid(decoded))
}

/// What is wrong with a stray that took longer than a window to come home: its copies may have been here and be
/// forgotten by now, so it could count twice. Headers and append times alone decide.
fn late_stray(record: &Record, event: &EventRef<'_>, layout: &Layout, window_ms: i64) -> Option<String> {
    let Origin { partition, offset, append_ms } = Origin::of_sent_on(record)?;
    let late_ms = record.append_ms.saturating_sub(append_ms);
    // It may have been a stray in this very partition, before that was its home.
    let was_stray = !layout.is_home(event, partition, offset);
    (was_stray && late_ms > window_ms).then(|| {
        format!(
            "came home from partition {partition}, offset {offset}, {} s after it was appended there; within {} s it \
             would have counted",
            late_ms / 1_000,
            window_ms / 1_000
        )
    })
}

/// Whether a record is small enough to be sent on.
pub fn fits(record: &Record) -> bool {
    record.size() <= MAX_RECORD
}

impl Rejection {
    /// For a schema id that stayed unknown.
    pub fn unknown_schema(id: u32) -> Self {
        let detail = DecodeError::UnknownSchema(id).to_string();
        Self { stage: "decode", reason: "unknown-schema", detail }
    }
}

fn rejected(stage: &'static str, reason: &'static str, detail: impl ToString) -> Verdict<'static> {
    Verdict::Rejected(Rejection { stage, reason, detail: detail.to_string().chars().take(MAX_DETAIL).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::{Era, Spread};
    use crate::kafka::TopicPartition;
    use crate::origin::SOURCE;

    fn record(append_ms: i64, headers: &[(&str, &str)]) -> Record {
        let headers = headers.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect();
        let at = TopicPartition { topic: "events.p".into(), partition: 3 };
        Record::new(at, 7, append_ms, (None, b""), headers)
    }

    /// Its home is partition 3 of 4.
    fn event() -> EventRef<'static> {
        EventRef { event_id: "e-17", event_type: "view", ..EventRef::default() }
    }

    fn late(record: &Record) -> Option<String> {
        late_stray(record, &event(), &Layout::new(4, Vec::new(), Vec::new()), 5_000)
    }

    #[test]
    fn a_stray_is_late_when_it_took_longer_than_the_window() {
        let origin = [(SOURCE, "1:9:1000")];
        assert_eq!(late(&record(6_000, &origin)), None, "exactly the window is in time");
        let late_by = late(&record(6_001, &origin)).expect("late");
        assert!(late_by.contains("partition 1, offset 9, 5 s"), "{late_by}");
        assert_eq!(late(&record(6_001, &[])), None, "not a stray");
    }

    #[test]
    fn headers_that_no_worker_wrote_mean_nothing() {
        let nonsense = [(SOURCE, "x:9:0")];
        assert_eq!(late(&record(i64::MAX, &nonsense)), None);
        let extreme = [(SOURCE, "1:9:-9223372036854775808")];
        assert!(late(&record(i64::MAX, &extreme)).is_some());
        let from_here = [(SOURCE, "3:2:0")];
        assert_eq!(late(&record(i64::MAX, &from_here)), None, "no stray comes from its home");
    }

    #[test]
    fn a_stray_may_come_from_what_is_its_home_by_now() {
        let era = Era { spread: Spread { partitions: 2, routes: 0 }, cutoffs: vec![vec![0, 0, 0, 3]] };
        let grown = Layout::new(4, Vec::new(), vec![era]);
        let from_here = [(SOURCE, "3:2:0")];
        assert!(late_stray(&record(6_000, &from_here), &event(), &grown, 5_000).is_some());
    }
}

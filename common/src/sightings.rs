//! Fills seen stores from the log, so that the records behind a position can be judged.

use std::collections::{BTreeSet, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

use rdkafka::error::KafkaError;
use tokio_util::sync::CancellationToken;

use crate::codec::{DecodeError, Decoder};
use crate::event::Event;
use crate::first_sight::{SeenStore, fingerprint};
use crate::kafka::{History, Record, Span, TopicPartition};
use crate::verdict::{Verdict, judge};

/// Brokers' and workers' clocks may differ by this much.
const CLOCK_SLACK_MS: i64 = 3_600_000;

/// Why a store could not be filled; trying again may help.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The log could not be read.
    #[error("the log cannot be read: {0}")]
    Kafka(#[from] KafkaError),
    /// A record could not be judged.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// One partition to make ready.
pub struct Fill {
    /// The partition.
    pub at: TopicPartition,
    /// The position from which records will be judged.
    pub next: i64,
    /// The first offset that is wanted back for another reason (see `again`); at most `next`.
    pub again_from: i64,
    /// The project's partition count.
    pub partitions: i32,
    /// The project's dedupe window.
    pub window_ms: i64,
    /// Offsets that were given up on, whatever is known of their schemas now ([`crate::dead_letters`]).
    pub dead: BTreeSet<i64>,
    /// What is known already.
    pub seen: SeenStore,
}

/// Reads what the stores miss and gives them back, complete. `again` sees every valid event from
/// `again_from` up to `next`. Blocks.
pub fn fill(
    history: &History,
    decoder: &Decoder,
    mut fills: Vec<Fill>,
    cancel: &CancellationToken,
    mut again: impl FnMut(&Record, &Event),
) -> Result<HashMap<TopicPartition, SeenStore>, FillError> {
    let missing = missing(history, &fills, cancel)?;
    let spans: Vec<Span> = fills
        .iter()
        .zip(&missing)
        .map(|(fill, span)| Span {
            from: if span.from < span.to { span.from.min(fill.again_from) } else { fill.again_from },
            ..span.clone()
        })
        .collect();
    let index: HashMap<TopicPartition, usize> =
        fills.iter().enumerate().map(|(i, fill)| (fill.at.clone(), i)).collect();
    let runtime = tokio::runtime::Handle::current();
    history.read(&spans, cancel, |record| -> Result<(), FillError> {
        let fill = &mut fills[index[&record.topic_partition()]];
        if fill.dead.contains(&record.offset) {
            return Ok(());
        }
        let event = match runtime.block_on(judge(decoder, &record, fill.partitions, fill.window_ms)) {
            Ok(Verdict::Valid(event)) => event,
            // It was no sighting when it was first read either.
            Ok(_) => return Ok(()),
            // An unknown schema too: this record was judged once, so the registry has less than it had.
            Err(error) => return Err(error.into()),
        };
        fill.seen.sight(fingerprint(&event.event_id), record.offset, record.append_ms);
        if record.offset >= fill.again_from {
            again(&record, &event);
        }
        Ok(())
    })?;
    for (fill, span) in fills.iter_mut().zip(missing) {
        fill.seen.cover(span.from..span.to);
    }
    Ok(fills.into_iter().map(|fill| (fill.at, fill.seen)).collect())
}

/// What each store lacks: from one window before its position's record up to the position.
fn missing(history: &History, fills: &[Fill], cancel: &CancellationToken) -> Result<Vec<Span>, KafkaError> {
    let partitions: Vec<TopicPartition> = fills.iter().map(|fill| fill.at.clone()).collect();
    let bounds = history.bounds(&partitions)?;
    let next_times = append_times(history, fills, &bounds, cancel)?;
    let windows: Vec<_> =
        fills.iter().map(|fill| (fill.at.clone(), next_times[&fill.at].saturating_sub(fill.window_ms))).collect();
    let oldest = history.offsets_at(&windows)?;
    Ok(fills
        .iter()
        .map(|fill| {
            let low = bounds.get(&fill.at).map_or(0, |(low, _)| *low);
            // No record that young: nothing before the position matters.
            let oldest = oldest.get(&fill.at).copied().unwrap_or(fill.next).clamp(low.min(fill.next), fill.next);
            let range = fill.seen.missing(oldest, fill.next);
            Span { at: fill.at.clone(), from: range.start, to: range.end }
        })
        .collect())
}

/// A time that no record at or behind a position is older than: the append time of the record there; where
/// there is none yet, an hour ago; where a gap hides it, the beginning of time.
fn append_times(
    history: &History,
    fills: &[Fill],
    bounds: &HashMap<TopicPartition, (i64, i64)>,
    cancel: &CancellationToken,
) -> Result<HashMap<TopicPartition, i64>, KafkaError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
    let behind = |fill: &Fill| bounds.get(&fill.at).is_some_and(|(_, high)| fill.next < *high);
    let unread = |fill: &Fill| if behind(fill) { 0 } else { now - CLOCK_SLACK_MS };
    let mut times: HashMap<_, _> = fills.iter().map(|fill| (fill.at.clone(), unread(fill))).collect();
    let next = |fill: &Fill| Span { at: fill.at.clone(), from: fill.next, to: fill.next + 1 };
    let spans: Vec<Span> = fills.iter().filter(|fill| behind(fill)).map(next).collect();
    history.read(&spans, cancel, |record| -> Result<(), KafkaError> {
        times.insert(record.topic_partition(), record.append_ms);
        Ok(())
    })?;
    Ok(times)
}

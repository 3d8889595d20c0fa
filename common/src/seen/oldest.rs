//! From which offset on a partition's past matters to what is judged next. Blocks.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use rdkafka::error::KafkaError;
use tokio_util::sync::CancellationToken;

use super::fill::Fill;
use super::heir::Heir;
use crate::kafka::{History, Span, TopicPartition};

/// Brokers' and workers' clocks may differ by this much.
const CLOCK_SLACK_MS: i64 = 3_600_000;
/// Brokers' clocks among each other: when a partition's leader changes, append times may go back.
const BROKERS_SLACK_MS: i64 = 60_000;

/// The first offsets that may matter to a partition.
#[derive(Default)]
pub struct Oldest {
    /// In its own log; none: there is no record that young.
    pub own: Option<i64>,
    /// In its parent's, as an offset of its own; none: nothing there is.
    pub inherited: Option<i64>,
}

/// The first offsets that may matter to each partition.
pub fn oldest(
    history: &History,
    fills: &[Fill],
    ats: &[TopicPartition],
    bounds: &HashMap<TopicPartition, (i64, i64)>,
    cancel: &CancellationToken,
) -> Result<HashMap<TopicPartition, Oldest>, KafkaError> {
    let positions: Vec<(TopicPartition, i64)> =
        ats.iter().zip(fills).map(|(at, fill)| (at.clone(), fill.next)).collect();
    let next_times = append_times(history, &positions, bounds, cancel)?;
    let before = |window_ms: i64| window_ms.saturating_add(BROKERS_SLACK_MS);
    let times: Vec<_> = ats
        .iter()
        .zip(fills)
        .map(|(at, fill)| (at.clone(), next_times[at].saturating_sub(before(fill.window_ms))))
        .collect();
    let own = history.offsets_at(&times)?.into_iter();
    let mut oldest: HashMap<_, _> = own.map(|(at, own)| (at, Oldest { own: Some(own), inherited: None })).collect();
    let heirs =
        times.into_iter().zip(fills).filter_map(|((at, ms), fill)| Some((Heir::of(&fill.layout, &at)?, at, ms)));
    for round in rounds(heirs) {
        let asked: Vec<_> = round.iter().map(|(from, (.., ms))| (from.clone(), *ms)).collect();
        let found = history.offsets_at(&asked)?;
        for (from, (heir, at, _)) in round {
            oldest.entry(at).or_default().inherited = found.get(&from).and_then(|offset| heir.offset(*offset));
        }
    }
    Ok(oldest)
}

/// By parent: its heir, the same as a partition, and the time that is asked for.
type Round = HashMap<TopicPartition, (Heir, TopicPartition, i64)>;

/// Kafka answers one question about a partition at a time, so siblings have to take turns.
fn rounds(heirs: impl Iterator<Item = (Heir, TopicPartition, i64)>) -> Vec<Round> {
    let mut rounds = Vec::<Round>::new();
    for (heir, at, ms) in heirs {
        let free = rounds.iter().position(|round| !round.contains_key(&heir.from)).unwrap_or(rounds.len());
        rounds.resize_with(rounds.len().max(free + 1), HashMap::new);
        rounds[free].insert(heir.from.clone(), (heir, at, ms));
    }
    rounds
}

/// A time that no record at or behind a position is older than: the append time of the record there; where
/// there is none yet, an hour ago; where a gap hides it, the beginning of time.
fn append_times(
    history: &History,
    positions: &[(TopicPartition, i64)],
    bounds: &HashMap<TopicPartition, (i64, i64)>,
    cancel: &CancellationToken,
) -> Result<HashMap<TopicPartition, i64>, KafkaError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
    let behind = |(at, next): &(TopicPartition, i64)| bounds.get(at).is_some_and(|(_, high)| next < high);
    let unread = |position| if behind(position) { 0 } else { now - CLOCK_SLACK_MS };
    let mut times: HashMap<_, _> = positions.iter().map(|position| (position.0.clone(), unread(position))).collect();
    let span = |(at, next): &(TopicPartition, i64)| Span { at: at.clone(), from: *next, to: next + 1 };
    let spans: Vec<Span> = positions.iter().filter(|position| behind(position)).map(span).collect();
    history.read(&spans, cancel, |record| -> Result<(), KafkaError> {
        times.insert(record.topic_partition(), record.append_ms);
        Ok(())
    })?;
    Ok(times)
}

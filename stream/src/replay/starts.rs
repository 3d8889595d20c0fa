//! Where a replay begins: at offsets before which Kafka still holds one dedupe window, since what a record is a copy of
//! has to be known. What a log has lost from its beginning comes from the archive, up to such an offset; without one,
//! nothing is rebuilt as if all were there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat};
use serde::Serialize;
use tidemill_common::kafka::{History, Span, TopicPartition};
use tidemill_common::projects::Project;
use tokio_util::sync::CancellationToken;

use super::{From, ReplayError, refused};

/// Brokers' clocks among each other: when a partition's leader changes, append times may go back.
const SLACK_MS: i64 = 60_000;

/// Where a partition begins.
#[derive(Debug, Clone, Serialize)]
pub struct Start {
    /// The partition.
    pub partition: i32,
    /// The first offset that is read.
    pub from: i64,
    /// Where the live generation stands.
    pub live: i64,
    /// What is before the first offset comes from the archive.
    pub joined: bool,
}

/// What is known of a partition.
struct Known {
    at: TopicPartition,
    low: i64,
    live: i64,
}

/// Where each partition begins. `archived` is up to where the archive has each of them; empty: it is not to be used. Blocks.
pub(super) fn starts(
    history: &History,
    topic: &str,
    live: &BTreeMap<i32, i64>,
    from: &From,
    archived: &BTreeMap<i32, i64>,
    project: &Project,
) -> Result<Vec<Start>, ReplayError> {
    let topic: Arc<str> = Arc::from(topic);
    let ats: Vec<TopicPartition> =
        live.keys().map(|partition| TopicPartition { topic: Arc::clone(&topic), partition: *partition }).collect();
    let bounds = history.bounds(&ats)?;
    let known: Vec<Known> = ats
        .into_iter()
        .filter_map(|at| Some(Known { low: bounds.get(&at)?.0, live: live[&at.partition], at }))
        .collect();
    let mut begins = begins(history, &known, from)?;
    let window = project.dedupe_window_ms.saturating_add(SLACK_MS.min(project.dedupe_window_ms));
    let lacking = without_window(history, &known, &begins, window)?;
    let joins = match from {
        From::Offsets(_) => HashMap::new(), // an archive is by times
        _ if archived.is_empty() => HashMap::new(),
        From::Beginning | From::Time(_) => joins(history, &lacking, archived, window)?,
    };
    let joined: BTreeSet<i32> = joins.keys().map(|at| at.partition).collect();
    begins.extend(joins);
    refuse_without_window(history, &without_window(history, &known, &begins, window)?, window)?;
    let start = |known: &Known| {
        let partition = known.at.partition;
        let (from, joined) = (begins[&known.at].offset, joined.contains(&partition));
        Start { partition, from, live: known.live, joined }
    };
    Ok(known.iter().map(start).collect())
}

/// For partitions whose log has lost what is needed: the first offset before which Kafka holds one window, or where the
/// live generation stands, if Kafka holds less; live workers that start anew know no more either. Up to there the
/// archive has to have everything.
fn joins(
    history: &History,
    lacking: &[&Known],
    archived: &BTreeMap<i32, i64>,
    window_ms: i64,
) -> Result<HashMap<TopicPartition, Begin>, ReplayError> {
    let mut joins = HashMap::new();
    for known in lacking {
        let partition = known.at.partition;
        let wanted = appended(history, &known.at, known.low)?.map(|first_ms| first_ms.saturating_add(window_ms + 1));
        let found = match wanted {
            Some(ms) => history.offsets_at(&[(known.at.clone(), ms)])?.into_values().next(),
            None => None,
        };
        let begin = match found.filter(|offset| *offset < known.live) {
            Some(offset) => Begin { offset, append_ms: wanted },
            None => Begin { offset: known.live, append_ms: None },
        };
        if archived.get(&partition).is_none_or(|next| *next < begin.offset) {
            return refused(format!(
                "the archive has not come to offset {} of partition {partition}, where Kafka can take over; wait for the \
                 archiver, and see whether it is at work",
                begin.offset
            ));
        }
        joins.insert(known.at.clone(), begin);
    }
    Ok(joins)
}

/// A first offset, and the append time from which on a window is needed.
struct Begin {
    offset: i64,
    /// None: what comes is new, or all of the log is read.
    append_ms: Option<i64>,
}

fn begins(history: &History, known: &[Known], from: &From) -> Result<HashMap<TopicPartition, Begin>, ReplayError> {
    let whole = |known: &Known| (known.at.clone(), Begin { offset: known.low, append_ms: Some(0) });
    match from {
        From::Beginning => Ok(known.iter().map(whole).collect()),
        From::Time(time) => {
            let ms = time.timestamp_millis();
            let times: Vec<_> = known.iter().map(|known| (known.at.clone(), ms)).collect();
            let found = history.offsets_at(&times)?;
            let begin = |known: &Known| {
                let offset = found.get(&known.at).copied().unwrap_or(known.live).min(known.live);
                (known.at.clone(), Begin { offset, append_ms: Some(ms) })
            };
            Ok(known.iter().map(begin).collect())
        }
        From::Offsets(offsets) => {
            let unknown = offsets.keys().find(|partition| known.iter().all(|known| known.at.partition != **partition));
            if let Some(partition) = unknown {
                return refused(format!("partition {partition} is not counted; see 'tidemill lag'"));
            }
            let mut begins = HashMap::new();
            for known in known {
                let Some(&offset) = offsets.get(&known.at.partition) else {
                    begins.extend([whole(known)]);
                    continue;
                };
                if !(known.low..=known.live).contains(&offset) {
                    return refused(format!(
                        "partition {} can begin at offsets {} to {}, not at {offset}",
                        known.at.partition, known.low, known.live
                    ));
                }
                let append_ms = appended(history, &known.at, offset)?;
                begins.insert(known.at.clone(), Begin { offset, append_ms });
            }
            Ok(begins)
        }
    }
}

/// When the record at an offset, or the next one, was appended; none at the log's end.
fn appended(history: &History, at: &TopicPartition, offset: i64) -> Result<Option<i64>, ReplayError> {
    let mut found = None;
    let span = Span { at: at.clone(), from: offset, to: offset + 1 };
    history.read(&[span], &CancellationToken::new(), |record| -> Result<(), ReplayError> {
        found = Some(record.append_ms);
        Ok(())
    })?;
    Ok(found)
}

/// Partitions that have lost what is needed from their beginning: unless what they have begins before the window does.
fn without_window<'a>(
    history: &History,
    known: &'a [Known],
    begins: &HashMap<TopicPartition, Begin>,
    window_ms: i64,
) -> Result<Vec<&'a Known>, ReplayError> {
    let cut = known.iter().filter(|known| known.low > 0);
    let windows: Vec<_> =
        cut.filter_map(|known| Some((known, begins[&known.at].append_ms?.saturating_sub(window_ms)))).collect();
    if windows.is_empty() {
        return Ok(Vec::new());
    }
    let asked: Vec<_> = windows.iter().map(|(known, ms)| (known.at.clone(), *ms)).collect();
    let found = history.offsets_at(&asked)?;
    // Where it is the first record that is young enough, nobody knows what was before it.
    let lacks = |(known, _): &(&Known, i64)| found.get(&known.at).is_some_and(|offset| *offset <= known.low);
    Ok(windows.into_iter().filter(lacks).map(|(known, _)| known).collect())
}

fn refuse_without_window(history: &History, lacking: &[&Known], window_ms: i64) -> Result<(), ReplayError> {
    let mut problems = Vec::new();
    let mut earliest = 0;
    for known in lacking {
        let ms = appended(history, &known.at, known.low)?.unwrap_or_default();
        earliest = earliest.max(ms.saturating_add(window_ms + 1));
        let since = text(ms);
        problems.push(format!("of partition {} only from offset {}, appended {since}", known.at.partition, known.low));
    }
    if problems.is_empty() {
        return Ok(());
    }
    let more = problems.len().saturating_sub(3);
    problems.truncate(3);
    refused(format!(
        "Kafka holds {}{}, and a replay needs one dedupe window before its first record; it can begin at {} or later: \
         --from-time {}",
        problems.join(", "),
        if more > 0 { format!(" and {more} more") } else { String::new() },
        text(earliest),
        text(earliest)
    ))
}

/// Rounded up to seconds.
fn text(ms: i64) -> String {
    let time = DateTime::from_timestamp((ms + 999).div_euclid(1_000), 0).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

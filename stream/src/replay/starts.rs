//! Where a replay begins: at offsets before which Kafka still holds one dedupe window, since what a record is a copy of
//! has to be known. What a log has lost from its beginning comes from the archive, up to such an offset; without one,
//! nothing is rebuilt as if all were there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, SecondsFormat};
use serde::Serialize;
use tidemill_common::home::Layout;
use tidemill_common::kafka::{History, Span, TopicPartition};
use tidemill_common::projects::Project;
use tokio_util::sync::CancellationToken;

use super::{From, ReplayError, refused};

/// Brokers' clocks among each other: when a partition's leader changes, append times may go back.
const SLACK_MS: i64 = 60_000;

/// Where a partition begins.
#[derive(Debug, Clone, Serialize)]
pub struct Start {
    /// The partition's number.
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
    /// Whose log has to be there too, since sightings are inherited from it, and where that begins; none: nobody's, or
    /// all of it is there.
    parent: Option<(TopicPartition, i64)>,
}

impl Known {
    /// The logs that it needs and that have lost something, and where they begin.
    fn cuts(&self) -> impl Iterator<Item = (&TopicPartition, i64)> {
        let own = (self.low > 0).then_some((&self.at, self.low));
        own.into_iter().chain(self.parent.as_ref().map(|(parent, low)| (parent, *low)))
    }
}

/// Where each partition begins. `archived` is up to where the archive has each of them; empty: it is not to be used. Blocks.
pub(super) fn starts(
    history: &History,
    live: &BTreeMap<i32, i64>,
    from: &From,
    archived: &BTreeMap<i32, i64>,
    (project, layout): (&Project, &Layout),
) -> Result<Vec<Start>, ReplayError> {
    let at = |number: i32| {
        let (topic, partition) = project.place(number);
        TopicPartition { topic: topic.into(), partition }
    };
    let ats: Vec<TopicPartition> = live.keys().copied().map(at).collect();
    let bounds = history.bounds(&ats)?;
    let parent = |partition: i32| {
        let parent = at(layout.parent(partition)?.partition);
        bounds.get(&parent).map(|(low, _)| (parent, *low)).filter(|(_, low)| *low > 0)
    };
    let known = |at: &TopicPartition| {
        let (low, live, parent) = (bounds.get(at)?.0, live[&at.number()], parent(at.number()));
        Some(Known { at: at.clone(), low, live, parent })
    };
    let known: Vec<Known> = ats.iter().filter_map(known).collect();
    let mut begins = begins(history, &known, from)?;
    let window = project.dedupe_window_ms.saturating_add(SLACK_MS.min(project.dedupe_window_ms));
    let lacking = without_window(history, &known, &begins, window)?;
    let lacks =
        |known: &&Known| begins[&known.at].append_ms.is_some() && known.cuts().any(|(at, _)| lacking.contains_key(at));
    let lacking: Vec<&Known> = known.iter().filter(lacks).collect();
    let joins = match from {
        From::Offsets(_) => HashMap::new(), // an archive is by times
        _ if archived.is_empty() => HashMap::new(),
        From::Beginning | From::Time(_) => joins(history, &lacking, archived, window)?,
    };
    let joined: BTreeSet<i32> = joins.keys().map(TopicPartition::number).collect();
    begins.extend(joins);
    refuse_without_window(history, &without_window(history, &known, &begins, window)?, window)?;
    let start = |known: &Known| {
        let partition = known.at.number();
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
        let partition = known.at.number();
        let wanted = held_since(history, known)?.map(|first_ms| first_ms.saturating_add(window_ms + 1));
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
            let unknown = offsets.keys().find(|partition| known.iter().all(|known| known.at.number() != **partition));
            if let Some(partition) = unknown {
                return refused(format!("partition {partition} is not counted; see 'tidemill lag'"));
            }
            let mut begins = HashMap::new();
            for known in known {
                let Some(&offset) = offsets.get(&known.at.number()) else {
                    begins.extend([whole(known)]);
                    continue;
                };
                if !(known.low..=known.live).contains(&offset) {
                    return refused(format!(
                        "partition {} can begin at offsets {} to {}, not at {offset}",
                        known.at.number(),
                        known.low,
                        known.live
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

/// From when on Kafka holds all that a partition's records may be copies of; none: it holds none.
fn held_since(history: &History, known: &Known) -> Result<Option<i64>, ReplayError> {
    let own = if known.low > 0 { appended(history, &known.at, known.low)? } else { Some(0) };
    let inherited = match &known.parent {
        Some((parent, low)) => appended(history, parent, *low)?,
        None => own,
    };
    Ok(own.zip(inherited).map(|(own, inherited)| own.max(inherited)))
}

/// The logs that have lost what is needed from their beginning, and where they begin now: what a log has lost is needed,
/// unless what it has begins before the window does.
fn without_window<'a>(
    history: &History,
    known: &'a [Known],
    begins: &HashMap<TopicPartition, Begin>,
    window_ms: i64,
) -> Result<BTreeMap<&'a TopicPartition, i64>, ReplayError> {
    // Where each log that is cut begins, and from when on it is needed.
    let mut windows = BTreeMap::<&TopicPartition, (i64, i64)>::new();
    for known in known {
        let Some(ms) = begins[&known.at].append_ms.map(|ms| ms.saturating_sub(window_ms)) else { continue };
        for (at, low) in known.cuts() {
            let needed = windows.entry(at).or_insert((low, ms));
            needed.1 = ms.min(needed.1);
        }
    }
    if windows.is_empty() {
        return Ok(BTreeMap::new());
    }
    let asked: Vec<_> = windows.iter().map(|(at, (_, ms))| ((*at).clone(), *ms)).collect();
    let found = history.offsets_at(&asked)?;
    // Where it is the first record that is young enough, nobody knows what was before it.
    let lacks = |at: &TopicPartition, low: i64| found.get(at).is_some_and(|offset| *offset <= low);
    Ok(windows.into_iter().map(|(at, (low, _))| (at, low)).filter(|(at, low)| lacks(at, *low)).collect())
}

fn refuse_without_window(
    history: &History,
    lacking: &BTreeMap<&TopicPartition, i64>,
    window_ms: i64,
) -> Result<(), ReplayError> {
    let mut problems = Vec::new();
    let mut earliest = 0;
    for (at, low) in lacking {
        let ms = appended(history, at, *low)?.unwrap_or_default();
        earliest = earliest.max(ms.saturating_add(window_ms + 1));
        problems.push(format!("of partition {} only from offset {low}, appended {}", at.number(), text(ms)));
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

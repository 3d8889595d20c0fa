//! The bytes of dead letters: from the dead-letter topic, where they stand in about the order in which they were
//! refused, or from where they were refused, which holds them for a shorter time but also when they are too large to be
//! sent on. What has other bytes than the letter's row says is not the letter. Everything here blocks.

use std::collections::HashMap;
use std::sync::Arc;

use rdkafka::error::KafkaError;
use tidemill_common::dead_letters::{LetterId, digest};
use tidemill_common::kafka::{History, Record, Span, TopicPartition};
use tidemill_common::names::dlq_topic;
use tidemill_common::origin::Origin;
use tidemill_common::projects::Project;
use tokio_util::sync::CancellationToken;

/// A letter may have stood in its topic for so long when its row was written, by clocks that may differ.
const EARLIER_MS: i64 = 600_000;

/// A letter whose bytes are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub id: LetterId,
    /// How often it has been refused.
    pub attempts: i32,
    /// What its record is known by.
    pub digest: Vec<u8>,
    /// When its row was written, in milliseconds since 1970.
    pub created_ms: i64,
}

/// Letters of one project whose bytes are wanted, by the partition's number and offset; of a topic that was made again there may be
/// several of one place.
pub type Wants = HashMap<(i32, i64), Vec<Wanted>>;

/// Why a reader stops.
enum Stop {
    Kafka(KafkaError),
    /// All was found, or nobody wants more.
    Enough,
}

impl From<KafkaError> for Stop {
    fn from(error: KafkaError) -> Self {
        Self::Kafka(error)
    }
}

/// Hands what the dead-letter topic has of the wanted letters to `each`, and takes it out of `wants`; ends early when
/// `each` says false.
pub fn in_dlq(
    history: &History,
    project: &Project,
    wants: &mut Wants,
    mut each: impl FnMut(Wanted, Record) -> bool,
) -> Result<(), KafkaError> {
    let Some(earliest) = wants.values().flatten().map(|wanted| wanted.created_ms).min() else { return Ok(()) };
    let topic: Arc<str> = dlq_topic(&project.id).into();
    let ats: Vec<_> = (0..project.dlq_partitions).map(|partition| at(&topic, partition)).collect();
    let bounds = history.bounds(&ats)?;
    let times: Vec<_> = ats.iter().map(|at| (at.clone(), earliest.saturating_sub(EARLIER_MS))).collect();
    let from = history.offsets_at(&times)?;
    let span = |at: TopicPartition| Some(Span { from: *from.get(&at)?, to: bounds.get(&at)?.1, at });
    let spans: Vec<Span> = ats.into_iter().filter_map(span).collect();
    let read = history.read(&spans, &CancellationToken::new(), |record| {
        let found = source(&record).and_then(|place| take(wants, place, &record));
        let go_on = found.is_none_or(|wanted| each(wanted, record));
        if go_on && !wants.is_empty() { Ok(()) } else { Err(Stop::Enough) }
    });
    ended(read)
}

/// The same for what still stands in the events' topics as they are now, each with its incarnation. One by one, so this
/// is for few.
pub fn in_log(
    history: &History,
    project: &Project,
    incarnations: &HashMap<String, String>,
    wants: &mut Wants,
    mut each: impl FnMut(Wanted, Record) -> bool,
) -> Result<(), KafkaError> {
    let is_now = |id: &String| incarnations.values().any(|now| now == id);
    let here = |letters: &Vec<Wanted>| letters.iter().any(|wanted| is_now(&wanted.id.incarnation));
    let places = wants.iter().filter(|(_, letters)| here(letters)).map(|(place, _)| *place);
    let mut places: Vec<(i32, i64)> = places.collect();
    places.sort_unstable();
    let bounds = history.bounds(&project.partitions_of_events())?;
    for (partition, offset) in places {
        let (topic, own) = project.place(partition);
        let at = at(&topic.into(), own);
        if !bounds.get(&at).is_some_and(|(low, high)| (*low..*high).contains(&offset)) {
            continue;
        }
        let span = Span { at, from: offset, to: offset + 1 };
        let mut go_on = true;
        let read = history.read(&[span], &CancellationToken::new(), |record| -> Result<(), Stop> {
            let found = take(wants, (partition, offset), &record);
            go_on = found.is_none_or(|wanted| each(wanted, record));
            Ok(())
        });
        ended(read)?;
        if !go_on {
            break;
        }
    }
    Ok(())
}

/// The record of one letter, wherever it is still to be had. It has the headers that it bears there.
pub fn one(
    history: &History,
    project: &Project,
    incarnations: &HashMap<String, String>,
    wanted: Wanted,
) -> Result<Option<Record>, KafkaError> {
    let mut found = None;
    let mut wants = Wants::from([((wanted.id.partition, wanted.id.offset), vec![wanted])]);
    let mut each = |_, record| {
        found = Some(record);
        false
    };
    in_log(history, project, incarnations, &mut wants, &mut each)?;
    in_dlq(history, project, &mut wants, &mut each)?;
    Ok(found)
}

/// The letter at this place whose record this is; it is not wanted any more.
fn take(wants: &mut Wants, place: (i32, i64), record: &Record) -> Option<Wanted> {
    let letters = wants.get_mut(&place)?;
    let digest = digest(record.key(), record.value());
    let i = letters.iter().position(|wanted| wanted.digest == digest)?;
    let wanted = letters.swap_remove(i);
    if letters.is_empty() {
        wants.remove(&place);
    }
    Some(wanted)
}

/// Where a dead letter says that it comes from.
fn source(record: &Record) -> Option<(i32, i64)> {
    Origin::of_sent_on(record).map(|origin| (origin.partition, origin.offset))
}

fn at(topic: &Arc<str>, partition: i32) -> TopicPartition {
    TopicPartition { topic: Arc::clone(topic), partition }
}

fn ended(read: Result<(), Stop>) -> Result<(), KafkaError> {
    match read {
        Ok(()) | Err(Stop::Enough) => Ok(()),
        Err(Stop::Kafka(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_common::origin::SOURCE;

    #[test]
    fn only_the_letters_own_bytes_are_its_record() {
        let wanted = |incarnation: &str, value: &[u8]| Wanted {
            id: LetterId { incarnation: incarnation.into(), partition: 1, offset: 7 },
            attempts: 1,
            digest: digest(Some(b"k"), value).to_vec(),
            created_ms: 0,
        };
        let place = at(&"events.dlq.p".into(), 0);
        let headers = vec![(SOURCE.to_owned(), b"1:7:0".to_vec())];
        let record = |value: &[u8]| Record::new(place.clone(), 0, 0, (Some(b"k"), value), headers.clone());
        let mut wants = Wants::from([((1, 7), vec![wanted("old", b"a"), wanted("new", b"b")])]);
        assert_eq!(source(&record(b"b")), Some((1, 7)));
        assert_eq!(take(&mut wants, (1, 7), &record(b"c")), None, "somebody else's");
        assert_eq!(take(&mut wants, (1, 7), &record(b"b")), Some(wanted("new", b"b")));
        assert_eq!(take(&mut wants, (1, 7), &record(b"b")), None, "a repeat");
        assert_eq!(take(&mut wants, (1, 7), &record(b"a")), Some(wanted("old", b"a")));
        assert!(wants.is_empty());
    }
}

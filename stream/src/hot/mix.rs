//! What partitions consist of: which keys, event types and users came most often in the last minutes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::Serialize;
use tidemill_common::event::EventRef;
use tidemill_common::kafka::{Record, TopicPartition};

use super::heavy::Heavy;

/// One record in so many is looked at: a power of two. It costs 40 ns a record, half a percent of what the worker needs.
const SAMPLED: u64 = 16;
/// So many names are told of,
const TOLD: usize = 3;
/// if they are at least this share of their partition.
const WORTH_TELLING: f64 = 0.05;

/// The mixes of all partitions of a worker. Cheap to clone.
#[derive(Clone, Default)]
pub struct Mixes(Arc<Mutex<HashMap<TopicPartition, Mix>>>);

#[derive(Default)]
struct Mix {
    keys: Heavy,
    types: Heavy,
    users: Heavy,
}

/// Why a partition may be hot.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Explanation {
    /// Keys, which are eventIds: copies of one event, when there are any here.
    pub keys: Vec<Part>,
    /// Event types.
    pub types: Vec<Part>,
    /// Users.
    pub users: Vec<Part>,
}

/// A name and how much of its partition it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    /// The key, type or user.
    pub name: String,
    /// Of the records of the last minutes, at least; between 0 and 1.
    pub share: f64,
    /// Its share in the topic's other partitions that this worker has, at most; none when there are no others.
    pub elsewhere: Option<f64>,
}

impl Mixes {
    /// Counts a record, if it is one of those that are looked at.
    pub fn note<'a>(&self, record: &Record, event: impl FnOnce() -> Option<EventRef<'a>>) {
        if !is_sampled(record.offset) {
            return;
        }
        let event = event();
        let mut mixes = self.lock();
        let mix = mixes.entry(record.topic_partition()).or_default();
        let key = record.key().and_then(|key| std::str::from_utf8(key).ok());
        mix.keys.count_any(key);
        mix.types.count_any(event.as_ref().map(|event| event.event_type));
        mix.users.count_any(event.as_ref().and_then(|event| event.user_id));
    }

    /// What came until now counts half from now on. Partitions that are not ours any more are forgotten.
    pub fn age(&self, ours: impl Fn(&TopicPartition) -> bool) {
        let mut mixes = self.lock();
        mixes.retain(|at, _| ours(at));
        for mix in mixes.values_mut() {
            [&mut mix.keys, &mut mix.types, &mut mix.users].into_iter().for_each(Heavy::halve);
        }
    }

    /// What a partition consists of, beside the others of its topic.
    pub fn explain(&self, at: &TopicPartition) -> Explanation {
        let mixes = self.lock();
        let Some(mix) = mixes.get(at) else { return Explanation::default() };
        let others: Vec<&Mix> =
            mixes.iter().filter(|(other, _)| other.topic == at.topic && *other != at).map(|(_, mix)| mix).collect();
        let parts = |part: fn(&Mix) -> &Heavy| {
            let others: Vec<&Heavy> = others.iter().map(|mix| part(mix)).collect();
            parts(part(mix), &others)
        };
        Explanation { keys: parts(|mix| &mix.keys), types: parts(|mix| &mix.types), users: parts(|mix| &mix.users) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TopicPartition, Mix>> {
        self.0.lock().expect("no holder panics")
    }
}

/// Decided by the offset, and so that no pattern in the log can hide between those that are looked at.
fn is_sampled(offset: i64) -> bool {
    offset.unsigned_abs().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SAMPLED.trailing_zeros()) == 0
}

/// What stands out comes first: what is large here and not elsewhere.
fn parts(here: &Heavy, others: &[&Heavy]) -> Vec<Part> {
    let all: f64 = others.iter().map(|other| other.total()).sum();
    let elsewhere = |name: &str| {
        let sum: f64 = others.iter().map(|other| other.share(name).at_most * other.total()).sum();
        (all > 0.0).then(|| sum / all)
    };
    let part = |(name, share): (&str, super::heavy::Share)| Part {
        name: name.to_owned(),
        share: share.at_least,
        elsewhere: elsewhere(name),
    };
    let shares = here.shares().into_iter().filter(|(_, share)| share.at_least >= WORTH_TELLING);
    let mut parts: Vec<Part> = shares.map(part).collect();
    let excess = |part: &Part| part.share - part.elsewhere.unwrap_or_default();
    parts.sort_by(|a, b| excess(b).total_cmp(&excess(a)));
    parts.truncate(TOLD);
    for part in &mut parts {
        part.share = rounded(part.share);
        part.elsewhere = part.elsewhere.map(rounded);
    }
    parts
}

fn rounded(share: f64) -> f64 {
    (share * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use tidemill_common::event::Event;

    use super::*;

    fn note(mixes: &Mixes, partition: i32, offset: i64, event: &Event) {
        let at = TopicPartition { topic: "events.shop".into(), partition };
        let record = Record::new(at, offset, 0, (Some(event.event_id.as_bytes()), b""), Vec::new());
        mixes.note(&record, || Some(event.as_ref()));
    }

    fn event(id: String, event_type: &str, user: &str) -> Event {
        Event { user_id: Some(user.to_owned()), ..Event::new(id, event_type, 0) }
    }

    #[test]
    fn one_record_in_sixteen_is_looked_at() {
        for stride in [1, 2, 3, 8, 64, 1_000] {
            let sampled = (0..16_000).filter(|i| is_sampled(i * stride)).count();
            assert!((800..1_200).contains(&sampled), "{sampled} with a stride of {stride}");
        }
    }

    #[test]
    fn what_stands_out_is_named_first() {
        let mixes = Mixes::default();
        for offset in 0..20_000 {
            for partition in 0..2 {
                // Everybody views; one user of partition 1 also scrolls without end.
                let loud = partition == 1 && offset % 3 > 0;
                let (kind, user) =
                    if loud { ("scroll", "bot".to_owned()) } else { ("view", format!("u-{}", offset % 500)) };
                note(&mixes, partition, offset, &event(format!("{partition}-{offset}"), kind, &user));
            }
        }
        let explanation = mixes.explain(&TopicPartition { topic: "events.shop".into(), partition: 1 });
        let first = |parts: &[Part]| parts.first().map(|part| (part.name.clone(), part.elsewhere));
        assert_eq!(first(&explanation.users).map(|(name, _)| name).as_deref(), Some("bot"));
        assert_eq!(first(&explanation.types), Some(("scroll".to_owned(), Some(0.0))));
        assert!(explanation.types[0].share > 0.6 && explanation.users.len() == 1, "{explanation:?}");
        assert_eq!(explanation.types[1].name, "view");
        assert_eq!(explanation.keys, [], "every key is there once");
        mixes.age(|at| at.partition == 0);
        assert_eq!(
            mixes.explain(&TopicPartition { topic: "events.shop".into(), partition: 1 }),
            Explanation::default()
        );
    }

    #[test]
    fn copies_of_an_event_are_told_by_its_key() {
        let mixes = Mixes::default();
        for offset in 0..4_000 {
            let id = if offset % 2 == 0 { "again".to_owned() } else { format!("e-{offset}") };
            note(&mixes, 0, offset, &event(id, "view", "u"));
        }
        let explanation = mixes.explain(&TopicPartition { topic: "events.shop".into(), partition: 0 });
        assert_eq!(explanation.keys[0].name, "again");
        assert_eq!(explanation.keys[0].elsewhere, None, "there is nothing else");
    }
}

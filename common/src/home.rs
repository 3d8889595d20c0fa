//! An event's home partition: where all copies of an event meet, whoever sends them; and how that goes on when a project
//! gets more partitions, or a topic of its own for some event types (a route). Pure.
//!
//! A project that has changed so has had several [`Era`]s. Each ended at an offset of every partition, its cutoffs, and a
//! record is judged by the era that its own offset lies in. So what a record is never changes, whoever reads it when.
//!
//! Partitions are meant by their numbers in the project ([`crate::names::partition_number`]).

use serde::{Deserialize, Serialize};

use crate::event::EventRef;
use crate::names::ROUTE;

/// How a project's events are spread over partitions, and were before that changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// How often it has changed.
    pub version: i32,
    /// How they are spread now.
    now: Spread,
    routes: Vec<Route>,
    /// What is over, the oldest first.
    eras: Vec<Era>,
}

/// A topic of their own for events of some types. There is nothing about a route that ever changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Its name.
    pub name: String,
    /// The types; no other route has them.
    pub event_types: Vec<String>,
    /// How many times as many partitions it has as the project's own topic.
    pub times: i32,
    /// What homes are computed from there.
    pub key: Key,
}

/// What an event's home in a route is computed from. In any case, events of one home there had one home before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// Its eventId.
    EventId,
    /// Its eventId and its userId: for ids that are unevenly spread. Among the partitions that take over from one, both
    /// decide.
    EventAndUserId {
        /// How many partitions the project's own topic had when the route began.
        from: i32,
    },
}

/// How events are spread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Spread {
    /// How many partitions the project's own topic has; those of routes have a multiple.
    pub partitions: i32,
    /// How many routes there are, of all that there will be.
    pub routes: usize,
}

/// A time that is over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Era {
    /// How events were spread. In the next one there are more partitions, a multiple, or one route more.
    pub spread: Spread,
    /// Where it ended, by topic, the project's own first and then its routes in their order, and partition: the first
    /// offset that belongs to the next era. What was new then is in it, too; where nothing is known, all is later.
    pub cutoffs: Vec<Vec<i64>>,
}

/// Where a partition's events were before there was that partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// The partition.
    pub partition: i32,
    /// The first offset there that belongs to the era of its child.
    pub cutoff: i64,
    /// How events were spread from then on.
    then: Spread,
}

impl Layout {
    /// Of a project that has got through these eras, the oldest first.
    pub fn new(partitions: i32, routes: Vec<Route>, eras: Vec<Era>) -> Self {
        let (version, now) = (eras.len() as i32, Spread { partitions, routes: routes.len() });
        Self { version, now, routes, eras }
    }

    /// How many partitions the project's own topic has.
    pub fn partitions(&self) -> i32 {
        self.now.partitions
    }

    /// Where an event belongs now.
    pub fn home(&self, event: &EventRef<'_>) -> i32 {
        home_in(&self.routes, self.now, event)
    }

    /// Whether a record of an event, at this offset of a partition, is where it belonged when it was appended.
    pub fn is_home(&self, event: &EventRef<'_>, partition: i32, offset: i64) -> bool {
        home_in(&self.routes, self.spread_at(partition, offset), event) == partition
    }

    /// The partition that had the events of this one before there was this one; none: it has always been there, or does
    /// not belong to the layout.
    pub fn parent(&self, partition: i32) -> Option<Parent> {
        let (topic, own) = split(partition)?;
        let times = topic.checked_sub(1).map_or(Some(1), |index| Some(self.routes.get(index)?.times))?;
        let next = self.eras.iter().skip(1).map(|era| era.spread).chain([self.now]);
        self.eras.iter().zip(next).find_map(|(era, then)| {
            let (before, after) = (era.spread.partitions * times, then.partitions * times);
            let grown = topic <= era.spread.routes && (before..after).contains(&own);
            let routed = (era.spread.routes + 1..=then.routes).contains(&topic) && own < after;
            let from = match (grown, routed) {
                (true, _) => (topic, own % before),
                (_, true) => (0, own % era.spread.partitions),
                _ => return None,
            };
            let cutoff = *era.cutoffs.get(from.0)?.get(from.1 as usize)?;
            Some(Parent { partition: from.0 as i32 * ROUTE + from.1, cutoff, then })
        })
    }

    /// Whether an event, of those that were in `parent`, is in `child` from the cutoff on.
    pub fn moves(&self, parent: &Parent, child: i32, event: &EventRef<'_>) -> bool {
        home_in(&self.routes, parent.then, event) == child
    }

    fn spread_at(&self, partition: i32, offset: i64) -> Spread {
        let lies_in = |era: &&Era| {
            let cutoff = split(partition).and_then(|(topic, own)| era.cutoffs.get(topic)?.get(own as usize));
            cutoff.is_some_and(|cutoff| offset < *cutoff)
        };
        self.eras.iter().find(lies_in).map_or(self.now, |era| era.spread)
    }
}

impl Route {
    /// Where an event belongs in the route's topic, which has so many partitions.
    fn home(&self, event: &EventRef<'_>, partitions: i32) -> i32 {
        let id = event.event_id.as_bytes();
        match (self.key, event.user_id) {
            (Key::EventAndUserId { from }, Some(user)) => {
                let both = i64::from(home_partition(&[id, b"\n", user.as_bytes()].concat(), i32::MAX));
                let hash = i64::from(home_partition(id, from)) + i64::from(from) * both;
                (hash % i64::from(partitions)) as i32
            }
            _ => home_partition(id, partitions),
        }
    }
}

/// The number of the partition where events belong that are spread so over a project's own topic and these routes.
pub fn home_in(routes: &[Route], spread: Spread, event: &EventRef<'_>) -> i32 {
    let routes = routes.iter().take(spread.routes);
    let is_of = |(_, route): &(i32, &Route)| route.event_types.iter().any(|of| of == event.event_type);
    let Some((number, route)) = (1..).zip(routes).find(is_of) else {
        return home_partition(event.event_id.as_bytes(), spread.partitions);
    };
    number * ROUTE + route.home(event, spread.partitions * route.times)
}

/// Which topic's a partition is, and its number there.
fn split(partition: i32) -> Option<(usize, i32)> {
    Some((usize::try_from(partition).ok()? / ROUTE as usize, partition % ROUTE))
}

/// The partition in which events with this key belong, as Kafka's Java client computes it
/// (`Utils.toPositive(Utils.murmur2(key)) % partitions`).
pub fn home_partition(key: &[u8], partitions: i32) -> i32 {
    (murmur2(key) & 0x7fff_ffff) as i32 % partitions
}

/// MurmurHash2 with Kafka's seed (`org.apache.kafka.common.utils.Utils.murmur2`).
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let mut hash = SEED ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let tail = words.remainder();
    if !tail.is_empty() {
        for (i, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Of a project without routes.
    fn era(partitions: i32, cutoffs: &[i64]) -> Era {
        Era { spread: Spread { partitions, routes: 0 }, cutoffs: vec![cutoffs.to_vec()] }
    }

    fn view(id: &str) -> EventRef<'_> {
        EventRef { event_id: id, event_type: "view", ..EventRef::default() }
    }

    fn click(id: &str) -> EventRef<'_> {
        EventRef { event_type: "click", ..view(id) }
    }

    fn clicks() -> Route {
        let event_types = vec!["tap".to_owned(), "click".to_owned()];
        Route { name: "clicks".to_owned(), event_types, times: 1, key: Key::EventId }
    }

    /// An id whose home is `partition` of `partitions`.
    fn id(partition: i32, partitions: i32) -> String {
        let mut ids = (0..).map(|i| format!("key-{i}"));
        ids.find(|id| home_partition(id.as_bytes(), partitions) == partition).expect("there is one")
    }

    #[test]
    fn a_record_belongs_where_it_did_when_it_was_appended() {
        let layout = Layout::new(6, Vec::new(), vec![era(2, &[10, 20, 0, 5, 0, 0])]);
        let moved = id(3, 6); // from partition 1 to partition 3
        let is_home = |partition, offset| layout.is_home(&view(&moved), partition, offset);
        assert_eq!(layout.home(&view(&moved)), 3);
        assert!(is_home(1, 19) && !is_home(1, 20), "the parent has it up to the cutoff");
        assert!(!is_home(3, 4) && is_home(3, 5), "the child from the cutoff on");
        assert!(!is_home(0, 0) && !is_home(0, 99) && !is_home(99, 0) && !is_home(-1, 0));
    }

    #[test]
    fn a_child_knows_its_parent() {
        let twelve = [30, 40, 50, 60, 0, 0, 0, 0, 0, 0, 0, 0];
        let layout = Layout::new(12, Vec::new(), vec![era(2, &[10, 20, 0, 5]), era(4, &twelve)]);
        let parent = |partition| layout.parent(partition).map(|parent| (parent.partition, parent.cutoff));
        assert_eq!([0, 1, 12, -1, 10_000].map(parent), [None; 5]);
        assert_eq!([2, 3].map(parent), [Some((0, 10)), Some((1, 20))]);
        assert_eq!([4, 7, 11].map(parent), [Some((0, 30)), Some((3, 60)), Some((3, 60))]);
        let parent = layout.parent(7).expect("a child");
        assert!(layout.moves(&parent, 7, &view(&id(7, 12))) && !layout.moves(&parent, 7, &view(&id(11, 12))));
    }

    #[test]
    fn a_route_takes_its_types_from_the_cutoffs_on() {
        let begun = Era { spread: Spread { partitions: 2, routes: 0 }, cutoffs: vec![vec![10, 20], vec![3, 0]] };
        let layout = Layout::new(2, vec![clicks()], vec![begun]);
        let (zero, one) = (id(0, 2), id(1, 2));
        assert_eq!([layout.home(&view(&one)), layout.home(&click(&one))], [1, 10_001]);
        assert!(layout.is_home(&click(&one), 1, 19) && !layout.is_home(&click(&one), 1, 20));
        assert!(layout.is_home(&view(&one), 1, 19) && layout.is_home(&view(&one), 1, 20));
        assert!(!layout.is_home(&click(&zero), 10_000, 2) && layout.is_home(&click(&zero), 10_000, 3));
        assert!(!layout.is_home(&view(&zero), 10_000, 2) && !layout.is_home(&view(&zero), 10_000, 3));
        let parent = layout.parent(10_001).expect("the project's own partition");
        assert_eq!((parent.partition, parent.cutoff), (1, 20));
        assert!(layout.moves(&parent, 10_001, &click(&one)) && !layout.moves(&parent, 10_001, &view(&one)));
    }

    #[test]
    fn a_composite_key_spreads_what_ids_alone_do_not() {
        let route = Route { times: 4, key: Key::EventAndUserId { from: 4 }, ..clicks() };
        let era = Era { spread: Spread { partitions: 4, routes: 0 }, cutoffs: vec![vec![9; 4], vec![0; 16]] };
        let layout = Layout::new(4, vec![route], vec![era]);
        let id = id(3, 16);
        let home = |user: &str| layout.home(&EventRef { user_id: Some(user), ..click(&id) });
        let homes: BTreeSet<i32> = (0..50).map(|user| home(&format!("u-{user}"))).collect();
        let homes: Vec<i32> = homes.into_iter().collect();
        assert_eq!(homes, [10_003, 10_007, 10_011, 10_015], "all that take over from one");
        assert!(homes.iter().all(|home| layout.parent(*home).is_some_and(|parent| parent.partition == 3)));
        assert_eq!(layout.home(&click(&id)), 10_003, "without a user the id alone decides");
    }

    proptest! {
        /// A project that grows and gets routes while records are written anywhere: what a record is does not change with
        /// what happens behind it, and all first sights of an event lie on one way from parent to child.
        #[test]
        fn what_a_record_is_never_changes(
            start in 1i32..4,
            changes in prop::collection::vec(
                (prop::option::of(2i32..4), 1i32..4, any::<bool>(), prop::collection::vec(0i64..20, 512)), 0..4),
            key in "[a-z]{1,8}",
            user in prop::option::of("[a-z]{1,3}"),
            event_type in "[a-d]",
        ) {
            let event =
                EventRef { event_id: &key, event_type: &event_type, user_id: user.as_deref(), ..EventRef::default() };
            let (mut layout, mut ends) = (Layout::new(start, Vec::new(), Vec::new()), [[0i64; 96]; 5]);
            for (times, of_route, composite, written) in changes {
                ends.as_flattened_mut().iter_mut().zip(written).for_each(|(end, more)| *end += more);
                let before = layout.clone();
                let (mut eras, mut routes) = (before.eras.clone(), before.routes.clone());
                let partitions = match times {
                    Some(times) if before.partitions() * times <= 32 => before.partitions() * times,
                    _ => {
                        let name = ["a", "b", "c", "d"][routes.len()].to_owned();
                        let (event_types, from) = (vec![name.clone()], before.partitions());
                        let key = if composite { Key::EventAndUserId { from } } else { Key::EventId };
                        routes.push(Route { name, event_types, times: of_route, key });
                        before.partitions()
                    }
                };
                let counts: Vec<i32> =
                    std::iter::once(1).chain(routes.iter().map(|route| route.times)).map(|n| n * partitions).collect();
                let topics = counts.iter().enumerate();
                let cutoffs = topics.clone().map(|(topic, count)| ends[topic][..*count as usize].to_vec()).collect();
                eras.push(Era { spread: before.now, cutoffs });
                layout = Layout::new(partitions, routes, eras);
                let all = topics.flat_map(|(topic, count)| (0..*count).map(move |own| (topic, own)));
                let all: Vec<(i32, i64)> =
                    all.map(|(topic, own)| (topic as i32 * ROUTE + own, ends[topic][own as usize])).collect();
                for &(partition, end) in &all {
                    for offset in 0..end {
                        let (then, now) = (before.is_home(&event, partition, offset), layout.is_home(&event, partition, offset));
                        prop_assert_eq!(then, now, "{}/{} under {:?}", partition, offset, layout);
                    }
                    prop_assert_eq!(layout.is_home(&event, partition, end), partition == layout.home(&event));
                }
                let homes = all.iter().filter(|(partition, end)| layout.is_home(&event, *partition, *end)).count();
                prop_assert_eq!(homes, 1, "one home for what comes");
                let (old, new) = (before.home(&event), layout.home(&event));
                if old != new {
                    let parent = layout.parent(new).expect("what is new has a parent");
                    let end = all.iter().find(|(partition, _)| *partition == old).expect("it is still there").1;
                    prop_assert_eq!((parent.partition, parent.cutoff), (old, end));
                    prop_assert!(layout.moves(&parent, new, &event));
                }
            }
        }
    }

    /// Vectors of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn hashes_as_kafka_does() {
        let vectors: [(&str, i32); 6] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ];
        for (key, expected) in vectors {
            assert_eq!(murmur2(key.as_bytes()) as i32, expected, "{key}");
        }
    }

    #[test]
    fn partitions_are_never_negative() {
        for i in 0..1_000 {
            let partition = home_partition(format!("key-{i}").as_bytes(), 6);
            assert!((0..6).contains(&partition));
        }
    }
}

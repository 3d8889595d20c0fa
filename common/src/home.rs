//! An event's home partition: where all copies of an eventId meet, whoever sends them; and how that goes on when a
//! topic gets more partitions. Pure.
//!
//! A topic that has grown has had several [`Era`]s. Each ended at an offset of every partition, its cutoffs, and a record
//! is judged by the era that its own offset lies in. So what a record is never changes, whoever reads it when.

use serde::Deserialize;

/// How a topic's events are spread over its partitions, and were before it got more of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// How many partitions there are.
    partitions: i32,
    /// What is over, the oldest first.
    eras: Vec<Era>,
}

/// The time in which a topic had fewer partitions.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Era {
    /// How many it had. The next number is a multiple of it.
    pub partitions: i32,
    /// Where it ended: for each partition that there was when it did, those that were new then too, the first offset
    /// that belongs to the next era.
    pub cutoffs: Vec<i64>,
}

/// Where a partition's events were before there was that partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parent {
    /// The partition.
    pub partition: i32,
    /// The first offset there that belongs to the era of its child.
    pub cutoff: i64,
    /// How many partitions there were from then on.
    grown_to: i32,
}

impl Layout {
    /// Of a topic that has grown through these eras, the oldest first.
    pub fn new(partitions: i32, eras: Vec<Era>) -> Self {
        Self { partitions, eras }
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> i32 {
        self.partitions
    }

    /// Where events with this key belong now.
    pub fn home(&self, key: &[u8]) -> i32 {
        home_partition(key, self.partitions)
    }

    /// Whether a record with this key, at this offset of a partition, is where it belonged when it was appended.
    pub fn is_home(&self, key: &[u8], partition: i32, offset: i64) -> bool {
        home_partition(key, self.partitions_at(partition, offset)) == partition
    }

    /// The partition that had the events of this one before there was this one; none: it has always been there, or does
    /// not belong to the layout.
    pub fn parent(&self, partition: i32) -> Option<Parent> {
        let grown_to = self.eras.iter().skip(1).map(|era| era.partitions).chain([self.partitions]);
        let (era, grown_to) =
            self.eras.iter().zip(grown_to).find(|(era, to)| (era.partitions..*to).contains(&partition))?;
        let parent = partition % era.partitions;
        Some(Parent { partition: parent, cutoff: *era.cutoffs.get(parent as usize)?, grown_to })
    }

    fn partitions_at(&self, partition: i32, offset: i64) -> i32 {
        let lies_in = |era: &&Era| {
            let cutoff = usize::try_from(partition).ok().and_then(|partition| era.cutoffs.get(partition));
            cutoff.is_some_and(|cutoff| offset < *cutoff)
        };
        self.eras.iter().find(lies_in).map_or(self.partitions, |era| era.partitions)
    }
}

impl Parent {
    /// Whether the events with this key, of those that were in the parent, are in `child` from the cutoff on.
    pub fn leaves_to(&self, child: i32, key: &[u8]) -> bool {
        home_partition(key, self.grown_to) == child
    }
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

    fn era(partitions: i32, cutoffs: &[i64]) -> Era {
        Era { partitions, cutoffs: cutoffs.to_vec() }
    }

    /// A key whose home is `partition` of `partitions`.
    fn key(partition: i32, partitions: i32) -> String {
        let mut keys = (0..).map(|i| format!("key-{i}"));
        keys.find(|key| home_partition(key.as_bytes(), partitions) == partition).expect("there is one")
    }

    #[test]
    fn a_record_belongs_where_it_did_when_it_was_appended() {
        let layout = Layout::new(6, vec![era(2, &[10, 20, 0, 5, 0, 0])]);
        let moved = key(3, 6); // from partition 1 to partition 3
        let is_home = |partition, offset| layout.is_home(moved.as_bytes(), partition, offset);
        assert_eq!(layout.home(moved.as_bytes()), 3);
        assert!(is_home(1, 19) && !is_home(1, 20), "the parent has it up to the cutoff");
        assert!(!is_home(3, 4) && is_home(3, 5), "the child from the cutoff on");
        assert!(!is_home(0, 0) && !is_home(0, 99) && !is_home(99, 0) && !is_home(-1, 0));
    }

    #[test]
    fn a_child_knows_its_parent() {
        let layout = Layout::new(12, vec![era(2, &[10, 20, 0, 5]), era(4, &[30, 40, 50, 60, 0, 0, 0, 0, 0, 0, 0, 0])]);
        let parent = |partition| layout.parent(partition).map(|parent| (parent.partition, parent.cutoff));
        assert_eq!([0, 1, 12, -1].map(parent), [None; 4]);
        assert_eq!([2, 3].map(parent), [Some((0, 10)), Some((1, 20))]);
        assert_eq!([4, 7, 11].map(parent), [Some((0, 30)), Some((3, 60)), Some((3, 60))]);
        let parent = layout.parent(7).expect("a child");
        assert!(parent.leaves_to(7, key(7, 12).as_bytes()) && !parent.leaves_to(7, key(11, 12).as_bytes()));
    }

    proptest! {
        /// A topic that grows while records are written anywhere: what a record is does not change when the topic grows
        /// behind it, and all first sights of a key lie on one way from parent to child.
        #[test]
        fn what_a_record_is_never_changes(
            start in 1i32..4,
            growths in prop::collection::vec((2i32..4, prop::collection::vec(0i64..20, 64)), 0..3),
            key in "[a-z]{1,8}",
        ) {
            let (mut layout, mut ends) = (Layout::new(start, Vec::new()), vec![0i64; 64]);
            let key = key.as_bytes();
            for (times, written) in growths {
                let before = layout.clone();
                let partitions = before.partitions() * times;
                ends.iter_mut().zip(written).for_each(|(end, more)| *end += more);
                let mut eras = before.eras.clone();
                eras.push(Era { partitions: before.partitions(), cutoffs: ends[..partitions as usize].to_vec() });
                layout = Layout::new(partitions, eras);
                for partition in 0..partitions {
                    let end = ends[partition as usize];
                    for offset in 0..end {
                        let (then, now) = (before.is_home(key, partition, offset), layout.is_home(key, partition, offset));
                        prop_assert_eq!(then, now, "{}/{} under {:?}", partition, offset, layout);
                    }
                    prop_assert_eq!(layout.is_home(key, partition, end), partition == layout.home(key));
                }
                let homes: BTreeSet<i32> = (0..partitions).filter(|&p| layout.is_home(key, p, ends[p as usize])).collect();
                prop_assert_eq!(homes.len(), 1, "one home for what comes");
                let (old, new) = (before.home(key), layout.home(key));
                if old != new {
                    let parent = layout.parent(new).expect("what is new has a parent");
                    prop_assert_eq!((parent.partition, parent.cutoff), (old, ends[old as usize]));
                    prop_assert!(parent.leaves_to(new, key));
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

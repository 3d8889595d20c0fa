//! Parts of the space of keys that are filled, verified and, if need be, gone over again by themselves. Pure.

use std::ops::RangeInclusive;

/// Slots of a cluster; a single Redis is cut by the same numbers.
const SLOTS: u16 = 16_384;
/// Into how many parts a single Redis is cut.
const PARTS: u16 = 6;

/// Which key is in which part.
#[derive(Debug, Clone)]
pub struct Shards {
    names: Vec<String>,
    owners: Vec<usize>,
}

impl Shards {
    /// Of a single Redis: ranges of slots of equal length.
    pub fn of_one() -> Self {
        let part = |slot: u16| usize::from(slot) * usize::from(PARTS) / usize::from(SLOTS);
        let names = (1..=PARTS).map(|number| format!("part {number} of {PARTS}")).collect();
        Self { names, owners: (0..SLOTS).map(part).collect() }
    }

    /// Of a cluster: a part for each master. A slot that nobody has is in the first one's.
    pub fn of_masters(masters: &[(String, Vec<RangeInclusive<u16>>)]) -> Self {
        let mut owners = vec![0; usize::from(SLOTS)];
        for (number, (_, ranges)) in masters.iter().enumerate() {
            for slot in ranges.iter().cloned().flatten() {
                if let Some(owner) = owners.get_mut(usize::from(slot)) {
                    *owner = number;
                }
            }
        }
        Self { names: masters.iter().map(|(name, _)| name.clone()).collect(), owners }
    }

    /// How people know them, in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The number of a key's part.
    pub fn of(&self, key: &str) -> usize {
        self.owners[usize::from(slot(key.as_bytes()))]
    }
}

/// The slot of a key, as a cluster counts: of what stands between its first braces, if anything does.
fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        rest.iter().position(|byte| *byte == b'}').filter(|end| *end > 0).map(|end| &rest[..end])
    });
    crc16::State::<crc16::XMODEM>::calculate(tag.unwrap_or(key)) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_slots_that_redis_says() {
        // CLUSTER KEYSLOT
        for (key, expected) in [("foo", 12_182), ("{user1000}.following", 3_443), ("{}foo", 9_500), ("123456789", 12_739)]
        {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
    }

    #[test]
    fn every_key_is_in_one_part_and_every_part_has_about_as_many() {
        let shards = Shards::of_one();
        let mut keys = vec![0; shards.names().len()];
        (0..6_000).for_each(|i| keys[shards.of(&format!("analytics:session:shop:s-{i}"))] += 1);
        assert!(keys.iter().all(|count| (800..1_200).contains(count)), "{keys:?}");
        let two = Shards::of_masters(&[("a:1".to_owned(), vec![0..=8_191]), ("b:2".to_owned(), vec![8_192..=16_383])]);
        assert_eq!((two.of("foo"), two.of("{user1000}.following")), (1, 0));
    }
}

//! Parts of the space of keys that are filled, verified and, if need be, gone over again by themselves.

use tidemill_common::redis::{Mode, Node, Redis, RedisFailure};

/// Slots of a cluster; a single Redis is cut by the same numbers.
const SLOTS: u16 = 16_384;
/// Into how many parts a single Redis is cut.
const PARTS: u16 = 6;

/// Which key is in which part.
#[derive(Clone)]
pub struct Shards {
    names: Vec<String>,
    owners: Owners,
}

#[derive(Clone)]
enum Owners {
    /// By slot.
    Slots(Vec<usize>),
    /// As the ring says.
    Ring(Redis),
}

impl Shards {
    /// Of a Redis: its masters, or parts of the only one.
    pub async fn of(redis: &Redis) -> Result<Self, RedisFailure> {
        if let Mode::Standalone | Mode::Sentinel = redis.mode() {
            return Ok(Self::of_one());
        }
        let masters = redis.masters().await?;
        if redis.mode() == Mode::Cluster {
            return Ok(Self::of_masters(&masters));
        }
        let names = masters.into_iter().map(|node| node.address).collect();
        Ok(Self { names, owners: Owners::Ring(redis.clone()) })
    }

    /// Of a single Redis: ranges of slots of equal length.
    fn of_one() -> Self {
        let part = |slot: u16| usize::from(slot) * usize::from(PARTS) / usize::from(SLOTS);
        let names = (1..=PARTS).map(|number| format!("part {number} of {PARTS}")).collect();
        Self { names, owners: Owners::Slots((0..SLOTS).map(part).collect()) }
    }

    /// Of a cluster as it is now. A slot that nobody has is in the first one's.
    fn of_masters(masters: &[Node]) -> Self {
        let mut owners = vec![0; usize::from(SLOTS)];
        for (number, node) in masters.iter().enumerate() {
            for (first, last) in &node.slots {
                for slot in *first..=*last {
                    owners[usize::from(slot % SLOTS)] = number;
                }
            }
        }
        let names = masters.iter().map(|node| node.address.clone()).collect();
        Self { names, owners: Owners::Slots(owners) }
    }

    /// How people know them, in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The number of a key's part.
    pub fn part(&self, key: &str) -> usize {
        match &self.owners {
            Owners::Slots(owners) => owners[usize::from(slot(key.as_bytes()))],
            Owners::Ring(redis) => {
                let owner = redis.node_of(key.as_bytes());
                self.names.iter().position(|name| Some(name) == owner.as_ref()).unwrap_or_default()
            }
        }
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
    use tidemill_common::redis::Role;

    use super::*;

    #[test]
    fn keys_are_in_the_slots_that_redis_says() {
        // CLUSTER KEYSLOT
        for (key, expected) in
            [("foo", 12_182), ("{user1000}.following", 3_443), ("{}foo", 9_500), ("123456789", 12_739)]
        {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
    }

    #[test]
    fn every_key_is_in_one_part_and_every_part_has_about_as_many() {
        let shards = Shards::of_one();
        let mut keys = vec![0; shards.names().len()];
        (0..6_000).for_each(|i| keys[shards.part(&format!("analytics:session:shop:s-{i}"))] += 1);
        assert!(keys.iter().all(|count| (800..1_200).contains(count)), "{keys:?}");
        let master = |address: &str, slots: Vec<(u16, u16)>| Node {
            address: address.to_owned(),
            role: Role::Master,
            master: None,
            slots,
            share: 0.5,
            tag: String::new(),
            ring: String::new(),
        };
        let two = Shards::of_masters(&[master("a:1", vec![(0, 8_191)]), master("b:2", vec![(8_192, 16_383)])]);
        assert_eq!((two.part("foo"), two.part("{user1000}.following"), two.names()[1].as_str()), (1, 0, "b:2"));
    }
}

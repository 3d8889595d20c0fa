//! A cluster's slots: which slot a key is in, and which node has it. Pure.

use std::ops::RangeInclusive;
use std::sync::LazyLock;

use redis::Value;
use xxhash_rust::xxh3::xxh3_64;

/// All slots of a cluster.
pub const SLOTS: u16 = 16_384;

/// The slot of a key: of what stands between its first braces, if anything does.
pub fn slot(key: &[u8]) -> u16 {
    let tag = memchr::memchr(b'{', key).and_then(|open| {
        let rest = &key[open + 1..];
        memchr::memchr(b'}', rest).filter(|end| *end > 0).map(|end| &rest[..end])
    });
    crc16::State::<crc16::XMODEM>::calculate(tag.unwrap_or(key)) % SLOTS
}

/// A text in braces for each slot: a key that ends with it, and has no other braces, is in that slot.
pub fn tag(slot: u16) -> String {
    static TAGS: LazyLock<Vec<u32>> = LazyLock::new(|| {
        let mut tags = vec![u32::MAX; usize::from(SLOTS)];
        let mut missing = tags.len();
        for number in 0..u32::MAX {
            let at = &mut tags[usize::from(self::slot(number.to_string().as_bytes()))];
            if *at == u32::MAX {
                *at = number;
                missing -= 1;
            }
            if missing == 0 {
                break;
            }
        }
        tags
    });
    format!("{{{}}}", TAGS[usize::from(slot % SLOTS)])
}

/// One of some slots: the same as long as that one stays among them, however the others change.
pub fn steady(slots: impl Iterator<Item = u16>) -> Option<u16> {
    slots.min_by_key(|slot| xxh3_64(&slot.to_be_bytes()))
}

/// A master, the slots that it has, and its replicas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shard {
    /// `host:port`
    pub master: String,
    /// First and last slots, in order.
    pub ranges: Vec<RangeInclusive<u16>>,
    /// `host:port` each.
    pub replicas: Vec<String>,
}

/// Who has which slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    /// Sorted by address.
    pub shards: Vec<Shard>,
    /// The number of the shard that has a slot.
    owners: Vec<Option<u16>>,
}

impl Slots {
    /// From ranges of slots, each with its master and its replicas.
    pub fn new(ranges: impl IntoIterator<Item = (RangeInclusive<u16>, String, Vec<String>)>) -> Self {
        let mut shards = std::collections::BTreeMap::<String, Shard>::new();
        for (range, master, replicas) in ranges {
            let shard = shards.entry(master.clone()).or_insert_with(|| Shard { master, ..Shard::default() });
            shard.ranges.push(range);
            shard.replicas.extend(replicas);
            shard.replicas.sort();
            shard.replicas.dedup();
        }
        let mut owners = vec![None; usize::from(SLOTS)];
        for (number, shard) in (0..).zip(shards.values_mut()) {
            shard.ranges.sort_by_key(|range| *range.start());
            for slot in shard.ranges.iter().cloned().flatten() {
                if let Some(owner) = owners.get_mut(usize::from(slot)) {
                    *owner = Some(number);
                }
            }
        }
        Self { shards: shards.into_values().collect(), owners }
    }

    /// From the answer to `CLUSTER SLOTS` of the node at `asked`; None: it is none.
    pub fn read(answer: &Value, asked: &str) -> Option<Self> {
        let Value::Array(ranges) = answer else { return None };
        let asked_host = asked.rsplit_once(':').map_or(asked, |(host, _)| host);
        let read = |range: &Value| {
            let Value::Array(parts) = range else { return None };
            let [Value::Int(first), Value::Int(last), nodes @ ..] = parts.as_slice() else { return None };
            let mut nodes = nodes.iter().filter_map(|node| address(node, asked_host));
            let range = u16::try_from(*first).ok()?..=u16::try_from(*last).ok()?;
            Some((range, nodes.next()?, nodes.collect()))
        };
        let ranges: Option<Vec<_>> = ranges.iter().map(read).collect();
        ranges.filter(|ranges| !ranges.is_empty()).map(Self::new)
    }

    /// The master of a slot.
    pub fn master_of(&self, slot: u16) -> Option<&str> {
        let owner = *self.owners.get(usize::from(slot))?;
        owner.and_then(|number| self.shards.get(usize::from(number))).map(|shard| shard.master.as_str())
    }
}

/// A node that does not know its own address is where it was asked.
fn address(node: &Value, asked_host: &str) -> Option<String> {
    let Value::Array(parts) = node else { return None };
    let (host, port) = (parts.first()?, parts.get(1)?);
    let Value::Int(port) = port else { return None };
    let host = match host {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        _ => String::new(),
    };
    let host = if host.is_empty() || host == "?" { asked_host.to_owned() } else { host };
    Some(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_slots_that_redis_says() {
        // CLUSTER KEYSLOT of a real node.
        for (key, expected) in [("foo", 12_182), ("123456789", 12_739), ("{user1000}.following", 3_443)] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
        assert_eq!(slot(b"{user1000}.following"), slot(b"{user1000}.followers"));
        assert_eq!(slot(b"foo{{bar}}zap"), slot(b"{bar"), "between the first braces");
        assert_ne!(slot(b"{}a"), slot(b"{}b"), "nothing between them");
    }

    #[test]
    fn every_slot_has_a_tag() {
        for number in 0..SLOTS {
            assert_eq!(slot(format!("analytics:projection:p{}", tag(number)).as_bytes()), number);
        }
    }

    #[test]
    fn a_mark_rarely_moves_while_slots_do() {
        let steady = |slots: RangeInclusive<u16>| steady(slots).expect("some");
        let marks: std::collections::BTreeSet<u16> = (0..2_000).map(|moved| steady(moved..=5_460)).collect();
        assert!(marks.len() < 10, "{marks:?}");
    }

    fn node(host: &str, port: i64) -> Value {
        Value::Array(vec![Value::BulkString(host.into()), Value::Int(port), Value::BulkString(b"id".to_vec())])
    }

    #[test]
    fn an_answer_is_read() {
        let range =
            |first, last, nodes: &[Value]| Value::Array([&[Value::Int(first), Value::Int(last)], nodes].concat());
        let answer = Value::Array(vec![
            range(8_192, 16_383, &[node("b", 2), node("c", 3)]),
            range(0, 99, &[node("", 1)]),
            range(200, 8_191, &[node("", 1)]),
        ]);
        let slots = Slots::read(&answer, "a:9").expect("an answer");
        assert_eq!(slots.master_of(99), Some("a:1"));
        assert_eq!(slots.master_of(150), None, "nobody has it");
        assert_eq!(slots.master_of(8_192), Some("b:2"));
        assert_eq!(slots.shards[1].replicas, ["c:3"]);
        assert_eq!(slots.shards[0].ranges, [0..=99, 200..=8_191]);
        assert_eq!(Slots::read(&Value::Nil, "a:9"), None);
        assert_eq!(Slots::read(&Value::Array(Vec::new()), "a:9"), None, "a node that has been reset");
    }
}

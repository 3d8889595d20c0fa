//! The ring: which of several plain nodes has a key. Pure.
//!
//! Each node stands at 160 points of the 64-bit ring: XXH3-64 (seed 0) of `<host>:<port>#<number>`, as the URL names
//! it. A key is at XXH3-64 of its bytes, and belongs to the node of the next point, itself included. Neither may ever
//! change: other clients may do the same.

use xxhash_rust::xxh3::xxh3_64;

/// Points of each node.
const POINTS: u32 = 160;
/// A share that is further from the fair one than this, as a part of it, is told of. 160 points keep it within a
/// quarter in all but one of a thousand rings.
pub const BOUND: f64 = 0.25;

/// Nodes on a ring, by their number.
#[derive(Debug, Clone)]
pub struct Ring {
    nodes: Vec<String>,
    /// Sorted.
    points: Vec<(u64, u32)>,
}

impl Ring {
    /// These nodes, named `host:port`, in any order.
    pub fn new(mut nodes: Vec<String>) -> Self {
        nodes.sort();
        nodes.dedup();
        let point = |node: &String, number: u32| xxh3_64(format!("{node}#{number}").as_bytes());
        let of = |(at, node)| (0..POINTS).map(move |number| (point(node, number), at));
        let mut points: Vec<(u64, u32)> = (0..).zip(&nodes).flat_map(of).collect();
        points.sort_unstable();
        Self { nodes, points }
    }

    /// All nodes, sorted.
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// The number of the node that has a key.
    pub fn number_of(&self, key: &[u8]) -> usize {
        let at = self.points.partition_point(|(point, _)| *point < xxh3_64(key));
        self.points.get(at).or(self.points.first()).map_or(0, |(_, node)| *node as usize)
    }

    /// The node that has a key.
    pub fn node_of(&self, key: &[u8]) -> &str {
        self.nodes.get(self.number_of(key)).map_or("", String::as_str)
    }

    /// The part of all keys that each node has, in the order of the nodes.
    pub fn shares(&self) -> Vec<f64> {
        let mut shares = vec![0.0; self.nodes.len()];
        let Some(&(last, _)) = self.points.last() else { return shares };
        let mut before = last;
        for &(point, node) in &self.points {
            // The first stretch begins behind the last point.
            shares[node as usize] += point.wrapping_sub(before) as f64 / 2f64.powi(64);
            before = point;
        }
        if self.points.len() == 1 {
            shares[0] = 1.0;
        }
        shares
    }

    /// Nodes whose share is further from the fair one than [`BOUND`], and their shares.
    pub fn uneven(&self) -> Vec<(&str, f64)> {
        let fair = 1.0 / self.nodes.len().max(1) as f64;
        let shares = self.nodes.iter().map(String::as_str).zip(self.shares());
        shares.filter(|(_, share)| (share / fair - 1.0).abs() > BOUND).collect()
    }

    /// Names this very set of nodes.
    pub fn name(&self) -> String {
        format!("{:016x}", xxh3_64(self.nodes.join(",").as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(nodes: &[u16]) -> Ring {
        Ring::new(nodes.iter().map(|port| format!("redis-{port}:6379")).collect())
    }

    fn keys() -> impl Iterator<Item = String> {
        (0..10_000).map(|number| format!("event:p:{number}"))
    }

    fn different() -> impl Strategy<Value = Vec<u16>> {
        proptest::collection::btree_set(any::<u16>(), 2..9).prop_map(|nodes| nodes.into_iter().collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn the_order_of_nodes_does_not_matter(nodes in different()) {
            let backwards: Vec<u16> = nodes.iter().rev().copied().collect();
            let (one, other) = (ring(&nodes), ring(&backwards));
            prop_assert!(keys().all(|key| one.node_of(key.as_bytes()) == other.node_of(key.as_bytes())));
            prop_assert_eq!(one.name(), other.name());
        }

        #[test]
        fn shares_are_even_and_are_what_keys_find(nodes in different()) {
            let ring = ring(&nodes);
            let shares = ring.shares();
            prop_assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-6);
            let mut found = vec![0.0; nodes.len()];
            keys().for_each(|key| found[ring.number_of(key.as_bytes())] += 1e-4);
            for (share, found) in shares.iter().zip(found) {
                prop_assert!((share - found).abs() < 0.03, "{share} of the ring, {found} of the keys");
                prop_assert!((share * nodes.len() as f64 - 1.0).abs() < 2.0 * BOUND, "{share} of {}", nodes.len());
            }
        }

        #[test]
        fn a_node_that_joins_takes_its_share_and_nothing_else_moves(nodes in different()) {
            let (new, old) = nodes.split_last().expect("some");
            let (before, after) = (ring(old), ring(&nodes));
            let joined = format!("redis-{new}:6379");
            let mut moved = 0;
            for key in keys() {
                let (was, is) = (before.node_of(key.as_bytes()), after.node_of(key.as_bytes()));
                if was != is {
                    prop_assert_eq!(is, &joined);
                    moved += 1;
                }
            }
            let fair = 10_000.0 / nodes.len() as f64;
            prop_assert!(f64::from(moved) < fair * 1.6, "{moved} moved, {fair} are its share");
        }
    }

    #[test]
    fn where_keys_are_never_changes() {
        let ring = ring(&[1, 2, 3]);
        let found: Vec<&str> = ["event:p:1", "event:p:2", "cart:p:s", "metric:p:events:1m:60", ""]
            .map(|key| ring.node_of(key.as_bytes()))
            .into();
        assert_eq!(found, ["redis-2:6379", "redis-2:6379", "redis-2:6379", "redis-3:6379", "redis-1:6379"]);
    }

    #[test]
    fn uneven_shares_are_told() {
        assert_eq!(ring(&[1, 2, 3]).uneven(), []);
        let mut uneven = ring(&[1, 2, 3]);
        uneven.points.retain(|(_, node)| *node != 0);
        assert_eq!(uneven.uneven().len(), 3);
        assert!((ring(&[1]).shares()[0] - 1.0).abs() < 1e-9);
    }
}

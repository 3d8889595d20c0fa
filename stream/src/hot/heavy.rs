//! The names that come most often, in little memory: a space-saving sketch. Pure.

use std::hash::{DefaultHasher, Hash, Hasher};

/// Names that are counted at a time. What comes more often than once in so many is always among them.
pub const NAMES: usize = 32;

/// Counts of names. A count is never too low, and too high by its error at most.
#[derive(Debug, Default)]
pub struct Heavy {
    // By place. What is looked through for every name is kept close together.
    hashes: Vec<u64>,
    counts: Vec<f64>,
    /// What the names before it in its place may have left.
    errors: Vec<f64>,
    names: Vec<String>,
    total: f64,
}

/// How much of the whole a name is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// At least this,
    pub at_least: f64,
    /// and at most this.
    pub at_most: f64,
}

impl Heavy {
    /// Counts a name. Nothing is allocated for those that are known, nor, mostly, once there are many.
    pub fn count(&mut self, name: &str) {
        self.total += 1.0;
        let hash = hash(name);
        if let Some(place) = self.place(hash, name) {
            self.counts[place] += 1.0;
        } else if self.names.len() < NAMES {
            self.hashes.push(hash);
            self.counts.push(1.0);
            self.errors.push(0.0);
            self.names.push(name.to_owned());
        } else {
            let place = self.rarest();
            self.hashes[place] = hash;
            self.errors[place] = self.counts[place];
            self.counts[place] += 1.0;
            self.names[place].clear();
            self.names[place].push_str(name);
        }
    }

    /// Counts something that may have no name.
    pub fn count_any(&mut self, name: Option<&str>) {
        match name {
            Some(name) => self.count(name),
            None => self.total += 1.0,
        }
    }

    /// Everything counted so far counts half from now on.
    pub fn halve(&mut self) {
        self.total /= 2.0;
        self.counts.iter_mut().chain(&mut self.errors).for_each(|count| *count /= 2.0);
    }

    /// What was counted.
    pub fn total(&self) -> f64 {
        self.total
    }

    /// A name's share; of one that is not counted, as much as can have been missed.
    pub fn share(&self, name: &str) -> Share {
        match self.place(hash(name), name) {
            Some(place) => self.share_at(place),
            None if self.names.len() < NAMES => Share { at_least: 0.0, at_most: 0.0 },
            None => Share { at_least: 0.0, ..self.share_at(self.rarest()) },
        }
    }

    /// All names and their shares, the most frequent ones first.
    pub fn shares(&self) -> Vec<(&str, Share)> {
        let mut places: Vec<usize> = (0..self.names.len()).collect();
        places.sort_by(|a, b| self.share_at(*b).at_least.total_cmp(&self.share_at(*a).at_least));
        places.into_iter().map(|place| (self.names[place].as_str(), self.share_at(place))).collect()
    }

    fn place(&self, hash: u64, name: &str) -> Option<usize> {
        let same_hash = self.hashes.iter().enumerate().filter(|(_, known)| **known == hash);
        same_hash.map(|(place, _)| place).find(|place| self.names[*place] == name)
    }

    fn rarest(&self) -> usize {
        let counts = self.counts.iter().enumerate();
        counts.min_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(place, _)| place)
    }

    fn share_at(&self, place: usize) -> Share {
        let (count, total) = (self.counts[place], self.total.max(f64::MIN_POSITIVE));
        Share { at_least: (count - self.errors[place]) / total, at_most: count / total }
    }
}

fn hash(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// A name to count, or a halving.
    fn steps() -> impl Strategy<Value = Vec<Option<u32>>> {
        let name = prop_oneof![4 => 0u32..5, 3 => 0u32..60, 1 => any::<u32>()];
        prop::collection::vec(prop_oneof![60 => name.prop_map(Some), 1 => Just(None)], 0..600)
    }

    proptest! {
        #[test]
        fn shares_hold_what_was_really_counted(steps in steps()) {
            let (mut sketch, mut exact, mut total) = (Heavy::default(), HashMap::<String, f64>::new(), 0.0);
            for step in steps {
                match step {
                    Some(name) => {
                        sketch.count(&name.to_string());
                        *exact.entry(name.to_string()).or_default() += 1.0;
                        total += 1.0;
                    }
                    None => {
                        sketch.halve();
                        exact.values_mut().for_each(|count| *count /= 2.0);
                        total /= 2.0;
                    }
                }
            }
            prop_assert!(sketch.names.len() <= NAMES);
            prop_assert!((sketch.total() - total).abs() < 1e-6);
            let shares = sketch.shares();
            for (name, count) in &exact {
                let (true_share, share) = (count / total, sketch.share(name));
                prop_assert!(share.at_least <= true_share + 1e-9 && true_share <= share.at_most + 1e-9, "{name} {share:?}");
                let listed = shares.iter().any(|(listed, _)| listed == name);
                prop_assert!(listed || true_share <= 1.0 / NAMES as f64 + 1e-9, "{name} is missing");
            }
        }
    }

    #[test]
    fn what_is_frequent_is_found_among_strangers() {
        let mut sketch = Heavy::default();
        for i in 0..10_000 {
            sketch.count(&format!("stranger-{i}"));
            if i % 2 == 0 {
                sketch.count("loud");
            }
        }
        let shares = sketch.shares();
        assert_eq!(shares[0].0, "loud");
        assert!(shares[0].1.at_least > 0.30 && shares[0].1.at_most < 0.37, "{:?}", shares[0]);
        assert!(shares[1].1.at_least < 0.01, "of the others nothing is known: {:?}", shares[1]);
    }
}

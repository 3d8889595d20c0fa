//! The newest sightings, in memory.

use super::{Fingerprint, Sighting};

const NONE: u32 = 0;

/// Sightings in the order in which they came, found by fingerprint through chains: those of one bucket hang
/// together, newest first. So the newest can be taken back without searching.
#[derive(Debug, Default)]
pub struct Buffer {
    sightings: Vec<Sighting>,
    /// For each sighting its number, counted from one, of the one before it in its bucket.
    before: Vec<u32>,
    /// For each bucket the number of its newest sighting.
    heads: Vec<u32>,
}

impl Buffer {
    /// Adds a sighting.
    pub fn push(&mut self, sighting: Sighting) {
        if self.sightings.len() == self.heads.len() {
            self.grow();
        }
        self.sightings.push(sighting);
        self.link(self.sightings.len() as u32);
    }

    /// Takes the newest sighting back.
    pub fn pop(&mut self) {
        if let Some(sighting) = self.sightings.pop() {
            let bucket = self.bucket(&sighting.fingerprint);
            self.heads[bucket] = self.before.pop().unwrap_or(NONE);
        }
    }

    /// All sightings of a fingerprint.
    pub fn of(&self, fingerprint: Fingerprint) -> impl Iterator<Item = &Sighting> {
        let head = if self.heads.is_empty() { NONE } else { self.heads[self.bucket(&fingerprint)] };
        let some = |number: u32| (number != NONE).then_some(number);
        let chain = std::iter::successors(some(head), move |&number| some(self.before[number as usize - 1]));
        let chain = chain.map(|number| &self.sightings[number as usize - 1]);
        chain.filter(move |sighting| sighting.fingerprint == fingerprint)
    }

    /// Takes the first `count` sightings out, to be kept as they are.
    pub fn split(&mut self, count: usize) -> Self {
        let rest = self.sightings[count..].to_vec();
        let mut front = std::mem::take(self);
        while front.len() > count {
            front.pop();
        }
        rest.into_iter().for_each(|sighting| self.push(sighting));
        front
    }

    /// In the order in which they came.
    pub fn sightings(&self) -> &[Sighting] {
        &self.sightings
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sightings.len()
    }

    fn bucket(&self, fingerprint: &Fingerprint) -> usize {
        fingerprint.low as usize & (self.heads.len() - 1)
    }

    fn link(&mut self, number: u32) {
        let bucket = self.bucket(&self.sightings[number as usize - 1].fingerprint);
        self.before.push(self.heads[bucket]);
        self.heads[bucket] = number;
    }

    fn grow(&mut self) {
        self.heads = vec![NONE; (2 * self.heads.len()).max(16)];
        self.before.clear();
        (1..=self.sightings.len() as u32).for_each(|number| self.link(number));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn sighting(id: u64, offset: i64) -> Sighting {
        Sighting { fingerprint: Fingerprint { high: id / 3, low: id }, offset, append_ms: 0 }
    }

    proptest! {
        /// Against a map, with ids that share buckets.
        #[test]
        fn finds_what_was_pushed_and_not_taken_back(steps in prop::collection::vec((0u64..40, 0u8..10), 0..300)) {
            let (mut buffer, mut model) = (Buffer::default(), Vec::new());
            for (offset, (id, step)) in steps.into_iter().enumerate() {
                match step {
                    0 => {
                        buffer.pop();
                        model.pop();
                    }
                    1 => {
                        let count = id as usize * model.len() / 40;
                        let front = buffer.split(count);
                        let rest = model.split_off(count);
                        prop_assert_eq!(front.sightings(), &model[..]);
                        check(&front, &model)?;
                        model = rest;
                    }
                    _ => {
                        buffer.push(sighting(id * 16, offset as i64));
                        model.push(sighting(id * 16, offset as i64));
                    }
                }
                prop_assert_eq!(buffer.sightings(), &model[..]);
            }
            check(&buffer, &model)?;
        }
    }

    fn check(buffer: &Buffer, model: &[Sighting]) -> Result<(), TestCaseError> {
        let mut by_id: HashMap<Fingerprint, Vec<i64>> = HashMap::new();
        model.iter().rev().for_each(|s| by_id.entry(s.fingerprint).or_default().push(s.offset));
        for id in 0..45 {
            let fingerprint = sighting(id * 16, 0).fingerprint;
            let found: Vec<i64> = buffer.of(fingerprint).map(|s| s.offset).collect();
            prop_assert_eq!(found, by_id.get(&fingerprint).cloned().unwrap_or_default());
        }
        Ok(())
    }
}

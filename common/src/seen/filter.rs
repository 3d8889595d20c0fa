//! The filter of a page: tells most fingerprints that are not in the page, without reading it.

const WORDS: usize = 8;
const PROBES: u32 = 7;

/// A Bloom filter of 512 bits: one cache line, so that asking it costs at most one access to memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(align(64))]
pub struct Filter([u64; WORDS]);

impl Filter {
    /// Its bytes in a file.
    pub const BYTES: usize = WORDS * 8;

    /// Adds the low half of a fingerprint; the page was chosen by the high half.
    pub fn add(&mut self, low: u64) {
        for probe in 0..PROBES {
            let bit = low >> (9 * probe);
            self.0[(bit >> 6) as usize % WORDS] |= 1 << (bit & 63);
        }
    }

    /// Whether it may have been added. Without branches: asking many filters in turn, the processor does not
    /// wait for one before it fetches the next.
    pub fn may_have(&self, low: u64) -> bool {
        let mut all = 1;
        for probe in 0..PROBES {
            let bit = low >> (9 * probe);
            all &= self.0[(bit >> 6) as usize % WORDS] >> (bit & 63);
        }
        all & 1 == 1
    }

    /// Appends it to a file's bytes.
    pub fn write(&self, bytes: &mut Vec<u8>) {
        self.0.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
    }

    /// From as many bytes as [`Self::BYTES`].
    pub fn read(bytes: &[u8]) -> Self {
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        }
        Self(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seen::fingerprint;
    use crate::seen::format::PAGE;

    #[test]
    fn what_was_added_is_found_and_hardly_anything_else() {
        let (mut wrong, pages) = (0, 500);
        for page in 0..pages {
            let low = |i: u64| fingerprint(&format!("{page}-{i}")).low;
            let mut filter = Filter::default();
            (0..PAGE).for_each(|i| filter.add(low(i)));
            assert!((0..PAGE).all(|i| filter.may_have(low(i))));
            wrong += (PAGE..PAGE + 200).filter(|&i| filter.may_have(low(i))).count();
            let mut bytes = Vec::new();
            filter.write(&mut bytes);
            assert_eq!(Filter::read(&bytes), filter);
        }
        let share = wrong as f64 / (200.0 * f64::from(pages));
        assert!(share < 0.006, "{share}");
    }
}

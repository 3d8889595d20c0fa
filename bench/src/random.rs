//! Numbers that look random but come from a seed, and ids made of them.

/// Length of an eventId: a UUID.
pub const ID_BYTES: usize = 36;

/// SplitMix64: a bijection that looks random.
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Numbers that look random, one after the other.
pub struct Random(u64);

impl Random {
    /// The numbers of a seed and something that it is used for.
    pub fn new(seed: u64, what: u64) -> Self {
        Self(mix(seed ^ mix(what)))
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0)
    }

    /// A number below a bound that is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Exponentially distributed around a mean.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        let unit = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        -mean * (1.0 - unit).ln()
    }
}

/// A UUID of version 4 with these bits.
pub fn uuid(high: u64, low: u64) -> [u8; ID_BYTES] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = [b'-'; ID_BYTES];
    let bytes = ((high & !0xf000 | 0x4000) as u128) << 64 | (low >> 2 | 1 << 63) as u128;
    let mut at = 0;
    for (number, byte) in bytes.to_be_bytes().into_iter().enumerate() {
        at += usize::from(matches!(number, 4 | 6 | 8 | 10));
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids() {
        assert_eq!(&uuid(0x0123_4567_89ab_cdef, 0), b"01234567-89ab-4def-8000-000000000000");
    }

    #[test]
    fn numbers_are_distributed_as_told() {
        let mut random = Random::new(1, 2);
        let mut counts = [0; 10];
        (0..100_000).for_each(|_| counts[random.below(10) as usize] += 1);
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        let mean = (0..100_000).map(|_| random.exponential(5.0)).sum::<f64>() / 100_000.0;
        assert!((4.9..5.1).contains(&mean), "{mean}");
        assert_eq!(Random::new(1, 2).next(), Random::new(1, 2).next());
        assert_ne!(Random::new(1, 2).next(), Random::new(1, 3).next());
    }
}

//! Percentiles: a histogram whose buckets grow by a fixed factor, so that every value is told within 1 %.
//!
//! Which bucket a value falls into depends on the value alone, and the range of values is bounded by
//! [`Decimal`], so buckets never have to be joined: any order, any split and any merge give the same bytes.

use std::collections::BTreeMap;

use crate::decimal::Decimal;

/// Largest relative error.
pub const ERROR: f64 = 0.01;
/// By how much a bucket's upper end lies above its lower one.
const GAMMA: f64 = (1.0 + ERROR) / (1.0 - ERROR);
/// Added to a bucket's exponent to make it positive: the least value is 10^-9.
const OFFSET: i16 = 1_100;
/// A bucket and its count, in bytes.
const ENTRY: usize = 8;
/// The highest count of a bucket that can be stored; whoever gets there has other worries.
const MOST: u64 = (1 << 48) - 1;

/// How often values of about each size occur. Buckets are numbered in the order of their values: negative ones,
/// 0 for zero, positive ones. At most 6,400 of them can be in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram(BTreeMap<i16, u64>);

/// Bytes that are not a histogram.
#[derive(Debug, thiserror::Error)]
#[error("not a histogram: its {0} bytes are no pairs of bucket and count, in order")]
pub struct BadHistogram(usize);

impl Histogram {
    /// Adds a value.
    pub fn add(&mut self, value: Decimal) {
        *self.0.entry(bucket(value.to_f64())).or_default() += 1;
    }

    /// Adds the values of another.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.0 {
            *self.0.entry(*bucket).or_default() += count;
        }
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// The value below which this share of all values lies (the nearest rank); none without values.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let rank = ((share * self.count() as f64).ceil() as u64).max(1);
        let mut below = 0;
        self.0.iter().find_map(|(bucket, count)| {
            below += count;
            (below >= rank).then(|| middle(*bucket))
        })
    }

    /// As stored in `metric_rollups.quantiles`: for each bucket its number (2 bytes) and count (6 bytes), big end
    /// first, in order.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * ENTRY);
        for (bucket, count) in &self.0 {
            bytes.extend_from_slice(&bucket.to_be_bytes());
            bytes.extend_from_slice(&count.min(&MOST).to_be_bytes()[2..]);
        }
        bytes
    }

    /// What [`Self::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadHistogram> {
        let (entries, rest) = bytes.as_chunks::<ENTRY>();
        let read = |[a, b, count @ ..]: &[u8; ENTRY]| {
            let count = count.iter().fold(0, |count, byte| count << 8 | u64::from(*byte));
            (i16::from_be_bytes([*a, *b]), count)
        };
        let histogram = Self(entries.iter().map(read).collect());
        let whole = rest.is_empty() && histogram.0.len() == entries.len();
        if whole { Ok(histogram) } else { Err(BadHistogram(bytes.len())) }
    }
}

fn bucket(value: f64) -> i16 {
    if value == 0.0 {
        return 0;
    }
    let exponent = (value.abs().ln() / GAMMA.ln()).ceil() as i16 + OFFSET;
    if value < 0.0 { -exponent } else { exponent }
}

/// The value that is within the error of all values of a bucket.
fn middle(bucket: i16) -> f64 {
    if bucket == 0 {
        return 0.0;
    }
    let size = 2.0 * GAMMA.powi(i32::from(bucket.abs() - OFFSET)) / (GAMMA + 1.0);
    if bucket < 0 { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decimal(value: f64) -> Decimal {
        Decimal::from_f64(value).expect("a decimal")
    }

    fn histogram<'a>(values: impl IntoIterator<Item = &'a f64>) -> Histogram {
        let mut histogram = Histogram::default();
        values.into_iter().for_each(|value| histogram.add(decimal(*value)));
        histogram
    }

    fn is_near(found: f64, exact: f64) -> bool {
        (found - exact).abs() <= ERROR * exact.abs() * (1.0 + 1e-9)
    }

    #[test]
    fn every_size_of_value_has_its_bucket() {
        for size in [1e-9, 3e-7, 0.01, 0.999, 1.0, 1.001, 250.0, 1e9, 9.99e17] {
            for value in [size, -size] {
                let found = histogram(&[value]).quantile(0.5).expect("a value");
                assert!(is_near(found, value), "{value}: {found}");
            }
        }
        assert_eq!(histogram(&[0.0]).quantile(0.99), Some(0.0));
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert!(bucket(1e-9) > 0 && bucket(1e18) < 3_200, "numbers stay in their range");
    }

    #[test]
    fn bytes_that_are_no_histogram_are_refused() {
        let bytes = histogram(&[1.0, 2.0]).to_bytes();
        assert_eq!(bytes.len(), 2 * ENTRY);
        assert!(Histogram::from_bytes(&bytes[1..]).is_err());
        assert!(Histogram::from_bytes(&[&bytes[..8], &bytes[..8]].concat()).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The same bytes in any order and any split, and percentiles within 1 % of the exact ones.
        #[test]
        fn order_does_not_matter_and_answers_are_near(
            values in prop::collection::vec(prop_oneof![-1e6..1e6f64, 0.0..10.0f64, Just(0.0)], 1..500),
            cut in 0usize..500,
        ) {
            let values: Vec<f64> = values.into_iter().map(|v| decimal(v).to_f64()).collect();
            let whole = histogram(&values);
            let (left, right) = values.split_at(cut % values.len());
            let mut merged = histogram(right.iter().rev());
            merged.merge(&Histogram::from_bytes(&histogram(left).to_bytes()).expect("round trip"));
            prop_assert_eq!(merged.to_bytes(), whole.to_bytes());
            let mut sorted = values;
            sorted.sort_by(f64::total_cmp);
            for share in [0.5, 0.95, 0.99] {
                let exact = sorted[(share * sorted.len() as f64).ceil() as usize - 1];
                let found = whole.quantile(share).expect("values");
                prop_assert!(is_near(found, exact), "{share}: {found} for {exact}");
            }
        }
    }
}

//! How many different users: a HyperLogLog sketch (Apache DataSketches) that gives the same answer in
//! whatever order and however often users are added and sketches merged.

use datasketches::hll::{HllSketch, HllType, HllUnion};

pub use datasketches::hll::Coupon;

/// 2^14 registers: a standard error of 0.8 %. Small sets are kept as they are, so up to some hundred users
/// the answer is exact.
const LG_K: u8 = 14;

/// A set of user ids, by sketch.
#[derive(Debug, Clone)]
pub struct UserSketch(HllSketch);

/// Bytes that are not a sketch.
#[derive(Debug, thiserror::Error)]
#[error("not a sketch of users: {0}")]
pub struct BadSketch(String);

impl Default for UserSketch {
    fn default() -> Self {
        Self(HllSketch::new(LG_K, HllType::Hll8).expect("LG_K is within the library's limits"))
    }
}

impl UserSketch {
    /// Adds a user.
    pub fn add(&mut self, user_id: &str) {
        self.0.update(user_id);
    }

    /// What a user id adds to a sketch: made once, added to many.
    pub fn coupon(user_id: &str) -> Coupon {
        Coupon::from_value(user_id)
    }

    /// Adds what [`Self::coupon`] made. Says whether the sketch is another than before: most of a busy day's
    /// users are in it already, and what has not changed need not be written.
    pub fn add_all(&mut self, coupons: &[Coupon]) -> bool {
        let before = self.0.clone();
        coupons.iter().for_each(|coupon| self.0.update_with_coupon(*coupon));
        self.0 != before
    }

    /// Adds the users of another sketch.
    pub fn merge(&mut self, other: &Self) {
        let mut union = HllUnion::new(LG_K).expect("LG_K is within the library's limits");
        union.update(&self.0);
        union.update(&other.0);
        self.0 = union.to_sketch(HllType::Hll8);
    }

    /// How many users there are. The composite estimator is used, since the library's other one depends on
    /// the order of arrival.
    pub fn count(&self) -> u64 {
        self.0.composite_estimate().round() as u64
    }

    /// As stored in `metric_rollups.users`.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.serialize()
    }

    /// What [`Self::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadSketch> {
        HllSketch::deserialize(bytes).map(Self).map_err(|error| BadSketch(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sketch(users: impl IntoIterator<Item = u32>) -> UserSketch {
        let mut sketch = UserSketch::default();
        users.into_iter().for_each(|user| sketch.add(&format!("user-{user}")));
        sketch
    }

    #[test]
    fn a_sketch_says_whether_it_has_changed() {
        let mut users = sketch(0..5);
        assert!(users.add_all(&[UserSketch::coupon("new")]));
        assert!(!users.add_all(&[UserSketch::coupon("new"), UserSketch::coupon("user-3")]));
    }

    #[test]
    fn small_sets_are_exact_and_large_ones_within_two_percent() {
        for users in [0, 1, 7, 100, 600] {
            assert_eq!(sketch(0..users).count(), u64::from(users));
        }
        for users in [5_000, 50_000, 300_000] {
            let error = (sketch(0..users).count() as f64 / f64::from(users) - 1.0).abs();
            assert!(error < 0.02, "{users}: {error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Coupons add what their users add; adding them again changes nothing.
        #[test]
        fn coupons_stand_for_users(
            before in prop::collection::vec(0u32..10_000, 0..3_000),
            added in prop::collection::vec(0u32..10_000, 0..300),
        ) {
            let coupons: Vec<Coupon> = added.iter().map(|user| UserSketch::coupon(&format!("user-{user}"))).collect();
            let mut by_coupons = sketch(before.iter().copied());
            by_coupons.add_all(&coupons);
            let whole = sketch(before.into_iter().chain(added));
            prop_assert_eq!(by_coupons.count(), whole.count());
            let mut stored = UserSketch::from_bytes(&by_coupons.to_bytes()).expect("round trip");
            prop_assert!(!stored.add_all(&coupons), "nothing new");
        }

        /// Any split, order and repetition gives one answer.
        #[test]
        fn the_order_of_arrival_does_not_matter(
            users in prop::collection::vec(0u32..40_000, 1..4_000),
            cut in 0usize..4_000,
        ) {
            let whole = sketch(users.iter().copied()).count();
            let (left, right) = users.split_at(cut % users.len());
            let mut merged = sketch(right.iter().rev().copied());
            merged.merge(&sketch(left.iter().copied()));
            let mut stored = UserSketch::from_bytes(&merged.to_bytes()).expect("round trip");
            stored.merge(&merged);
            prop_assert_eq!(stored.count(), whole);
        }
    }
}

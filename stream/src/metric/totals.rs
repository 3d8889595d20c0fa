//! What is known of a window, or of any number of windows together, and the value that this makes.

use super::declaration::Aggregation;
use crate::decimal::Decimal;
use crate::histogram::Histogram;
use crate::sketch::UserSketch;

/// Counts, sums and sketches of a set of events. Merging is commutative and associative.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// Events.
    pub count: i64,
    /// Of the field.
    pub sum: Option<Decimal>,
    /// Of the field.
    pub min: Option<Decimal>,
    /// Of the field.
    pub max: Option<Decimal>,
    /// Different users, or different values of the field.
    pub users: Option<UserSketch>,
    /// How the field's values are spread.
    pub quantiles: Option<Histogram>,
}

impl Totals {
    /// Adds the events of another set that has none of this one's.
    pub fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.sum = join(self.sum, other.sum, |a, b| a + b);
        self.min = join(self.min, other.min, Decimal::min);
        self.max = join(self.max, other.max, Decimal::max);
        match (&mut self.users, other.users) {
            (Some(users), Some(more)) => users.merge(&more),
            (users, more) => *users = users.take().or(more),
        }
        match (&mut self.quantiles, other.quantiles) {
            (Some(quantiles), Some(more)) => quantiles.merge(&more),
            (quantiles, more) => *quantiles = quantiles.take().or(more),
        }
    }

    /// Different users, or different values of the field.
    pub fn unique(&self) -> u64 {
        self.users.as_ref().map_or(0, UserSketch::count)
    }

    /// The value; none where there is none, as the least of no numbers.
    pub fn value(&self, aggregation: Aggregation) -> Option<Decimal> {
        match aggregation {
            Aggregation::Count => Some(self.count.into()),
            Aggregation::Sum => Some(self.sum.unwrap_or_default()),
            Aggregation::Min => self.min,
            Aggregation::Max => self.max,
            Aggregation::Avg => self.sum.unwrap_or_default().divided_by(self.count),
            Aggregation::Unique => Some(i64::try_from(self.unique()).unwrap_or(i64::MAX).into()),
            Aggregation::P50 | Aggregation::P95 | Aggregation::P99 => {
                let found = self.quantiles.as_ref()?.quantile(aggregation.quantile()?)?;
                let found = Decimal::from_f64(found)?;
                // The ends are known exactly.
                let found = self.min.map_or(found, |min| found.max(min));
                Some(self.max.map_or(found, |max| found.min(max)))
            }
        }
    }
}

fn join<T>(a: Option<T>, b: Option<T>, both: impl FnOnce(T, T) -> T) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(both(a, b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(numbers: &[i64]) -> Totals {
        let mut totals = Totals { count: numbers.len() as i64, ..Totals::default() };
        for number in numbers {
            let number = Decimal::from(*number);
            totals.sum = join(totals.sum, Some(number), |a, b| a + b);
            totals.min = join(totals.min, Some(number), Decimal::min);
            totals.max = join(totals.max, Some(number), Decimal::max);
            totals.quantiles.get_or_insert_default().add(number);
            totals.users.get_or_insert_default().add(&number.to_string());
        }
        totals
    }

    #[test]
    fn a_merge_has_the_values_of_the_whole() {
        let mut merged = of(&[1, 2, 2]);
        merged.merge(of(&[]));
        merged.merge(of(&[9, 100]));
        let value = |aggregation| merged.value(aggregation).map(|value| value.to_string());
        assert_eq!(value(Aggregation::Count).as_deref(), Some("5"));
        assert_eq!(value(Aggregation::Sum).as_deref(), Some("114"));
        assert_eq!(value(Aggregation::Min).as_deref(), Some("1"));
        assert_eq!(value(Aggregation::Max).as_deref(), Some("100"));
        assert_eq!(value(Aggregation::Avg).as_deref(), Some("22.8"));
        assert_eq!(value(Aggregation::Unique).as_deref(), Some("4"));
        assert_eq!(value(Aggregation::P99).as_deref(), Some("100"), "not above the largest");
        let median = merged.value(Aggregation::P50).expect("values").to_f64();
        assert!((1.98..=2.02).contains(&median), "{median}");
    }

    #[test]
    fn nothing_has_no_extremes() {
        let nothing = of(&[]);
        assert_eq!(nothing.value(Aggregation::Count), Some(Decimal::ZERO));
        for aggregation in [Aggregation::Min, Aggregation::Avg, Aggregation::P50] {
            assert_eq!(nothing.value(aggregation), None);
        }
    }
}

//! What a batch adds, by series and minute, and rolled up from there.
//!
//! An event is counted once per series, in its minute. Hours, days, and the total over all event types are sums
//! of minutes, so they are added up once per batch and not once per event.

use std::sync::Arc;

use super::rollups::{RollupKey, Series};
use crate::decimal::Decimal;
use crate::histogram::Histogram;
use crate::quick_map::QuickMap;
use crate::sketch::Coupon;
use crate::window::Granularity;

/// What a batch changes in a row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Change {
    /// Added to the count; negative when sessions merge.
    pub count: i64,
    /// Added to the sum.
    pub sum: Option<Decimal>,
    /// The least number.
    pub min: Option<Decimal>,
    /// The greatest number.
    pub max: Option<Decimal>,
    /// What users, or different values, add to the sketch; sorted, each once.
    pub unique: Vec<Coupon>,
    /// Added to the histogram.
    pub quantiles: Histogram,
}

/// Changes by series and minute.
#[derive(Debug, Default)]
pub struct Cells {
    series: Vec<Interned>,
    numbers: QuickMap<Arc<Series>, u32>,
    minutes: QuickMap<(u32, i64), Change>,
}

#[derive(Debug)]
struct Interned {
    series: Arc<Series>,
    kept: [bool; 3],
    /// The series that everything here counts in, too.
    total: Option<u32>,
}

impl Cells {
    /// A number for a series, of which windows of these lengths are kept. Everything in it counts in `total`, too.
    pub fn intern(&mut self, series: Series, keeps: impl Fn(Granularity) -> bool, total: Option<u32>) -> u32 {
        if let Some(number) = self.numbers.get(&series) {
            return *number;
        }
        let (series, number) = (Arc::new(series), self.series.len() as u32);
        self.numbers.insert(Arc::clone(&series), number);
        self.series.push(Interned { series, kept: Granularity::ALL.map(keeps), total });
        number
    }

    /// The change of a series in the minute that starts at this second.
    pub fn at(&mut self, series: u32, minute: i64) -> &mut Change {
        self.minutes.entry((series, minute)).or_default()
    }

    /// The changes of all windows that change, in the order of their rows.
    pub fn roll_up(self) -> Vec<(RollupKey, Change)> {
        let mut windows = QuickMap::<(u32, Granularity, i64), Change>::default();
        for ((number, minute), mut change) in self.minutes {
            change.settle();
            let own = &self.series[number as usize];
            let total = own.total.map(|total| (total, &self.series[total as usize]));
            for (number, series) in std::iter::once((number, own)).chain(total) {
                for (granularity, _) in Granularity::ALL.into_iter().zip(series.kept).filter(|(_, kept)| *kept) {
                    let start = granularity.window(minute * 1_000_000);
                    windows.entry((number, granularity, start)).or_default().merge(&change);
                }
            }
        }
        let row = |((number, granularity, window_start), mut change): (_, Change)| {
            change.settle();
            let series = Arc::clone(&self.series[number as usize].series);
            (RollupKey { series, granularity, window_start }, change)
        };
        let mut rows: Vec<_> = windows.into_iter().map(row).filter(|(_, change)| !change.is_nothing()).collect();
        rows.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        rows
    }
}

impl Change {
    /// Adds another change to the same row.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum = join(self.sum, other.sum, |a, b| a + b);
        self.min = join(self.min, other.min, Decimal::min);
        self.max = join(self.max, other.max, Decimal::max);
        self.unique.extend_from_slice(&other.unique);
        self.quantiles.merge(&other.quantiles);
    }

    /// The stable sort is quick with what has been joined from sorted parts.
    pub fn settle(&mut self) {
        self.unique.sort();
        self.unique.dedup();
    }

    /// Whether it cancels out.
    fn is_nothing(&self) -> bool {
        self.count == 0
            && self.sum.unwrap_or_default() == Decimal::ZERO
            && (self.min, self.max) == (None, None)
            && self.unique.is_empty()
    }
}

fn join(a: Option<Decimal>, b: Option<Decimal>, both: impl FnOnce(Decimal, Decimal) -> Decimal) -> Option<Decimal> {
    match (a, b) {
        (Some(a), Some(b)) => Some(both(a, b)),
        (a, b) => a.or(b),
    }
}

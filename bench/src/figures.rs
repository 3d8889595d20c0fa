//! What was measured: medians, targets, and the comparison with an earlier run.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;

/// How much worse than earlier a figure may be.
const TOLERANCE: f64 = 0.15;

/// Samples by name.
#[derive(Default, Clone)]
pub struct Figures {
    samples: BTreeMap<&'static str, Vec<f64>>,
}

/// A value by name.
pub type Values = BTreeMap<String, f64>;

impl Figures {
    /// Adds a sample.
    pub fn add(&mut self, name: &'static str, value: f64) {
        self.samples.entry(name).or_default().push(value);
    }

    /// The median of each figure.
    pub fn medians(&self) -> Values {
        self.samples.iter().map(|(name, samples)| ((*name).to_owned(), median(samples))).collect()
    }

    /// The last samples of what has more of them than before, for people.
    pub fn added_since(&self, before: &Self) -> String {
        let new =
            self.samples.iter().filter(|(name, samples)| samples.len() > before.samples.get(*name).map_or(0, Vec::len));
        let last = new.filter_map(|(name, samples)| Some(format!("{name} {}", short(*samples.last()?))));
        last.collect::<Vec<_>>().join(", ")
    }
}

/// The middle one; of an even number, the mean of the two in the middle.
fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = ((sorted.len() - 1) / 2, sorted.len() / 2);
    (sorted[low] + sorted[high]) / 2.0
}

/// A figure and what it has to reach.
pub struct Target {
    /// Its name.
    pub figure: &'static str,
    /// Its name for people; empty below a target of the same figure.
    pub title: &'static str,
    /// Whether less is better.
    pub less: bool,
    /// The bound is a factor of another figure, or a number where there is none.
    pub factor: f64,
    /// That figure.
    pub of: Option<&'static str>,
}

/// Which targets are reached, a line each.
pub fn verdicts(targets: &[Target], values: &Values) -> String {
    targets.iter().filter_map(|target| target.line(values)).map(|line| line + "\n").collect()
}

/// A line of a table: a title and a figure per column, where there is one.
pub fn row<const N: usize>(title: &str, names: [&str; N], values: &Values) -> String {
    let cells = names.map(|name| values.get(name).map_or_else(String::new, |value| short(*value)));
    let cells: String = cells.iter().map(|cell| format!("{cell:>12}")).collect();
    format!("{title:24}{cells}\n")
}

impl Target {
    fn line(&self, values: &Values) -> Option<String> {
        let value = *values.get(self.figure)?;
        let (bound, why) = match self.of {
            Some(of) => (self.factor * values.get(of)?, format!(" ({} × {of})", self.factor)),
            None => (self.factor, String::new()),
        };
        let (sign, reached) = if self.less { ("≤", value <= bound) } else { ("≥", value >= bound) };
        let verdict = if reached { "reached" } else { "MISSED" };
        Some(format!("{:24}{:>12} {sign} {}{why}: {verdict}", self.title, short(value), short(bound)))
    }
}

/// The last line of the output.
pub fn json(values: &Values) -> String {
    let rounded: BTreeMap<_, _> = values.iter().map(|(name, value)| (name, round(*value))).collect();
    serde_json::to_string(&rounded).unwrap_or_default()
}

/// Reads the last line of an earlier run's output.
pub fn read(path: &Path) -> anyhow::Result<Values> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let line = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    serde_json::from_str(line)
        .with_context(|| format!("the last line of {} is not the JSON of a benchmark", path.display()))
}

/// Which ratios to the limit have become worse: CPU to the limit's CPU, throughput to its throughput.
/// `pairs` are the figures and their limits.
pub fn regressions(now: &Values, earlier: &Values, pairs: &[(&str, &str)]) -> Vec<String> {
    let mut lines = Vec::new();
    for &(figure, limit) in pairs {
        let ratio = |values: &Values| Some(values.get(figure)? / values.get(limit)?);
        let (Some(now), Some(earlier)) = (ratio(now), ratio(earlier)) else { continue };
        let grown = if figure.ends_with("_us") { now / earlier } else { earlier / now };
        if grown > 1.0 + TOLERANCE {
            lines.push(format!(
                "{figure} is {now:.3} × {limit} where it was {earlier:.3}: {:.0} % worse",
                (grown - 1.0) * 100.0
            ));
        }
    }
    lines
}

fn short(value: f64) -> String {
    match value {
        1_000.0.. => format!("{value:.0}"),
        100.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn round(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::report::{PAIRS, TARGETS};

    fn values(pairs: &[(&str, f64)]) -> Values {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn medians_ignore_outliers() {
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 2.0]), 3.0);
    }

    #[test]
    fn targets_are_told_reached_or_missed() {
        let good = values(&[("batch100_us", 6.0), ("limit_us", 2.0), ("single_eps", 19_999.0)]);
        let table = verdicts(&TARGETS, &good);
        assert!(table.contains("6.00 ≤ 6.00 (3 × limit_us): reached"), "{table}");
        assert!(table.contains("19999 ≥ 20000: MISSED"), "{table}");
        assert!(!table.contains("peer100_us):"), "no target without its other figure: {table}");
    }

    #[test]
    fn worse_by_more_than_15_percent_is_told() {
        let earlier = values(&[("limit_us", 2.0), ("batch100_us", 5.0), ("limit_eps", 6e5), ("batch100_eps", 1.2e5)]);
        assert!(regressions(&earlier, &earlier, &PAIRS).is_empty());
        // All is slower alike: the machine, not the gateway.
        let slow = values(&[("limit_us", 3.0), ("batch100_us", 7.5), ("limit_eps", 4e5), ("batch100_eps", 0.8e5)]);
        assert!(regressions(&slow, &earlier, &PAIRS).is_empty());
        let worse = values(&[("limit_us", 2.0), ("batch100_us", 5.8), ("limit_eps", 6e5), ("batch100_eps", 1.0e5)]);
        assert_eq!(regressions(&worse, &earlier, &PAIRS).len(), 2);
        let within = values(&[("limit_us", 2.0), ("batch100_us", 5.7)]);
        assert!(regressions(&within, &earlier, &PAIRS).is_empty());
    }

    #[test]
    fn the_json_is_read_back() {
        let path = std::env::temp_dir().join(format!("tidemill-bench-{}", std::process::id()));
        let figures = values(&[("limit_us", 2.1234), ("rss_mb", 88.0)]);
        std::fs::write(&path, format!("a table\n{}\n", json(&figures))).expect("written");
        assert_eq!(read(&path).expect("read"), values(&[("limit_us", 2.123), ("rss_mb", 88.0)]));
        std::fs::write(&path, "no JSON").expect("written");
        assert!(read(&path).is_err());
        std::fs::remove_file(path).expect("removed");
    }
}

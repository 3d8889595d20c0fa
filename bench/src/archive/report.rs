//! What the archiver has to reach.

use crate::figures::{Target, Values, row, verdicts};

const TARGETS: [Target; 4] = [
    Target { figure: "archive_eps", title: "archiver: rows/s", less: false, factor: 250_000.0, of: None },
    Target { figure: "archive_us", title: "µs per row", less: true, factor: 2.2, of: Some("limit_us") },
    Target { figure: "archive_us", title: "", less: true, factor: 1.0 / 3.0, of: Some("connect_us") },
    Target { figure: "rss_mb", title: "peak resident MB", less: true, factor: 0.1, of: Some("connect_rss_mb") },
];

/// The figures side by side, then the targets.
pub fn table(values: &Values) -> String {
    let mut text = format!("\n{:24}{:>12}{:>12}{:>12}\n", "", "limit", "Connect", "archiver");
    let rows = [
        ("CPU: µs per row", ["limit_us", "connect_us", "archive_us"]),
        ("rows/s", ["limit_eps", "connect_eps", "archive_eps"]),
        ("bytes per row", ["limit_bytes_per_row", "connect_bytes_per_row", "bytes_per_row"]),
        ("data files", ["", "connect_files", "files"]),
        ("peak resident MB", ["", "connect_rss_mb", "rss_mb"]),
    ];
    for (title, names) in rows {
        text += &row(title, names, values);
    }
    text + "\n" + &verdicts(&TARGETS, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told() {
        let values = [("archive_us", 2.0), ("limit_us", 1.0), ("connect_us", 5.0), ("archive_eps", 3e5)];
        let table = table(&values.map(|(name, value)| (name.into(), value)).into());
        assert!(table.contains("2.00 ≤ 2.20 (2.2 × limit_us): reached"), "{table}");
        assert!(table.contains("2.00 ≤ 1.67"), "{table}");
        assert!(table.contains("300000 ≥ 250000: reached"), "{table}");
        assert!(!table.contains("connect_rss_mb"), "{table}");
    }
}

//! What the worker has to reach.

use crate::figures::{Target, Values, row, verdicts};

const TARGETS: [Target; 7] = [
    Target { figure: "stream_us", title: "worker: µs per event", less: true, factor: 8.0, of: None },
    Target { figure: "stream_us", title: "", less: true, factor: 1.0 / 8.0, of: Some("kstreams_us") },
    Target {
        figure: "stream_pg_redis_us",
        title: "with Postgres, Redis",
        less: true,
        factor: 0.25,
        of: Some("kstreams_us"),
    },
    Target { figure: "stream_eps", title: "events/s", less: false, factor: 70_000.0, of: None },
    Target { figure: "scale4_us", title: "four workers: µs", less: true, factor: 1.15, of: Some("scale1_us") },
    Target { figure: "rss_mb", title: "worker: resident MB", less: true, factor: 400.0, of: None },
    Target { figure: "freshness_p99_ms", title: "freshness p99: ms", less: true, factor: 1_000.0, of: None },
];

/// The figures side by side, then the targets.
pub fn table(values: &Values) -> String {
    let mut text = format!("\n{:24}{:>12}{:>12}{:>12}{:>12}\n", "", "limit", "K. Streams", "worker", "worst case");
    let rows = [
        ("CPU: µs per event", ["limit_us", "kstreams_us", "stream_us", "worst_us"]),
        ("  of Postgres", ["", "", "pg_us", "worst_pg_us"]),
        ("  of Redis", ["", "", "redis_us", "worst_redis_us"]),
        ("  of the broker", ["", "kstreams_broker_us", "broker_us", "worst_broker_us"]),
        ("events/s", ["limit_eps", "kstreams_eps", "stream_eps", "worst_eps"]),
        ("peak resident MB", ["", "kstreams_rss_mb", "rss_mb", "worst_rss_mb"]),
    ];
    for (title, names) in rows {
        text += &row(title, names, values);
    }
    if values.contains_key("scale1_us") {
        text += &format!("\n{:24}{:>12}{:>12}{:>12}{:>12}\n", "workers", 1, 2, 3, 4);
        text += &row("CPU: µs per event", ["scale1_us", "scale2_us", "scale3_us", "scale4_us"], values);
        text += &row("events/s", ["scale1_eps", "scale2_eps", "scale3_eps", "scale4_eps"], values);
    }
    text + "\n" + &verdicts(&TARGETS, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_left_out() {
        let values: Values =
            [("stream_us", 7.0), ("kstreams_us", 60.0)].map(|(name, value)| (name.into(), value)).into();
        let table = table(&values);
        assert!(table.contains("7.00 ≤ 8.00: reached"), "{table}");
        assert!(table.contains("7.00 ≤ 7.50 (0.125 × kstreams_us): reached"), "{table}");
        assert!(!table.contains("freshness") && !table.contains("workers"), "{table}");
    }
}

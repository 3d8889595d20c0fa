//! What the gateway has to reach.

use crate::figures::{Target, Values, row, verdicts};

/// What is compared with an earlier run: figures and their limits.
pub const PAIRS: [(&str, &str); 4] = [
    ("batch100_us", "limit_us"),
    ("single_us", "limit_us"),
    ("batch100_eps", "limit_eps"),
    ("single_eps", "limit_eps"),
];

/// The gateway's targets.
pub const TARGETS: [Target; 7] = [
    Target { figure: "batch100_us", title: "batches: µs per event", less: true, factor: 3.0, of: Some("limit_us") },
    Target { figure: "batch100_us", title: "", less: true, factor: 0.5, of: Some("peer100_us") },
    Target { figure: "batch100_eps", title: "batches: events/s", less: false, factor: 110_000.0, of: None },
    Target { figure: "single_us", title: "singles: µs per event", less: true, factor: 30.0, of: None },
    Target { figure: "single_us", title: "", less: true, factor: 0.5, of: Some("peer_single_us") },
    Target { figure: "single_eps", title: "singles: events/s", less: false, factor: 20_000.0, of: None },
    Target { figure: "p99_ms", title: "p99 at 60 %: ms", less: true, factor: 10.0, of: None },
];

/// The figures side by side, then the gateway's targets.
pub fn table(values: &Values) -> String {
    let mut text = format!("\n{:24}{:>12}{:>12}{:>12}\n", "", "limit", "Benthos", "gateway");
    let rows = [
        ("batches of 100: µs/event", ["limit_us", "peer100_us", "batch100_us"]),
        ("  events/s", ["limit_eps", "peer100_eps", "batch100_eps"]),
        ("  p99 ms, closed loop", ["", "peer100_p99_ms", "batch100_p99_ms"]),
        ("single events: µs/event", ["", "peer_single_us", "single_us"]),
        ("  events/s", ["", "peer_single_eps", "single_eps"]),
        ("  p99 ms, closed loop", ["", "peer_single_p99_ms", "single_p99_ms"]),
        ("  events/s offered", ["", "", "open_eps"]),
        ("  p50 ms, open loop", ["", "", "p50_ms"]),
        ("  p99 ms, open loop", ["", "", "p99_ms"]),
        ("resident MB", ["", "peer_rss_mb", "rss_mb"]),
    ];
    for (title, names) in rows {
        text += &row(title, names, values);
    }
    text + "\n" + &verdicts(&TARGETS, values)
}

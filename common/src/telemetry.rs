//! Logs and metrics of a process.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// Seconds, for latencies.
const SECONDS: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Records per batch.
const SIZES: [f64; 8] = [1.0, 10.0, 50.0, 100.0, 500.0, 1_000.0, 5_000.0, 10_000.0];

/// How often histograms sum up what was recorded.
const UPKEEP: Duration = Duration::from_secs(5);

/// Starts logging to standard error: text for a terminal, else a JSON object a line.
pub fn start_logging(level: &str) {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // An error means that a logger is there already, which is as good.
    let _ = if std::io::stderr().is_terminal() { logs.try_init() } else { logs.json().try_init() };
}

/// What `/metrics` renders. The first call installs the recorder for the whole process.
pub fn metrics() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let handle = PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
                .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_histogram".to_owned()), &SIZES))
                .and_then(PrometheusBuilder::install_recorder)
                .expect("buckets are not empty, and nothing else installs a recorder");
            keep_up(handle.clone());
            handle
        })
        .clone()
}

/// What histograms record is kept sample by sample until somebody renders it, or this sums it up: a process that
/// nobody scrapes would grow for ever.
fn keep_up(handle: PrometheusHandle) {
    let work = move || {
        loop {
            std::thread::sleep(UPKEEP);
            handle.run_upkeep();
        }
    };
    // Without it, scrapes do the same.
    let _ = std::thread::Builder::new().name("metrics".to_owned()).spawn(work);
}

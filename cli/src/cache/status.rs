//! `tidemill cache status`

use std::io::IsTerminal;
use std::time::Duration;

use serde::Serialize;
use tidemill_common::config::Connections;
use tidemill_common::redis::{Redis, Role};
use tidemill_stream::cache::status::{Status, look};

use crate::output::{Output, spinner};

const FIELDS: [&str; 15] = [
    "node",
    "role",
    "version",
    "p50_ms",
    "p99_ms",
    "memory",
    "fragmentation",
    "ops",
    "clients",
    "evicted",
    "hit_rate",
    "slots",
    "share",
    "lag",
    "anomalies",
];

#[derive(clap::Args)]
pub struct Args {
    /// Another Redis than REDIS_URL names
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Look again and again, every so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "5",
          value_parser = clap::value_parser!(u64).range(1..))]
    watch: Option<u64>,
}

/// A row of the table; programs get the numbers.
#[derive(Serialize)]
struct Row<'a> {
    node: &'a str,
    role: Option<Role>,
    version: &'a str,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    memory: String,
    fragmentation: Option<f64>,
    ops: Option<f64>,
    clients: u64,
    evicted: u64,
    hit_rate: Option<String>,
    slots: Option<u64>,
    share: Option<String>,
    lag: Option<String>,
    anomalies: &'a [String],
}

pub async fn run(args: Args, connections: &Connections, output: Output) -> anyhow::Result<()> {
    let redis = Redis::background(args.url.as_deref().unwrap_or(&connections.redis_url))?;
    loop {
        let looking = spinner("looking");
        let found = look(&redis).await;
        looking.finish_and_clear();
        match output {
            Output::Json => output.things(&found?, &[])?,
            Output::Table => {
                if args.watch.is_some() && std::io::stdout().is_terminal() {
                    print!("\x1b[2J\x1b[H"); // a new screen
                }
                output.things(&found?.iter().map(row).collect::<Vec<_>>(), &FIELDS)?;
            }
        }
        let Some(seconds) = args.watch else { return Ok(()) };
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

fn row(status: &Status) -> Row<'_> {
    let lag = match (status.lag_bytes, status.lag_seconds) {
        (None, None) => None,
        (bytes, seconds) => Some(format!("{} bytes, {} s", bytes.unwrap_or_default(), seconds.unwrap_or_default())),
    };
    let memory = match status.memory_max {
        0 => mebibytes(status.memory),
        max => format!("{} of {}", mebibytes(status.memory), mebibytes(max)),
    };
    Row {
        node: &status.address,
        role: status.role,
        version: &status.version,
        p50_ms: status.p50_ms,
        p99_ms: status.p99_ms,
        memory,
        fragmentation: status.fragmentation,
        ops: status.ops,
        clients: status.clients,
        evicted: status.evicted,
        hit_rate: status.hit_rate.map(|share| format!("{share} %")),
        slots: status.slots,
        share: status.share.map(|share| format!("{share} %")),
        lag,
        anomalies: &status.anomalies,
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

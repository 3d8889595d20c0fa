//! The servers that are measured: each is started fresh, on a free port, for each round.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use tokio::process::Command;

use super::limit::Limit;
use super::measure::Lengths;
use super::request::Target;
use crate::log::Log;
use crate::process::{Server, free_address};

/// Where everything is. `dev/bench` fills this in.
#[derive(Args, Clone)]
pub struct Place {
    /// Kafka's `host:port`
    #[arg(long, env = "KAFKA_BROKERS")]
    pub brokers: String,
    /// The gateway's program; its settings come from the environment
    #[arg(long, env = "TIDEMILL_BIN")]
    pub tidemill: PathBuf,
    /// A key that may write to the gateway's project
    #[arg(long, env = "TIDEMILL_BENCH_KEY", hide_env_values = true)]
    pub key: String,
    /// Benthos's program
    #[arg(long, env = "TIDEMILL_BENCH_BENTHOS")]
    pub benthos: Option<PathBuf>,
    /// The gateway's topic
    #[arg(long, default_value = "events.bench")]
    pub topic: String,
    /// The limit program's topic, made as the gateway's
    #[arg(long, default_value = "events.bench-limit")]
    pub limit_topic: String,
    /// Benthos's topic, made as the gateway's
    #[arg(long, default_value = "events.bench-peer")]
    pub peer_topic: String,
    /// Partitions of each topic
    #[arg(long, default_value_t = 6)]
    pub partitions: i32,
    /// Folder for the servers' logs
    #[arg(long, env = "TIDEMILL_BENCH_LOGS", default_value = ".")]
    pub logs: PathBuf,
}

impl Place {
    /// Runs the limit program in a process of its own.
    pub async fn limit(&self, lengths: Lengths) -> anyhow::Result<Limit> {
        let output = Command::new(std::env::current_exe()?)
            .arg("limit")
            .args(["--brokers", &self.brokers, "--topic", &self.limit_topic])
            .args(["--partitions", &self.partitions.to_string()])
            .args(["--warmup", &lengths.warmup.to_string(), "--seconds", &lengths.seconds.to_string()])
            .stderr(std::process::Stdio::inherit())
            .kill_on_drop(true)
            .output()
            .await?;
        serde_json::from_slice(&output.stdout).context("the limit program failed")
    }

    /// A topic as a witness.
    pub fn log<'a>(&'a self, topic: &'a str) -> Log<'a> {
        Log { brokers: &self.brokers, topic, partitions: self.partitions }
    }

    /// Starts the gateway.
    pub async fn gateway(&self) -> anyhow::Result<(Server, Target)> {
        let address = free_address()?;
        let mut command = Command::new(&self.tidemill);
        command
            .arg("ingest")
            .env_remove("PORT")
            .env("TIDEMILL_LISTEN__HOST", "127.0.0.1")
            .env("TIDEMILL_INGEST__PORT", address.port().to_string())
            .env("LOG_LEVEL", std::env::var("LOG_LEVEL").unwrap_or_else(|_| "warn".to_owned()));
        let mut server = Server::start(command, &self.logs.join("gateway.log")).context("the gateway")?;
        server.ready(address, "/readyz").await.context("the gateway")?;
        let target = Target { address, path: "/v1/events".into(), key: Some(self.key.clone()), verdicts: true };
        Ok((server, target))
    }

    /// Starts Benthos.
    pub async fn peer(&self) -> anyhow::Result<(Server, Target)> {
        let program = self.benthos.as_ref().context("--benthos names no program; run this through dev/bench")?;
        let (address, api) = (free_address()?, free_address()?);
        let config = self.logs.join("benthos.yaml");
        std::fs::write(&config, benthos_config(address, api, &self.brokers, &self.peer_topic))
            .with_context(|| format!("cannot write {}", config.display()))?;
        let mut command = Command::new(program);
        command.arg("-c").arg(&config);
        let mut server = Server::start(command, &self.logs.join("benthos.log")).context("Benthos")?;
        server.ready(api, "/ready").await.context("Benthos")?;
        Ok((server, Target { address, path: "/events".into(), key: None, verdicts: false }))
    }
}

fn benthos_config(address: SocketAddr, api: SocketAddr, brokers: &str, topic: &str) -> String {
    include_str!("../../benthos/config.yaml")
        .replace("{address}", &address.to_string())
        .replace("{api}", &api.to_string())
        .replace("{brokers}", brokers)
        .replace("{topic}", topic)
}

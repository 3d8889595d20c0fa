//! Where everything is, and what each measurement starts from: everything that a worker keeps is made anew.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tidemill_common::redis::Redis;
use tokio::process::Command;

use crate::log::Log;
use crate::process::{Server, free_address};

/// The folder of `logs` that archives are written to.
const WAREHOUSE: &str = "warehouse";

/// Where everything is. `dev/bench` fills this in.
#[derive(Args, Clone)]
pub struct Place {
    /// Kafka's `host:port`
    #[arg(long, env = "KAFKA_BROKERS")]
    pub brokers: String,
    /// The database, migrated and with the projects; measurements get copies of it
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database: String,
    /// Redis; it is emptied before each measurement
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    pub redis: String,
    /// The schema registry
    #[arg(long, env = "SCHEMA_REGISTRY_URL")]
    pub registry: String,
    /// The worker's program; its other settings come from the environment
    #[arg(long, env = "TIDEMILL_BIN")]
    pub tidemill: PathBuf,
    /// A key that may read the project
    #[arg(long, env = "TIDEMILL_BENCH_KEY", hide_env_values = true)]
    pub key: Option<String>,
    /// Folder with the jars of `bench/kstreams`
    #[arg(long, env = "TIDEMILL_BENCH_KSTREAMS")]
    pub kstreams: Option<PathBuf>,
    /// The Java to run it with
    #[arg(long, env = "TIDEMILL_BENCH_JAVA", default_value = "java")]
    pub java: PathBuf,
    /// Folder with the jars of `bench/connect`
    #[arg(long, env = "TIDEMILL_BENCH_CONNECT")]
    pub connect: Option<PathBuf>,
    /// The broker's process
    #[arg(long, env = "TIDEMILL_BENCH_KAFKA_PID")]
    pub kafka_pid: u32,
    /// Postgres' first process
    #[arg(long, env = "TIDEMILL_BENCH_POSTGRES_PID")]
    pub postgres_pid: u32,
    /// Redis' process
    #[arg(long, env = "TIDEMILL_BENCH_REDIS_PID")]
    pub redis_pid: u32,
    /// Partitions of each topic
    #[arg(long, default_value_t = 6)]
    pub partitions: i32,
    /// Folder for logs and the state of what is measured
    #[arg(long, env = "TIDEMILL_BENCH_LOGS", default_value = ".")]
    pub logs: PathBuf,
}

/// What a measurement works on.
pub struct Fresh {
    /// The database.
    pub pool: PgPool,
    /// Its URL.
    pub url: String,
}

impl Place {
    /// A copy of the prepared database, an empty Redis, nothing seen, and no processed records.
    pub async fn fresh(&self, project: &str) -> anyhow::Result<Fresh> {
        let (server, database) = self.database.rsplit_once('/').context("DATABASE_URL names no database")?;
        anyhow::ensure!(database == "tidemill", "DATABASE_URL has to name the database tidemill, which is copied");
        let options: PgConnectOptions = self.database.parse()?;
        let admin = PgPoolOptions::new().max_connections(1).connect_with(options.clone().database("postgres")).await?;
        sqlx::query("DROP DATABASE IF EXISTS tidemill_measured WITH (FORCE)").execute(&admin).await?;
        sqlx::query("CREATE DATABASE tidemill_measured TEMPLATE tidemill").execute(&admin).await?;
        sqlx::query("CHECKPOINT").execute(&admin).await?; // what the copy has written is not the worker's
        admin.close().await;
        let pool = PgPoolOptions::new().max_connections(2).connect_with(options.database("tidemill_measured")).await?;
        Redis::new(&self.redis)?.run::<()>(redis::pipe().cmd("FLUSHALL").ignore()).await?;
        self.truncate(&processed(project)).await?;
        let seen = self.seen();
        if seen.exists() {
            std::fs::remove_dir_all(&seen).with_context(|| format!("cannot remove {}", seen.display()))?;
        }
        Ok(Fresh { pool, url: format!("{server}/tidemill_measured") })
    }

    /// The workers' seen stores.
    fn seen(&self) -> PathBuf {
        self.logs.join("seen")
    }

    /// Where archives are written: a URL.
    pub fn warehouse(&self) -> String {
        format!("file://{}", self.logs.join(WAREHOUSE).display())
    }

    /// Removes what an archive before has left, and the tables that projects are created with: their files go, too.
    pub async fn empty_warehouse(&self, fresh: &Fresh) -> anyhow::Result<()> {
        sqlx::query("TRUNCATE iceberg_tables").execute(&fresh.pool).await?;
        let folder = self.logs.join(WAREHOUSE);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", folder.display()))
            }
            _ => Ok(()),
        }
    }

    /// Makes a topic of one partition.
    pub async fn create_topic(&self, name: &str) -> anyhow::Result<()> {
        let topic = NewTopic::new(name, 1, TopicReplication::Fixed(1));
        for made in self.admin()?.create_topics(&[topic], &AdminOptions::new()).await? {
            made.map_err(|(name, code)| anyhow::anyhow!("topic {name} cannot be made: {code}"))?;
        }
        Ok(())
    }

    /// Deletes all records of a topic.
    async fn truncate(&self, topic: &str) -> anyhow::Result<()> {
        let ends = Log { brokers: &self.brokers, topic, partitions: self.partitions }.ends()?;
        let mut list = TopicPartitionList::new();
        for (partition, _) in (0..).zip(ends).filter(|(_, end)| *end > 0) {
            list.add_partition_offset(topic, partition, Offset::End)?;
        }
        if list.count() > 0 {
            self.admin()?.delete_records(&list, &AdminOptions::new()).await?;
        }
        Ok(())
    }

    /// Deletes the topics whose names begin so.
    pub async fn delete_topics(&self, prefix: &str) -> anyhow::Result<()> {
        let admin = self.admin()?;
        let metadata = admin.inner().fetch_metadata(None, std::time::Duration::from_secs(10))?;
        let names: Vec<&str> = metadata.topics().iter().map(|topic| topic.name()).collect();
        let names: Vec<&str> = names.into_iter().filter(|name| name.starts_with(prefix)).collect();
        if !names.is_empty() {
            admin.delete_topics(&names, &AdminOptions::new()).await?;
        }
        Ok(())
    }

    fn admin(&self) -> anyhow::Result<AdminClient<DefaultClientContext>> {
        Ok(ClientConfig::new().set("bootstrap.servers", &self.brokers).create()?)
    }

    /// Starts a worker that reads one topic.
    pub async fn worker(&self, fresh: &Fresh, topic: &str, number: usize) -> anyhow::Result<Server> {
        let pattern = format!("^{}$", topic.replace('.', "\\."));
        let (server, _) = self.service(fresh, "stream", number, &[("TIDEMILL_STREAM__TOPICS", &pattern)]).await?;
        Ok(server)
    }

    /// Starts the query service.
    pub async fn query(&self, fresh: &Fresh) -> anyhow::Result<(Server, SocketAddr)> {
        self.query_with(fresh, &[]).await
    }

    /// Starts the query service with these settings.
    pub async fn query_with(&self, fresh: &Fresh, settings: &[(&str, &str)]) -> anyhow::Result<(Server, SocketAddr)> {
        self.service(fresh, "query", 1, settings).await
    }

    /// Starts a service with these settings.
    pub async fn service(
        &self,
        fresh: &Fresh,
        name: &str,
        number: usize,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<(Server, SocketAddr)> {
        let address = free_address()?;
        let mut command = Command::new(&self.tidemill);
        command
            .arg(name)
            .env_remove("PORT")
            .env("DATABASE_URL", &fresh.url)
            .env("TIDEMILL_LISTEN__HOST", "127.0.0.1")
            .env(format!("TIDEMILL_{}__PORT", name.to_uppercase()), address.port().to_string())
            .env(format!("TIDEMILL_{}__SEEN_DIR", name.to_uppercase()), self.seen())
            .env("LOG_LEVEL", std::env::var("LOG_LEVEL").unwrap_or_else(|_| "warn".to_owned()))
            .envs(settings.iter().copied());
        let log = self.logs.join(format!("{name}-{number}.log"));
        let mut server = Server::start(command, &log).with_context(|| format!("tidemill {name}"))?;
        server.ready(address, "/readyz").await.with_context(|| format!("tidemill {name}"))?;
        Ok((server, address))
    }
}

/// A project's processed topic.
pub fn processed(project: &str) -> String {
    tidemill_common::names::processed_topic(project)
}

//! Several Redis servers as one: behind sentinels, as a cluster, or plain ones for a ring.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisResult};
use tokio::task::spawn_blocking;

use crate::eventually;

/// What sentinels call the master.
const MASTER: &str = "tidemill";
/// A cluster's nodes talk to each other at ports so much higher.
const BUS: u16 = 10_000;

/// Servers of the test's own. They are killed, and their data is removed, on drop.
pub struct Redises {
    /// Where they are, as `REDIS_URL`.
    pub url: String,
    /// `host:port` of each data node, in the order of their start.
    pub nodes: Vec<String>,
    folder: PathBuf,
    servers: Vec<Server>,
}

struct Server {
    port: u16,
    arguments: Vec<String>,
    process: Child,
}

impl Redises {
    /// Three plain servers on a ring.
    pub async fn ring() -> Self {
        let mut all = Self::new();
        for _ in 0..3 {
            all.launch(&[]).await;
        }
        all.url = all.ring_url();
        all
    }

    /// Three masters with a replica each. A master that is gone is replaced after 2 s.
    pub async fn cluster() -> Self {
        let mut all = Self::new();
        for _ in 0..6 {
            all.launch(&["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]).await;
        }
        all.redis_cli(
            &[&["--cluster", "create"], &*all.names(), &["--cluster-replicas", "1", "--cluster-yes"]].concat(),
        )
        .await;
        all.replicas_follow(3).await;
        for node in &all.nodes {
            eventually("every node knows each master's replica", || async {
                let slots = all.ask::<Vec<Vec<redis::Value>>>(node, &["CLUSTER", "SLOTS"]).await.unwrap_or_default();
                // First and last slot, master, replica.
                slots.len() == 3 && slots.iter().all(|range| range.len() == 4)
            })
            .await;
        }
        all.url = format!("redis+cluster://{}", all.nodes.join(","));
        all
    }

    /// A master with two replicas, and three sentinels, which replace it after a second.
    pub async fn sentinel() -> Self {
        let mut all = Self::new();
        all.launch(&[]).await;
        let master = all.servers[0].port.to_string();
        for _ in 0..2 {
            all.launch(&["--replicaof", "127.0.0.1", &master]).await;
        }
        all.replicas_follow(2).await;
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            let port = port();
            let settings = format!(
                "port {port}\nbind 127.0.0.1\nsentinel monitor {MASTER} 127.0.0.1 {master} 2\n\
                 sentinel down-after-milliseconds {MASTER} 1000\nsentinel failover-timeout {MASTER} 3000\n"
            );
            let file = all.folder.join(format!("sentinel-{port}.conf"));
            std::fs::write(&file, settings).unwrap();
            all.spawn(port, vec![file.display().to_string(), "--sentinel".to_owned()]).await;
            sentinels.push(format!("127.0.0.1:{port}"));
        }
        for sentinel in &sentinels {
            eventually("the sentinels know each other and the replicas", || async {
                let knows: RedisResult<Vec<redis::Value>> = all.ask(sentinel, &["SENTINEL", "REPLICAS", MASTER]).await;
                let others: RedisResult<Vec<redis::Value>> =
                    all.ask(sentinel, &["SENTINEL", "SENTINELS", MASTER]).await;
                knows.is_ok_and(|knows| knows.len() == 2) && others.is_ok_and(|others| others.len() == 2)
            })
            .await;
        }
        all.url = format!("redis+sentinel://{}/{MASTER}", sentinels.join(","));
        all
    }

    /// Another plain server; gives its address.
    pub async fn join(&mut self) -> String {
        self.launch(&[]).await;
        self.nodes.last().expect("just started").clone()
    }

    /// The ring of all nodes that were started.
    pub fn ring_url(&self) -> String {
        format!("redis+ring://{}", self.nodes.join(","))
    }

    /// kill -9
    pub fn kill(&mut self, node: &str) {
        let server = self.server(node);
        server.process.kill().unwrap();
        server.process.wait().unwrap();
    }

    /// Starts a killed server again, with nothing but its place in the cluster.
    pub async fn start_again(&mut self, node: &str) {
        let (port, arguments) = (self.server(node).port, self.server(node).arguments.clone());
        let process = self.process(port, &arguments).await;
        self.server(node).process = process;
    }

    /// Runs a command at a node.
    pub async fn ask<T: FromRedisValue>(&self, node: &str, command: &[&str]) -> RedisResult<T> {
        let mut connection = connect(node).await?;
        redis::cmd(command[0]).arg(&command[1..]).query_async(&mut connection).await
    }

    /// The masters, as the nodes themselves say; those that do not answer are none.
    pub async fn masters(&self) -> Vec<String> {
        let mut masters = Vec::new();
        for node in &self.nodes {
            let info = self.ask::<String>(node, &["INFO", "replication"]).await.unwrap_or_default();
            if info.contains("role:master") {
                masters.push(node.clone());
            }
        }
        masters
    }

    /// `redis-cli` with these arguments; fails when it does.
    pub async fn redis_cli(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(arguments).stdin(Stdio::null());
        let output = spawn_blocking(move || command.output()).await.unwrap().expect("redis-cli");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("redises-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&folder).expect("a folder");
        Self { url: String::new(), nodes: Vec::new(), folder, servers: Vec::new() }
    }

    fn names(&self) -> Vec<&str> {
        self.nodes.iter().map(String::as_str).collect()
    }

    fn server(&mut self, node: &str) -> &mut Server {
        let is_it = |server: &&mut Server| node.ends_with(&format!(":{}", server.port));
        self.servers.iter_mut().find(is_it).unwrap_or_else(|| panic!("{node} is none of ours"))
    }

    /// Starts a data node.
    async fn launch(&mut self, more: &[&str]) {
        let port = port();
        let folder = self.folder.join(port.to_string());
        std::fs::create_dir_all(&folder).expect("a folder");
        let (port_text, folder) = (port.to_string(), folder.display().to_string());
        let arguments =
            ["--port", &port_text, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", &folder];
        let quick = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"];
        let arguments = [&arguments[..], &quick, more].concat().into_iter().map(str::to_owned).collect();
        self.spawn(port, arguments).await;
        self.nodes.push(format!("127.0.0.1:{port}"));
    }

    async fn spawn(&mut self, port: u16, arguments: Vec<String>) {
        let process = self.process(port, &arguments).await;
        self.servers.push(Server { port, arguments, process });
    }

    async fn process(&self, port: u16, arguments: &[String]) -> Child {
        let process = Command::new("redis-server").args(arguments).stdout(Stdio::null()).spawn();
        let process = process.expect("redis-server on the PATH; dev/services start installs it");
        let node = format!("127.0.0.1:{port}");
        eventually("redis answers", || async { self.ask::<String>(&node, &["PING"]).await.is_ok() }).await;
        process
    }

    async fn replicas_follow(&self, count: usize) {
        eventually("the replicas follow", || async {
            let mut following = 0;
            for node in &self.nodes {
                let info = self.ask::<String>(node, &["INFO", "replication"]).await.unwrap_or_default();
                following += usize::from(info.contains("master_link_status:up"));
            }
            following == count
        })
        .await;
    }
}

impl Drop for Redises {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.process.kill();
            let _ = server.process.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn connect(node: &str) -> RedisResult<MultiplexedConnection> {
    redis::Client::open(format!("redis://{node}"))?.get_multiplexed_async_connection().await
}

/// A port that is free, as is the one for a cluster's nodes, and that the system gives nobody by itself.
fn port() -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let random = || 12_000 + u16::try_from(uuid::Uuid::new_v4().as_u128() % 10_000).expect("below 10,000");
    std::iter::repeat_with(random).take(1_000).find(|port| is_free(*port) && is_free(port + BUS)).expect("a free port")
}

//! Components of one's own, for tests that stop, break or wipe them.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokio::task::spawn_blocking;

/// Components that nobody else uses, on free ports. They are stopped and their data is removed on drop.
pub struct Own {
    folder: PathBuf,
    names: Vec<String>,
    settings: Vec<(String, String)>,
    env: BTreeMap<String, String>,
}

impl Own {
    /// Starts some of `kafka`, `redis`, `postgres`, `registry`, `s3`.
    pub async fn start(names: &[&str]) -> Self {
        Self::with(names, &[]).await
    }

    /// The same with settings for `dev/services`.
    pub async fn with(names: &[&str], settings: &[(&str, String)]) -> Self {
        let folder = std::env::temp_dir().join(format!("tidemill-{}", uuid::Uuid::new_v4().simple()));
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let mut all: Vec<(String, String)> = ["KAFKA", "KAFKA_CONTROLLER", "REDIS", "POSTGRES", "REGISTRY", "S3"]
            .map(|name| (format!("TIDEMILL_{name}_PORT"), "0".to_owned()))
            .into();
        all.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let mut own = Self { folder, names, settings: all, env: BTreeMap::new() };
        own.services("start").await;
        let env = own.services("env").await;
        for line in env.lines() {
            let (name, value) = line.trim_start_matches("export ").split_once('=').expect("NAME=value");
            own.env.insert(name.to_owned(), value.trim_matches(['\'', '"']).to_owned());
        }
        own
    }

    /// A setting that leads to these components, e.g. `REDIS_URL`.
    pub fn value(&self, name: &str) -> String {
        self.env.get(name).unwrap_or_else(|| panic!("{name} is none of {:?}", self.env.keys())).clone()
    }

    /// `dev/services <command>` for these components: `start`, `stop`, …
    pub async fn services(&self, command: &str) -> String {
        let mut process = self.command(command);
        spawn_blocking(move || run(&mut process)).await.expect("dev/services runs")
    }

    /// The process of a component, while it runs.
    pub fn pid(&self, name: &str) -> u32 {
        let pid = std::fs::read_to_string(self.folder.join(name).join("pid")).expect("a running component");
        pid.trim().parse().expect("a process id")
    }

    fn command(&self, command: &str) -> Command {
        let mut process = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../dev/services"));
        process.args(command.split(' ')).args(&self.names).env("TIDEMILL_DEV", &self.folder);
        process.envs(self.settings.iter().map(|(name, value)| (name, value)));
        process
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.command("stop --wipe").output();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Kafka with three brokers, each of which holds everything (`min.insync.replicas` 2).
pub struct Cluster {
    brokers: Vec<Own>,
}

impl Cluster {
    /// Starts the brokers, which takes some seconds.
    pub async fn start() -> Self {
        let ports: Vec<(u16, u16)> = (0..3).map(|_| (free_port(), free_port())).collect();
        let voters: Vec<String> =
            (1..).zip(&ports).map(|(id, (_, controller))| format!("{id}@127.0.0.1:{controller}")).collect();
        let voters = voters.join(",");
        let start = |id: usize, (port, controller): (u16, u16)| {
            let properties = format!(
                "node.id={id}\ncontroller.quorum.voters={voters}\ndefault.replication.factor=3\n\
                 min.insync.replicas=2\noffsets.topic.replication.factor=3\n\
                 broker.session.timeout.ms=4000\nbroker.heartbeat.interval.ms=1000"
            );
            async move {
                let settings = [
                    ("TIDEMILL_KAFKA_PORT", port.to_string()),
                    ("TIDEMILL_KAFKA_CONTROLLER_PORT", controller.to_string()),
                    ("TIDEMILL_KAFKA_PROPERTIES", properties),
                    ("TIDEMILL_KAFKA_HEAP", "384m".to_owned()),
                ];
                Own::with(&["kafka"], &settings).await
            }
        };
        // At once: none of them is ready without another.
        let (one, two, three) = tokio::join!(start(1, ports[0]), start(2, ports[1]), start(3, ports[2]));
        Self { brokers: vec![one, two, three] }
    }

    /// All brokers' addresses.
    pub fn addresses(&self) -> String {
        let addresses: Vec<String> = self.brokers.iter().map(|broker| broker.value("KAFKA_BROKERS")).collect();
        addresses.join(",")
    }

    /// A broker by its id, from 1 on.
    pub fn broker(&self, id: i32) -> &Own {
        &self.brokers[id as usize - 1]
    }
}

fn run(process: &mut Command) -> String {
    let output = process.output().expect("dev/services");
    assert!(output.status.success(), "{process:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A port of this machine that is free now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port()
}

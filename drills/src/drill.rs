//! What every row starts from: a project of its own on real components, processes to break, traffic with a journal,
//! and the comparison at the end.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tidemill_common::config::Connections;
use tidemill_common::kafka::History;
use tidemill_common::names::events_topic;
use tidemill_testkit::{Stack, countries};
use tokio::process::Command;

use crate::flow::{Flow, Stream};
use crate::journal::Journal;
use crate::oracle::{COUNTRIES, DECLARED};
use crate::process::Process;
use crate::send::{Http, Native, Partitioner};
use crate::traffic::{Style, Traffic};

/// The folders of [`Stack::folder`] that a service's seen stores lie in: these, then `-` and its name.
pub const SEEN: &str = "seen";
/// And their checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";
/// The file of countries.
const COUNTRY_FILE: &str = "countries.mmdb";

/// How a row is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Decides traffic and random choices.
    pub seed: u64,
    /// The `tidemill` binary, a debug build.
    pub binary: PathBuf,
    /// Folder for journals and the processes' logs.
    pub logs: PathBuf,
    /// The mutant that the workers carry.
    pub mutant: Option<&'static str>,
}

/// What a row has shown.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Everything that is not as the log says.
    pub differences: Vec<String>,
    /// From the end of the fault until the view had passed what the log held then; the longest of several.
    pub recovery: Duration,
    /// What is worth telling beside that.
    pub facts: Vec<String>,
}

/// One row at work.
pub struct Drill {
    /// Gateway and archiver, where the row has them.
    services: Vec<Process>,
    http: Option<Http>,
    /// Whether the archive is compared, too.
    pub archived: bool,
    /// Whether the newest state of every hot window must have been published, since no worker is killed.
    pub all_published: bool,
    /// Reads the log.
    pub history: History,
    /// The components and the row's project.
    pub stack: Stack,
    /// The row's random choices.
    pub random: StdRng,
    /// What was sent.
    pub journal: Journal,
    options: Options,
    starts: usize,
}

impl Drill {
    /// A project on the components that the environment names.
    pub async fn start(options: &Options) -> anyhow::Result<Self> {
        Self::with(options, 1, |_| {}).await
    }

    /// The same with some components elsewhere, and topics that so many brokers hold.
    pub async fn with(
        options: &Options,
        replication: i32,
        change: impl FnOnce(&mut Connections),
    ) -> anyhow::Result<Self> {
        let stack = Stack::replicated(replication, change).await;
        declare_metrics(&stack).await?;
        std::fs::write(stack.folder(COUNTRY_FILE), countries(COUNTRIES.0, COUNTRIES.1))?;
        std::fs::create_dir_all(&options.logs)?;
        let journal = Journal::create(&options.logs.join(format!("{}.journal", stack.project)))?;
        let history = History::new(stack.connections.kafka.clone());
        let (random, options) = (StdRng::seed_from_u64(options.seed), options.clone());
        let (services, http) = (Vec::new(), None);
        Ok(Self {
            services,
            http,
            archived: false,
            all_published: false,
            stack,
            random,
            journal,
            options,
            history,
            starts: 0,
        })
    }

    /// Starts a stream worker of one of the row's groups, with more settings.
    pub fn worker(&mut self, group: &str, settings: &[(&str, &str)]) -> anyhow::Result<Process> {
        let mut more: Vec<(&str, &str)> = self.planted();
        more.extend(settings);
        self.service("stream", group, &more)
    }

    /// The settings of what is being drilled that plant the mutant, if there is to be one.
    pub fn planted(&self) -> Vec<(&'static str, &'static str)> {
        self.options.mutant.map(|mutant| ("TIDEMILL_MUTANT", mutant)).into_iter().collect()
    }

    /// Starts a worker and waits until it counts all partitions.
    pub async fn live_worker(&mut self, group: &str, settings: &[(&str, &str)]) -> anyhow::Result<Process> {
        let mut worker = self.worker(group, settings)?;
        let partitions = self.stack.partitions_of(&events_topic(&self.stack.project));
        worker.reaches("tidemill_stream_live_partitions", f64::from(partitions)).await?;
        Ok(worker)
    }

    /// Starts a gateway, through which a third of the traffic goes from then on.
    pub async fn gateway(&mut self) -> anyhow::Result<()> {
        let mut gateway = self.service("ingest", "", &[])?;
        gateway.ready().await?;
        self.send_through(gateway.url()).await?;
        self.services.push(gateway);
        Ok(())
    }

    /// Traffic over HTTP goes there from then on: to a gateway that the row starts and ends itself.
    pub async fn send_through(&mut self, url: &str) -> anyhow::Result<()> {
        let key = self.stack.create_key(&self.stack.project, &["write"], None).await;
        self.http = Some(Http::new(url, &key, self.journal.clone())?);
        Ok(())
    }

    /// The client of the gateway.
    pub fn http(&self) -> anyhow::Result<&Http> {
        self.http.as_ref().context("the row has no gateway")
    }

    /// Starts an archiver; the archive is compared too from then on.
    pub async fn archiver(&mut self) -> anyhow::Result<()> {
        let mut archiver = self.service("archiver", "archive", &[])?;
        archiver.ready().await?;
        self.services.push(archiver);
        self.archived = true;
        Ok(())
    }

    /// A native producer.
    pub fn native(&self, partitioner: Partitioner) -> anyhow::Result<Native> {
        Native::new(&self.stack, partitioner, self.journal.clone())
    }

    /// New traffic, whose ids begin with `run`.
    pub fn traffic(&self, run: &str, style: Style) -> Traffic {
        Traffic::new(self.options.seed, run, style)
    }

    /// Keeps traffic up in the background.
    pub fn flow(&self, stream: Stream) -> anyhow::Result<Flow> {
        let run = format!("{}-{}", self.stack.project, self.journal.len());
        let traffic = self.traffic(&run, stream.style.clone());
        let native = self.native(stream.partitioner)?;
        Ok(Flow::start(stream, traffic, native, self.http.clone()))
    }

    /// Gateways and archivers that do not run any more, though nobody has ended them.
    pub fn ended_by_themselves(&mut self) -> Vec<String> {
        let ended = |service: &mut Process| {
            (!service.runs()).then(|| format!("a service ended by itself; its log is {}", service.log().display()))
        };
        self.services.iter_mut().filter_map(ended).collect()
    }

    /// What gateways and archivers say of themselves.
    pub async fn services_say(&mut self) -> String {
        let mut said = self.ended_by_themselves();
        for service in &self.services {
            said.push(format!("{}: {}", service.log().display(), service.health().await));
        }
        said.join("; ")
    }

    /// What an operator's command gives as JSON; an error is one of the command's own.
    pub async fn operator(&self, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let output = self.command(arguments).output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tidemill {}: {said}", arguments.join(" "));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// An operator's command as it can be started, with the settings of the row's stream workers.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.options.binary);
        command.args(arguments).args(["--output", "json"]).envs(self.settings("stream", "operator"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// The components' addresses, as environment variables.
    fn components(&self) -> Vec<(String, String)> {
        let c = &self.stack.connections;
        let named = [
            ("KAFKA_BROKERS", &c.kafka.brokers),
            ("DATABASE_URL", &c.database_url),
            ("REDIS_URL", &c.redis_url),
            ("SCHEMA_REGISTRY_URL", &c.registry_url),
            ("WAREHOUSE_URL", &c.warehouse_url),
        ];
        named.map(|(name, value)| (name.to_owned(), value.clone())).into()
    }

    /// Starts a service of one of the row's groups, with more settings.
    pub fn service(&mut self, service: &str, group: &str, more: &[(&str, &str)]) -> anyhow::Result<Process> {
        let mut env = self.settings(service, group);
        env.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self.starts += 1;
        let log = self.options.logs.join(format!("{}-{:02}-{service}.log", self.stack.project, self.starts));
        Process::start(&self.options.binary, service, &env, &log)
    }

    /// A service's settings.
    fn settings(&self, service: &str, group: &str) -> Vec<(String, String)> {
        let project = &self.stack.project;
        let section = format!("TIDEMILL_{}__", service.to_uppercase());
        let of = |name: &str| format!("{section}{name}");
        let mut env = self.components();
        env.push(("LOG_LEVEL".to_owned(), std::env::var("LOG_LEVEL").unwrap_or("warn,tidemill=info".to_owned())));
        if service != "ingest" {
            env.push((of("GROUP"), format!("{project}-{group}")));
            env.push((of("TOPICS"), self.stack.pattern()));
            env.push((of("SESSION_TIMEOUT_MS"), "3000".to_owned()));
            let folder = |name: &str| self.stack.folder(&format!("{name}-{service}")).display().to_string();
            env.push((of("SEEN_DIR"), folder(SEEN)));
            env.push((of("CHECKPOINT_URL"), format!("file://{}", folder(CHECKPOINTS))));
        }
        match service {
            "stream" => {
                // Small batches, so that there are many of them to be hit.
                env.push((of("BATCH_SIZE"), "200".to_owned()));
                env.push((of("BATCH_WAIT_MS"), "20".to_owned()));
                env.push((of("GEOIP_FILE"), self.stack.folder(COUNTRY_FILE).display().to_string()));
            }
            "archiver" => env.push((of("COMMIT_INTERVAL_MS"), "1000".to_owned())),
            _ => {}
        }
        env
    }
}

/// Before any worker runs: a metric has no history.
async fn declare_metrics(stack: &Stack) -> anyhow::Result<()> {
    for (name, definition) in DECLARED.iter().filter_map(|metric| Some((metric.name, metric.definition()?))) {
        sqlx::query("INSERT INTO metric_definitions (project, name, definition) VALUES ($1, $2, $3)")
            .bind(&stack.project)
            .bind(name)
            .bind(definition)
            .execute(&stack.pool)
            .await?;
    }
    Ok(())
}

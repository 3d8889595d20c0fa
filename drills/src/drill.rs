//! What every row starts from: a project of its own on real components, processes to break, traffic with a journal,
//! and the comparison at the end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tidemill_common::config::Connections;
use tidemill_common::kafka::{History, TopicPartition};
use tidemill_common::names::events_topic;
use tidemill_testkit::{PARTITIONS, Stack};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::journal::Journal;
use crate::log;
use crate::oracle::Expected;
use crate::process::Process;
use crate::reconcile;
use crate::send::{Http, Native, Partitioner};
use crate::traffic::{Item, Style, Traffic};
use crate::views;

/// Views that have not passed the log by then count as stuck.
const SETTLED: Duration = Duration::from_secs(90);
/// A flushed or failed-over Redis has to show everything again within this time.
const REDIS: Duration = Duration::from_secs(10);
/// Brokers that were broken have to answer within this time.
const KAFKA: Duration = Duration::from_secs(60);
const ARCHIVE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);
/// How often traffic sends.
const BEAT: Duration = Duration::from_millis(50);

/// The folders of [`Stack::folder`] that a service's seen stores lie in: these, then `-` and its name.
pub const SEEN: &str = "seen";
/// And their checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";

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
    archived: bool,
    /// The components and the row's project.
    pub stack: Stack,
    /// The row's random choices.
    pub random: StdRng,
    /// What was sent.
    pub journal: Journal,
    options: Options,
    history: History,
    starts: usize,
}

/// Traffic to keep up.
#[derive(Debug, Clone)]
pub struct Stream {
    /// What is sent.
    pub style: Style,
    /// Records a second.
    pub rate: usize,
    /// Whether native producers send everything twice.
    pub twice: bool,
    /// How native producers choose partitions.
    pub partitioner: Partitioner,
}

impl Default for Stream {
    fn default() -> Self {
        Self { style: Style::default(), rate: 400, twice: false, partitioner: Partitioner::Murmur2 }
    }
}

/// Traffic in the background.
pub struct Flow {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Flow {
    /// Ends it, once what is under way has its answer.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.task.await?
    }
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
        std::fs::create_dir_all(&options.logs)?;
        let journal = Journal::create(&options.logs.join(format!("{}.journal", stack.project)))?;
        let history = History::new(stack.connections.kafka.clone());
        let (random, options) = (StdRng::seed_from_u64(options.seed), options.clone());
        let (services, http) = (Vec::new(), None);
        Ok(Self { services, http, archived: false, stack, random, journal, options, history, starts: 0 })
    }

    /// Starts a stream worker of one of the row's groups, with more settings.
    pub fn worker(&mut self, group: &str, settings: &[(&str, &str)]) -> anyhow::Result<Process> {
        let mut more: Vec<(&str, &str)> =
            self.options.mutant.map(|mutant| ("TIDEMILL_MUTANT", mutant)).into_iter().collect();
        more.extend(settings);
        self.service("stream", group, &more)
    }

    /// Starts a worker and waits until it counts all partitions.
    pub async fn live_worker(&mut self, group: &str, settings: &[(&str, &str)]) -> anyhow::Result<Process> {
        let mut worker = self.worker(group, settings)?;
        worker.reaches("tidemill_stream_live_partitions", f64::from(PARTITIONS)).await?;
        Ok(worker)
    }

    /// Starts a gateway, through which a third of the traffic goes from then on.
    pub async fn gateway(&mut self) -> anyhow::Result<()> {
        let mut gateway = self.service("ingest", "", &[])?;
        gateway.ready().await?;
        let key = self.stack.create_key(&self.stack.project, &["write"], None).await;
        self.http = Some(Http::new(gateway.url(), &key, self.journal.clone())?);
        self.services.push(gateway);
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
        let native = self.native(stream.partitioner)?;
        let (http, stop) = (self.http.clone(), CancellationToken::new());
        let run = format!("{}-{}", self.stack.project, self.journal.len());
        let traffic = self.traffic(&run, stream.style.clone());
        let task = tokio::spawn(keep_up(stream, traffic, native, http, stop.clone()));
        Ok(Flow { stop, task })
    }

    /// Waits until so many more things were sent.
    pub async fn sent(&self, more: usize) -> anyhow::Result<()> {
        let wanted = self.journal.len() + more;
        self.until(SETTLED, &format!("{more} more records sent"), async || Ok(self.journal.len() >= wanted)).await
    }

    /// The offsets behind the last records, of partitions that have some.
    pub async fn ends(&self) -> anyhow::Result<BTreeMap<i32, i64>> {
        let topic: std::sync::Arc<str> = events_topic(&self.stack.project).into();
        let partitions: Vec<TopicPartition> =
            (0..PARTITIONS).map(|partition| TopicPartition { topic: topic.clone(), partition }).collect();
        let deadline = Instant::now() + KAFKA;
        loop {
            let (history, partitions) = (self.history.clone(), partitions.clone());
            match tokio::task::spawn_blocking(move || history.bounds(&partitions)).await? {
                Ok(bounds) => return Ok(bounds.into_iter().map(|(at, (_, end))| (at.partition, end)).collect()),
                // The brokers may be what was broken.
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Waits until the ledger has passed what the log holds now. Gives the time since `fault`.
    pub async fn recovered(&self, fault: Instant) -> anyhow::Result<Duration> {
        let ends = self.ends().await?;
        self.passed(&ends).await?;
        Ok(fault.elapsed())
    }

    /// Sum of the ledger's positions.
    pub async fn position(&self) -> anyhow::Result<i64> {
        Ok(views::ledger(&self.stack).await?.values().map(|(next, _)| next).sum())
    }

    /// Waits until the views have passed all of the log, compares everything, and gives the outcome.
    pub async fn finish(&self, recovery: Duration) -> anyhow::Result<Outcome> {
        let mut differences = Vec::new();
        if let Err(error) = self.settle().await {
            differences.push(format!("{error:#}"));
        }
        let (found, facts) = self.reconcile().await?;
        differences.extend(found);
        Ok(Outcome { differences, recovery, facts })
    }

    /// Waits until the ledger stands at the log's end. Strays that are sent home move that end.
    pub async fn settle(&self) -> anyhow::Result<()> {
        loop {
            let ends = self.ends().await?;
            self.passed(&ends).await?;
            if self.ends().await? == ends {
                return Ok(());
            }
        }
    }

    async fn passed(&self, ends: &BTreeMap<i32, i64>) -> anyhow::Result<()> {
        self.until(SETTLED, &format!("the ledger passes {ends:?}"), async || {
            // Postgres may be what was broken.
            let Ok(ledger) = views::ledger(&self.stack).await else { return Ok(false) };
            Ok(ends.iter().all(|(partition, end)| ledger.get(partition).is_some_and(|(next, _)| next >= end)))
        })
        .await
    }

    /// All differences, and what there was to compare.
    async fn reconcile(&self) -> anyhow::Result<(Vec<String>, Vec<String>)> {
        let (log, entries) = (log::read(&self.stack).await?, self.journal.entries()?);
        let expected = Expected::of(&log, PARTITIONS, self.stack.project().await.dedupe_window_ms);
        ensure!(!expected.first_sights.is_empty(), "the log holds no events, so the row shows nothing");
        let mut differences = [
            reconcile::journal(&entries, &log),
            reconcile::strays(&expected, &log),
            reconcile::ledger(&self.ends().await?, &views::ledger(&self.stack).await?),
            reconcile::postgres(&expected, &views::counted(&self.stack).await?),
            reconcile::topics(&expected, &views::sent_on(&self.stack).await?),
        ]
        .concat();
        differences.extend(self.redis(&expected, REDIS).await?);
        if self.archived {
            differences.extend(self.archive(&expected).await?);
        }
        let (count, strays, dead) = (expected.first_sights.len(), expected.strays.len(), expected.dead.len());
        let copies = log.len() - count - strays - dead;
        Ok((differences, vec![format!("{count} events, {copies} copies, {strays} strays, {dead} dead")]))
    }

    /// What Redis shows is brought level a little later; what still differs after `limit` counts.
    async fn redis(&self, expected: &Expected, limit: Duration) -> anyhow::Result<Vec<String>> {
        let deadline = Instant::now() + limit;
        loop {
            let shown = views::shown(&self.stack).await?;
            let differences = reconcile::redis(expected, &shown, chrono::Utc::now().timestamp());
            if differences.is_empty() || Instant::now() > deadline {
                return Ok(differences);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn archive(&self, expected: &Expected) -> anyhow::Result<Vec<String>> {
        let deadline = Instant::now() + ARCHIVE;
        loop {
            let differences = reconcile::archive(expected, &views::archived(&self.stack).await?);
            if differences.is_empty() || Instant::now() > deadline {
                return Ok(differences);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn service(&mut self, service: &str, group: &str, more: &[(&str, &str)]) -> anyhow::Result<Process> {
        let (project, c) = (&self.stack.project, &self.stack.connections);
        let section = format!("TIDEMILL_{}__", service.to_uppercase());
        let of = |name: &str| format!("{section}{name}");
        let mut env = vec![
            ("KAFKA_BROKERS".to_owned(), c.kafka.brokers.clone()),
            ("DATABASE_URL".to_owned(), c.database_url.clone()),
            ("REDIS_URL".to_owned(), c.redis_url.clone()),
            ("SCHEMA_REGISTRY_URL".to_owned(), c.registry_url.clone()),
            ("WAREHOUSE_URL".to_owned(), c.warehouse_url.clone()),
            ("LOG_LEVEL".to_owned(), std::env::var("LOG_LEVEL").unwrap_or("warn,tidemill=info".to_owned())),
        ];
        if service != "ingest" {
            env.push((of("GROUP"), format!("{project}-{group}")));
            env.push((of("TOPICS"), format!("^events\\.{project}$")));
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
            }
            "archiver" => env.push((of("COMMIT_INTERVAL_MS"), "1000".to_owned())),
            _ => {}
        }
        env.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self.starts += 1;
        let log = self.options.logs.join(format!("{project}-{:02}-{service}.log", self.starts));
        Process::start(&self.options.binary, service, &env, &log)
    }

    async fn until(
        &self,
        limit: Duration,
        what: &str,
        mut holds: impl AsyncFnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        while !holds().await? {
            ensure!(Instant::now() < deadline, "not within {limit:?}: {what}");
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

async fn keep_up(
    stream: Stream,
    mut traffic: Traffic,
    native: Native,
    http: Option<Http>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut beat = tokio::time::interval(BEAT);
    let count = (stream.rate as f64 * BEAT.as_secs_f64()).ceil() as usize;
    for round in 0u64.. {
        tokio::select! {
            _ = beat.tick() => {}
            () = stop.cancelled() => break,
        }
        let mut items = traffic.items(count, chrono::Utc::now().timestamp_micros());
        match &http {
            Some(http) if round % 3 == 0 => {
                let event = |item: Item| match item {
                    Item::Event(event) => Some(event),
                    Item::Garbage { .. } => None,
                };
                http.send(&items.into_iter().filter_map(event).collect::<Vec<_>>()).await?;
            }
            _ => {
                if stream.twice {
                    items.extend(items.clone());
                }
                native.send(&items).await?;
            }
        }
    }
    Ok(())
}

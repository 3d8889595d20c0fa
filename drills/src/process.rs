//! Services as processes of their own, which can be stopped in every way a process can end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tidemill_testkit::free_port;

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// One running `tidemill` service. It is killed on drop.
pub struct Process {
    child: Child,
    url: String,
    log: PathBuf,
    client: reqwest::Client,
}

impl Process {
    /// Starts a service; what it prints goes to a file.
    pub fn start(binary: &Path, service: &str, env: &[(String, String)], log: &Path) -> anyhow::Result<Self> {
        let port = free_port();
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(binary);
        command
            .arg(service)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .env_remove("PORT")
            .env(format!("TIDEMILL_{}__PORT", service.to_uppercase()), port.to_string())
            .env("TIDEMILL_LISTEN__HOST", "127.0.0.1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        let child = command.spawn().with_context(|| {
            format!("cannot start {}; build it with `cargo build --workspace --bins`", binary.display())
        })?;
        // A stopped process accepts connections and answers nothing.
        let client = reqwest::Client::builder().timeout(Duration::from_secs(2)).build()?;
        Ok(Self { child, url: format!("http://127.0.0.1:{port}"), log: log.to_owned(), client })
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where what it prints goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let url = format!("{}/readyz", self.url);
        self.until("is ready", async |process| {
            process.client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success())
        })
        .await
    }

    /// Waits until a metric has reached a value.
    pub async fn reaches(&mut self, metric: &str, value: f64) -> anyhow::Result<()> {
        self.until(&format!("{metric} reaches {value}"), async |process| process.metric(metric).await >= value).await
    }

    /// The sum of a metric's series whose line begins like this; 0 while it does not answer.
    pub async fn metric(&self, prefix: &str) -> f64 {
        let Ok(answer) = self.client.get(format!("{}/metrics", self.url)).send().await else { return 0.0 };
        let text = answer.text().await.unwrap_or_default();
        let lines = text.lines().filter(|line| line.starts_with(prefix));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// What it says of itself; nothing while it does not answer.
    pub async fn health(&self) -> String {
        let Ok(answer) = self.client.get(format!("{}/health", self.url)).send().await else { return String::new() };
        answer.text().await.unwrap_or_default()
    }

    /// Sends a signal by its name: `STOP`, `CONT`, …
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        signal(name, &[self.child.id()])
    }

    /// kill -9
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for it to finish what it has begun.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.signal("TERM")?;
        let status = self.ended().await?;
        ensure!(status.success(), "it ended with {status} when it was told to stop; its log is {}", self.log.display());
        Ok(())
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "it did not end within {PATIENCE:?}; its log is {}", self.log.display());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    async fn until(&mut self, what: &str, holds: impl AsyncFn(&Self) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self).await {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended with {status} before: {what}; its log is {}", self.log.display());
            }
            ensure!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}; its log is {}", self.log.display());
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to processes that the drill started.
pub fn signal(name: &str, pids: &[u32]) -> anyhow::Result<()> {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let status = Command::new("kill").arg(format!("-{name}")).args(&pids).status().context("kill")?;
    ensure!(status.success(), "kill -{name} {} failed", pids.join(" "));
    Ok(())
}

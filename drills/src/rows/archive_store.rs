//! The archive's storage: a disk that is full, and an S3 server that fails, is slow, loses answers or is gone.

use std::time::{Duration, Instant};

use anyhow::ensure;
use tidemill_common::config::Warehouse;
use tidemill_testkit::Own;

use super::Row;
use super::archive::{ARCHIVE, said};
use crate::archiving::Archiving;
use crate::drill::{Options, Outcome};
use crate::flow::Stream;
use crate::process::{Process, signal};
use crate::proxy::{Fault, Mode, Proxy};
use crate::settle::until;
use crate::tmpfs::Tmpfs;

/// Room for every row of this.
const DISK: u64 = 64 * 1024 * 1024;
/// How often it becomes full.
const TIMES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(240);
/// What an archiver logs when it could not commit.
const FAILED: &str = "the archive starts again from its table";
/// How often an upload is harmed, each time in another way.
const HARMED: usize = 12;
/// For so long every upload is.
const OUTAGE: Duration = Duration::from_secs(8);

pub fn rows() -> Vec<Row> {
    let name = |name: &str| format!("{ARCHIVE}{name}");
    let rows = [
        Row::new(name("disk-full"), disk_full),
        Row::new(name("s3-once"), s3_once),
        Row::new(name("s3-refuses"), |options| s3_always(options, Fault::Refused)),
        Row::new(name("s3-cuts"), |options| s3_always(options, Fault::Cut)),
        Row::new(name("s3-answers-lost"), |options| s3_always(options, Fault::Unanswered)),
        Row::new(name("s3-slow"), s3_slow),
        Row::new(name("s3-restarted"), s3_restarted),
    ];
    // A server is started, and archivers take their time to try again.
    rows.map(|row| row.within(LIMIT)).into()
}

/// The warehouse's disk is full, and has room again, in turn.
async fn disk_full(options: Options) -> anyhow::Result<Outcome> {
    let disk = Tmpfs::mount(DISK)?;
    let warehouse = format!("file://{}/warehouse", disk.folder().display());
    let mut drill = Archiving::with(&options, |connections| connections.warehouse_url = warehouse).await?;
    let flow = drill.flow(Stream::default())?;
    let archiver = drill.live_archiver("a", &[]).await?;
    let mut recovery = Duration::ZERO;
    for _ in 0..TIMES {
        let before = failures(&archiver)?;
        disk.fill()?;
        // The first may come from what was under way before.
        until(PATIENCE, "commits fail", async || Ok(failures(&archiver)? > before + 1)).await?;
        let full = drill.passed().await?;
        drill.sent(300).await?;
        ensure!(drill.passed().await? == full, "something was committed to a disk that is full");
        disk.empty()?;
        recovery = recovery.max(drill.recovered(Instant::now()).await?);
    }
    flow.stop().await?;
    let mut outcome = drill.finish(recovery).await?;
    outcome.facts.push(format!("{} commits failed", failures(&archiver)?));
    Ok(outcome)
}

/// How often an archiver could not commit.
fn failures(archiver: &Process) -> anyhow::Result<usize> {
    said(archiver, FAILED)
}

/// An S3 server of the row's own, a proxy before it, and an archiver that knows only the proxy.
struct S3 {
    server: Own,
    proxy: Proxy,
    drill: Archiving,
    archiver: Process,
}

impl S3 {
    async fn start(options: &Options) -> anyhow::Result<Self> {
        let server = Own::start(&["s3"]).await;
        let endpoint = server.value("S3_ENDPOINT");
        let secret = |name: &str| Some(server.value(name));
        let warehouse = Warehouse {
            s3_endpoint: Some(endpoint.clone()),
            s3_access_key_id: secret("S3_ACCESS_KEY_ID"),
            s3_secret_access_key: secret("S3_SECRET_ACCESS_KEY"),
            ..Warehouse::default()
        };
        let mut drill = Archiving::with(options, |connections| {
            connections.warehouse_url = "s3://warehouse/tables".to_owned();
            connections.warehouse = warehouse;
        })
        .await?;
        let (proxy, through) = Proxy::before(&endpoint).await?;
        let (id, key) = (server.value("S3_ACCESS_KEY_ID"), server.value("S3_SECRET_ACCESS_KEY"));
        let settings = [
            ("S3_ENDPOINT", through.as_str()),
            ("S3_ACCESS_KEY_ID", id.as_str()),
            ("S3_SECRET_ACCESS_KEY", key.as_str()),
        ];
        let archiver = drill.archiver("a", &settings)?;
        Ok(Self { server, proxy, drill, archiver })
    }

    async fn finish(self, recovery: Duration) -> anyhow::Result<Outcome> {
        let failures = failures(&self.archiver)?;
        let mut outcome = self.drill.finish(recovery).await?;
        outcome.facts.push(format!("{failures} commits failed"));
        Ok(outcome)
    }
}

/// Single uploads (data, manifests, the table's metadata) are refused, cut, or happen without an answer.
async fn s3_once(options: Options) -> anyhow::Result<Outcome> {
    let s3 = S3::start(&options).await?;
    let flow = s3.drill.flow(Stream::default())?;
    let mut recovery = Duration::ZERO;
    for fault in [Fault::Refused, Fault::Cut, Fault::Unanswered, Fault::Lost].into_iter().cycle().take(HARMED) {
        s3.proxy.set(Mode::Once(fault));
        s3.proxy.passes().await?;
        recovery = recovery.max(s3.drill.recovered(Instant::now()).await?);
    }
    flow.stop().await?;
    s3.finish(recovery).await
}

/// All uploads are, for longer than anybody tries again at once.
async fn s3_always(options: Options, fault: Fault) -> anyhow::Result<Outcome> {
    let s3 = S3::start(&options).await?;
    let flow = s3.drill.flow(Stream::default())?;
    s3.drill.recovered(Instant::now()).await?;
    s3.proxy.set(Mode::Always(fault));
    let begun = Instant::now();
    until(PATIENCE, "commits fail", async || Ok(begun.elapsed() > OUTAGE && failures(&s3.archiver)? > 0)).await?;
    s3.proxy.set(Mode::Pass);
    let recovery = s3.drill.recovered(Instant::now()).await?;
    flow.stop().await?;
    s3.finish(recovery).await
}

/// Every piece takes long, then nothing passes.
async fn s3_slow(options: Options) -> anyhow::Result<Outcome> {
    let s3 = S3::start(&options).await?;
    let flow = s3.drill.flow(Stream { rate: 200, ..Stream::default() })?;
    s3.drill.recovered(Instant::now()).await?;
    for (mode, seconds) in [(Mode::Slow(Duration::from_millis(150)), 15), (Mode::Pass, 2), (Mode::Frozen, 20)] {
        s3.proxy.set(mode);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
    s3.proxy.set(Mode::Pass);
    let recovery = s3.drill.recovered(Instant::now()).await?;
    flow.stop().await?;
    s3.finish(recovery).await
}

/// The server is killed and comes back with what it had.
async fn s3_restarted(options: Options) -> anyhow::Result<Outcome> {
    let s3 = S3::start(&options).await?;
    let flow = s3.drill.flow(Stream::default())?;
    s3.drill.recovered(Instant::now()).await?;
    signal("KILL", &[s3.server.pid("s3")])?;
    until(PATIENCE, "commits fail", async || Ok(failures(&s3.archiver)? > 0)).await?;
    s3.server.services("start").await;
    let recovery = s3.drill.recovered(Instant::now()).await?;
    flow.stop().await?;
    s3.finish(recovery).await
}

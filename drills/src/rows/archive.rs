//! The archive: archivers that die, race or stop, and a catalog that loses answers.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rand::Rng;

use super::Row;
use crate::archiving::{Archiving, ROWS};
use crate::drill::{Options, Outcome};
use crate::flow::Stream;
use crate::process::Process;
use crate::proxy::{Fault, Mode, Proxy};
use crate::settle::until;

/// What the names of all rows about the archive begin with.
pub const ARCHIVE: &str = "archive:";
/// The steps of a commit, in their order (`archiver/src/{live,files,commit}.rs`).
const STEPS: [&str; 6] = [
    "archive.polled",
    "archive.written",
    "archive.uploaded",
    "archive.committing",
    "archive.committed",
    "archive.verified",
];
const FAILPOINTS: &str = "TIDEMILL_FAILPOINTS";
const HITS: &str = "tidemill_failpoint_hits_total";
const SIGABRT: i32 = 6;
const KILLS: usize = 20;
/// Of the catalog: answered, or lost before it, in turn.
const UNKNOWN: usize = 12;
/// How an archiver says that another was faster.
const PASSED: &str = "another archiver has moved these partitions on";
/// And that it begins to read.
const BEGUN: &str = r#""message":"archiving""#;
/// So many commits of archivers that race have to be too late.
const LATE: usize = 5;
const PATIENCE: Duration = Duration::from_secs(90);
const SOON: Duration = Duration::from_secs(20);

pub fn rows() -> Vec<Row> {
    let name = |name: &str| format!("{ARCHIVE}{name}");
    let mut rows = vec![Row::new(name("clean"), clean)];
    for step in STEPS {
        let row = Row::new(name(&format!("abort:{step}")), move |options| abort(options, step));
        // Behind this one nobody knows what has become of the commit.
        rows.push(if step == "archive.committed" { row.short() } else { row });
    }
    rows.push(Row::new(name("errors"), errors));
    rows.push(Row::new(name("kill-9"), kill_9).within(Duration::from_secs(600)));
    rows.push(Row::new(name("racing"), racing).within(Duration::from_secs(200)));
    rows.push(Row::new(name("stopped"), stopped));
    rows.push(Row::new(name("commit-unknown"), commit_unknown));
    rows
}

/// Nothing is broken.
async fn clean(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Archiving::start(&options).await?;
    let flow = drill.flow(Stream::default())?;
    let archiver = drill.live_archiver("a", &[]).await?;
    drill.sent(1_500).await?;
    flow.stop().await?;
    let outcome = drill.finish(Duration::ZERO).await;
    archiver.stop().await?;
    outcome
}

/// The archiver aborts at one step of a commit; the next one of its group goes on.
async fn abort(options: Options, step: &'static str) -> anyhow::Result<Outcome> {
    let mut drill = Archiving::start(&options).await?;
    let flow = drill.flow(Stream::default())?;
    let passage = drill.random.random_range(1..=6);
    let mut doomed = drill.archiver("a", &[(FAILPOINTS, &format!("{step}=abort@{passage}"))])?;
    let status = doomed.ended().await?;
    ensure!(status.signal() == Some(SIGABRT), "it was to abort at {step}, but ended with {status}");
    let fault = Instant::now();
    let _heir = drill.archiver("a", &[])?;
    let recovery = drill.recovered(fault).await?;
    drill.sent(300).await?;
    flow.stop().await?;
    drill.finish(recovery).await
}

/// Every step fails once in one archiver, which has to get over it by itself.
async fn errors(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Archiving::start(&options).await?;
    let flow = drill.flow(Stream::default())?;
    let points: Vec<String> = (1..).zip(STEPS).map(|(i, step)| format!("{step}=error@{}", 3 * i)).collect();
    let fault = Instant::now();
    let mut archiver = drill.archiver("a", &[(FAILPOINTS, &points.join(","))])?;
    archiver.reaches(HITS, STEPS.len() as f64).await?;
    let recovery = drill.recovered(fault).await?;
    flow.stop().await?;
    drill.finish(recovery).await
}

/// kill -9 at random moments. Each life has a group of its own, so that it need not wait until Kafka misses the one
/// before.
async fn kill_9(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Archiving::start(&options).await?;
    let flow = drill.flow(Stream { rate: 200, ..Stream::default() })?;
    for life in 0..KILLS {
        let mut archiver = drill.archiver(&format!("life-{life}"), &[])?;
        // Most die at work, some while they get ready.
        if drill.random.random_bool(0.8) {
            archiver.reaches(ROWS, 1.0).await?;
        }
        tokio::time::sleep(Duration::from_millis(drill.random.random_range(0..700))).await;
        archiver.kill()?;
    }
    let fault = Instant::now();
    let _last = drill.archiver("last", &[])?;
    let recovery = drill.recovered(fault).await?;
    flow.stop().await?;
    let mut outcome = drill.finish(recovery).await?;
    outcome.facts.push(format!("{KILLS} kills"));
    Ok(outcome)
}

/// Two archivers have all partitions, each in a group of its own, and commit to one table.
async fn racing(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Archiving::start(&options).await?;
    let flow = drill.flow(Stream::default())?;
    let racers = [drill.archiver("a", &[])?, drill.archiver("b", &[])?];
    // Who is too late begins again where the other is, and may be too late again.
    let late = || racers.iter().map(refusals).sum::<anyhow::Result<usize>>();
    let raced = until(PATIENCE, "one of them is too late often enough", async || Ok(late()? >= LATE)).await;
    drill.sent(500).await?;
    let recovery = drill.recovered(Instant::now()).await?;
    flow.stop().await?;
    let late = late()?;
    let mut outcome = drill.finish(recovery).await?;
    outcome.differences.extend(raced.err().map(|error| error.to_string()));
    outcome.facts.push(format!("{late} commits too late"));
    Ok(outcome)
}

/// An archiver whose files are uploaded is stopped for longer than its session; another takes over and archives the
/// same; then the first goes on where it stood.
async fn stopped(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Archiving::start(&options).await?;
    let flow = drill.flow(Stream::default())?;
    let passage = drill.random.random_range(2..=6);
    let mut zombie = drill.archiver("a", &[(FAILPOINTS, &format!("archive.uploaded=pause:1500@{passage}"))])?;
    zombie.reaches(HITS, 1.0).await?;
    zombie.signal("STOP")?;
    let fault = Instant::now();
    let _heir = drill.archiver("a", &[])?;
    let recovery = drill.recovered(fault).await?;
    zombie.signal("CONT")?;
    // It learns of the others by its commit or by its group, whichever is first.
    let again = || anyhow::Ok(refusals(&zombie)? > 0 || said(&zombie, BEGUN)? > 1);
    until(SOON, "what was stopped begins again", async || again()).await?;
    drill.sent(200).await?;
    flow.stop().await?;
    drill.finish(recovery).await
}

/// How often an archiver was told that another was faster.
fn refusals(archiver: &Process) -> anyhow::Result<usize> {
    said(archiver, PASSED)
}

/// How often an archiver's log has a text.
pub fn said(archiver: &Process, text: &str) -> anyhow::Result<usize> {
    Ok(std::fs::read_to_string(archiver.log())?.matches(text).count())
}

/// The connection breaks at the catalog's COMMIT: half of them have happened, half have not, and the archiver cannot
/// know.
async fn commit_unknown(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Archiving::start(&options).await?;
    let (proxy, through) = Proxy::before(&drill.stack.connections.database_url).await?;
    let flow = drill.flow(Stream::default())?;
    let _archiver = drill.live_archiver("a", &[("DATABASE_URL", &through)]).await?;
    let mut recovery = Duration::ZERO;
    for round in 0..UNKNOWN {
        proxy.set(Mode::Once(if round % 2 == 0 { Fault::Unanswered } else { Fault::Lost }));
        proxy.passes().await?;
        recovery = recovery.max(drill.recovered(Instant::now()).await?);
    }
    flow.stop().await?;
    drill.finish(recovery).await
}

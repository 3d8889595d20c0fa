//! Failures at the steps of a batch.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rand::Rng;
use tidemill_common::event::Event;

use super::Row;
use crate::drill::{Drill, Options, Outcome};
use crate::flow::Stream;
use crate::send::Partitioner;

/// The steps of a batch, in their order (`stream/src/{worker,filling,apply}.rs`, `stream/src/store/mod.rs`).
const STEPS: [&str; 10] = [
    "stream.prepared",
    "stream.polled",
    "stream.sorted",
    "stream.sent",
    "stream.advanced",
    "stream.folded",
    "stream.committed",
    "stream.projected",
    "stream.done",
    "stream.flushed",
];
/// Passed once in a start.
const AT_START: &str = "stream.prepared";
/// Passed only while nothing comes: else batches tell the ledger what Redis shows.
const AT_REST: &str = "stream.flushed";
/// Passed in every round of the projection, beside the batches.
const IN_ROUNDS: &str = "stream.projected";
const HITS: &str = "tidemill_failpoint_hits_total";
const FAILPOINTS: &str = "TIDEMILL_FAILPOINTS";
const SIGABRT: i32 = 6;

pub fn rows() -> Vec<Row> {
    let mut rows = vec![Row::new("clean", clean).short()];
    for step in STEPS {
        let row = Row::new(format!("abort:{step}"), move |options| abort(options, step));
        rows.push(if step == "stream.committed" { row.short() } else { row });
    }
    rows.push(Row::new("errors", errors).within(Duration::from_secs(150)).short());
    rows.push(Row::new("last-event", last_event));
    rows
}

/// Nothing is broken: every view, the archive too, is what the log says.
async fn clean(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    drill.gateway().await?;
    drill.archiver().await?;
    drill.all_published = true;
    let worker = drill.live_worker("a", &[]).await?;
    let flow = drill.flow(Stream::default())?;
    drill.sent(2_500).await?;
    flow.stop().await?;
    let outcome = drill.finish(Duration::ZERO).await;
    worker.stop().await?;
    outcome
}

/// The worker aborts at one step of a batch; the next one of its group goes on.
async fn abort(options: Options, step: &'static str) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    let mut flow = drill.flow(Stream::default())?;
    drill.sent(100).await?;
    let passage = if [AT_START, AT_REST].contains(&step) { 1 } else { drill.random.random_range(1..=8) };
    let mut doomed = drill.worker("a", &[(FAILPOINTS, &format!("{step}=abort@{passage}"))])?;
    if step == AT_REST {
        flow.stop().await?;
        flow = drill.flow(Stream { rate: 0, ..Stream::default() })?; // nothing
    }
    let status = doomed.ended().await?;
    ensure!(status.signal() == Some(SIGABRT), "it was to abort at {step}, but ended with {status}");
    let fault = Instant::now();
    let _heir = drill.worker("a", &[])?;
    let recovery = drill.recovered(fault).await?;
    flow.stop().await?;
    let flow = drill.flow(Stream::default())?;
    drill.sent(300).await?;
    flow.stop().await?;
    drill.finish(recovery).await
}

/// Every step fails once in one worker, which has to get over it by itself.
async fn errors(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    // Far enough apart for the partitions to be live again after each: a batch of nothing would not show much.
    let passage = |i: usize, step: &str| match step {
        AT_START | AT_REST => 1,
        IN_ROUNDS => 3,
        _ => 12 * i,
    };
    let point = |(i, step): (usize, &&str)| format!("{step}=error@{}", passage(i, step));
    let points: Vec<String> = STEPS.iter().enumerate().map(point).collect();
    let fault = Instant::now();
    let mut worker = drill.worker("a", &[(FAILPOINTS, &points.join(","))])?;
    let flow = drill.flow(Stream::default())?;
    for step in STEPS.iter().filter(|step| **step != AT_REST) {
        worker.reaches(&hits(step), 1.0).await?;
    }
    flow.stop().await?;
    worker.reaches(&hits(AT_REST), 1.0).await?;
    let flow = drill.flow(Stream::default())?;
    let recovery = drill.recovered(fault).await?;
    drill.sent(200).await?;
    flow.stop().await?;
    drill.finish(recovery).await
}

/// The metric that says whether a step's failpoint has done what it is armed for.
fn hits(step: &str) -> String {
    format!("{HITS}{{name=\"{step}\"")
}

/// A session's last event is committed, and one that makes another session an old user's; the worker ends before
/// Redis shows either. Nothing else comes.
async fn last_event(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    let native = drill.native(Partitioner::Murmur2)?;
    let now = chrono::Utc::now().timestamp();
    let of = |user: &str, session: &str, seconds: i64| {
        let mut event = tidemill_testkit::event(&format!("{session}-{seconds}"), "page_view", now + seconds);
        (event.user_id, event.session_id) = (Some(user.to_owned()), Some(session.to_owned()));
        event
    };
    let worker = drill.live_worker("a", &[]).await?;
    let lively: Vec<Event> = (-60..-40).flat_map(|at| [of("u", "s", at), of("v", "t", at)]).collect();
    native.send_events(&lively).await?;
    drill.settle().await?;
    worker.stop().await?;
    let mut doomed = drill.live_worker("a", &[(FAILPOINTS, "stream.committed=abort@1")]).await?;
    native.send_events(&[of("u", "s", -40), of("v", "earlier", -5 * 3_600)]).await?;
    doomed.ended().await?;
    let fault = Instant::now();
    let _heir = drill.live_worker("a", &[]).await?;
    let recovery = fault.elapsed();
    drill.finish(recovery).await
}

//! Topics that get more partitions while events arrive: nothing stops for it, and copies sent by either number count once.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::Rng;
use tidemill_common::event::Event;
use tidemill_common::names::events_topic;
use tidemill_testkit::PARTITIONS;
use tokio::process::Child;

use super::Row;
use super::store::delete;
use crate::drill::{CHECKPOINTS, Drill, Options, Outcome, SEEN};
use crate::flow::Stream;
use crate::process::Process;
use crate::send::Partitioner;
use crate::traffic::Style;

const GROWN: i32 = 3 * PARTITIONS;
const RATE: usize = 400;
/// Of all that was sent before, this share is sent once more, each time.
pub(super) const AGAIN: f64 = 0.02;

pub fn rows() -> Vec<Row> {
    vec![Row::new("partition-growth", partition_growth).within(Duration::from_secs(300))]
}

/// Native producers and a gateway send on while the topics grow. The command, a worker and the archiver are killed before,
/// while and after the era ends; what was sent at any time comes again later, from clients that know the partitions or do
/// not yet.
async fn partition_growth(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    drill.gateway().await?;
    drill.archived = true;
    let mut archiver = archiver(&mut drill)?;
    let mut worker = drill.live_worker("a", &[]).await?;
    let _other = drill.worker("a", &[])?;
    let style = Style { copies: AGAIN, ..Style::default() };
    let flow = drill.flow(Stream { rate: RATE, style, partitioner: Partitioner::Murmur2, ..Stream::default() })?;
    drill.sent(3 * RATE).await?;

    // Cut short when Kafka has the partitions, and nothing belongs there.
    let mut first = grow(&drill)?;
    drill.sent(2 * RATE).await?;
    first.start_kill()?;
    first.wait().await?;
    drill.stack.has_partitions(GROWN);
    ensure!(drill.stack.layout().await.partitions() == PARTITIONS, "the first command was not cut short");
    again(&mut drill).await?;
    let mut second = grow(&drill)?;
    drill.sent(3 * RATE).await?;
    worker.kill()?;
    archiver.kill()?;
    let mut worker = drill.worker("a", &[])?;
    let mut archiver = self::archiver(&mut drill)?;
    ensure!(second.wait().await?.success(), "'tidemill projects grow' failed");
    ensure!(drill.stack.layout().await.partitions() == GROWN, "the topics have not grown");

    let fault = Instant::now();
    drill.sent(RATE).await?;
    again(&mut drill).await?;
    worker.kill()?;
    archiver.kill()?;
    delete(&drill, SEEN, "stream")?;
    delete(&drill, CHECKPOINTS, "stream")?;
    delete(&drill, SEEN, "archiver")?;
    let _worker = drill.worker("a", &[])?;
    let _archiver = self::archiver(&mut drill)?;
    again(&mut drill).await?;
    drill.sent(2 * RATE).await?;
    again(&mut drill).await?;
    let recovery = drill.recovered(fault).await?;
    flow.stop().await?;
    let mut outcome = drill.finish(recovery).await?;
    let ends = drill.ends().await?;
    let new: i64 = ends.iter().filter(|(partition, _)| **partition >= PARTITIONS).map(|(_, end)| end).sum();
    outcome.facts.push(format!("{} records in {} new partitions", new, GROWN - PARTITIONS));
    Ok(outcome)
}

pub(super) fn archiver(drill: &mut Drill) -> anyhow::Result<Process> {
    let planted = drill.planted();
    drill.service("archiver", "archive", &planted)
}

/// `tidemill projects grow`
fn grow(drill: &Drill) -> anyhow::Result<Child> {
    let partitions = GROWN.to_string();
    let arguments = ["projects", "grow", &drill.stack.project, "--partitions", &partitions, "--yes"];
    drill.command(&arguments).spawn().context("tidemill projects grow")
}

/// Sends some of what was sent before once more, by a new client, which knows all partitions that Kafka has.
pub(super) async fn again(drill: &mut Drill) -> anyhow::Result<()> {
    let some = some_again(drill)?;
    drill.native(Partitioner::Murmur2)?.send_events(&some).await
}

/// Some of what was sent before.
pub(super) fn some_again(drill: &mut Drill) -> anyhow::Result<Vec<Event>> {
    let entries = drill.journal.entries()?;
    let random = &mut drill.random;
    let some = entries.into_iter().filter_map(|entry| entry.event.filter(|_| random.random_bool(AGAIN)));
    let some: Vec<Event> = some.collect();
    ensure!(!some.is_empty(), "nothing of {} was sent", events_topic(&drill.stack.project));
    Ok(some)
}

//! Topics that get more partitions, and an event type that gets a topic of its own, while events arrive: nothing stops for
//! it, and copies sent before and after, to either place, count once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::Rng;
use tidemill_common::event::Event;
use tidemill_common::names::{ROUTE, events_topic};
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
/// A multiple, so that users decide, too, where in the route events belong.
const ROUTED: i32 = 2 * PARTITIONS;
const RATE: usize = 400;
/// Of all that was sent before, this share is sent once more, each time.
const AGAIN: f64 = 0.02;
const LIMIT: Duration = Duration::from_secs(300);

pub fn rows() -> Vec<Row> {
    vec![Row::new("partition-growth", partition_growth).within(LIMIT), Row::new("type-route", type_route).within(LIMIT)]
}

/// What was sent comes again from clients that know the partitions or do not yet.
async fn partition_growth(options: Options) -> anyhow::Result<Outcome> {
    let drill = Drill::start(&options).await?;
    let (project, partitions) = (drill.stack.project.clone(), GROWN.to_string());
    let arguments = ["projects", "grow", &project, "--partitions", &partitions, "--yes"];
    let (mut outcome, ends) = changed(drill, &arguments, |drill| drill.stack.has_partitions(GROWN)).await?;
    let new: i64 = ends.iter().filter(|(partition, _)| **partition >= PARTITIONS).map(|(_, end)| end).sum();
    outcome.facts.push(format!("{} records in {} new partitions", new, GROWN - PARTITIONS));
    Ok(outcome)
}

/// The native producers never hear of it, and what was sent comes again, right or wrong, to the route's topic, too.
async fn type_route(options: Options) -> anyhow::Result<Outcome> {
    let drill = Drill::start(&options).await?;
    let (project, partitions) = (drill.stack.project.clone(), ROUTED.to_string());
    let route = ["routes", "create", &project, "--name", "views", "--type", "page_view"];
    let arguments = [&route[..], &["--partitions", &partitions, "--by-user", "--yes"]].concat();
    let (mut outcome, ends) = changed(drill, &arguments, |_| ()).await?;
    let routed: i64 = ends.iter().filter(|(partition, _)| **partition >= ROUTE).map(|(_, end)| end).sum();
    outcome.facts.push(format!("{routed} records in {ROUTED} partitions of the route"));
    Ok(outcome)
}

/// Native producers and a gateway send on while a command changes how events are spread. The command, a worker and the
/// archiver are killed before, while and after the era ends; what was sent at any time comes again later. `begun` is told
/// when Kafka has what the command makes. Gives the ends of all partitions, too.
async fn changed(
    mut drill: Drill,
    arguments: &[&str],
    begun: fn(&Drill),
) -> anyhow::Result<(Outcome, BTreeMap<i32, i64>)> {
    drill.gateway().await?;
    drill.archived = true;
    let mut archiver = archiver(&mut drill)?;
    let mut worker = drill.live_worker("a", &[]).await?;
    let _other = drill.worker("a", &[])?;
    let style = Style { copies: AGAIN, ..Style::default() };
    let flow = drill.flow(Stream { rate: RATE, style, partitioner: Partitioner::Murmur2, ..Stream::default() })?;
    drill.sent(3 * RATE).await?;

    // Cut short when Kafka has what is new, and nothing belongs there.
    let mut first = command(&drill, arguments)?;
    drill.sent(2 * RATE).await?;
    first.start_kill()?;
    first.wait().await?;
    begun(&drill);
    ensure!(drill.stack.layout().await.version == 0, "the first command was not cut short");
    again(&mut drill).await?;
    let mut second = command(&drill, arguments)?;
    drill.sent(3 * RATE).await?;
    worker.kill()?;
    archiver.kill()?;
    let mut worker = drill.worker("a", &[])?;
    let mut archiver = self::archiver(&mut drill)?;
    ensure!(second.wait().await?.success(), "'tidemill {}' failed", arguments.join(" "));
    ensure!(drill.stack.layout().await.version == 1, "nothing has changed");

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
    let outcome = drill.finish(recovery).await?;
    Ok((outcome, drill.ends().await?))
}

fn archiver(drill: &mut Drill) -> anyhow::Result<Process> {
    let planted = drill.planted();
    drill.service("archiver", "archive", &planted)
}

fn command(drill: &Drill, arguments: &[&str]) -> anyhow::Result<Child> {
    drill.command(arguments).spawn().with_context(|| format!("tidemill {}", arguments.join(" ")))
}

/// Sends some of what was sent before once more, by new clients, which know all partitions that Kafka has: to the project's
/// own topic, and to that of each route, whether it belongs there or not.
async fn again(drill: &mut Drill) -> anyhow::Result<()> {
    let sent: Vec<Event> = drill.journal.entries()?.into_iter().filter_map(|entry| entry.event).collect();
    for topic in drill.stack.project().await.topics() {
        let some: Vec<Event> = sent.iter().filter(|_| drill.random.random_bool(AGAIN)).cloned().collect();
        ensure!(!some.is_empty(), "nothing of {} was sent", events_topic(&drill.stack.project));
        drill.native(Partitioner::Murmur2)?.to(&topic).send_events(&some).await?;
    }
    Ok(())
}

//! An event type that gets a topic of its own while events arrive: nothing stops for it, and copies sent to either topic
//! count once.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tidemill_common::names::ROUTE;
use tidemill_testkit::PARTITIONS;
use tokio::process::Child;

use super::Row;
use super::grow::{AGAIN, again, archiver, some_again};
use super::store::delete;
use crate::drill::{CHECKPOINTS, Drill, Options, Outcome, SEEN};
use crate::flow::Stream;
use crate::send::Partitioner;
use crate::traffic::Style;

const TYPE: &str = "page_view";
/// A multiple, so that users decide, too, where in the route events belong.
const ROUTED: i32 = 2 * PARTITIONS;
const RATE: usize = 400;

pub fn rows() -> Vec<Row> {
    vec![Row::new("type-route", type_route).within(Duration::from_secs(300))]
}

/// Native producers, who never hear of it, and a gateway send on while the route begins. The command, a worker and the
/// archiver are killed before, while and after the era ends; what was sent at any time comes again later, to the project's
/// own topic and, right or wrong, to the route's.
async fn type_route(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    drill.gateway().await?;
    drill.archived = true;
    let mut running = archiver(&mut drill)?;
    let mut worker = drill.live_worker("a", &[]).await?;
    let _other = drill.worker("a", &[])?;
    let style = Style { copies: AGAIN, ..Style::default() };
    let flow = drill.flow(Stream { rate: RATE, style, partitioner: Partitioner::Murmur2, ..Stream::default() })?;
    drill.sent(3 * RATE).await?;

    // Cut short when Kafka has the topic, and nothing belongs there.
    let mut first = route(&drill)?;
    drill.sent(2 * RATE).await?;
    first.start_kill()?;
    first.wait().await?;
    ensure!(drill.stack.project().await.routes.is_empty(), "the first command was not cut short");
    again(&mut drill).await?;
    let mut second = route(&drill)?;
    drill.sent(3 * RATE).await?;
    worker.kill()?;
    running.kill()?;
    let mut worker = drill.worker("a", &[])?;
    let mut running = archiver(&mut drill)?;
    ensure!(second.wait().await?.success(), "'tidemill routes create' failed");
    let topic = drill.stack.project().await.topics().pop().context("its topic")?;

    let fault = Instant::now();
    drill.sent(RATE).await?;
    again(&mut drill).await?;
    again_to(&mut drill, &topic).await?;
    worker.kill()?;
    running.kill()?;
    delete(&drill, SEEN, "stream")?;
    delete(&drill, CHECKPOINTS, "stream")?;
    delete(&drill, SEEN, "archiver")?;
    let _worker = drill.worker("a", &[])?;
    let _archiver = archiver(&mut drill)?;
    again(&mut drill).await?;
    again_to(&mut drill, &topic).await?;
    drill.sent(2 * RATE).await?;
    again_to(&mut drill, &topic).await?;
    let recovery = drill.recovered(fault).await?;
    flow.stop().await?;
    let mut outcome = drill.finish(recovery).await?;
    let ends = drill.ends().await?;
    let routed: i64 = ends.iter().filter(|(partition, _)| **partition >= ROUTE).map(|(_, end)| end).sum();
    outcome.facts.push(format!("{routed} records in {ROUTED} partitions of the route"));
    Ok(outcome)
}

/// `tidemill routes create`
fn route(drill: &Drill) -> anyhow::Result<Child> {
    let partitions = ROUTED.to_string();
    let arguments = [
        "routes",
        "create",
        &drill.stack.project,
        "--name",
        "views",
        "--type",
        TYPE,
        "--partitions",
        &partitions,
        "--by-user",
        "--yes",
    ];
    drill.command(&arguments).spawn().context("tidemill routes create")
}

/// Sends some of what was sent before once more to this topic, whether it belongs there or not.
async fn again_to(drill: &mut Drill, topic: &str) -> anyhow::Result<()> {
    let some = some_again(drill)?;
    drill.native(Partitioner::Murmur2)?.to(topic).send_events(&some).await
}

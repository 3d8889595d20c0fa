//! Brings the spool to Kafka.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tidemill_common::kafka::{Outgoing, Producer};
use tidemill_common::names::events_topic;
use tokio_util::sync::CancellationToken;

use super::books::Taken;
use super::record::{Record, Scan};
use super::{Spool, now_ms};

/// Segments of so many projects are drained at once: some may wait for partitions without a leader.
const AT_ONCE: usize = 8;
/// Records of a segment that are in flight at once.
const BATCH: usize = 500;
/// How often rests and operators' words are looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A spooled event that all in-sync replicas hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    /// Its id.
    pub event_id: String,
    /// The hash that was spooled with it.
    pub body: [u8; 16],
    /// Where it is.
    pub partition: i32,
    /// Where it is.
    pub offset: i64,
}

/// Sends what is in the spool to Kafka until shutdown, then ends what is under way (within the producer's delivery
/// timeout). `delivered` is told of each project's events once they are in the log, before they leave the spool.
///
/// A project that Kafka does not take events of rests for 1 to 10 s and stops nobody else. That goes for missing
/// topics and partitions too: they may be made again.
pub async fn drain<F, D>(spool: Spool, producer: Producer, delivered: F, shutdown: CancellationToken)
where
    F: Fn(String, Vec<Drained>) -> D,
    D: Future<Output = ()>,
{
    let (mut running, mut look_again) = (FuturesUnordered::new(), tokio::time::interval(LOOK_AGAIN));
    while !(shutdown.is_cancelled() && running.is_empty()) {
        while !shutdown.is_cancelled()
            && running.len() < AT_ONCE
            && let Some(taken) = spool.take()
        {
            running.push(segment(&spool, &producer, &delivered, taken));
        }
        tokio::select! {
            Some(()) = running.next() => {}
            () = spool.shared().appended.notified() => {}
            _ = look_again.tick() => look_for_releases(&spool).await,
            () = shutdown.cancelled(), if !shutdown.is_cancelled() => {}
        }
    }
}

/// Looks at what changes with time alone: what grows too old, and what an operator says to it by a file
/// `RELEASE` in the project's folder, which covers what was spooled before it was made.
async fn look_for_releases(spool: &Spool) {
    spool.shared().measure();
    for project in spool.status().waiting {
        let id = project.clone();
        let Ok(at) = spool.blocking(move |shared| Ok(shared.folder.released_at(&id))).await else { return };
        spool.shared().books().release(&project, at);
    }
}

/// Drains a segment; what cannot be sent is put back.
async fn segment<F, D>(spool: &Spool, producer: &Producer, delivered: &F, taken: Taken)
where
    F: Fn(String, Vec<Drained>) -> D,
    D: Future<Output = ()>,
{
    let Taken { project, sequence, bytes, left } = taken;
    let id = project.clone();
    let read = spool.blocking(move |shared| shared.folder.read(&id, sequence, bytes)).await;
    let left = match read {
        Ok((content, scan)) => {
            let mut left = match left {
                // Damage since then leaves the others where they were.
                Some(left) => left.into_iter().filter(|place| Record::at(&content, place).is_some()).collect(),
                None => scan.records.clone(),
            };
            let sent = match send(spool, producer, delivered, &project, &content, &mut left).await {
                Ok(()) => finish(spool, &project, sequence, bytes, &scan).await.map_err(NotSent::Disk),
                error => error,
            };
            match sent {
                Ok(()) => return,
                Err(error) => failed(&project, &error),
            }
            Some(left)
        }
        Err(error) => {
            failed(&project, &error);
            left
        }
    };
    spool.shared().books().put_back(&project, left, now_ms());
}

fn failed(project: &str, error: &dyn std::error::Error) {
    tracing::warn!(%error, project, "events stay in the spool for now");
}

/// Removes a segment that has been sent, or keeps it if it has damage.
async fn finish(spool: &Spool, project: &str, sequence: u64, bytes: u64, scan: &Scan) -> io::Result<()> {
    let damaged = !scan.damaged.is_empty() || scan.torn.is_some();
    let id = project.to_owned();
    let done = move |shared: &super::Shared| match damaged {
        true => shared.folder.keep_damaged(&id, sequence),
        false => shared.folder.remove(&id, sequence),
    };
    spool.blocking(done).await?;
    spool.shared().books().finish(project, if damaged { bytes } else { 0 });
    spool.shared().changed();
    Ok(())
}

/// Why a segment is put back.
#[derive(Debug, thiserror::Error)]
enum NotSent {
    #[error("Kafka does not take them: {0}")]
    Kafka(#[from] KafkaError),
    #[error("the spool's files cannot be changed, check its disk: {0}")]
    Disk(#[from] io::Error),
}

/// Sends the records that are `left`, and takes those away that are done with.
async fn send<F, D>(
    spool: &Spool,
    producer: &Producer,
    delivered: &F,
    project: &str,
    content: &[u8],
    left: &mut Vec<Range<usize>>,
) -> Result<(), NotSent>
where
    F: Fn(String, Vec<Drained>) -> D,
    D: Future<Output = ()>,
{
    let topic = events_topic(project);
    let record = |place: &Range<usize>| Record::at(content, place).expect("the scan has read it");
    while !left.is_empty() {
        let batch = &left[..left.len().min(BATCH)];
        let results = join_all(batch.iter().map(|place| send_one(producer, &topic, record(place)))).await;
        let (mut here, mut refused, mut again, mut error) = (Vec::new(), Vec::new(), Vec::new(), None);
        for (place, result) in batch.iter().zip(results) {
            match result {
                Ok(drained) => here.push(drained),
                Err(error) if for_good(&error) => {
                    let event_id = record(place).event_id;
                    tracing::error!(%error, project, event_id, "Kafka refuses an event for good; it is kept apart");
                    refused.extend_from_slice(&content[place.clone()]);
                }
                Err(failure) => {
                    error = Some(failure);
                    again.push(place.clone());
                }
            }
        }
        let sent = here.len() as u64;
        if sent > 0 {
            delivered(project.to_owned(), here).await;
            metrics::counter!("tidemill_spool_drained_total").increment(sent);
        }
        if !refused.is_empty() {
            set_aside(spool, project, refused).await?;
        }
        left.splice(..left.len().min(BATCH), again);
        if let Some(error) = error {
            return Err(error.into());
        }
    }
    Ok(())
}

async fn send_one(producer: &Producer, topic: &str, record: Record<'_>) -> Result<Drained, KafkaError> {
    let outgoing = Outgoing {
        topic,
        partition: record.partition,
        key: Some(record.event_id.as_bytes()),
        value: record.value,
        headers: &[],
    };
    let sent = match producer.send(&outgoing).await {
        // A topic with a lower limit refuses a whole batch of records that fit it one by one.
        Err(error) if for_good(&error) => producer.send(&outgoing).await,
        sent => sent,
    };
    sent.map(|(partition, offset)| Drained {
        event_id: record.event_id.to_owned(),
        body: record.body,
        partition,
        offset,
    })
}

/// Whether it is the record itself that Kafka does not want.
fn for_good(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{InvalidRecord, MessageSizeTooLarge};
    matches!(error, KafkaError::MessageProduction(InvalidRecord | MessageSizeTooLarge))
}

async fn set_aside(spool: &Spool, project: &str, records: Vec<u8>) -> io::Result<()> {
    let (id, bytes) = (project.to_owned(), records.len() as u64);
    spool.blocking(move |shared| shared.folder.keep_refused(&id, &records)).await?;
    spool.shared().books().keep(project, bytes);
    Ok(())
}

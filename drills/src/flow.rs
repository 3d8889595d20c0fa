//! Traffic that is kept up while something is broken.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::send::{Http, Native, Partitioner};
use crate::traffic::{Item, Style, Traffic};

/// How often it sends.
const BEAT: Duration = Duration::from_millis(50);

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

/// Traffic in the background. It ends on drop, in the middle of whatever it is at.
pub struct Flow {
    stop: CancellationToken,
    task: AbortOnDropHandle<anyhow::Result<()>>,
}

impl Flow {
    /// Begins to send. A third goes through the gateway, if there is one.
    pub fn start(stream: Stream, traffic: Traffic, native: Native, http: Option<Http>) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(keep_up(stream, traffic, native, http, stop.clone()));
        Self { stop, task: AbortOnDropHandle::new(task) }
    }

    /// Ends it, once what is under way has its answer.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.task.await?
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

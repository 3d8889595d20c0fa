//! The one thread that writes. Requests that come while it waits for the disk share its next fsync.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::{Shared, SpoolError};

/// Requests beyond this wait for the next round, so that nobody's answer waits for everybody's bytes.
const ROUND_BYTES: usize = 4 * 1024 * 1024;

/// Records on their way to disk, for which room has been reserved.
pub struct Append {
    pub project: String,
    pub bytes: Vec<u8>,
    pub records: u64,
    pub oldest: i64,
    pub answer: oneshot::Sender<Result<(), SpoolError>>,
}

/// Writes what comes, until nobody can send any more.
pub fn run(shared: &Shared, mut queue: mpsc::UnboundedReceiver<Append>) {
    while let Some(first) = queue.blocking_recv() {
        for (project, appends) in round(first, &mut queue) {
            let result = write(shared, &project, &appends).map_err(|error| SpoolError::Io(Arc::new(error)));
            for append in appends {
                let _ = append.answer.send(result.clone()); // whoever asked may have gone
            }
        }
        shared.changed();
    }
}

/// What has come by now, by project and in order.
fn round(first: Append, queue: &mut mpsc::UnboundedReceiver<Append>) -> BTreeMap<String, Vec<Append>> {
    let mut bytes = first.bytes.len();
    let mut round = BTreeMap::from([(first.project.clone(), vec![first])]);
    while bytes < ROUND_BYTES
        && let Ok(next) = queue.try_recv()
    {
        bytes += next.bytes.len();
        round.entry(next.project.clone()).or_default().push(next);
    }
    round
}

/// Writes one project's records; with one fsync, so all of them are safe or none.
fn write(shared: &Shared, project: &str, appends: &[Append]) -> std::io::Result<()> {
    let parts: Vec<&[u8]> = appends.iter().map(|append| &*append.bytes).collect();
    let bytes = parts.iter().map(|part| part.len() as u64).sum();
    let records = appends.iter().map(|append| append.records).sum();
    let oldest = appends.iter().map(|append| append.oldest).min().unwrap_or(i64::MAX);
    let place = shared.books().begin(project, oldest);
    let written = shared.folder.append(project, &place, &parts);
    match &written {
        Ok(()) => shared.books().written(project, bytes, records, oldest),
        Err(error) => {
            tracing::error!(%error, project, "cannot write to the spool; its disk may be full or broken");
            shared.books().failed(project, bytes);
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(project: &str, mark: u8, length: usize) -> Append {
        let answer = oneshot::channel().0;
        Append { project: project.to_owned(), bytes: vec![mark; length], records: 1, oldest: 0, answer }
    }

    #[test]
    fn what_waits_is_written_together_in_order_up_to_a_limit() {
        let (queue, mut appends) = mpsc::unbounded_channel();
        for mark in 1..=4 {
            queue.send(append("a", mark, 1)).expect("room");
            queue.send(append("b", mark, ROUND_BYTES / 4)).expect("room");
        }
        let marks = |appends: &[Append]| appends.iter().map(|append| append.bytes[0]).collect::<Vec<_>>();
        let groups = round(append("a", 0, 1), &mut appends);
        assert_eq!((marks(&groups["a"]), marks(&groups["b"])), (vec![0, 1, 2, 3, 4], vec![1, 2, 3, 4]));
        queue.send(append("a", 6, ROUND_BYTES)).expect("room");
        queue.send(append("a", 7, 1)).expect("room");
        assert_eq!(marks(&round(append("a", 5, 1), &mut appends)["a"]), [5, 6]);
        assert_eq!(marks(&round(append("a", 8, 1), &mut appends)["a"]), [8, 7]);
    }
}

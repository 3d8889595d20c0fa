//! A reader that looks at the archive again and again while it is broken. Whatever it sees must be whole: exactly the
//! first sights below the positions that stand in the very same table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::{Int32Type, Int64Type};
use futures::TryStreamExt;
use tidemill_archiver::positions;
use tidemill_archiver::table::Tables;
use tidemill_common::config::Connections;
use tokio_util::task::AbortOnDropHandle;

/// How long it waits between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// What one snapshot of the table held.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Look {
    /// The next offset of each partition.
    pub next: BTreeMap<i32, i64>,
    /// Partition and offset of each row, sorted.
    pub rows: Vec<(i32, i64)>,
}

/// What was seen so far.
#[derive(Debug, Default)]
struct Seen {
    looks: Vec<Look>,
    /// Snapshots that were there and could not be read.
    broken: Vec<String>,
    snapshot: Option<i64>,
}

/// A reader at work. It ends on drop.
pub struct Onlooker {
    seen: Arc<Mutex<Seen>>,
    _task: AbortOnDropHandle<()>,
}

impl Onlooker {
    /// Begins to look at a project's table.
    pub fn start(connections: &Connections, project: &str) -> Self {
        let (tables, project, seen) = (Tables::new(connections), project.to_owned(), Arc::<Mutex<Seen>>::default());
        let task = tokio::spawn({
            let seen = Arc::clone(&seen);
            async move {
                loop {
                    look(&tables, &project, &seen).await;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
        Self { seen, _task: AbortOnDropHandle::new(task) }
    }

    /// Everything it has seen that was not whole, and how much it has seen.
    pub fn verdict(&self, first_sights: &BTreeSet<(i32, i64)>) -> (Vec<String>, String) {
        let seen = self.seen.lock().expect("no holder panics");
        let halves = seen.looks.iter().filter_map(|look| half(look, first_sights));
        (seen.broken.iter().cloned().chain(halves).collect(), format!("{} snapshots seen whole", seen.looks.len()))
    }
}

/// Reads the table's latest snapshot, if that is a new one.
async fn look(tables: &Tables, project: &str, seen: &Mutex<Seen>) {
    // The catalog may be what was broken.
    let Ok(Some(table)) = tables.load(project).await else { return };
    let snapshot = table.metadata().current_snapshot_id();
    if snapshot.is_none() || snapshot == seen.lock().expect("no holder panics").snapshot {
        return;
    }
    let read = async {
        let next = positions::read_all(table.metadata().properties(), project)?;
        let next = next.into_iter().map(|(partition, position)| (partition, position.next)).collect();
        let mut batches = table.scan().select(["kafka_partition", "kafka_offset"]).build()?.to_arrow().await?;
        let mut rows = Vec::new();
        while let Some(batch) = batches.try_next().await? {
            let partitions = batch.column(0).as_primitive::<Int32Type>().values().iter().copied();
            rows.extend(partitions.zip(batch.column(1).as_primitive::<Int64Type>().values().iter().copied()));
        }
        rows.sort_unstable();
        anyhow::Ok(Look { next, rows })
    };
    let look = read.await;
    let mut seen = seen.lock().expect("no holder panics");
    seen.snapshot = snapshot;
    match look {
        Ok(look) => seen.looks.push(look),
        Err(error) => seen.broken.push(format!("a visible snapshot could not be read: {error:#}")),
    }
}

/// What is wrong with a look.
fn half(look: &Look, first_sights: &BTreeSet<(i32, i64)>) -> Option<String> {
    let below = |(partition, offset): &&(i32, i64)| look.next.get(partition).is_some_and(|next| offset < next);
    let expected: Vec<(i32, i64)> = first_sights.iter().filter(below).copied().collect();
    if expected == look.rows {
        return None;
    }
    let first = expected.iter().zip(&look.rows).find(|(one, other)| one != other);
    Some(format!(
        "a reader saw {} rows where the table's positions {:?} stand for {}; they part at {first:?}",
        look.rows.len(),
        look.next,
        expected.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_whole_when_it_has_every_first_sight_below_its_positions_once() {
        let first_sights = BTreeSet::from([(0, 0), (0, 2), (0, 5), (1, 3)]);
        let look = |next: &[(i32, i64)], rows: &[(i32, i64)]| {
            half(&Look { next: next.iter().copied().collect(), rows: rows.to_vec() }, &first_sights)
        };
        assert_eq!(look(&[], &[]), None);
        assert_eq!(look(&[(0, 5)], &[(0, 0), (0, 2)]), None);
        assert_eq!(look(&[(0, 6), (1, 4)], &[(0, 0), (0, 2), (0, 5), (1, 3)]), None);
        assert!(look(&[(0, 6)], &[(0, 0), (0, 2)]).is_some(), "positions without their rows");
        assert!(look(&[(0, 2)], &[(0, 0), (0, 2)]).is_some(), "rows without their positions");
        assert!(look(&[(0, 2)], &[(0, 0), (0, 0)]).is_some(), "a row twice");
        assert!(look(&[(1, 4)], &[(1, 2)]).is_some(), "another row");
    }
}

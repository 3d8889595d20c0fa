//! The rows that are not archived yet. Pure.
//!
//! Rows come in any order and more than once, and the archive moves on underneath. What is held is, at every
//! moment, each row at or behind the archive's positions once: so a snapshot and the tail that is cut at its
//! positions are together every event once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::error::ArrowError;
use xxhash_rust::xxh3::xxh3_64;

use super::rows::{Maker, Row};

/// Small batches are joined up to this many rows.
const BATCH: usize = 8_192;
/// What a row takes beside its values, in bytes: its place among the known offsets.
const PLACE: usize = 32;

/// First offsets that are not archived, by the partition's number; a partition that is missing has nothing archived.
pub type Cut = HashMap<i32, i64>;

/// The tail of a project.
pub struct Tail {
    maker: Maker,
    cut: Cut,
    /// The offsets held, by partition.
    known: HashMap<i32, HashSet<i64>>,
    /// Of all places of `known`, added up.
    fingerprint: u64,
    batches: Vec<RecordBatch>,
    held: Held,
}

impl Tail {
    /// An empty tail behind `cut`. What it takes is added to `total`, in bytes.
    pub fn new(maker: Maker, cut: Cut, total: &Arc<AtomicUsize>) -> Self {
        let held = Held { total: Arc::clone(total), bytes: 0 };
        Self { maker, cut, known: HashMap::new(), fingerprint: 0, batches: Vec::new(), held }
    }

    /// Adds those rows that are new and not archived.
    pub fn add(&mut self, mut rows: Vec<Row>) -> Result<(), ArrowError> {
        rows.retain(|row| {
            let is_new = is_behind(&self.cut, row.at.partition, row.at.offset)
                && self.known.entry(row.at.partition).or_default().insert(row.at.offset);
            if is_new {
                self.fingerprint = self.fingerprint.wrapping_add(fingerprint(row.at.partition, row.at.offset));
            }
            is_new
        });
        if rows.is_empty() {
            return Ok(());
        }
        let mut last = self.maker.batch(&rows)?;
        // As counting in binary: every row is copied a few times, and few batches are left.
        while let Some(before) = self
            .batches
            .pop_if(|before| before.num_rows() <= 2 * last.num_rows() && before.num_rows() + last.num_rows() <= BATCH)
        {
            last = concat_batches(self.maker.schema(), [&before, &last])?;
        }
        self.batches.push(last);
        self.weigh();
        Ok(())
    }

    /// Drops what has been archived.
    pub fn advance(&mut self, cut: Cut) -> Result<(), ArrowError> {
        if cut == self.cut {
            return Ok(());
        }
        for (partition, known) in &mut self.known {
            known.retain(|offset| {
                let stays = is_behind(&cut, *partition, *offset);
                if !stays {
                    self.fingerprint = self.fingerprint.wrapping_sub(fingerprint(*partition, *offset));
                }
                stays
            });
        }
        let mut left = Vec::with_capacity(self.batches.len());
        for batch in self.batches.drain(..) {
            let mask = self::left(&batch, &cut);
            match mask.true_count() {
                0 => {}
                rows if rows == batch.num_rows() => left.push(batch),
                _ => left.push(filter_record_batch(&batch, &mask)?),
            }
        }
        self.batches = left;
        self.cut = cut;
        self.weigh();
        Ok(())
    }

    /// Its rows.
    pub fn batches(&self) -> Vec<RecordBatch> {
        self.batches.clone()
    }

    /// The same for the same rows, in whichever process and order they were read.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn weigh(&mut self) {
        let places = self.known.values().map(HashSet::len).sum::<usize>() * PLACE;
        let rows: usize = self.batches.iter().map(RecordBatch::get_array_memory_size).sum();
        self.held.set(rows + places);
    }
}

fn fingerprint(partition: i32, offset: i64) -> u64 {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&partition.to_be_bytes());
    bytes[4..].copy_from_slice(&offset.to_be_bytes());
    xxh3_64(&bytes)
}

fn is_behind(cut: &Cut, partition: i32, offset: i64) -> bool {
    cut.get(&partition).is_none_or(|next| offset >= *next)
}

/// Which rows of a batch are not archived.
fn left(batch: &RecordBatch, cut: &Cut) -> BooleanArray {
    let column = |name| batch.column_by_name(name);
    let (Some(partitions), Some(offsets)) = (column("kafka_partition"), column("kafka_offset")) else {
        return BooleanArray::from(vec![true; batch.num_rows()]);
    };
    let (partitions, offsets) = (partitions.as_primitive::<Int32Type>(), offsets.as_primitive::<Int64Type>());
    partitions.values().iter().zip(offsets.values()).map(|(&p, &offset)| Some(is_behind(cut, p, offset))).collect()
}

/// Bytes that count in a total as long as they are held.
struct Held {
    total: Arc<AtomicUsize>,
    bytes: usize,
}

impl Held {
    fn set(&mut self, bytes: usize) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::events::rows::tests::row;
    use crate::events::snapshot::empty_schema;

    fn maker() -> Maker {
        Maker::new(empty_schema().expect("a schema"), Arc::default())
    }

    fn places(tail: &Tail) -> Vec<(i32, i64)> {
        let mut places = Vec::new();
        for batch in tail.batches() {
            let partitions = batch.column_by_name("kafka_partition").expect("a column").as_primitive::<Int32Type>();
            let offsets = batch.column_by_name("kafka_offset").expect("a column").as_primitive::<Int64Type>();
            places.extend(partitions.values().iter().copied().zip(offsets.values().iter().copied()));
        }
        places.sort_unstable();
        places
    }

    proptest! {
        /// Whatever comes in which order, how often, and wherever the archive is: each row behind it once.
        #[test]
        fn holds_every_row_behind_the_cut_once(
            steps in prop::collection::vec((prop::collection::vec((0i32..3, 0i64..40), 0..12), 0i32..3, 0i64..6), 0..20),
        ) {
            let total = Arc::new(AtomicUsize::new(0));
            let mut tail = Tail::new(maker(), Cut::new(), &total);
            let (mut model, mut cut) = (BTreeSet::new(), Cut::new());
            for (rows, partition, further) in steps {
                tail.add(rows.iter().map(|&(p, offset)| row(p, offset)).collect()).expect("added");
                model.extend(rows.iter().copied().filter(|&(p, offset)| is_behind(&cut, p, offset)));
                *cut.entry(partition).or_insert(0) += further;
                tail.advance(cut.clone()).expect("advanced");
                model.retain(|&(p, offset)| is_behind(&cut, p, offset));
                prop_assert_eq!(places(&tail), model.iter().copied().collect::<Vec<_>>());
            }
            let mut again = Tail::new(maker(), Cut::new(), &total);
            for &(p, offset) in model.iter().rev() {
                again.add(vec![row(p, offset)]).expect("added");
            }
            prop_assert_eq!(again.fingerprint(), tail.fingerprint());
            prop_assert!(again.batches().len() <= 8, "small batches are joined");
            drop((tail, again));
            prop_assert_eq!(total.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn another_row_is_another_fingerprint() {
        let total = Arc::default();
        let mut tail = Tail::new(maker(), Cut::new(), &total);
        let none = tail.fingerprint();
        tail.add(vec![row(0, 1)]).expect("added");
        let one = tail.fingerprint();
        tail.add(vec![row(0, 1), row(1, 0)]).expect("added");
        assert!(none != one && one != tail.fingerprint() && tail.fingerprint() != none);
        assert!(total.load(Ordering::Relaxed) > 0);
    }
}

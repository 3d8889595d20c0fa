//! Rows as they wait: the log's bytes, behind each other. They become columns only when they are written, in their
//! order, so a row costs no allocation and little more memory than its record had. Pure, but for the pieces that are used again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use tidemill_common::codec::datum;
use tidemill_common::event::EventRef;
use tidemill_common::origin::Origin;

/// Datums are in pieces of this many bytes, so that memory grows without copying or doubling,
const DATUM_PIECE: usize = 256 * 1024;
/// and rows in pieces of so many.
const ROW_PIECE: usize = 4_096;

/// Events and where their records stand.
#[derive(Debug, Default)]
pub struct Rows {
    datums: Vec<Vec<u8>>,
    datum_bytes: usize,
    rows: Vec<Vec<Row>>,
    len: usize,
    types: Types,
}

#[derive(Debug)]
struct Row {
    /// Where its datum is: which piece, where in it, and how long it is.
    piece: u32,
    start: u32,
    len: u32,
    event_type: u32,
    at: Origin,
    occurred_at: i64,
}

impl Rows {
    /// What a row takes beside its datum, in bytes.
    pub const OVERHEAD: usize = size_of::<Row>();

    /// Adds an event; `datum` is its bytes in the envelope's layout.
    pub fn add(&mut self, event: &EventRef<'_>, datum: &[u8], at: Origin) {
        let event_type = self.types.number(event.event_type);
        let bytes = room(&mut self.datums, datum.len(), &DATUMS);
        let (start, len) = (bytes.len() as u32, datum.len() as u32);
        bytes.extend_from_slice(datum);
        self.datum_bytes += datum.len();
        let piece = self.datums.len() as u32 - 1;
        let row = Row { piece, start, len, event_type, at, occurred_at: event.timestamp };
        room(&mut self.rows, 1, &ROWS).push(row);
        self.len += 1;
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes they take.
    pub fn bytes(&self) -> usize {
        self.datum_bytes + self.len * Self::OVERHEAD
    }

    /// A row.
    pub fn get(&self, index: usize) -> (EventRef<'_>, Origin) {
        let row = &self.rows[index / ROW_PIECE][index % ROW_PIECE];
        let bytes = &self.datums[row.piece as usize][row.start as usize..][..row.len as usize];
        (datum::read(bytes).expect("it was read before it was added"), row.at)
    }

    /// Their order by what queries ask for, so that they can skip what lies between: event type, then time, then as
    /// they came.
    pub fn order(&self) -> Vec<u32> {
        let ranks = self.types.ranks();
        let key = |(index, row): (u32, &Row)| (ranks[row.event_type as usize], row.occurred_at, index);
        let mut keys: Vec<(u32, i64, u32)> = (0..).zip(self.rows.iter().flatten()).map(key).collect();
        keys.sort_unstable();
        keys.into_iter().map(|(_, _, index)| index).collect()
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.datums.drain(..).for_each(|piece| DATUMS.give_back(piece));
        self.rows.drain(..).for_each(|piece| ROWS.give_back(piece));
    }
}

/// The last piece, if it takes so many more, or a new one. Most days have few rows, and the first piece grows with them.
fn room<'a, T>(list: &'a mut Vec<Vec<T>>, more: usize, pieces: &Pieces<T>) -> &'a mut Vec<T> {
    if list.last().is_none_or(|piece| piece.len() + more > pieces.size) {
        list.push(if list.is_empty() { Vec::new() } else { pieces.take() });
    }
    list.last_mut().expect("there is one now")
}

/// Pieces that are used again: given back to the system, each would be cleared page by page before it is filled.
struct Pieces<T> {
    size: usize,
    /// Most that are kept.
    most: usize,
    free: Mutex<Vec<Vec<T>>>,
}

static DATUMS: Pieces<u8> = Pieces { size: DATUM_PIECE, most: 64, free: Mutex::new(Vec::new()) };
static ROWS: Pieces<Row> = Pieces { size: ROW_PIECE, most: 16, free: Mutex::new(Vec::new()) };

impl<T> Pieces<T> {
    fn take(&self) -> Vec<T> {
        self.free().pop().unwrap_or_else(|| Vec::with_capacity(self.size))
    }

    fn give_back(&self, mut piece: Vec<T>) {
        let mut free = self.free();
        if piece.capacity() == self.size && free.len() < self.most {
            piece.clear();
            free.push(piece);
        }
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<T>>> {
        self.free.lock().expect("no holder panics")
    }
}

/// Event types by number, so that sorting compares no texts.
#[derive(Debug, Default)]
struct Types {
    numbers: HashMap<String, u32>,
    /// Neighbours in the log often have the same.
    last: (String, u32),
}

impl Types {
    fn number(&mut self, name: &str) -> u32 {
        if self.last.0 != name || self.numbers.is_empty() {
            let next = self.numbers.len() as u32;
            let number = match self.numbers.get(name) {
                Some(&number) => number,
                None => *self.numbers.entry(name.to_owned()).or_insert(next),
            };
            self.last.0.clear();
            self.last.0.push_str(name);
            self.last.1 = number;
        }
        self.last.1
    }

    /// By number, the place that a type's name has among all of them.
    fn ranks(&self) -> Vec<u32> {
        let mut names: Vec<(&String, u32)> = self.numbers.iter().map(|(name, &number)| (name, number)).collect();
        names.sort_unstable();
        let mut ranks = vec![0; names.len()];
        (0..).zip(names).for_each(|(rank, (_, number))| ranks[number as usize] = rank);
        ranks
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidemill_common::event::Event;

    use super::*;

    fn rows(list: impl Iterator<Item = Event>) -> Rows {
        let (mut rows, mut bytes) = (Rows::default(), Vec::new());
        for (offset, event) in (0..).zip(list) {
            bytes.clear();
            datum::write(&event.as_ref(), &mut bytes);
            rows.add(&event.as_ref(), &bytes, Origin { partition: 1, offset, append_ms: offset * 2 });
        }
        rows
    }

    #[test]
    fn pieces_are_filled_and_used_again() {
        let count = 2 * ROW_PIECE as i64 + 7;
        for round in 0..3 {
            let rows = rows((0..count).map(|i| Event::new(format!("{round}-{i:0>99}"), "t", -i)));
            assert!(rows.datums.len() > 1 && rows.rows.len() == 3, "there are pieces");
            let (order, mut expected) = (rows.order(), (0..count).rev());
            assert_eq!((order.len(), rows.len()), (count as usize, count as usize));
            for index in order {
                let (event, at) = rows.get(index as usize);
                assert_eq!(Some(at.offset), expected.next(), "the latest occurred first");
                assert_eq!(event.event_id, format!("{round}-{:0>99}", at.offset));
            }
        }
    }

    proptest! {
        #[test]
        fn rows_come_back_by_type_time_and_arrival(
            list in prop::collection::vec(("[a-c]{1,2}", 0i64..4, prop::option::of(".{0,9}")), 0..60),
        ) {
            let list = list.into_iter().enumerate().map(|(offset, (event_type, timestamp, properties))| {
                Event { properties, ..Event::new(format!("e-{offset}"), event_type, timestamp) }
            });
            let mut expected: Vec<_> = list.zip(0..).collect();
            let rows = rows(expected.iter().map(|(event, _)| event.clone()));
            prop_assert_eq!(rows.len(), expected.len());
            expected.sort_by(|(a, _), (b, _)| (&a.event_type, a.timestamp).cmp(&(&b.event_type, b.timestamp)));
            let sorted = rows.order().into_iter().map(|index| {
                let (event, at) = rows.get(index as usize);
                (event.to_event(), at.offset)
            });
            prop_assert_eq!(sorted.collect::<Vec<_>>(), expected);
        }
    }
}

//! Rows as they wait: the log's bytes, behind each other. They become columns only when they are written, in their
//! order, so a row costs no allocation and little more memory than its record had. Pure, but for the pieces that are used again.

use std::collections::HashMap;

use tidemill_common::codec::datum;
use tidemill_common::event::EventRef;
use tidemill_common::origin::Origin;

/// Datums are in pieces of this many bytes, so that memory grows without copying or doubling.
const PIECE: usize = 256 * 1024;

/// Events and where their records stand.
#[derive(Debug, Default)]
pub struct Rows {
    datums: Vec<Vec<u8>>,
    datum_bytes: usize,
    rows: Vec<Row>,
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
        if self.datums.last().is_none_or(|piece| piece.len() + datum.len() > PIECE) {
            // Most days have few rows, and the first piece grows with them.
            self.datums.push(if self.datums.is_empty() { Vec::new() } else { pieces::take() });
        }
        let piece = self.datums.len() - 1;
        let (start, len) = (self.datums[piece].len() as u32, datum.len() as u32);
        self.datums[piece].extend_from_slice(datum);
        self.datum_bytes += datum.len();
        self.rows.push(Row { piece: piece as u32, start, len, event_type, at, occurred_at: event.timestamp });
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How many bytes they take.
    pub fn bytes(&self) -> usize {
        self.datum_bytes + self.rows.len() * Self::OVERHEAD
    }

    /// A row.
    pub fn get(&self, index: usize) -> (EventRef<'_>, Origin) {
        let row = &self.rows[index];
        let bytes = &self.datums[row.piece as usize][row.start as usize..][..row.len as usize];
        (datum::read(bytes).expect("it was read before it was added"), row.at)
    }

    /// Their order by what queries ask for, so that they can skip what lies between: event type, then time, then as
    /// they came.
    pub fn order(&self) -> Vec<u32> {
        let ranks = self.types.ranks();
        let key = |(index, row): (usize, &Row)| (ranks[row.event_type as usize], row.occurred_at, index as u32);
        let mut keys: Vec<(u32, i64, u32)> = self.rows.iter().enumerate().map(key).collect();
        keys.sort_unstable();
        keys.into_iter().map(|(_, _, index)| index).collect()
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.datums.drain(..).for_each(pieces::give_back);
    }
}

/// Pieces that are used again: given back to the system, each would be cleared page by page before it is filled.
mod pieces {
    use std::sync::{Mutex, MutexGuard};

    use super::PIECE;

    /// Most that are kept.
    const KEPT: usize = 64;

    static FREE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

    pub fn take() -> Vec<u8> {
        free().pop().unwrap_or_else(|| Vec::with_capacity(PIECE))
    }

    pub fn give_back(mut piece: Vec<u8>) {
        let mut free = free();
        if piece.capacity() == PIECE && free.len() < KEPT {
            piece.clear();
            free.push(piece);
        }
    }

    fn free() -> MutexGuard<'static, Vec<Vec<u8>>> {
        FREE.lock().expect("no holder panics")
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

    proptest! {
        #[test]
        fn rows_come_back_by_type_time_and_arrival(
            list in prop::collection::vec(("[a-c]{1,2}", 0i64..4, prop::option::of(".{0,9}")), 0..60),
        ) {
            let mut rows = Rows::default();
            let mut expected = Vec::new();
            for (offset, (event_type, timestamp, properties)) in (0..).zip(list) {
                let event = Event { properties, ..Event::new(format!("e-{offset}"), event_type, timestamp) };
                let mut bytes = Vec::new();
                datum::write(&event.as_ref(), &mut bytes);
                rows.add(&event.as_ref(), &bytes, Origin { partition: 1, offset, append_ms: offset * 2 });
                expected.push((event, offset));
            }
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

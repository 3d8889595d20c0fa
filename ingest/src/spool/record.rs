//! The form of a spooled record, and how a segment with damage is read. Pure: bytes in, records out.
//!
//! A segment is a sequence of records: magic (4 bytes), length of the payload (4), CRC-32 over length and payload
//! (4), payload. The payload: partition (4), time of spooling in ms (8), body hash (16), length of the eventId (4),
//! eventId, value. Numbers are little-endian.

use std::ops::Range;

/// Cannot stand in UTF-8, so no client can write something into an event that is taken for a record when the
/// search for the next one goes through damaged bytes. The last byte is the version of the form.
const MAGIC: [u8; 4] = [0xFF, 0xFE, 0xFA, 1];
const HEADER: usize = 12;

/// An event that waits for Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its home partition.
    pub partition: i32,
    /// When it was spooled, in milliseconds since 1970.
    pub spooled_at: i64,
    /// The hash of the producer's own fields, for the confirmation.
    pub body: [u8; 16],
    /// Its id, the record's key.
    pub event_id: &'a str,
    /// Framed Avro.
    pub value: &'a [u8],
}

/// Why there is no record at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// The bytes end before the record does.
    Incomplete,
    /// The bytes are not what was written.
    Damaged,
}

impl<'a> Record<'a> {
    /// Appends the record's form.
    pub fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend(MAGIC);
        out.extend([0; 8]);
        out.extend(self.partition.to_le_bytes());
        out.extend(self.spooled_at.to_le_bytes());
        out.extend(self.body);
        out.extend(length(self.event_id.len()));
        out.extend(self.event_id.as_bytes());
        out.extend(self.value);
        let length = length(out.len() - start - HEADER);
        let sum = checksum(&length, &out[start + HEADER..]);
        out[start + 4..start + 8].copy_from_slice(&length);
        out[start + 8..start + 12].copy_from_slice(&sum.to_le_bytes());
    }

    /// Reads the record at the start of `bytes`; gives the bytes behind it too.
    fn split(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), Broken> {
        let (header, rest) = bytes.split_first_chunk::<HEADER>().ok_or(Broken::Incomplete)?;
        let [m0, m1, m2, m3, l0, l1, l2, l3, c0, c1, c2, c3] = *header;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(Broken::Damaged);
        }
        let length = [l0, l1, l2, l3];
        let (payload, rest) = rest.split_at_checked(u32::from_le_bytes(length) as usize).ok_or(Broken::Incomplete)?;
        if checksum(&length, payload) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(Broken::Damaged);
        }
        Ok((Self::of_payload(payload).ok_or(Broken::Damaged)?, rest))
    }

    fn of_payload(payload: &'a [u8]) -> Option<Self> {
        let (partition, rest) = payload.split_first_chunk()?;
        let (spooled_at, rest) = rest.split_first_chunk()?;
        let (body, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (event_id, value) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        Some(Self {
            partition: i32::from_le_bytes(*partition),
            spooled_at: i64::from_le_bytes(*spooled_at),
            body: *body,
            event_id: std::str::from_utf8(event_id).ok()?,
            value,
        })
    }

    /// Reads a record that [`scan`] has found.
    pub fn at(bytes: &'a [u8], place: &Range<usize>) -> Option<Self> {
        Self::split(bytes.get(place.clone())?).ok().map(|(record, _)| record)
    }
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).expect("a record has less than 1 MB").to_le_bytes()
}

fn checksum(length: &[u8], payload: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(length);
    sum.update(payload);
    sum.finalize()
}

/// What a segment's bytes hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Where its records are.
    pub records: Vec<Range<usize>>,
    /// What is not a record though there must have been some.
    pub damaged: Vec<Range<usize>>,
    /// A write that was cut short at the end: nobody was told that it is safe.
    pub torn: Option<Range<usize>>,
}

/// Finds all records of a segment. Where there is damage it goes on at the next record whose checksum is right.
pub fn scan(bytes: &[u8]) -> Scan {
    let mut scan = Scan::default();
    let mut at = 0;
    while at < bytes.len() {
        match Record::split(&bytes[at..]) {
            Ok((_, rest)) => {
                let next = bytes.len() - rest.len();
                scan.records.push(at..next);
                at = next;
            }
            Err(broken) => {
                let next = next_record(bytes, at + 1);
                let range = at..next.unwrap_or(bytes.len());
                // After a power failure, pages that had not been written yet read as zeros.
                let cut_short = broken == Broken::Incomplete || bytes[range.clone()].iter().all(|&byte| byte == 0);
                at = range.end;
                match next {
                    None if cut_short => scan.torn = Some(range),
                    _ => scan.damaged.push(range),
                }
            }
        }
    }
    scan
}

fn next_record(bytes: &[u8], from: usize) -> Option<usize> {
    let starts = memchr::memmem::find_iter(&bytes[from..], &MAGIC).map(|start| from + start);
    starts.into_iter().find(|&start| Record::split(&bytes[start..]).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    struct Owned(i32, i64, [u8; 16], String, Vec<u8>);

    impl Owned {
        fn record(&self) -> Record<'_> {
            Record { partition: self.0, spooled_at: self.1, body: self.2, event_id: &self.3, value: &self.4 }
        }
    }

    fn records() -> impl Strategy<Value = Vec<Owned>> {
        let record =
            (any::<i32>(), any::<i64>(), any::<[u8; 16]>(), "\\PC{1,20}", prop::collection::vec(any::<u8>(), 0..60))
                .prop_map(|(partition, at, body, id, value)| Owned(partition, at, body, id, value));
        prop::collection::vec(record, 1..8)
    }

    fn written(records: &[Owned]) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for record in records {
            record.record().write(&mut bytes);
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn read<'a>(bytes: &'a [u8], scan: &Scan) -> Vec<Record<'a>> {
        scan.records.iter().map(|place| Record::at(bytes, place).expect("a record")).collect()
    }

    #[test]
    fn zeros_behind_the_records_are_a_torn_write() {
        let (mut bytes, ends) = written(&[Owned(1, 2, [3; 16], "e".into(), vec![4])]);
        bytes.extend([0; 40]);
        assert_eq!(scan(&bytes).torn, Some(ends[0]..ends[0] + 40));
    }

    #[test]
    fn a_damaged_last_record_is_not_taken_for_a_torn_write() {
        let (mut bytes, _) = written(&[Owned(1, 2, [3; 16], "e".into(), vec![4])]);
        *bytes.last_mut().expect("bytes") ^= 1;
        let Scan { records, damaged, torn } = scan(&bytes);
        assert_eq!((records.len(), damaged.first(), torn), (0, Some(&(0..bytes.len())), None));
    }

    proptest! {
        #[test]
        fn a_cut_segment_gives_every_record_before_the_cut(records in records()) {
            let (bytes, ends) = written(&records);
            for cut in 0..=bytes.len() {
                let scan = scan(&bytes[..cut]);
                let whole = ends.iter().filter(|&&end| end <= cut).count();
                let expected: Vec<_> = records[..whole].iter().map(Owned::record).collect();
                prop_assert_eq!(read(&bytes, &scan), expected, "cut at {}", cut);
                let end = whole.checked_sub(1).map_or(0, |last| ends[last]);
                prop_assert_eq!(scan.torn, (end < cut).then_some(end..cut));
                prop_assert!(scan.damaged.is_empty());
            }
        }

        /// One changed stretch costs the records that it touches and no others; nothing wrong is ever read.
        #[test]
        fn damage_costs_only_what_it_touches(
            records in records(), at in any::<prop::sample::Index>(), noise in prop::collection::vec(1u8.., 1..30),
        ) {
            let (bytes, ends) = written(&records);
            let start = at.index(bytes.len());
            let mut damaged = bytes.clone();
            damaged.iter_mut().skip(start).zip(&noise).for_each(|(byte, noise)| *byte ^= noise);
            let end = (start + noise.len()).min(bytes.len());
            let starts = std::iter::once(0).chain(ends.iter().copied());
            let untouched = |(from, to): (usize, usize)| to <= start || from >= end;
            let expected: Vec<_> = records.iter().zip(starts.zip(ends.iter().copied()))
                .filter(|&(_, place)| untouched(place)).map(|(record, _)| record.record()).collect();
            let scan = scan(&damaged);
            prop_assert_eq!(read(&damaged, &scan), expected);
            let covered: usize = scan.records.iter().chain(&scan.damaged).chain(&scan.torn).map(Range::len).sum();
            prop_assert_eq!(covered, bytes.len(), "every byte is accounted for");
        }

        #[test]
        fn any_bytes_can_be_scanned(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let scan = scan(&bytes);
            prop_assert!(scan.records.is_empty());
        }
    }
}

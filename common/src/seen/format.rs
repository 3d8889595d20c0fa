//! The form of a run's file. Pure.
//!
//! Pages: the sightings in order of fingerprint and offset, each page with its CRC-32. A fingerprint's page
//! follows from its high half: hashes are spread evenly, so there is nothing to search. Then the tables: a
//! filter for each page, and the number of each page's first sighting. Last the footer.

use std::ops::Range;

use super::{Fingerprint, Sighting};

/// Sightings in a page, on average.
pub const PAGE: u64 = 40;
/// A sighting's bytes: the fingerprint, six bytes of offset, six of append time.
pub const ENTRY: usize = 28;
/// A page's checksum.
pub const CRC: usize = 4;
/// The footer's bytes.
pub const FOOTER: usize = 64;

const MAGIC: [u8; 8] = *b"tmseen01";
/// Times have six bytes.
const LATEST: i64 = (1 << 48) - 1;
/// Offsets have six bytes, one bit of which is the sign.
const LARGEST: i64 = (1 << 47) - 1;

/// What a run's file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// The offsets whose sightings are all here.
    pub covers: Range<i64>,
    /// How many sightings.
    pub len: u64,
    /// Over how many pages they are spread.
    pub pages: u64,
    /// The youngest append time of the records that it covers, those without a sighting too.
    pub newest_ms: i64,
    /// Checksum of the tables.
    pub tables_crc: u32,
}

impl About {
    /// Bytes of all pages.
    pub fn pages_bytes(&self) -> u64 {
        self.len * ENTRY as u64 + self.pages * CRC as u64
    }

    /// Bytes of the tables.
    pub fn tables_bytes(&self) -> u64 {
        self.pages * super::filter::Filter::BYTES as u64 + (self.pages + 1) * 4
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        self.pages_bytes() + self.tables_bytes() + FOOTER as u64
    }

    /// As the file ends.
    pub fn footer(&self) -> [u8; FOOTER] {
        let mut bytes = [0; FOOTER];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.covers.start.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.covers.end.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.len.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.pages.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.newest_ms.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.tables_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..FOOTER - CRC]);
        bytes[FOOTER - CRC..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// From a file's end; none when that is not what was written.
    pub fn read(bytes: &[u8; FOOTER]) -> Option<Self> {
        let eight = |from: usize| -> [u8; 8] { bytes[from..from + 8].try_into().expect("eight bytes") };
        let four = |from: usize| u32::from_le_bytes(bytes[from..from + 4].try_into().expect("four bytes"));
        if bytes[..8] != MAGIC || crc32fast::hash(&bytes[..FOOTER - CRC]) != four(FOOTER - CRC) {
            return None;
        }
        Some(Self {
            covers: i64::from_le_bytes(eight(8))..i64::from_le_bytes(eight(16)),
            len: u64::from_le_bytes(eight(24)),
            pages: u64::from_le_bytes(eight(32)),
            newest_ms: i64::from_le_bytes(eight(40)),
            tables_crc: four(48),
        })
    }
}

/// How many pages hold so many sightings.
pub fn pages(len: u64) -> u64 {
    len.div_ceil(PAGE).max(1)
}

/// A fingerprint's page among so many.
pub fn page_of(fingerprint: Fingerprint, pages: u64) -> usize {
    ((u128::from(fingerprint.high) * u128::from(pages)) >> 64) as usize
}

/// Where a page stands in the file, with its checksum, when its sightings have these numbers.
pub fn page_at(page: usize, numbers: Range<u32>) -> Range<u64> {
    let at = |number: u32, crcs: usize| u64::from(number) * ENTRY as u64 + (crcs * CRC) as u64;
    at(numbers.start, page)..at(numbers.end, page + 1)
}

/// A page's sightings, when its checksum is right.
pub fn check_page(bytes: &[u8]) -> Option<&[u8]> {
    let (entries, crc) = bytes.split_last_chunk::<CRC>()?;
    (crc32fast::hash(entries) == u32::from_le_bytes(*crc)).then_some(entries)
}

/// A sighting's bytes.
pub fn encode(sighting: &Sighting) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    bytes[..8].copy_from_slice(&sighting.fingerprint.high.to_be_bytes());
    bytes[8..16].copy_from_slice(&sighting.fingerprint.low.to_be_bytes());
    bytes[16..22].copy_from_slice(&sighting.offset.clamp(-LARGEST, LARGEST).to_le_bytes()[..6]);
    bytes[22..].copy_from_slice(&sighting.append_ms.clamp(0, LATEST).to_le_bytes()[..6]);
    bytes
}

/// From a sighting's bytes.
pub fn decode(bytes: &[u8; ENTRY]) -> Sighting {
    let half = |from: usize| u64::from_be_bytes(bytes[from..from + 8].try_into().expect("eight bytes"));
    let six = |from: usize| {
        let mut eight = [0; 8];
        eight[..6].copy_from_slice(&bytes[from..from + 6]);
        i64::from_le_bytes(eight)
    };
    Sighting {
        fingerprint: Fingerprint { high: half(0), low: half(8) },
        offset: six(16) << 16 >> 16,
        append_ms: six(22),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sighting_and_a_footer_come_back_as_they_were() {
        let fingerprint = Fingerprint { high: u64::MAX - 5, low: 7 };
        for (offset, append_ms) in [(0, 0), (1 << 40, 1_709_251_200_123), (LARGEST, LATEST), (-1, 1), (-LARGEST, 0)] {
            let sighting = Sighting { fingerprint, offset, append_ms };
            assert_eq!(decode(&encode(&sighting)), sighting);
        }
        let about = About { covers: 5..900, len: 33, pages: 1, newest_ms: -1, tables_crc: 9 };
        let footer = about.footer();
        assert_eq!(About::read(&footer), Some(about));
        for i in 0..FOOTER {
            let mut torn = footer;
            torn[i] ^= 4;
            assert_eq!(About::read(&torn), None, "byte {i}");
        }
    }

    #[test]
    fn pages_are_in_the_order_of_fingerprints() {
        let at = |high| page_of(Fingerprint { high, low: 0 }, 3);
        assert_eq!([at(0), at(u64::MAX / 3), at(u64::MAX / 3 + 2), at(u64::MAX)], [0, 0, 1, 2]);
    }
}

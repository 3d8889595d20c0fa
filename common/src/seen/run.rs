//! A run: sightings in an immutable file, sorted by fingerprint. See [`super::format`] for the file's form.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::filter::Filter;
use super::format::{About, CRC, ENTRY, FOOTER, check_page, decode, encode, page_at, page_of, pages};
use super::{Fingerprint, SeenError, Sighting};

/// How runs' names end.
pub const SUFFIX: &str = "seen";
/// How names of unfinished files end.
pub const UNFINISHED: &str = "new";
/// So many files are kept open by a process; what is asked beyond them is opened each time.
const OPEN_FILES: usize = 400;
const STREAM_BYTES: usize = 256 * 1024;

static OPEN: AtomicUsize = AtomicUsize::new(0);

/// A run, with what is in memory of it. The same run can be there with its tables and without.
#[derive(Debug)]
pub struct Run {
    stored: Arc<Stored>,
    /// What the file holds.
    pub about: About,
    /// What is in memory of it; nothing while it is so old that it is not asked.
    tables: Option<Tables>,
    file: OnceLock<File>,
}

/// A run's file. It is removed when the last user of an obsolete one lets go, however much each has in memory.
#[derive(Debug)]
struct Stored {
    path: PathBuf,
    obsolete: AtomicBool,
}

#[derive(Debug)]
struct Tables {
    filters: Vec<Filter>,
    /// The number of each page's first sighting, and behind them the number of sightings.
    starts: Vec<u32>,
}

impl Run {
    /// Opens a run, with its tables or without.
    pub fn open(path: &Path, tables: bool) -> Result<Self, SeenError> {
        let damaged = |what| SeenError::Damaged { path: path.to_owned(), what };
        let file = File::open(path).map_err(SeenError::unreadable(path))?;
        let length = file.metadata().map_err(SeenError::disk(path))?.len();
        let footer_at = length.checked_sub(FOOTER as u64).ok_or_else(|| damaged("it is cut short"))?;
        let mut footer = [0; FOOTER];
        file.read_exact_at(&mut footer, footer_at).map_err(SeenError::unreadable(path))?;
        let about = About::read(&footer).ok_or_else(|| damaged("its end is not what was written"))?;
        if about.file_bytes() != length {
            return Err(damaged("its length is not what was written"));
        }
        let tables = if tables { Some(Tables::read(path, &file, &about)?) } else { None };
        Ok(Self::new(path.to_owned(), about, tables))
    }

    fn new(path: PathBuf, about: About, tables: Option<Tables>) -> Self {
        let stored = Arc::new(Stored { path, obsolete: AtomicBool::new(false) });
        Self { stored, about, tables, file: OnceLock::new() }
    }

    /// Where its file is.
    pub fn path(&self) -> &Path {
        &self.stored.path
    }

    /// Whether both are the same run.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.stored, &other.stored)
    }

    /// Whether its tables are in memory, so that it can be asked.
    pub fn is_loaded(&self) -> bool {
        self.tables.is_some()
    }

    /// The same run without its tables.
    pub fn unloaded(&self) -> Self {
        let (stored, about) = (Arc::clone(&self.stored), self.about.clone());
        Self { stored, about, tables: None, file: OnceLock::new() }
    }

    /// The same run with its tables.
    pub fn loaded(&self) -> Result<Self, SeenError> {
        let mut opened = Self::open(self.path(), true)?;
        opened.stored = Arc::clone(&self.stored);
        Ok(opened)
    }

    /// Hands all sightings of a fingerprint to `each`. The tables must be loaded.
    pub fn find(&self, fingerprint: Fingerprint, mut each: impl FnMut(Sighting)) -> Result<(), SeenError> {
        let Some(tables) = &self.tables else { return Ok(()) };
        let page = page_of(fingerprint, tables.filters.len() as u64);
        if !tables.filters[page].may_have(fingerprint.low) {
            return Ok(());
        }
        let at = page_at(page, tables.starts[page]..tables.starts[page + 1]);
        let mut bytes = vec![0; (at.end - at.start) as usize];
        self.read_at(&mut bytes, at.start)?;
        let entries = check_page(&bytes).ok_or_else(|| self.damaged_page())?;
        for entry in entries.as_chunks::<ENTRY>().0 {
            let sighting = decode(entry);
            if sighting.fingerprint == fingerprint {
                each(sighting);
            }
        }
        Ok(())
    }

    /// Its file will be removed when nobody uses it any more.
    pub fn make_obsolete(&self) {
        self.stored.obsolete.store(true, Ordering::Relaxed);
    }

    /// Bytes in memory.
    pub fn memory(&self) -> usize {
        self.tables.as_ref().map_or(0, |tables| tables.filters.len() * Filter::BYTES + tables.starts.len() * 4)
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> Result<(), SeenError> {
        if let Some(file) = self.file.get() {
            return file.read_exact_at(bytes, at).map_err(SeenError::unreadable(self.path()));
        }
        let file = File::open(self.path()).map_err(SeenError::unreadable(self.path()))?;
        let read = file.read_exact_at(bytes, at).map_err(SeenError::unreadable(self.path()));
        if OPEN.fetch_add(1, Ordering::Relaxed) >= OPEN_FILES || self.file.set(file).is_err() {
            OPEN.fetch_sub(1, Ordering::Relaxed);
        }
        read
    }

    fn damaged_page(&self) -> SeenError {
        SeenError::Damaged { path: self.path().to_owned(), what: "a page is not what was written" }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.file.get().is_some() {
            OPEN.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        if *self.obsolete.get_mut()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(%error, path = %self.path.display(), "a file of the seen store is gone already");
        }
    }
}

impl Tables {
    fn read(path: &Path, file: &File, about: &About) -> Result<Self, SeenError> {
        let mut bytes = vec![0; about.tables_bytes() as usize];
        file.read_exact_at(&mut bytes, about.pages_bytes()).map_err(SeenError::unreadable(path))?;
        if crc32fast::hash(&bytes) != about.tables_crc {
            return Err(SeenError::Damaged { path: path.to_owned(), what: "its tables are not what was written" });
        }
        let (filters, starts) = bytes.split_at(about.pages as usize * Filter::BYTES);
        let filters = filters.chunks_exact(Filter::BYTES).map(Filter::read).collect();
        let starts = starts.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        Ok(Self { filters, starts })
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.filters.len() * Filter::BYTES + self.starts.len() * 4);
        self.filters.iter().for_each(|filter| filter.write(&mut bytes));
        self.starts.iter().for_each(|start| bytes.extend_from_slice(&start.to_le_bytes()));
        bytes
    }
}

/// Writes a run of these sightings, whatever their order.
pub fn write(
    folder: &Path,
    covers: Range<i64>,
    mut sightings: Vec<Sighting>,
    newest_ms: i64,
) -> Result<Run, SeenError> {
    sightings.sort_unstable_by_key(|sighting| (sighting.fingerprint, sighting.offset));
    let mut writer = Writer::create(folder, covers, sightings.len() as u64, newest_ms)?;
    sightings.iter().try_for_each(|sighting| writer.push(sighting))?;
    writer.finish()
}

/// Writes one run of the sightings of several that follow each other.
pub fn merge(folder: &Path, inputs: &[impl AsRef<Run>]) -> Result<Run, SeenError> {
    let abouts = || inputs.iter().map(|run| &run.as_ref().about);
    let start = abouts().map(|about| about.covers.start).min().unwrap_or(0);
    let end = abouts().map(|about| about.covers.end).max().unwrap_or(0);
    let newest_ms = abouts().map(|about| about.newest_ms).max().unwrap_or(i64::MIN);
    let mut writer = Writer::create(folder, start..end, abouts().map(|about| about.len).sum(), newest_ms)?;
    let mut readers = Vec::with_capacity(inputs.len());
    for input in inputs {
        readers.extend(Reader::open(input.as_ref())?);
    }
    // Few inputs: looking at each one's next sighting is as quick as a heap.
    while let Some(least) = (0..readers.len()).min_by_key(|&i| (readers[i].next.fingerprint, readers[i].next.offset)) {
        writer.push(&readers[least].next)?;
        if !readers[least].advance()? {
            readers.swap_remove(least);
        }
    }
    writer.finish()
}

/// Reads a run from its first sighting to its last.
struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    starts: Vec<u32>,
    page: usize,
    bytes: Vec<u8>,
    at: usize,
    next: Sighting,
}

impl Reader {
    /// None for a run without sightings.
    fn open(run: &Run) -> Result<Option<Self>, SeenError> {
        let path = run.path().to_owned();
        let file = File::open(&path).map_err(SeenError::unreadable(&path))?;
        let starts = match &run.tables {
            Some(tables) => tables.starts.clone(),
            None => Tables::read(&path, &file, &run.about)?.starts,
        };
        let next = Sighting { fingerprint: Fingerprint { high: 0, low: 0 }, offset: 0, append_ms: 0 };
        let file = BufReader::with_capacity(STREAM_BYTES, file);
        let mut reader = Self { path, file, starts, page: 0, bytes: Vec::new(), at: CRC, next };
        reader.bytes.resize(CRC, 0); // as behind a page's last sighting
        Ok(reader.advance()?.then_some(reader))
    }

    /// Goes to the next sighting; false behind the last.
    fn advance(&mut self) -> Result<bool, SeenError> {
        while self.at + CRC >= self.bytes.len() {
            if self.page + 1 >= self.starts.len() {
                return Ok(false);
            }
            let at = page_at(self.page, self.starts[self.page]..self.starts[self.page + 1]);
            self.bytes.resize((at.end - at.start) as usize, 0);
            self.file.read_exact(&mut self.bytes).map_err(SeenError::unreadable(&self.path))?;
            let damaged = || SeenError::Damaged { path: self.path.clone(), what: "a page is not what was written" };
            check_page(&self.bytes).ok_or_else(damaged)?;
            (self.page, self.at) = (self.page + 1, 0);
        }
        let entry = self.bytes[self.at..].first_chunk::<ENTRY>().expect("pages hold whole sightings");
        self.next = decode(entry);
        self.at += ENTRY;
        Ok(true)
    }
}

/// Writes sightings that come in the file's order.
struct Writer {
    path: PathBuf,
    unfinished: PathBuf,
    file: BufWriter<File>,
    about: About,
    tables: Tables,
    page: Vec<u8>,
    last: Option<(Fingerprint, i64)>,
}

impl Writer {
    /// A new file, for at most `len` sightings.
    fn create(folder: &Path, covers: Range<i64>, len: u64, newest_ms: i64) -> Result<Self, SeenError> {
        fs::create_dir_all(folder).map_err(SeenError::disk(folder))?;
        // The same offsets may be written again, by whoever has the partition then.
        let path = folder.join(format!("{}-{}.{:016x}.{SUFFIX}", covers.start, covers.end, rand::random::<u64>()));
        let unfinished = path.with_extension(UNFINISHED);
        let file = File::create(&unfinished).map_err(SeenError::disk(&unfinished))?;
        let pages = pages(len);
        let about = About { covers, len: 0, pages, newest_ms, tables_crc: 0 };
        let room = pages as usize + 1;
        let mut tables = Tables { filters: Vec::with_capacity(room), starts: Vec::with_capacity(room) };
        tables.starts.push(0);
        let file = BufWriter::with_capacity(STREAM_BYTES, file);
        Ok(Self { path, unfinished, file, about, tables, page: Vec::new(), last: None })
    }

    fn push(&mut self, sighting: &Sighting) -> Result<(), SeenError> {
        let key = (sighting.fingerprint, sighting.offset);
        if self.last.replace(key) == Some(key) {
            return Ok(()); // in two of the inputs
        }
        let page = page_of(sighting.fingerprint, self.about.pages);
        while self.tables.filters.len() <= page {
            self.next_page()?;
        }
        self.tables.filters[page].add(sighting.fingerprint.low);
        self.page.extend_from_slice(&encode(sighting));
        self.about.len += 1;
        Ok(())
    }

    /// Ends the page at hand, if there is one, and begins the next.
    fn next_page(&mut self) -> Result<(), SeenError> {
        if !self.tables.filters.is_empty() {
            let crc = crc32fast::hash(&self.page);
            self.page.extend_from_slice(&crc.to_le_bytes());
            self.file.write_all(&self.page).map_err(SeenError::disk(&self.unfinished))?;
            self.page.clear();
            self.tables.starts.push(self.about.len as u32);
        }
        self.tables.filters.push(Filter::default());
        Ok(())
    }

    /// Makes the file what it is to be, in one step.
    fn finish(mut self) -> Result<Run, SeenError> {
        while self.tables.starts.len() as u64 <= self.about.pages {
            self.next_page()?;
        }
        self.tables.filters.truncate(self.about.pages as usize);
        let tables = self.tables.bytes();
        self.about.tables_crc = crc32fast::hash(&tables);
        let write = || -> std::io::Result<()> {
            self.file.write_all(&tables)?;
            self.file.write_all(&self.about.footer())?;
            let file = self.file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            // Without it a power failure could leave a file whose name stands and whose bytes do not.
            file.sync_data()?;
            fs::rename(&self.unfinished, &self.path)
        };
        let (path, about, tables) = (self.path.clone(), self.about.clone(), self.tables);
        write().map_err(SeenError::disk(&path))?;
        Ok(Run::new(path, about, Some(tables)))
    }
}

//! The spool's files: `<project>/<sequence>.spool`, beside them what is kept for a person.
//!
//! `<sequence>.damaged` is a segment of which some bytes fail their checksums, after its other records have been
//! drained. `refused.records` holds records that Kafka will never take. `RELEASE` is an operator's word.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use tidemill_common::lock::Lock;
use tidemill_common::names::ProjectId;

use super::SpoolError;
use super::books::{Books, Place, Segment};
use super::record::{Record, Scan, scan};

const LOCK: &str = "lock";
const REFUSED: &str = "refused.records";
/// An operator's word.
pub const RELEASE: &str = "RELEASE";

/// The spool's folder, which is nobody else's as long as this lives.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    _lock: Lock,
}

impl Folder {
    /// Takes the folder for this process.
    pub fn lock(root: &Path) -> Result<Self, SpoolError> {
        let opened = make_folder(root).and_then(|()| private().create(true).truncate(false).open(root.join(LOCK)));
        match opened.and_then(Lock::take).map_err(|error| SpoolError::unusable(root, error))? {
            Some(lock) => Ok(Self { root: root.to_owned(), _lock: lock }),
            None => Err(SpoolError::Shared(root.to_owned())),
        }
    }

    /// Reads everything once, cuts torn writes, and gives accounts of what there is.
    pub fn load(&self, limit: u64) -> Result<Books, SpoolError> {
        let mut books = Books::new(limit);
        self.load_into(&mut books).map_err(|error| SpoolError::unusable(&self.root, error))?;
        Ok(books)
    }

    fn load_into(&self, books: &mut Books) -> io::Result<()> {
        for project in &projects(&self.root)? {
            let found = Found::in_folder(&self.project(project))?;
            let mut segments = Vec::with_capacity(found.sequences.len());
            for &sequence in &found.sequences {
                let newest = Some(&sequence) == found.sequences.last();
                segments.extend(self.load_segment(project, sequence, newest)?);
            }
            books.load(project, segments, found.next_sequence, found.kept);
            books.release(project, self.released_at(project));
        }
        Ok(())
    }

    fn load_segment(&self, project: &str, sequence: u64, newest: bool) -> io::Result<Option<Segment>> {
        let path = self.segment(project, sequence);
        let bytes = fs::read(&path)?;
        let mut scan = scan(&bytes);
        let mut length = bytes.len();
        // Only the segment that was written to last can end in a write that a crash cut short.
        if newest && let Some(torn) = scan.torn.take() {
            tracing::warn!(path = %path.display(), bytes = torn.len(), "cut a write off that had not been finished");
            let file = OpenOptions::new().write(true).open(&path)?;
            file.set_len(torn.start as u64)?;
            file.sync_all()?;
            length = torn.start;
        }
        report_damage(&path, &scan);
        if length == 0 {
            fs::remove_file(&path)?;
            return Ok(None);
        }
        let times = scan.records.iter().filter_map(|place| Record::at(&bytes, place)).map(|record| record.spooled_at);
        let oldest = times.min().unwrap_or(i64::MAX);
        Ok(Some(Segment::closed(sequence, length as u64, scan.records.len() as u64, oldest)))
    }

    /// Writes to a segment and waits until it is safe. After an error nothing of it is left, as far as possible.
    pub fn append(&self, project: &str, place: &Place, parts: &[&[u8]]) -> io::Result<()> {
        let path = self.segment(project, place.sequence);
        if place.start == 0 {
            make_folder(&self.project(project))?;
        }
        let mut file = if place.start == 0 { private().create_new(true).open(&path) } else { private().open(&path) }?;
        let written = parts.iter().try_for_each(|part| file.write_all(part)).and_then(|()| file.sync_data());
        // Without its folder's fsync a new file may be gone after a power failure, whatever it held.
        let written = written.and_then(|()| if place.start == 0 { self.sync(project) } else { Ok(()) });
        written.inspect_err(|_| {
            let cut = if place.start == 0 { fs::remove_file(&path) } else { file.set_len(place.start) };
            if let Err(error) = cut {
                tracing::error!(%error, path = %path.display(), "cannot undo a write; its events may come twice");
            }
        })
    }

    /// Reads a segment.
    pub fn read(&self, project: &str, sequence: u64, bytes: u64) -> io::Result<(Vec<u8>, Scan)> {
        let path = self.segment(project, sequence);
        let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
        File::open(&path)?.take(bytes).read_to_end(&mut content)?;
        let scan = scan(&content);
        report_damage(&path, &scan);
        Ok((content, scan))
    }

    /// Removes a segment that has been drained.
    pub fn remove(&self, project: &str, sequence: u64) -> io::Result<()> {
        fs::remove_file(self.segment(project, sequence))
    }

    /// Keeps a damaged segment, out of the way.
    pub fn keep_damaged(&self, project: &str, sequence: u64) -> io::Result<()> {
        let path = self.segment(project, sequence);
        fs::rename(&path, path.with_extension("damaged"))
    }

    /// Keeps records that Kafka refuses, out of the way.
    pub fn keep_refused(&self, project: &str, records: &[u8]) -> io::Result<()> {
        let folder = self.project(project);
        let mut file = private().create(true).open(folder.join(REFUSED))?;
        file.write_all(records)?;
        file.sync_data()?;
        sync(&folder)
    }

    /// When an operator gave his word for what was old then.
    pub fn released_at(&self, project: &str) -> i64 {
        released_at(&self.project(project))
    }

    /// Both folders each time: who made them may not have come to that.
    fn sync(&self, project: &str) -> io::Result<()> {
        sync(&self.project(project))?;
        sync(&self.root)
    }

    fn project(&self, project: &str) -> PathBuf {
        self.root.join(project)
    }

    fn segment(&self, project: &str, sequence: u64) -> PathBuf {
        segment(&self.project(project), sequence)
    }
}

/// Reads a spool that may be in use: calls `visit` with each record and its project, a
/// project's in their order.
pub fn look(root: &Path, mut visit: impl FnMut(&str, &Record<'_>)) -> io::Result<()> {
    for project in projects(root)? {
        let folder = root.join(&project);
        for sequence in Found::in_folder(&folder)?.sequences {
            let bytes = match fs::read(segment(&folder, sequence)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // drained meanwhile
                bytes => bytes?,
            };
            let records = scan(&bytes).records;
            records.iter().filter_map(|place| Record::at(&bytes, place)).for_each(|record| visit(&project, &record));
        }
    }
    Ok(())
}

/// When an operator gave his word for a project's folder, in milliseconds: the time of its file `RELEASE`.
pub fn released_at(folder: &Path) -> i64 {
    let modified = fs::metadata(folder.join(RELEASE)).and_then(|file| file.modified());
    let since = modified.ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since.and_then(|since| i64::try_from(since.as_millis()).ok()).unwrap_or(i64::MIN)
}

/// The bytes in a project's folder, and how many of them are in files that nothing drains.
pub fn sizes(folder: &Path) -> io::Result<(u64, u64)> {
    let found = Found::in_folder(folder)?;
    let length = |&sequence: &u64| fs::metadata(segment(folder, sequence)).map_or(0, |file| file.len());
    Ok((found.kept + found.sequences.iter().map(length).sum::<u64>(), found.kept))
}

/// The projects that have a folder.
pub fn projects(root: &Path) -> io::Result<Vec<String>> {
    let mut projects = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(project) = name.to_str().filter(|name| ProjectId::parse(name).is_ok())
            && entry.file_type()?.is_dir()
        {
            projects.push(project.to_owned());
        }
    }
    Ok(projects)
}

fn segment(folder: &Path, sequence: u64) -> PathBuf {
    folder.join(format!("{sequence:016}.spool"))
}

/// What a project's folder holds.
#[derive(Default)]
struct Found {
    sequences: Vec<u64>,
    next_sequence: u64,
    kept: u64,
}

impl Found {
    fn in_folder(folder: &Path) -> io::Result<Self> {
        let mut found = Self { next_sequence: 1, ..Self::default() };
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            let sequence = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
            // Numbers of damaged segments are not given again: their files must not be replaced.
            found.next_sequence = found.next_sequence.max(sequence.map_or(0, |sequence| sequence + 1));
            match (sequence, path.extension().and_then(|extension| extension.to_str())) {
                (Some(sequence), Some("spool")) => found.sequences.push(sequence),
                _ => found.kept += entry.metadata()?.len(),
            }
        }
        found.sequences.sort_unstable();
        Ok(found)
    }
}

fn report_damage(path: &Path, scan: &Scan) {
    let bytes: usize = scan.damaged.iter().chain(&scan.torn).map(|range| range.len()).sum();
    if bytes > 0 {
        tracing::error!(
            path = %path.display(), bytes, records = scan.records.len(),
            "some of the spool fails its checksums: check the disk. The records that are good will be drained, and \
             the file is then kept with the ending .damaged; remove it once nobody needs what is in it"
        );
    }
}

/// Events are their senders' own: nobody else on the machine may read them.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).mode(0o600);
    options
}

/// Makes a folder and those above it, as far as there are none.
fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

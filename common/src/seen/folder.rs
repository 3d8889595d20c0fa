//! The folder of a process's stores.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::SeenError;
use super::format::About;
use super::plan;
use super::run::{Run, SUFFIX, UNFINISHED};
use crate::lock::Lock;

const LOCK: &str = "lock";
/// So many processes may share one machine's folder.
const MOST: usize = 1_000;

/// A folder that is nobody else's as long as this lives: the first free one of `0`, `1`, … in a machine's
/// folder. So workers on one machine need no settings that differ, and one that starts anew finds what it had.
#[derive(Debug)]
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
    lock: Lock,
}

impl Folder {
    /// Takes the first free folder.
    pub fn take(root: &Path) -> Result<Self, SeenError> {
        for number in 0..MOST {
            if let Some(folder) = Self::lock(&root.join(number.to_string())).map_err(SeenError::disk(root))? {
                return Ok(folder);
            }
        }
        Err(SeenError::disk(root)(io::Error::other("all of its folders are in use")))
    }

    /// Gives it up before its time.
    pub fn unlock(&self) -> io::Result<()> {
        self.lock.release()
    }

    fn lock(path: &Path) -> io::Result<Option<Self>> {
        fs::create_dir_all(path)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK))?;
        Ok(Lock::take(file)?.map(|lock| Self { path: path.to_owned(), lock }))
    }
}

/// Removes stores to which nothing was written for so long, of this process and of such that are gone. Those in
/// `keep` stay.
pub fn clean(root: &Path, own: &Folder, age: Duration, keep: &dyn Fn(&Path) -> bool) -> io::Result<()> {
    for slot in folders(root)? {
        let other = if slot == own.path { None } else { Some(Folder::lock(&slot)?) };
        if matches!(other, Some(None)) {
            continue; // somebody works there
        }
        for topic in folders(&slot)? {
            for store in folders(&topic)? {
                if !keep(&store) && older(&store, age) {
                    tracing::info!(path = %store.display(), "removing an old seen store");
                    fs::remove_dir_all(&store)?;
                }
            }
        }
    }
    Ok(())
}

fn older(path: &Path, age: Duration) -> bool {
    let written = fs::metadata(path).and_then(|data| data.modified());
    written.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|passed| passed > age))
}

fn folders(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The runs of a store, in order; what is damaged or left over is removed. Runs older than `cold` says come
/// without their tables.
pub fn open_runs(folder: &Path, cold: impl Fn(&About, i64) -> bool) -> Result<Vec<Run>, SeenError> {
    let mut found = Vec::new();
    for path in files(folder).map_err(SeenError::disk(folder))? {
        match path.extension().and_then(OsStr::to_str) {
            Some(SUFFIX) => found.extend(usable(Run::open(&path, false))?),
            Some(UNFINISHED) => fs::remove_file(&path).map_err(SeenError::disk(&path))?,
            _ => {}
        }
    }
    let newest = found.iter().map(|run| run.about.newest_ms).max().unwrap_or(i64::MIN);
    let mut whole = Vec::new();
    for run in found {
        whole.extend(if cold(&run.about, newest) { Some(run) } else { usable(run.loaded())? });
    }
    let order = plan::stretch(&whole.iter().map(|run| &run.about).collect::<Vec<_>>(), |run| cold(run, newest));
    let mut whole: Vec<Option<Run>> = whole.into_iter().map(Some).collect();
    let runs = order.into_iter().filter_map(|i| whole[i].take()).collect();
    whole.into_iter().flatten().for_each(|left| left.make_obsolete());
    Ok(runs)
}

/// A damaged file goes; its offsets are read from the log again.
fn usable(opened: Result<Run, SeenError>) -> Result<Option<Run>, SeenError> {
    match opened {
        Ok(run) => Ok(Some(run)),
        Err(SeenError::Damaged { path, what }) => {
            tracing::warn!(path = %path.display(), what, "a file of the seen store is damaged and removed");
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SeenError::disk(&path)(error)),
                _ => Ok(None),
            }
        }
        Err(error) => Err(error),
    }
}

fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_free_once_it_is_dropped() {
        let root = std::env::temp_dir().join(format!("seen-{}", uuid::Uuid::new_v4().simple()));
        let folder = Folder::take(&root).expect("free");
        assert_ne!(Folder::take(&root).expect("another").path, folder.path);
        let path = folder.path.clone();
        drop(folder);
        assert_eq!(Folder::take(&root).expect("free").path, path);
        fs::remove_dir_all(&root).expect("removed");
    }
}

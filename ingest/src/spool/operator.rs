//! What an operator does with a spool: look, let old events go to Kafka, throw events away.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::SpoolError;
use super::books::FRESH_MS;
use super::files::{self, Folder};

/// One project's part of a spool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// Events that wait for Kafka.
    pub records: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Of these, in files that nothing drains: what is damaged, and what Kafka refused.
    pub kept_bytes: u64,
    /// When the oldest event was spooled, in milliseconds since 1970.
    pub oldest: Option<i64>,
    /// Its events are so old that they wait for [`release`].
    pub waiting: bool,
}

/// What a spool holds, by project; a gateway may be using it.
pub fn list(root: &Path, now: i64) -> Result<BTreeMap<String, Listed>, SpoolError> {
    read(root, now).map_err(|error| SpoolError::unusable(root, error))
}

fn read(root: &Path, now: i64) -> io::Result<BTreeMap<String, Listed>> {
    let mut listed = BTreeMap::new();
    for project in files::projects(root)? {
        let (bytes, kept_bytes) = files::sizes(&root.join(&project))?;
        if bytes > 0 {
            listed.insert(project, Listed { bytes, kept_bytes, ..Listed::default() });
        }
    }
    files::look(root, |project, record| {
        let listed = listed.entry(project.to_owned()).or_default();
        listed.records += 1;
        listed.oldest = Some(listed.oldest.map_or(record.spooled_at, |oldest| oldest.min(record.spooled_at)));
    })?;
    for (project, listed) in &mut listed {
        let released = files::released_at(&root.join(project));
        listed.waiting =
            listed.oldest.is_some_and(|oldest| now.saturating_sub(oldest) >= FRESH_MS && oldest > released);
    }
    Ok(listed)
}

/// Lets all that a project has spooled until now go to Kafka, however old it is. A running gateway notices.
pub fn release(root: &Path, project: &str) -> Result<(), SpoolError> {
    let folder = root.join(project);
    // Its time is what counts, so an earlier word is replaced.
    let touch = || File::create(folder.join(files::RELEASE))?.set_modified(std::time::SystemTime::now());
    known(root, project)?;
    touch().map_err(|error| SpoolError::unusable(&folder, error))
}

/// Throws a project's part away. Only while no gateway uses the spool.
pub fn discard(root: &Path, project: &str) -> Result<(), SpoolError> {
    let _lock = Folder::lock(root)?;
    known(root, project)?;
    let folder = root.join(project);
    fs::remove_dir_all(&folder).map_err(|error| SpoolError::unusable(&folder, error))
}

fn known(root: &Path, project: &str) -> Result<(), SpoolError> {
    let projects = files::projects(root).map_err(|error| SpoolError::unusable(root, error))?;
    if projects.iter().any(|known| known == project) {
        return Ok(());
    }
    Err(SpoolError::Unknown { folder: root.to_owned(), project: project.to_owned() })
}

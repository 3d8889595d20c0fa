//! Declarations in folders of YAML files.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// A file or folder that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{path} cannot be read: {error}")]
pub struct Unreadable {
    /// Which one.
    pub path: String,
    /// What the system said.
    pub error: io::Error,
}

/// The texts of all `*.yaml` in a folder, by path.
pub fn yaml_files(folder: &Path) -> Result<BTreeMap<String, String>, Unreadable> {
    let unreadable = |path: &Path| {
        let path = path.display().to_string();
        move |error| Unreadable { path, error }
    };
    let mut texts = BTreeMap::new();
    for entry in folder.read_dir().map_err(unreadable(folder))? {
        let path = entry.map_err(unreadable(folder))?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            texts.insert(path.display().to_string(), std::fs::read_to_string(&path).map_err(unreadable(&path))?);
        }
    }
    Ok(texts)
}

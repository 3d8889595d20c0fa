//! The files that a table refers to.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt};
use iceberg::Result;
use iceberg::spec::ManifestFile;
use iceberg::table::Table;

/// Manifests that are read at a time.
const AT_ONCE: usize = 8;

/// All files that any of a table's snapshots needs, its own metadata included.
pub async fn reachable(table: &Table) -> Result<BTreeSet<String>> {
    let metadata = table.metadata();
    let mut files: BTreeSet<String> = table.metadata_location().map(str::to_owned).into_iter().collect();
    files.extend(metadata.metadata_log().iter().map(|entry| entry.metadata_file.clone()));
    files.extend(metadata.statistics_iter().map(|statistics| statistics.statistics_path.clone()));
    files.extend(metadata.partition_statistics_iter().map(|statistics| statistics.statistics_path.clone()));
    let mut manifests: BTreeMap<String, ManifestFile> = BTreeMap::new();
    for snapshot in metadata.snapshots() {
        files.insert(snapshot.manifest_list().to_owned());
        for manifest in table.manifest_list_reader(snapshot).load().await?.consume_entries() {
            manifests.insert(manifest.manifest_path.clone(), manifest);
        }
    }
    files.extend(manifests.keys().cloned());
    let file_io = table.file_io();
    let read = futures::stream::iter(manifests.into_values())
        .map(|manifest| async move { manifest.load_manifest(file_io).await })
        .buffer_unordered(AT_ONCE);
    // One manifest's data files at a time are looked at, since there may be many.
    let files = read.try_fold(files, |mut files, manifest| async move {
        let alive = manifest.entries().iter().filter(|entry| entry.is_alive());
        files.extend(alive.map(|entry| entry.file_path().to_owned()));
        Ok(files)
    });
    files.await
}

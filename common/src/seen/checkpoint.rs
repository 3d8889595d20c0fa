//! Checkpoints: stores' files in object storage, for whoever gets a partition next.
//!
//! Files never change, so only new ones are copied; a manifest that names them all is written last, and what it
//! does not name any more is removed after that. A checkpoint that cannot be used costs only time: the log has
//! it all.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use opendal::layers::{RetryLayer, TimeoutLayer};
use opendal::{ErrorKind, Operator, OperatorUri};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::run::{Run, UNFINISHED};
use super::stores::{SeenStores, StoreKey};
use crate::config::Warehouse;

/// The file that names a checkpoint's files.
const MANIFEST: &str = "manifest.json";
/// Files are copied in pieces of so many bytes.
const PIECE: usize = 8 * 1024 * 1024;
/// So many partitions' checkpoints are written at a time.
const AT_ONCE: usize = 4;
/// Object storage that does not answer for so long is asked once more, so often; a partition that is being made ready
/// waits for that, and then reads the log.
const PATIENCE: Duration = Duration::from_secs(15);
const AGAIN: usize = 2;
/// How often old stores on disk are removed.
const CLEAN: Duration = Duration::from_secs(3_600);

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The setting is wrong.
    #[error("checkpoint_url {url:?} cannot be used: {error}; it is file:///folder or s3://bucket/folder")]
    Url {
        /// The setting, without what may be secret.
        url: String,
        /// What is wrong with it.
        error: opendal::Error,
    },
    /// Object storage does not know us, or does not let us.
    #[error(
        "checkpoints: object storage does not let us in; check the credentials (S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY, or \
         what AWS' tools take), and that they may read, write and delete there: {0}"
    )]
    Refused(opendal::Error),
    /// Object storage does not do what it should.
    #[error("checkpoints: {0}")]
    Storage(opendal::Error),
    /// A local file.
    #[error("checkpoints: {0}")]
    Disk(#[from] io::Error),
    /// What was read is not what was written.
    #[error("checkpoints: {0} is not what was written")]
    Damaged(String),
}

impl From<opendal::Error> for CheckpointError {
    fn from(error: opendal::Error) -> Self {
        // Where there are none at all, only the text says so.
        let without = error.to_string().contains("credential");
        if without || error.kind() == ErrorKind::PermissionDenied { Self::Refused(error) } else { Self::Storage(error) }
    }
}

/// What a checkpoint consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The offsets whose sightings are all in it.
    pub covers: Range<i64>,
    /// Its files: names and bytes, in order.
    pub files: Vec<(String, u64)>,
}

impl Manifest {
    fn of(runs: &[Arc<Run>]) -> Option<Self> {
        let covers = runs.first()?.about.covers.start..runs.last()?.about.covers.end;
        let name = |run: &Run| run.path().file_name().map(|name| name.to_string_lossy().into_owned());
        let files = runs.iter().filter_map(|run| Some((name(run)?, run.about.file_bytes()))).collect();
        Some(Self { covers, files })
    }

    fn names(&self) -> BTreeSet<&str> {
        self.files.iter().map(|(name, _)| name.as_str()).collect()
    }
}

/// A place for checkpoints. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    storage: Operator,
}

impl Checkpoints {
    /// Checkpoints below this URL: `file:///folder` or `s3://bucket/folder`. S3 is reached as the archive's is, unless
    /// the URL says how itself: `?endpoint=…&region=…`, with credentials from the environment, as AWS' own tools take
    /// them.
    pub fn new(url: &str, warehouse: &Warehouse) -> Result<Self, CheckpointError> {
        let shown = url.split('?').next().unwrap_or_default();
        let wrong = |error| CheckpointError::Url { url: shown.to_owned(), error };
        let given = OperatorUri::new(url, []).map_err(wrong)?;
        let as_the_archive = given.scheme() == "s3" && given.options().is_empty();
        let options = if as_the_archive { s3_options(warehouse) } else { Vec::new() };
        let storage = Operator::from_uri((url, options)).map_err(wrong)?;
        let timeouts = TimeoutLayer::new().with_timeout(PATIENCE).with_io_timeout(PATIENCE);
        Ok(Self { storage: storage.layer(timeouts).layer(RetryLayer::new().with_max_times(AGAIN)) })
    }

    /// The same by a setting, which need not be there.
    pub fn of(url: Option<&str>, warehouse: &Warehouse) -> Result<Option<Self>, CheckpointError> {
        url.map(|url| Self::new(url, warehouse)).transpose()
    }

    /// A partition's newest checkpoint, if it has one.
    pub async fn find(&self, key: &StoreKey) -> Result<Option<Manifest>, CheckpointError> {
        let path = format!("{}/{MANIFEST}", key.place());
        let bytes = match self.storage.read(&path).await {
            Ok(bytes) => bytes.to_vec(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|_| CheckpointError::Damaged(path))
    }

    /// Copies a checkpoint's files into a store's folder.
    pub async fn fetch(&self, key: &StoreKey, manifest: &Manifest, folder: &Path) -> Result<(), CheckpointError> {
        tokio::fs::create_dir_all(folder).await?;
        for (name, bytes) in &manifest.files {
            if name.contains('/') || *bytes > i64::MAX as u64 {
                return Err(CheckpointError::Damaged(name.clone()));
            }
            let (from, to) = (format!("{}/{name}", key.place()), folder.join(name));
            let unfinished = to.with_extension(UNFINISHED);
            let mut pieces = self.storage.reader_with(&from).chunk(PIECE).await?.into_bytes_stream(0..*bytes).await?;
            let mut file = tokio::fs::File::create(&unfinished).await?;
            while let Some(piece) = pieces.next().await {
                file.write_all(&piece?).await?;
            }
            file.sync_data().await?;
            tokio::fs::rename(&unfinished, &to).await?;
        }
        Ok(())
    }

    /// Makes these runs a partition's checkpoint. `last` is the one before, if we know it.
    async fn save(
        &self,
        key: &StoreKey,
        runs: &[Arc<Run>],
        last: Option<&Manifest>,
    ) -> Result<Option<Manifest>, CheckpointError> {
        let Some(manifest) = Manifest::of(runs) else { return Ok(None) };
        if last == Some(&manifest) {
            return Ok(Some(manifest));
        }
        // Names are unique, so what another's checkpoint has under one of ours is what we had from it.
        let before = match last {
            Some(last) => Some(last.clone()),
            None => self.find(key).await.unwrap_or_default(),
        };
        let there = before.as_ref().map(Manifest::names).unwrap_or_default();
        for (run, (name, _)) in runs.iter().zip(&manifest.files) {
            if !there.contains(name.as_str()) {
                self.copy(run.path(), &format!("{}/{name}", key.place())).await?;
            }
        }
        let bytes = serde_json::to_vec(&manifest).expect("names and numbers are JSON");
        self.storage.write(&format!("{}/{MANIFEST}", key.place()), bytes).await?;
        let names = manifest.names();
        for name in before.iter().flat_map(Manifest::names).filter(|name| !names.contains(name)) {
            self.storage.delete(&format!("{}/{name}", key.place())).await?;
        }
        metrics::counter!("tidemill_seen_checkpoints_total").increment(1);
        Ok(Some(manifest))
    }

    async fn copy(&self, from: &Path, to: &str) -> Result<(), CheckpointError> {
        let mut file = tokio::fs::File::open(from).await?;
        let mut writer = self.storage.writer_with(to).chunk(PIECE).await?;
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            if (&mut file).take(PIECE as u64).read_to_end(&mut piece).await? == 0 {
                break;
            }
            metrics::counter!("tidemill_seen_checkpoint_bytes_total").increment(piece.len() as u64);
            writer.write(piece).await?;
        }
        writer.close().await?;
        Ok(())
    }

    /// Makes a checkpoint of each of these stores that has changed since `last`.
    pub async fn save_all(&self, stores: &SeenStores, last: &mut HashMap<StoreKey, Manifest>) -> usize {
        let runs = stores.runs();
        last.retain(|key, _| runs.contains_key(key));
        let saves = runs.into_iter().map(|(key, mut runs)| {
            let last = last.get(&key).cloned();
            // What is cold is no use to whoever begins at a ledger that is not behind.
            runs.drain(..runs.iter().take_while(|run| !run.is_loaded()).count());
            async move {
                let saved = self.save(&key, &runs, last.as_ref()).await;
                (key, saved)
            }
        });
        let saves: Vec<_> = saves.collect();
        let saved: Vec<_> = futures::stream::iter(saves).buffer_unordered(AT_ONCE).collect().await;
        let mut failed = 0;
        for (key, saved) in saved {
            match saved {
                Ok(Some(manifest)) => drop(last.insert(key, manifest)),
                Ok(None) => {}
                // Not for long: the next round tries again, from scratch.
                Err(error) => {
                    tracing::warn!(%error, topic = %key.topic, partition = key.partition, "no checkpoint");
                    last.remove(&key);
                    failed += 1;
                }
            }
        }
        failed
    }
}

/// How the archive's S3 server is reached, in the words of the storage library.
fn s3_options(warehouse: &Warehouse) -> Vec<(String, String)> {
    let in_path = warehouse.s3_path_style.unwrap_or(warehouse.s3_endpoint.is_some());
    let region = warehouse.s3_region.clone().or_else(|| std::env::var("AWS_REGION").ok());
    let named = [
        ("endpoint", warehouse.s3_endpoint.clone()),
        ("region", Some(region.unwrap_or_else(|| "us-east-1".to_owned()))),
        ("access_key_id", warehouse.s3_access_key_id.clone()),
        ("secret_access_key", warehouse.s3_secret_access_key.clone()),
        ("enable_virtual_host_style", Some((!in_path).to_string())),
    ];
    named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// Looks after a process's stores until shutdown: every so often metrics and checkpoints, now and then old files.
pub async fn keep_checkpoints(
    stores: SeenStores,
    checkpoints: Option<Checkpoints>,
    view: &'static str,
    every: Duration,
    shutdown: CancellationToken,
) {
    let (mut last, mut cleaned) = (HashMap::new(), None::<Instant>);
    loop {
        stores.report(view);
        if let Some(checkpoints) = &checkpoints {
            let save = shutdown.run_until_cancelled(checkpoints.save_all(&stores, &mut last));
            let Some(failed) = save.await else { return };
            metrics::gauge!("tidemill_seen_checkpoints_failing", "view" => view).set(failed as f64);
        }
        if cleaned.is_none_or(|at| at.elapsed() > CLEAN) {
            cleaned = Some(Instant::now());
            let stores = stores.clone();
            // It only fails by a panic, which is printed.
            let _ = tokio::task::spawn_blocking(move || stores.clean()).await;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
    }
}

//! First sight: whether an eventId has been seen before in its partition.
//!
//! Every sighting, copies too, is an entry. A record is a copy if and only if an entry at a lower offset of
//! the same partition is at most one window older, by append time. So the same offset seen again (a
//! redelivery) is never a copy, and the answer depends on the log alone: not on when, how often or in which
//! process it is asked. That is why stream, archiver and replays agree without talking to each other.
//!
//! A [`SeenStore`] keeps the entries of one partition on local disk: the newest in a buffer in memory, the
//! others in immutable sorted files ([`run`]) that a thread in the background writes and merges. There is no
//! journal: the log is one. What was not on disk when a process ended is read from the log again, from where
//! the files end. All stores of a process share one folder, one thread and one limit of what is buffered
//! ([`SeenStores`]); [`Checkpoints`] copies their files to object storage.

mod background;
mod buffer;
mod checkpoint;
mod fill;
mod filter;
mod folder;
mod format;
mod heir;
mod oldest;
mod plan;
mod run;
mod store;
mod stores;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use checkpoint::{CheckpointError, Checkpoints, Manifest, keep_checkpoints};
pub use fill::{Fill, FillError, Filler};
pub use plan::Limits;
pub use store::SeenStore;
pub use stores::{SeenStores, StoreKey};

/// 128 bits of an eventId's SHA-256, which nobody can collide on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint {
    /// The first 64 bits: what files are sorted by.
    pub high: u64,
    /// The other 64.
    pub low: u64,
}

/// The fingerprint of an eventId.
pub fn fingerprint(event_id: &str) -> Fingerprint {
    let digest = Sha256::digest(event_id.as_bytes());
    let half = |from: usize| u64::from_be_bytes(digest[from..from + 8].try_into().expect("eight bytes"));
    Fingerprint { high: half(0), low: half(8) }
}

/// An eventId's presence at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// Whose.
    pub fingerprint: Fingerprint,
    /// Where.
    pub offset: i64,
    /// When the broker appended it, in milliseconds since 1970.
    pub append_ms: i64,
}

/// What keeps a store from answering. Nothing is lost by it: the log has it all.
#[derive(Debug, thiserror::Error)]
pub enum SeenError {
    /// The folder cannot be read or written.
    #[error("the seen store's {} cannot be used: {error}; make room there, or set seen_dir to another folder", path.display())]
    Disk {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file is not what was written. The store has removed it and has to be completed again.
    #[error("the seen store's {} is damaged ({what}); its partition is completed from a checkpoint and the log", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// It was asked before it was completed.
    #[error("the seen store {} has to be completed first", .0.display())]
    Incomplete(PathBuf),
}

impl SeenError {
    /// A file that was written and cannot be read: one that is gone, or cut, is as good as damaged.
    fn unreadable(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |error| match error.kind() {
            std::io::ErrorKind::NotFound => Self::Damaged { path, what: "it is gone" },
            std::io::ErrorKind::UnexpectedEof => Self::Damaged { path, what: "it is cut short" },
            _ => Self::Disk { path, error },
        }
    }

    fn disk(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Disk { path, error }
    }
}

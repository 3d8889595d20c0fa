//! The same with fjall, an LSM crate: an id's fingerprint leads to the offset and append time of its newest
//! sighting (enough where positions never go back, so it has less to do than ours).

use std::path::{Path, PathBuf};

use fjall::config::{CompressionPolicy, PinningPolicy};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use tidemill_common::seen::fingerprint;

use super::{Event, Subject, WINDOW_MS};

const CACHE: u64 = 64 * 1024 * 1024;
const BUFFER: u64 = 64 * 1024 * 1024;

pub struct Fjall {
    root: PathBuf,
    open: Option<(Database, Keyspace)>,
}

impl Fjall {
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        Ok(Self { root: root.to_owned(), open: Some(open(root)?) })
    }
}

fn open(root: &Path) -> anyhow::Result<(Database, Keyspace)> {
    let database = Database::builder(root).cache_size(CACHE).manual_journal_persist(true).open()?;
    let options = || {
        KeyspaceCreateOptions::default()
            .max_memtable_size(BUFFER)
            // Fingerprints cannot be compressed.
            .data_block_compression_policy(CompressionPolicy::all(CompressionType::None))
            .filter_block_pinning_policy(PinningPolicy::all(true))
    };
    let keyspace = database.keyspace("seen", options)?;
    Ok((database, keyspace))
}

impl Subject for Fjall {
    fn sight(&mut self, _partition: usize, event: &Event) -> anyhow::Result<bool> {
        let Some((_, keyspace)) = &self.open else { return Ok(true) };
        let fingerprint = fingerprint(&event.id);
        let mut key = [0; 16];
        key[..8].copy_from_slice(&fingerprint.high.to_be_bytes());
        key[8..].copy_from_slice(&fingerprint.low.to_be_bytes());
        let copy = match keyspace.get(key)? {
            Some(value) => {
                let (offset, at) =
                    (i64::from_le_bytes(value[..8].try_into()?), i64::from_le_bytes(value[8..].try_into()?));
                offset < event.offset && event.append_ms - at <= WINDOW_MS
            }
            None => false,
        };
        let mut value = [0; 16];
        value[..8].copy_from_slice(&event.offset.to_le_bytes());
        value[8..].copy_from_slice(&event.append_ms.to_le_bytes());
        keyspace.insert(key, value)?;
        Ok(!copy)
    }

    fn advance(&mut self, _next: &[i64]) -> anyhow::Result<()> {
        Ok(())
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        if let Some((database, _)) = &self.open {
            database.persist(PersistMode::SyncAll)?;
        }
        Ok(())
    }

    fn open_again(&mut self) -> anyhow::Result<()> {
        self.open = None;
        self.open = Some(open(&self.root)?);
        Ok(())
    }
}

//! Our own files.

use std::path::{Path, PathBuf};

use tidemill_common::kafka::Reached;
use tidemill_common::seen::{Limits, SeenStore, SeenStores, StoreKey, fingerprint};

use super::{Event, Subject, WINDOW_MS};

pub struct Files {
    root: PathBuf,
    stores: SeenStores,
    partitions: Vec<SeenStore>,
    newest_ms: i64,
}

impl Files {
    pub fn open(root: &Path, partitions: u64) -> anyhow::Result<Self> {
        let stores = SeenStores::open(root, Limits::default())?;
        let mut loaded = load(&stores, partitions)?;
        loaded.iter_mut().for_each(|seen| seen.complete(&(0..0)));
        Ok(Self { root: root.to_owned(), stores, partitions: loaded, newest_ms: 0 })
    }
}

fn load(stores: &SeenStores, partitions: u64) -> anyhow::Result<Vec<SeenStore>> {
    let key = |partition| StoreKey { topic: "events.bench".into(), incarnation: "1".into(), partition };
    (0..partitions as i32).map(|partition| Ok(stores.load(&key(partition), WINDOW_MS)?)).collect()
}

impl Subject for Files {
    fn sight(&mut self, partition: usize, event: &Event) -> anyhow::Result<bool> {
        self.newest_ms = self.newest_ms.max(event.append_ms);
        Ok(self.partitions[partition].sight(fingerprint(&event.id), event.offset, event.append_ms)?)
    }

    fn advance(&mut self, next: &[i64]) -> anyhow::Result<()> {
        let reached = |next| Reached { next, newest_ms: self.newest_ms };
        self.partitions.iter_mut().zip(next).for_each(|(seen, next)| seen.advance(reached(*next)));
        Ok(())
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        self.partitions.iter_mut().for_each(SeenStore::flush);
        // As long as there is something to merge, each round of ticks leads to the next.
        for now_ms in 0..8 {
            self.stores.settle()?;
            self.partitions.iter_mut().for_each(|seen| seen.tick(now_ms));
        }
        Ok(())
    }

    fn open_again(&mut self) -> anyhow::Result<()> {
        let partitions = std::mem::take(&mut self.partitions).len() as u64;
        self.stores.close()?;
        self.stores = SeenStores::open(&self.root, Limits::default())?;
        self.partitions = load(&self.stores, partitions)?;
        Ok(())
    }
}

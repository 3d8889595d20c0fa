//! Seen stores against the definition of a first sight: an oracle that looks at the whole log.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tidemill_common::config::Warehouse;
use tidemill_common::kafka::Reached;
use tidemill_common::seen::{
    Checkpoints, Fingerprint, Limits, SeenError, SeenStore, SeenStores, StoreKey, fingerprint,
};

const WINDOW: i64 = 1_000;
/// Little of everything, so that all of it happens. Time is counted in ticks.
const LIMITS: Limits = Limits { buffered: 12, run: 60, clocks_ms: 0, flush_ms: 3, idle_ms: 5 };

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    /// Records are appended: which id, and how much later than the one before.
    Append(Vec<(u8, i64)>),
    /// The next records are judged, in batches of so many, all of which go through.
    Apply(usize),
    /// They are judged, but the batch does not go through.
    Fail(usize),
    /// All that is settled goes to disk.
    Flush,
    /// The background catches up.
    Settle,
    /// The process ends well, and starts again.
    Restart,
    /// The process is killed: what was in memory is lost.
    Kill,
    /// A file is cut short, or changed: which, where. The process was killed before.
    Tear(usize, usize, bool),
    /// Postgres is restored from a backup: so far back.
    Restore(usize),
    /// A checkpoint is written.
    Checkpoint,
    /// The disk is lost; the newest checkpoint is taken.
    Move,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Distances between copies are anything, often a window or a millisecond beside it.
    let gap = prop_oneof![20 => 0i64..30, 1 => 0i64..700, 1 => WINDOW - 1..WINDOW + 2];
    let id = prop_oneof![0u8..8, 0u8..60];
    let records = prop::collection::vec((id, gap), 1..40);
    let step = prop_oneof![
        4 => records.prop_map(Step::Append),
        6 => (1usize..25).prop_map(Step::Apply),
        1 => (1usize..25).prop_map(Step::Fail),
        2 => Just(Step::Flush),
        2 => Just(Step::Settle),
        1 => Just(Step::Restart),
        1 => Just(Step::Kill),
        3 => (any::<usize>(), any::<usize>(), any::<bool>()).prop_map(|(f, at, cut)| Step::Tear(f, at, cut)),
        1 => (0usize..120).prop_map(Step::Restore),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Move),
    ];
    prop::collection::vec(step, 1..60)
}

/// A partition's log and its store.
struct World {
    root: PathBuf,
    stores: SeenStores,
    seen: SeenStore,
    /// Ids and append times, in the order of their offsets.
    log: Vec<(Fingerprint, i64)>,
    /// The ledger's position.
    next: usize,
    checkpoints: Checkpoints,
    saved: HashMap<StoreKey, tidemill_common::seen::Manifest>,
    runtime: tokio::runtime::Runtime,
    /// How much was read from the log again.
    read_again: usize,
    /// Whether a file was damaged, which may be found whenever it is opened.
    torn: bool,
    ticks: i64,
}

/// The first record's offset: what a partition inherits lies before its own log.
const FIRST: i64 = -40;

fn offset_of(record: usize) -> i64 {
    record as i64 + FIRST
}

fn key() -> StoreKey {
    StoreKey { topic: "events.shop".into(), incarnation: "Id/+".into(), partition: 3 }
}

impl World {
    fn new() -> Self {
        let root = std::env::temp_dir().join(format!("tidemill-seen-{:016x}", rand::random::<u64>()));
        let stores = SeenStores::open(&root.join("disk"), LIMITS).unwrap();
        let seen = stores.load(&key(), WINDOW).unwrap();
        let checkpoints =
            Checkpoints::new(&format!("file://{}", root.join("bucket").display()), &Warehouse::default()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (log, saved) = Default::default();
        let mut world = Self {
            root,
            stores,
            seen,
            log,
            next: 0,
            checkpoints,
            saved,
            runtime,
            read_again: 0,
            torn: false,
            ticks: 0,
        };
        world.complete();
        world
    }

    /// By the definition, from all of the log.
    fn first(&self, record: usize) -> bool {
        let (id, at) = self.log[record];
        !self.log[..record].iter().any(|&(other, before)| other == id && at - before <= WINDOW)
    }

    /// As on an assignment: what the store lacks is read from the log.
    fn complete(&mut self) {
        // Where there is no record yet, it will not be older than the last.
        let from_ms = self.log.get(self.next).or(self.log.last()).map_or(0, |(_, at)| at - WINDOW);
        let oldest = self.log[..self.next].partition_point(|&(_, at)| at < from_ms);
        let missing = self.seen.missing(offset_of(oldest), offset_of(self.next));
        self.seen.complete(&missing);
        for offset in missing.clone() {
            let (id, at) = self.log[(offset - FIRST) as usize];
            self.seen.note(id, offset, at);
            self.seen.advance(Reached { next: offset + 1, newest_ms: at });
        }
        self.seen.advance(Reached { next: missing.end, ..self.seen.reached() });
        self.read_again += missing.clone().count();
    }

    /// A new process on the same disk.
    fn open(&mut self) {
        self.stores.close().unwrap();
        self.stores = SeenStores::open(&self.root.join("disk"), LIMITS).unwrap();
        self.seen = self.stores.load(&key(), WINDOW).unwrap();
        let Reached { next, newest_ms } = self.seen.reached();
        assert!(self.seen.is_empty() || self.log[(next - 1 - FIRST) as usize].1 <= newest_ms, "it knows how new it is");
        self.complete();
    }

    /// Ends the process without its last words.
    fn kill(&mut self) {
        let other = SeenStores::open(&self.root.join("nobody"), LIMITS).unwrap();
        let nobody = other.load(&key(), WINDOW).unwrap();
        std::mem::forget(std::mem::replace(&mut self.seen, nobody));
        self.stores.settle().unwrap();
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.stores.folder_of(&key()));
        let mut files: Vec<_> = entries.into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    /// Judges the next records; `through` says whether the batch goes through.
    fn batch(&mut self, count: usize, through: bool) -> Result<(), TestCaseError> {
        let end = (self.next + count).min(self.log.len());
        for record in self.next..end {
            let (id, at) = self.log[record];
            match self.seen.sight(id, offset_of(record), at) {
                Ok(first) => prop_assert_eq!(first, self.first(record), "record {} of {:?}", record, self.log),
                // Found when it is read: then the partition is completed again, and the batch is read again.
                Err(SeenError::Damaged { .. } | SeenError::Incomplete(_)) => {
                    self.complete();
                    return self.batch(count, through);
                }
                Err(error) => panic!("{error}"),
            }
        }
        if through {
            let newest_ms = self.log[self.next..end].iter().map(|(_, at)| *at).max().unwrap_or(0);
            self.next = end;
            self.seen.advance(Reached { next: offset_of(end), newest_ms });
        } else {
            self.complete();
        }
        self.tick();
        Ok(())
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.seen.tick(self.ticks);
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Append(records) => {
                for (id, gap) in records {
                    let at = self.log.last().map_or(0, |(_, at)| *at) + gap;
                    self.log.push((fingerprint(&id.to_string()), at));
                }
            }
            Step::Apply(count) => {
                self.batch(count, true)?;
                self.batch(1, true)?;
            }
            Step::Fail(count) => self.batch(count, false)?,
            Step::Flush => self.seen.flush(),
            Step::Settle => {
                self.stores.settle().unwrap();
                self.tick();
            }
            Step::Restart => {
                let other = SeenStores::open(&self.root.join("nobody"), LIMITS).unwrap();
                drop(std::mem::replace(&mut self.seen, other.load(&key(), WINDOW).unwrap()));
                let before = self.read_again;
                self.open();
                prop_assert!(self.torn || self.read_again == before || self.log.is_empty(), "all of it was on disk");
            }
            Step::Kill => {
                self.kill();
                self.open();
            }
            Step::Tear(file, at, cut) => {
                self.kill();
                let files = self.files();
                if !files.is_empty() {
                    tear(&files[file % files.len()], at, cut);
                    self.torn = true;
                }
                self.open();
            }
            Step::Restore(back) => {
                self.next = self.next.saturating_sub(back);
                self.complete();
            }
            Step::Checkpoint => {
                let save = self.checkpoints.save_all(&self.stores, &mut self.saved);
                prop_assert_eq!(self.runtime.block_on(save), 0);
            }
            Step::Move => {
                self.kill();
                fs::remove_dir_all(self.root.join("disk")).unwrap();
                self.stores = SeenStores::open(&self.root.join("disk"), LIMITS).unwrap();
                self.saved.clear();
                let folder = self.stores.folder_of(&key());
                self.runtime.block_on(async {
                    if let Some(manifest) = self.checkpoints.find(&key()).await.unwrap() {
                        self.checkpoints.fetch(&key(), &manifest, &folder).await.unwrap();
                    }
                });
                self.seen = self.stores.load(&key(), WINDOW).unwrap();
                self.complete();
            }
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.seen.forget(); // else it would write what it has, once more
        let _ = self.stores.settle();
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// As a crash or a bad disk leaves a file.
fn tear(path: &Path, at: usize, cut: bool) {
    let mut bytes = fs::read(path).unwrap();
    let at = at % bytes.len().max(1); // it may have been cut to nothing before
    if cut {
        bytes.truncate(at);
    } else {
        bytes[at..].iter_mut().take(100).for_each(|byte| *byte ^= 0x10);
    }
    fs::write(path, bytes).unwrap();
}

/// What was judged otherwise when it was read again, as when a schema has come meanwhile, is not kept.
#[test]
fn a_batch_that_did_not_go_through_is_taken_back() {
    let mut world = World::new();
    let (a, b) = (fingerprint("a"), fingerprint("b"));
    assert!(world.seen.sight(a, 5, 0).unwrap() && world.seen.sight(b, 6, 0).unwrap());
    assert!(world.seen.sight(b, 5, 0).unwrap(), "read again, another is there");
    assert!(world.seen.sight(a, 6, 0).unwrap());
    world.seen.complete(&(0..0));
    assert!(world.seen.sight(b, 7, 0).unwrap() && world.seen.sight(a, 8, 0).unwrap());
    world.seen.advance(Reached { next: 9, newest_ms: 0 });
    world.seen.complete(&(9..9));
    assert!(!world.seen.sight(a, 9, 0).unwrap(), "this one did");
}

/// A record without a sighting is of the log that the store covers, too.
#[test]
fn it_knows_how_new_records_without_a_sighting_are() {
    let mut world = World::new();
    world.seen.sight(fingerprint("a"), FIRST, 100).unwrap();
    let reached = Reached { next: FIRST + 3, newest_ms: 500 };
    world.seen.advance(reached);
    assert_eq!(world.seen.reached(), reached);
    world.seen.flush();
    world.stores.settle().unwrap();
    assert_eq!(world.stores.load(&key(), WINDOW).unwrap().reached(), reached);
}

/// A merge reads files that leave meanwhile, since their time is over, and leave memory before that.
#[test]
fn what_is_being_merged_may_expire() -> Result<(), TestCaseError> {
    let mut world = World::new();
    let mut records: Vec<_> = (0..24).map(|id| (id, 10)).collect();
    records.extend([(42, 23), (36, WINDOW), (9, 0), (5, 0), (23, WINDOW)]);
    world.step(Step::Append(records))?;
    for step in [Step::Apply(10), Step::Apply(8), Step::Restart, Step::Apply(5), Step::Apply(4), Step::Restart] {
        world.step(step)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens to the process, its disk, its checkpoints and its ledger, every record that is judged is
    /// judged as the definition says.
    #[test]
    fn agrees_with_the_definition(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step)?;
        }
        while world.next < world.log.len() {
            world.batch(10, true)?;
        }
    }
}

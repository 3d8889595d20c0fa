//! The seen store under its load: so many eventIds over a window of 24 hours, some of them copies.

mod files;
#[cfg(feature = "fjall")]
mod fjall;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::process::{cpu_seconds, resident_mb};
use crate::random::mix;

/// The window, in milliseconds: all ids are within it.
pub const WINDOW_MS: i64 = 86_400_000;
/// When it begins.
const BEGIN_MS: i64 = 1_709_251_200_000;
/// Events in a batch of the stream.
const BATCH: u64 = 5_000;
/// Ids whose making is measured, to be taken off.
const DRY: u64 = 2_000_000;

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// Which store
    #[arg(long, value_enum, default_value_t = Kind::Files)]
    store: Kind,
    /// How many events
    #[arg(long, default_value_t = 100_000_000)]
    ids: u64,
    /// Over how many partitions
    #[arg(long, default_value_t = 100)]
    partitions: u64,
    /// One in so many events is a copy of an earlier one
    #[arg(long, default_value_t = 100)]
    one_copy_in: u64,
    /// A folder for it on the disk to measure; what is made in it is removed
    #[arg(long, default_value = ".")]
    dir: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Our own files
    Files,
    /// The LSM crate; needs `--features fjall`
    Fjall,
}

/// What came of it.
#[derive(Serialize)]
pub struct Report {
    store: &'static str,
    ids: u64,
    partitions: u64,
    events_per_second: f64,
    /// All of the process's CPU, without making ids.
    us_per_event: f64,
    /// The same in the last tenth.
    last_us_per_event: f64,
    disk_bytes_per_id: f64,
    peak_disk_bytes_per_id: f64,
    /// Of resident memory.
    memory_bytes_per_id: f64,
    files: u64,
    /// Until a new process has opened what is on disk.
    open_ms: f64,
}

/// A store to measure.
trait Subject {
    /// An event of a partition: whether it is the first with its id.
    fn sight(&mut self, partition: usize, event: &Event) -> anyhow::Result<bool>;
    /// The batch went through.
    fn advance(&mut self, next: &[i64]) -> anyhow::Result<()>;
    /// Everything to disk, all work in the background done.
    fn settle(&mut self) -> anyhow::Result<()>;
    /// Ends it, and starts it again from disk.
    fn open_again(&mut self) -> anyhow::Result<()>;
}

/// An event, as the store sees it.
pub struct Event {
    /// Its id.
    pub id: String,
    /// Where it stands.
    pub offset: i64,
    /// When it was appended.
    pub append_ms: i64,
}

/// Measures.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let dir = options.dir.join(format!("bench-seen-{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let measured = measure(options, &dir);
    std::fs::remove_dir_all(&dir)?;
    measured
}

fn measure(options: &Options, dir: &Path) -> anyhow::Result<Report> {
    let own = std::process::id();
    let making = making_us(options)?;
    let before_mb = resident_mb(own)?;
    let mut subject = subject(options, dir)?;
    let (began, mut cpu) = (Instant::now(), cpu_seconds(own)?);
    let begin_cpu = cpu;
    let (mut peak, mut found, mut last) = (0, 0, 0.0);
    let tenth = (options.ids / 10).max(1);
    let (mut next, mut events) = (vec![0; options.partitions as usize], vec![]);
    for number in 0..options.ids {
        let partition = number % options.partitions;
        event(options, number, next[partition as usize], &mut events);
        next[partition as usize] += 1;
        if events.len() as u64 == BATCH || number + 1 == options.ids {
            // A batch is sorted by partition.
            for partition in 0..options.partitions as usize {
                for event in events.iter().skip(partition).step_by(next.len()) {
                    found += u64::from(!subject.sight(partition, event)?);
                }
            }
            subject.advance(&next)?;
            events.clear();
        }
        if (number + 1) % tenth == 0 {
            let now = cpu_seconds(own)?;
            last = (now - cpu) * 1e6 / tenth as f64 - making;
            let disk = disk(dir)?;
            peak = peak.max(disk.0 * 1_000 / (number + 1));
            cpu = now;
            eprintln!(
                "{:>11} ids: {last:.2} us, {:.1} bytes on disk in {} files, {:.0} MB resident",
                number + 1,
                disk.0 as f64 / (number + 1) as f64,
                disk.1,
                resident_mb(own)?
            );
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    subject.settle()?;
    let us = (cpu_seconds(own)? - begin_cpu) * 1e6 / options.ids as f64 - making;
    let copies = (1..options.ids).filter(|number| copied(options, *number) != *number).count() as u64;
    ensure!(found == copies, "{found} copies were found, and {copies} were made");
    let (memory, (bytes, files)) = (resident_mb(own)? - before_mb, disk(dir)?);
    let opened = Instant::now();
    subject.open_again()?;
    let per_id = |bytes: f64| bytes / options.ids as f64;
    Ok(Report {
        store: if options.store == Kind::Files { "files" } else { "fjall" },
        ids: options.ids,
        partitions: options.partitions,
        events_per_second: options.ids as f64 / seconds,
        us_per_event: us,
        last_us_per_event: last,
        disk_bytes_per_id: per_id(bytes as f64),
        peak_disk_bytes_per_id: peak as f64 / 1_000.0,
        memory_bytes_per_id: per_id(memory * 1e6),
        files,
        open_ms: opened.elapsed().as_secs_f64() * 1e3,
    })
}

fn subject(options: &Options, dir: &Path) -> anyhow::Result<Box<dyn Subject>> {
    match options.store {
        Kind::Files => Ok(Box::new(files::Files::open(dir, options.partitions)?)),
        #[cfg(feature = "fjall")]
        Kind::Fjall => Ok(Box::new(fjall::Fjall::open(dir)?)),
        #[cfg(not(feature = "fjall"))]
        Kind::Fjall => anyhow::bail!("this was built without fjall; build tidemill-bench with --features fjall"),
    }
}

/// CPU per id that only making them takes.
fn making_us(options: &Options) -> anyhow::Result<f64> {
    let (begin, mut events) = (cpu_seconds(std::process::id())?, Vec::new());
    for number in 0..DRY {
        event(options, number, 0, &mut events);
        if events.len() as u64 == BATCH {
            events.clear();
        }
    }
    Ok((cpu_seconds(std::process::id())? - begin) * 1e6 / DRY as f64)
}

fn event(options: &Options, number: u64, offset: i64, events: &mut Vec<Event>) {
    let original = copied(options, number);
    let id = format!("{:016x}{:016x}", mix(original), original);
    let append_ms = BEGIN_MS + (number as i128 * i128::from(WINDOW_MS) / i128::from(options.ids)) as i64;
    events.push(Event { id, offset, append_ms });
}

/// Of which event this one is a copy; itself, if it is none. Copies are in the partition of the original.
fn copied(options: &Options, number: u64) -> u64 {
    let dice = mix(number ^ 0xabcd_ef01);
    let rounds = number / options.partitions;
    if rounds == 0 || !dice.is_multiple_of(options.one_copy_in) {
        return number;
    }
    let original = number - (1 + mix(dice) % rounds) * options.partitions;
    copied(options, original)
}

/// Bytes and files below a folder.
fn disk(dir: &Path) -> anyhow::Result<(u64, u64)> {
    let (mut bytes, mut files) = (0, 0);
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        // It may have been merged and removed meanwhile.
        let Ok(data) = entry.metadata() else { continue };
        if data.is_dir() {
            let below = disk(&entry.path())?;
            (bytes, files) = (bytes + below.0, files + below.1);
        } else {
            (bytes, files) = (bytes + data.len(), files + 1);
        }
    }
    Ok((bytes, files))
}

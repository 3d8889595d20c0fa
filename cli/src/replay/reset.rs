//! `tidemill replay reset`

use std::path::{Path, PathBuf};

use anyhow::Context;
use chrono::{DateTime, Utc};
use clap::Args;
use serde::{Deserialize, Serialize};
use tidemill_common::config::Connections;
use tidemill_common::kafka::{IdleGroup, KafkaConfig, Seek, SeekTo};

use crate::audit;
use crate::consent::Consent;
use crate::output::{Output, counted};
use crate::store;

const SEEK: [&str; 4] = ["topic", "partition", "from", "to"];

#[derive(Args)]
pub struct Reset {
    /// The consumer group; with --undo, the one that the file names
    #[arg(long, required_unless_present = "undo", conflicts_with = "undo")]
    group: Option<String>,
    /// A topic whose partitions are moved; may be given several times
    #[arg(long = "topic", required_unless_present = "undo", conflicts_with = "undo")]
    topics: Vec<String>,
    #[command(flatten)]
    to: To,
    /// Where to write what is there now [default: tidemill-reset-<group>-<time>.json, here]
    #[arg(long, value_name = "FILE")]
    undo_file: Option<PathBuf>,
    /// Put back what an undo file has
    #[arg(long, value_name = "FILE")]
    undo: Option<PathBuf>,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Args)]
#[group(required = false, multiple = false, conflicts_with = "undo")]
pub struct To {
    /// Go on at the first record that the log holds
    #[arg(long)]
    to_beginning: bool,
    /// Go on behind the last record
    #[arg(long)]
    to_end: bool,
    /// Go on at the first record appended at this time or later (RFC 3339)
    #[arg(long, value_name = "TIME")]
    to_time: Option<DateTime<Utc>>,
    /// Go on at this offset, or where the log begins or ends
    #[arg(long, value_name = "OFFSET", value_parser = clap::value_parser!(i64).range(0..))]
    to_offset: Option<i64>,
}

impl To {
    fn given(&self) -> anyhow::Result<SeekTo> {
        match *self {
            Self { to_beginning: true, .. } => Ok(SeekTo::Beginning),
            Self { to_end: true, .. } => Ok(SeekTo::End),
            Self { to_time: Some(time), .. } => Ok(SeekTo::Time(time.timestamp_millis())),
            Self { to_offset: Some(offset), .. } => Ok(SeekTo::Offset(offset)),
            _ => anyhow::bail!("say where to: --to-beginning, --to-end, --to-time or --to-offset"),
        }
    }
}

/// An undo file: what was there, and where the group was moved to.
#[derive(Serialize, Deserialize)]
struct Undo {
    group: String,
    at: DateTime<Utc>,
    seeks: Vec<Seek>,
}

#[derive(Serialize)]
struct Done {
    group: String,
    applied: bool,
    /// For --undo.
    undo_file: Option<PathBuf>,
    seeks: Vec<Seek>,
}

pub async fn run(reset: Reset, connections: &Connections, output: Output) -> anyhow::Result<()> {
    let (consent, undo_file) = (reset.consent, reset.undo_file.clone());
    let kafka = connections.kafka.clone();
    let planned = tokio::task::spawn_blocking(move || plan(&reset, &kafka)).await??;
    let (group, idle, seeks) = planned;
    if !matches!(output, Output::Json) {
        output.things(&seeks, &SEEK)?;
    }
    let moved = seeks.iter().filter(|seek| seek.to != seek.from).count();
    let applied = consent.given(&format!("Move {} of group {group}?", counted(moved, "partition")))?;
    let mut done = Done { group: group.clone(), applied, undo_file: None, seeks: seeks.clone() };
    if applied {
        let mut db = store::connect(&connections.database_url).await?;
        let entry = audit::begin(&mut db, "replay reset", None, &done).await?;
        let file = undo_file.unwrap_or_else(|| default_file(&group));
        let result = keep(&file, &Undo { group, at: Utc::now(), seeks: seeks.clone() });
        let result = match result {
            Ok(()) => tokio::task::spawn_blocking(move || idle.seek(&seeks)).await?.map_err(Into::into),
            Err(error) => Err(error),
        };
        entry.end(&mut db, result).await?;
        done.undo_file = Some(file);
    }
    match output {
        Output::Table if applied => output.thing(&done, &["group", "undo_file"]),
        _ => output.ended(&done, applied),
    }
}

/// Blocks.
fn plan(reset: &Reset, kafka: &KafkaConfig) -> anyhow::Result<(String, IdleGroup, Vec<Seek>)> {
    if let Some(file) = &reset.undo {
        let text = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
        let undo: Undo =
            serde_json::from_slice(&text).with_context(|| format!("{} is no undo file", file.display()))?;
        let idle = IdleGroup::find(kafka, &undo.group)?;
        let seeks = idle.undo(&undo.seeks)?;
        return Ok((undo.group, idle, seeks));
    }
    let group = reset.group.clone().unwrap_or_default();
    let idle = IdleGroup::find(kafka, &group)?;
    let seeks = idle.plan(&reset.topics, reset.to.given()?)?;
    Ok((group, idle, seeks))
}

/// Before anything changes, and never over another one.
fn keep(file: &Path, undo: &Undo) -> anyhow::Result<()> {
    let text = serde_json::to_vec_pretty(undo)?;
    let write = || {
        let mut file = std::fs::File::create_new(file)?;
        std::io::Write::write_all(&mut file, &text)?;
        file.sync_all()
    };
    write().with_context(|| format!("{} cannot be written, so nothing was changed", file.display()))
}

fn default_file(group: &str) -> PathBuf {
    let plain: String =
        group.chars().map(|c| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '_' }).collect();
    format!("tidemill-reset-{plain}-{}.json", Utc::now().format("%Y%m%dT%H%M%S%3fZ")).into()
}

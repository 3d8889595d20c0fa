//! The archive as a replay takes it.

use std::collections::BTreeMap;

use anyhow::Context;
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use tidemill_archiver::read_back::ReadBack;
use tidemill_archiver::table::Tables;
use tidemill_common::config::Connections;
use tidemill_stream::replay::{Offer, Replay, ReplayError, Source};

/// What a project's archive has to offer of all time, or since then; none where there is none.
pub async fn offer(
    connections: &Connections,
    project: &str,
    since: Option<DateTime<Utc>>,
) -> anyhow::Result<Option<Offer>> {
    let opened = ReadBack::open(&Tables::new(connections), project, None, since).await;
    let Some(archive) = opened.context("the archive cannot be read")? else { return Ok(None) };
    let positions = archive.positions(project)?;
    let positions: BTreeMap<i32, (String, i64)> =
        positions.into_iter().map(|(partition, at)| (partition, (at.incarnation, at.next))).collect();
    Ok(Some(Offer { snapshot: archive.snapshot(), files: archive.files() as i64, positions }))
}

/// The archive at a replay's snapshot, if it has one.
pub async fn source(connections: &Connections, replay: &Replay) -> anyhow::Result<Option<Source>> {
    let Some(snapshot) = replay.archive_snapshot else { return Ok(None) };
    let opened = ReadBack::open(&Tables::new(connections), &replay.project, Some(snapshot), replay.archive_since).await;
    let gone = || {
        format!(
            "the archive cannot be read at snapshot {snapshot}; if it was removed, abort replay {} and plan another one",
            replay.id
        )
    };
    let Some(archive) = opened.with_context(gone)? else { return Ok(None) };
    let files = archive.files() as i64;
    let open = move |file: i64| {
        let rows = archive.rows(file as usize).map_err(why)?;
        Ok(rows.map_err(why).boxed())
    };
    Ok(Some(Source { files, open: Box::new(open) }))
}

/// It may be better later: storage that does not answer.
fn why(error: impl std::fmt::Display) -> ReplayError {
    ReplayError::Archive(error.to_string())
}

//! `tidemill replay abort|drop`

use serde::Serialize;
use serde_json::json;
use tidemill_stream::replay;

use super::{Desk, bar, explain, remove_folder};
use crate::audit;
use crate::consent::Consent;

const ENDED: [&str; 4] = ["id", "project", "state", "rows"];

#[derive(Serialize)]
struct Ended {
    id: i64,
    project: String,
    state: String,
    /// Rows deleted.
    rows: u64,
    applied: bool,
}

/// What is given up.
#[derive(Clone, Copy)]
pub enum Giving {
    /// What a replay has built.
    Aborted,
    /// What one has replaced.
    Kept,
}

pub async fn run(what: Giving, id: i64, consent: Consent, desk: &mut Desk) -> anyhow::Result<()> {
    let Desk { db, pool, setup, output } = desk;
    let mut replay = replay::find(pool, id).await.map_err(explain)?;
    let (command, generation) = match what {
        Giving::Aborted => ("replay abort", replay.generation),
        Giving::Kept => ("replay drop", replay.replaces),
    };
    let question = format!("Delete generation {generation} of project {}, which is not live?", replay.project);
    let (mut rows, applied) = (0, consent.given(&question)?);
    if applied {
        let plan = json!({ "id": id, "generation": generation });
        let entry = audit::begin(db, command, Some(&replay.project), &plan).await?;
        let bar = bar("{spinner} {human_pos} rows deleted  {elapsed_precise}");
        let show = |rows| bar.set_position(rows);
        let removed = match what {
            Giving::Aborted => replay::remove_aborted(pool, &replay, show).await,
            Giving::Kept => replay::drop_kept(pool, &replay, show).await,
        };
        bar.finish_and_clear();
        rows = entry.end(db, removed.map_err(explain)).await?;
        remove_folder(setup.folder(&replay)).await;
        replay = replay::find(pool, id).await.map_err(explain)?;
    }
    output.thing(&Ended { id, project: replay.project, state: replay.state, rows, applied }, &ENDED)
}

//! `tidemill replay run|switch`

use serde_json::json;
use sqlx::PgPool;
use tidemill_stream::replay::{self, Difference, Progress, Rebuilding, Replay, Setup};

use super::{DIFFERENCE, Desk, STATUS, archive, bar, explain, remove_folder, status_of};
use crate::audit;
use crate::consent::Consent;
use crate::output::Output;
use crate::signals::Signals;

pub async fn run(ids: &[i64], rate: Option<i32>, follow: bool, desk: &mut Desk) -> anyhow::Result<()> {
    let Desk { db, pool, setup, output } = desk;
    let mut signals = Signals::new()?;
    let mut replays = Vec::new();
    for id in ids {
        replays.push(replay::find_open(pool, *id).await.map_err(explain)?);
    }
    if ids.is_empty() {
        let all = replay::list(pool, None).await.map_err(explain)?;
        replays.extend(all.into_iter().filter(Replay::is_open).rev());
    }
    for replay in &replays {
        let entry =
            audit::begin(db, "replay run", Some(&replay.project), &json!({ "id": replay.id, "rate": rate })).await?;
        let done = tokio::select! {
            done = work_on(replay, rate, follow, pool, setup) => done,
            signal = signals.next() => {
                Err(anyhow::anyhow!("ended by {signal}; 'tidemill replay run {}' goes on where it was", replay.id))
            }
        };
        entry.end(db, done).await?;
    }
    let mut shown = Vec::new();
    for replay in &replays {
        shown.push(status_of(replay::find(pool, replay.id).await.map_err(explain)?, pool).await?);
    }
    output.things(&shown, &STATUS)
}

/// Nothing is lost if this is dropped halfway: the next worker goes on from the ledger.
async fn work_on(replay: &Replay, rate: Option<i32>, follow: bool, pool: &PgPool, setup: &Setup) -> anyhow::Result<()> {
    if let Some(rate) = rate {
        replay::set_rate(pool, replay.id, (rate > 0).then_some(rate)).await.map_err(explain)?;
    }
    let mut worker =
        Rebuilding::start(setup, replay, archive::source(&setup.connections, replay).await?).await.map_err(explain)?;
    compared(&mut worker, replay, pool).await?;
    if follow {
        worker.ended().await.map_err(explain)?;
    }
    worker.stop().await.map_err(explain)
}

/// How both generations differ once they are level.
async fn compared(worker: &mut Rebuilding, replay: &Replay, pool: &PgPool) -> anyhow::Result<Vec<Difference>> {
    let style = "{bar:30} {human_pos}/{human_len} records  {elapsed_precise}  replay {msg}";
    let bar = bar(style).with_message(replay.id.to_string());
    let show = |progress: &Progress| {
        bar.set_length(progress.done + progress.left);
        bar.set_position(progress.done);
    };
    let differences = async {
        replay::near(pool, replay, show).await?;
        let level = replay::level(pool, replay).await?;
        replay::compare(pool, level, replay).await
    };
    let compared = worker.during(differences).await.map_err(explain);
    bar.finish_and_clear();
    compared
}

pub async fn switch(id: i64, consent: Consent, desk: &mut Desk) -> anyhow::Result<()> {
    let Desk { db, pool, setup, output } = desk;
    let replay = replay::find_open(pool, id).await.map_err(explain)?;
    let mut worker = Rebuilding::start(setup, &replay, archive::source(&setup.connections, &replay).await?)
        .await
        .map_err(explain)?;
    let differences = compared(&mut worker, &replay, pool).await?;
    if !matches!(output, Output::Json) {
        output.things(&differences, &DIFFERENCE)?;
    }
    let question = format!(
        "Make generation {} of project {} live instead of {}? {} metrics and days differ.",
        replay.generation,
        replay.project,
        replay.replaces,
        differences.len()
    );
    let agreed = consent.given(&question);
    let applied = matches!(agreed, Ok(true));
    if applied {
        let plan = json!({ "id": id, "from": replay.replaces, "to": replay.generation, "differences": differences });
        let entry = audit::begin(db, "replay switch", Some(&replay.project), &plan).await?;
        let switched = worker.during(async {
            replay::near(pool, &replay, |_| {}).await?;
            replay::switch(replay::level(pool, &replay).await?, &replay).await
        });
        let switched = switched.await.map_err(explain);
        entry.end(db, switched).await?;
    }
    worker.stop().await.map_err(explain)?;
    agreed?;
    if applied {
        remove_folder(setup.folder(&replay)).await;
    }
    let mut whole = serde_json::to_value(status_of(replay::find(pool, id).await.map_err(explain)?, pool).await?)?;
    (whole["applied"], whole["comparison"]) = (applied.into(), json!(differences));
    match output {
        Output::Table if applied => output.thing(&whole, &["id", "project", "state", "replaces", "generation"]),
        _ => output.ended(&whole, applied),
    }
}

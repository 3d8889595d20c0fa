//! Sessions: their keys are locked, what is within reach is loaded, merged in memory, and written back.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, Row};

use super::users::SessionKey;
use super::{Counted, Touched};
use crate::fold::rollups::Changes;
use crate::fold::sessions::{At, GAP, Session, merge};
use crate::time::utc;

/// Applies the events to their sessions, and adds the difference to `changes`. The `renewed` keys get a new
/// version too, since what Redis shows of them has changed.
pub async fn apply(
    tx: &mut PgConnection,
    generation: i32,
    events: &[&Counted],
    renewed: Vec<SessionKey>,
    changes: &mut Changes,
    touched: &mut Touched,
) -> Result<(), sqlx::Error> {
    let parts = parts(events);
    let keys: BTreeSet<SessionKey> = parts.keys().cloned().chain(renewed).collect();
    if keys.is_empty() {
        return Ok(());
    }
    lock(tx, generation, &keys).await?;
    let mut before = load(tx, generation, &parts).await?;
    let mut gone = Vec::new();
    let mut written = Vec::new();
    for (key, parts) in parts {
        let old = before.remove(&key).unwrap_or_default();
        let new = merge(old.iter().cloned().chain(parts).collect());
        changes.count_sessions(&key.0, &old, &new);
        gone.extend(old.iter().filter(|s| !new.contains(s)).map(|s| (key.clone(), s.first_event_at)));
        written.extend(new.into_iter().filter(|s| !old.contains(s)).map(|s| (key.clone(), s)));
    }
    delete(tx, generation, &gone).await?;
    insert(tx, generation, &written).await?;
    touched.sessions.extend(keys);
    Ok(())
}

/// The batch's own sessions by key: merging them first keeps what is loaded and compared small.
fn parts(events: &[&Counted]) -> BTreeMap<SessionKey, Vec<Session>> {
    let mut parts = BTreeMap::<SessionKey, Vec<Session>>::new();
    for counted in events {
        if let Some(session_id) = &counted.event.session_id {
            let key = (counted.project.clone(), session_id.clone());
            parts.entry(key).or_default().push(Session::of(&counted.event));
        }
    }
    parts.into_iter().map(|(key, parts)| (key, merge(parts))).collect()
}

/// Locks the keys, sorted, and raises their versions.
async fn lock(tx: &mut PgConnection, generation: i32, keys: &BTreeSet<SessionKey>) -> Result<(), sqlx::Error> {
    let projects: Vec<&str> = keys.iter().map(|key| &*key.0).collect();
    let ids: Vec<&str> = keys.iter().map(|key| &*key.1).collect();
    sqlx::query(
        "INSERT INTO session_keys (generation, project, session_id, version)
         SELECT $1, project, session_id, 0 FROM unnest($2::text[], $3::text[]) AS k(project, session_id)
         ON CONFLICT DO NOTHING",
    )
    .bind(generation)
    .bind(&projects)
    .bind(&ids)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "WITH locked AS (
             SELECT s.project, s.session_id
             FROM session_keys s JOIN unnest($2::text[], $3::text[]) WITH ORDINALITY AS k(project, session_id, n)
               ON s.project = k.project AND s.session_id = k.session_id
             WHERE s.generation = $1 ORDER BY k.n FOR UPDATE OF s)
         UPDATE session_keys s SET version = s.version + 1 FROM locked
         WHERE s.generation = $1 AND s.project = locked.project AND s.session_id = locked.session_id",
    )
    .bind(generation)
    .bind(&projects)
    .bind(&ids)
    .execute(tx)
    .await?;
    Ok(())
}

/// The stored sessions within reach of the batch's.
async fn load(
    tx: &mut PgConnection,
    generation: i32,
    parts: &BTreeMap<SessionKey, Vec<Session>>,
) -> Result<BTreeMap<SessionKey, Vec<Session>>, sqlx::Error> {
    let reach = TimeDelta::microseconds(GAP);
    let (mut projects, mut ids, mut from, mut to) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (key, part) in parts.iter().flat_map(|(key, parts)| parts.iter().map(move |part| (key, part))) {
        projects.push(&*key.0);
        ids.push(&*key.1);
        from.push(utc(part.first_event_at) - reach);
        to.push(utc(part.last_event_at) + reach);
    }
    let rows = sqlx::query(
        "SELECT DISTINCT s.project, s.session_id, s.first_event_at, s.last_event_at, s.total_events, s.page_views,
                s.conversions, s.user_id, s.user_at, s.current_page, s.page_at
         FROM sessions s JOIN unnest($2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[])
              AS k(project, session_id, reach_from, reach_to)
           ON s.project = k.project AND s.session_id = k.session_id
          AND s.last_event_at >= k.reach_from AND s.first_event_at <= k.reach_to
         WHERE s.generation = $1",
    )
    .bind(generation)
    .bind(&projects)
    .bind(&ids)
    .bind(&from)
    .bind(&to)
    .fetch_all(tx)
    .await?;
    let mut sessions = BTreeMap::<SessionKey, Vec<Session>>::new();
    for row in rows {
        let micros = |i: usize| row.try_get::<DateTime<Utc>, _>(i).map(|time| time.timestamp_micros());
        let at = |value: usize, time: usize| -> Result<Option<At>, sqlx::Error> {
            let (value, time) =
                (row.try_get::<Option<String>, _>(value)?, row.try_get::<Option<DateTime<Utc>>, _>(time)?);
            Ok(value.zip(time).map(|(value, time)| At { at: time.timestamp_micros(), value }))
        };
        let session = Session {
            first_event_at: micros(2)?,
            last_event_at: micros(3)?,
            total_events: row.try_get(4)?,
            page_views: row.try_get(5)?,
            conversions: row.try_get(6)?,
            user: at(7, 8)?,
            page: at(9, 10)?,
        };
        sessions.entry((row.try_get(0)?, row.try_get(1)?)).or_default().push(session);
    }
    Ok(sessions)
}

async fn delete(tx: &mut PgConnection, generation: i32, gone: &[(SessionKey, i64)]) -> Result<(), sqlx::Error> {
    if gone.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "DELETE FROM sessions s USING unnest($2::text[], $3::text[], $4::timestamptz[]) AS k(project, session_id, first)
         WHERE s.generation = $1 AND s.project = k.project AND s.session_id = k.session_id
           AND s.first_event_at = k.first",
    )
    .bind(generation)
    .bind(gone.iter().map(|(key, _)| &*key.0).collect::<Vec<_>>())
    .bind(gone.iter().map(|(key, _)| &*key.1).collect::<Vec<_>>())
    .bind(gone.iter().map(|(_, first)| utc(*first)).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

async fn insert(tx: &mut PgConnection, generation: i32, written: &[(SessionKey, Session)]) -> Result<(), sqlx::Error> {
    if written.is_empty() {
        return Ok(());
    }
    let value = |at: &Option<At>| at.as_ref().map(|at| at.value.clone());
    let time = |at: &Option<At>| at.as_ref().map(|at| utc(at.at));
    sqlx::query(
        "INSERT INTO sessions (generation, project, session_id, first_event_at, last_event_at, total_events,
                               page_views, conversions, user_id, user_at, current_page, page_at)
         SELECT $1, * FROM unnest($2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::bigint[],
                                  $7::bigint[], $8::bigint[], $9::text[], $10::timestamptz[], $11::text[],
                                  $12::timestamptz[])",
    )
    .bind(generation)
    .bind(written.iter().map(|(key, _)| &*key.0).collect::<Vec<_>>())
    .bind(written.iter().map(|(key, _)| &*key.1).collect::<Vec<_>>())
    .bind(written.iter().map(|(_, s)| utc(s.first_event_at)).collect::<Vec<_>>())
    .bind(written.iter().map(|(_, s)| utc(s.last_event_at)).collect::<Vec<_>>())
    .bind(written.iter().map(|(_, s)| s.total_events).collect::<Vec<_>>())
    .bind(written.iter().map(|(_, s)| s.page_views).collect::<Vec<_>>())
    .bind(written.iter().map(|(_, s)| s.conversions).collect::<Vec<_>>())
    .bind(written.iter().map(|(_, s)| value(&s.user)).collect::<Vec<_>>())
    .bind(written.iter().map(|(_, s)| time(&s.user)).collect::<Vec<_>>())
    .bind(written.iter().map(|(_, s)| value(&s.page)).collect::<Vec<_>>())
    .bind(written.iter().map(|(_, s)| time(&s.page)).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

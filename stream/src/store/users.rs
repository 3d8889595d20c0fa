//! Users: when each was first and last seen.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool, Row};

use super::{Counted, Touched};
use crate::fold::sessions::GAP;
use crate::time::utc;

/// Project and user id, in the order of locks.
type UserKey = (String, String);

/// Project and session id.
pub type SessionKey = (String, String);

/// Widens the users' spans. Gives the session keys whose `isNew` may have gone to an earlier session, since
/// their user's first event now lies before them.
pub async fn apply(
    tx: &mut PgConnection,
    generation: i32,
    events: &[&Counted],
    touched: &mut Touched,
) -> Result<Vec<SessionKey>, sqlx::Error> {
    let spans = spans(events);
    if spans.is_empty() {
        return Ok(Vec::new());
    }
    insert(tx, generation, &spans).await?;
    let before = lock(tx, generation, &spans).await?;
    let mut changed = BTreeMap::new();
    let mut moved = Vec::new();
    for (key, &(first, last)) in &spans {
        let Some(&(old_first, old_last)) = before.get(key) else { continue };
        if first < old_first || last > old_last {
            changed.insert(key.clone(), (first.min(old_first), last.max(old_last)));
        }
        if first < old_first {
            moved.push((key, old_first));
        }
    }
    update(tx, generation, &changed).await?;
    let renewed = sessions_around(tx, generation, &moved).await?;
    touched.users.extend(spans.into_keys());
    Ok(renewed)
}

fn spans(events: &[&Counted]) -> BTreeMap<UserKey, (DateTime<Utc>, DateTime<Utc>)> {
    let mut spans = BTreeMap::<UserKey, (DateTime<Utc>, DateTime<Utc>)>::new();
    for counted in events {
        let Some(user_id) = &counted.event.user_id else { continue };
        let at = utc(counted.event.timestamp);
        let span = spans.entry((counted.project.clone(), user_id.clone())).or_insert((at, at));
        *span = (span.0.min(at), span.1.max(at));
    }
    spans
}

async fn insert(
    tx: &mut PgConnection,
    generation: i32,
    spans: &BTreeMap<UserKey, (DateTime<Utc>, DateTime<Utc>)>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO users (generation, project, user_id, first_event_at, last_event_at)
         SELECT $1, * FROM unnest($2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[])
         ON CONFLICT DO NOTHING",
    )
    .bind(generation)
    .bind(spans.keys().map(|key| &*key.0).collect::<Vec<_>>())
    .bind(spans.keys().map(|key| &*key.1).collect::<Vec<_>>())
    .bind(spans.values().map(|span| span.0).collect::<Vec<_>>())
    .bind(spans.values().map(|span| span.1).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

async fn lock(
    tx: &mut PgConnection,
    generation: i32,
    spans: &BTreeMap<UserKey, (DateTime<Utc>, DateTime<Utc>)>,
) -> Result<HashMap<UserKey, (DateTime<Utc>, DateTime<Utc>)>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT u.project, u.user_id, u.first_event_at, u.last_event_at
         FROM users u JOIN unnest($2::text[], $3::text[]) WITH ORDINALITY AS k(project, user_id, n)
           ON u.project = k.project AND u.user_id = k.user_id
         WHERE u.generation = $1 ORDER BY k.n FOR UPDATE OF u",
    )
    .bind(generation)
    .bind(spans.keys().map(|key| &*key.0).collect::<Vec<_>>())
    .bind(spans.keys().map(|key| &*key.1).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    rows.iter().map(|row| Ok(((row.try_get(0)?, row.try_get(1)?), (row.try_get(2)?, row.try_get(3)?)))).collect()
}

async fn update(
    tx: &mut PgConnection,
    generation: i32,
    spans: &BTreeMap<UserKey, (DateTime<Utc>, DateTime<Utc>)>,
) -> Result<(), sqlx::Error> {
    if spans.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE users u SET first_event_at = k.first, last_event_at = k.last
         FROM unnest($2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[]) AS k(project, user_id, first, last)
         WHERE u.generation = $1 AND u.project = k.project AND u.user_id = k.user_id",
    )
    .bind(generation)
    .bind(spans.keys().map(|key| &*key.0).collect::<Vec<_>>())
    .bind(spans.keys().map(|key| &*key.1).collect::<Vec<_>>())
    .bind(spans.values().map(|span| span.0).collect::<Vec<_>>())
    .bind(spans.values().map(|span| span.1).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

/// The sessions of these users that contain the moment that was their first.
async fn sessions_around(
    tx: &mut PgConnection,
    generation: i32,
    moments: &[(&UserKey, DateTime<Utc>)],
) -> Result<Vec<SessionKey>, sqlx::Error> {
    if moments.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "SELECT DISTINCT s.project, s.session_id
         FROM sessions s JOIN unnest($2::text[], $3::text[], $4::timestamptz[]) AS k(project, user_id, moment)
           ON s.project = k.project AND s.user_id = k.user_id
          AND s.first_event_at <= k.moment AND s.last_event_at >= k.moment
         WHERE s.generation = $1",
    )
    .bind(generation)
    .bind(moments.iter().map(|(key, _)| &*key.0).collect::<Vec<_>>())
    .bind(moments.iter().map(|(key, _)| &*key.1).collect::<Vec<_>>())
    .bind(moments.iter().map(|(_, moment)| *moment).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// The sessions of these users that are live at `now`.
pub async fn live_sessions(
    pool: &PgPool,
    users: &[UserKey],
    now: DateTime<Utc>,
) -> Result<Vec<SessionKey>, sqlx::Error> {
    if users.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "SELECT DISTINCT s.project, s.session_id
         FROM unnest($1::text[], $2::text[]) AS k(project, user_id)
         JOIN projects p ON p.id = k.project
         JOIN sessions s ON s.generation = p.generation AND s.project = k.project AND s.user_id = k.user_id
         WHERE s.last_event_at > $3",
    )
    .bind(users.iter().map(|key| &*key.0).collect::<Vec<_>>())
    .bind(users.iter().map(|key| &*key.1).collect::<Vec<_>>())
    .bind(now - TimeDelta::microseconds(GAP))
    .fetch_all(pool)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

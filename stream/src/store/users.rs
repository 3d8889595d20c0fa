//! Users: when each was first seen.

use std::sync::Mutex;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool, Row};

use super::known::Known;
use super::{Counted, Touched};
use crate::fold::sessions::GAP;
use crate::ledger::History;
use crate::quick_map::QuickMap;
use crate::time::utc;

/// Project and user id.
type User<'a> = (&'a str, &'a str);

/// Project and session key.
pub type SessionKey = (String, String);

/// Users whose first event is in the batch, and when that is, in microseconds.
#[derive(Debug, Default)]
pub struct Firsts<'a> {
    at: QuickMap<User<'a>, i64>,
    /// Sessions that their users were new in, and are not any more, with the moment at which they were.
    pub renewed: Vec<(SessionKey, i64)>,
}

impl Firsts<'_> {
    /// Whether a user who is named at this time in the batch was never seen before.
    pub fn is_first(&self, project: &str, user_id: &str, at: i64) -> bool {
        self.at.get(&(project, user_id)) == Some(&at)
    }

    /// Whether a user who was first seen at this time has been seen earlier in the batch.
    pub fn is_moved(&self, project: &str, user_id: &str, at: i64) -> bool {
        self.at.get(&(project, user_id)).is_some_and(|first| *first < at)
    }
}

/// Notes who is seen earlier than known. That only ever moves back, so whoever is known to have been seen before is
/// left alone; the others are asked for, and the rows of those who are new or earlier locked, in order.
pub async fn apply<'a>(
    tx: &mut PgConnection,
    generation: i32,
    memory: (&Mutex<Known>, History),
    events: &[&'a Counted],
    touched: &mut Touched,
) -> Result<Firsts<'a>, sqlx::Error> {
    let mut earliest = unknown(tx, generation, memory, earliest(events)).await?;
    if earliest.is_empty() {
        return Ok(Firsts::default());
    }
    earliest.sort_unstable();
    let rows = sqlx::query(
        "INSERT INTO users AS u (generation, project, user_id, first_event_at)
         SELECT $1, * FROM unnest($2::text[], $3::text[], $4::timestamptz[])
         ON CONFLICT (generation, project, user_id)
         DO UPDATE SET moved_from = u.first_event_at, first_event_at = excluded.first_event_at
         WHERE u.first_event_at >= excluded.first_event_at
         RETURNING u.project, u.user_id, u.moved_from, u.first_event_at",
    )
    .bind(generation)
    .bind(earliest.iter().map(|((project, _), _)| *project).collect::<Vec<_>>())
    .bind(earliest.iter().map(|((_, user_id), _)| *user_id).collect::<Vec<_>>())
    .bind(earliest.iter().map(|(_, at)| utc(*at)).collect::<Vec<_>>())
    .fetch_all(&mut *tx)
    .await?;
    let mut firsts = Firsts::default();
    let mut moved = Vec::new();
    for row in &rows {
        let user: User<'_> = (row.try_get(0)?, row.try_get(1)?);
        let (from, to): (Option<DateTime<Utc>>, DateTime<Utc>) = (row.try_get(2)?, row.try_get(3)?);
        // The same text, but from the batch, which lives longer.
        let Ok(place) = earliest.binary_search_by_key(&user, |(user, _)| *user) else { continue };
        firsts.at.insert(earliest[place].0, earliest[place].1);
        match from {
            None => touched.users.push((user.0.to_owned(), user.1.to_owned())),
            Some(from) if from > to => moved.push((user, from)),
            Some(_) => {}
        }
    }
    firsts.renewed = sessions_of(tx, generation, &moved).await?;
    Ok(firsts)
}

/// When each user is first seen in the batch.
fn earliest<'a>(events: &[&'a Counted]) -> Vec<(User<'a>, i64)> {
    let mut earliest = QuickMap::<User<'a>, i64>::default();
    for counted in events {
        let (Some(user_id), at) = (counted.user_id(), counted.timestamp()) else { continue };
        earliest.entry((counted.project(), user_id)).and_modify(|first| *first = at.min(*first)).or_insert(at);
    }
    earliest.into_iter().collect()
}

/// Those who were not seen before that time, by what is committed. The others are known from then on.
async fn unknown<'a>(
    tx: &mut PgConnection,
    generation: i32,
    (known, history): (&Mutex<Known>, History),
    mut users: Vec<(User<'a>, i64)>,
) -> Result<Vec<(User<'a>, i64)>, sqlx::Error> {
    known.lock().expect("no holder panics").of(history).retain_unknown(generation, &mut users);
    if users.is_empty() {
        return Ok(users);
    }
    let mut places: Vec<i64> = sqlx::query_scalar(
        "SELECT k.n FROM unnest($2::text[], $3::text[], $4::timestamptz[]) WITH ORDINALITY AS k(project, user_id, at, n)
         LEFT JOIN LATERAL (
             SELECT first_event_at FROM users
             WHERE generation = $1 AND project = k.project AND user_id = k.user_id OFFSET 0) u ON true
         WHERE u.first_event_at IS NULL OR u.first_event_at >= k.at",
    )
    .bind(generation)
    .bind(users.iter().map(|((project, _), _)| *project).collect::<Vec<_>>())
    .bind(users.iter().map(|((_, user_id), _)| *user_id).collect::<Vec<_>>())
    .bind(users.iter().map(|(_, at)| utc(*at)).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    places.sort_unstable();
    let mut places = places.into_iter().peekable();
    let mut unknown = Vec::with_capacity(places.len());
    let mut known = known.lock().expect("no holder panics");
    let known = known.of(history);
    for ((user, at), n) in users.into_iter().zip(1..) {
        if places.next_if_eq(&n).is_some() {
            unknown.push((user, at));
        } else {
            known.note(generation, user, at);
        }
    }
    Ok(unknown)
}

/// The sessions in which these users were new at these moments.
async fn sessions_of(
    tx: &mut PgConnection,
    generation: i32,
    moments: &[(User<'_>, DateTime<Utc>)],
) -> Result<Vec<(SessionKey, i64)>, sqlx::Error> {
    if moments.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "SELECT s.project, s.session_id, s.user_at
         FROM unnest($2::text[], $3::text[], $4::timestamptz[]) AS k(project, user_id, moment)
         CROSS JOIN LATERAL (
             SELECT project, session_id, user_at FROM sessions
             WHERE generation = $1 AND project = k.project AND user_id = k.user_id AND user_at = k.moment OFFSET 0) s",
    )
    .bind(generation)
    .bind(moments.iter().map(|((project, _), _)| *project).collect::<Vec<_>>())
    .bind(moments.iter().map(|((_, user_id), _)| *user_id).collect::<Vec<_>>())
    .bind(moments.iter().map(|(_, moment)| *moment).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    let key = |row: &sqlx::postgres::PgRow| {
        Ok(((row.try_get(0)?, row.try_get(1)?), row.try_get::<DateTime<Utc>, _>(2)?.timestamp_micros()))
    };
    rows.iter().map(key).collect()
}

/// The sessions of these users that are live at `now`.
pub async fn live_sessions(
    pool: &PgPool,
    users: &[(String, String)],
    now: DateTime<Utc>,
) -> Result<Vec<SessionKey>, sqlx::Error> {
    if users.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "SELECT DISTINCT s.project, s.session_id
         FROM unnest($1::text[], $2::text[]) AS k(project, user_id)
         JOIN projects p ON p.id = k.project
         CROSS JOIN LATERAL (
             SELECT project, session_id, last_event_at FROM sessions
             WHERE generation = p.generation AND project = k.project AND user_id = k.user_id OFFSET 0) s
         WHERE s.last_event_at > $3",
    )
    .bind(users.iter().map(|key| &*key.0).collect::<Vec<_>>())
    .bind(users.iter().map(|key| &*key.1).collect::<Vec<_>>())
    .bind(now - TimeDelta::microseconds(GAP))
    .fetch_all(pool)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

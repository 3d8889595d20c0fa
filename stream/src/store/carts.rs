//! Carts: the events that they are made of, in the rows of their session keys, which every batch of theirs locks and
//! writes in any case.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgConnection, PgPool, Row};

use crate::fold::carts::{Cart, CartEvent, Lines, needed};
use crate::fold::sessions::slot;

/// What lets a key's events be looked through for those that are not needed: so many bytes of them. With more, Postgres
/// would not keep them in the row itself.
pub const LONG: i32 = 1_500;
/// How long carts are kept behind their latest event: a cart is shown for a day, and depends on a day before its latest.
const PRUNED: TimeDelta = TimeDelta::hours(48);

/// Takes out of the carts of these keys, each a project and a session key, what they do not need. The keys have to be
/// locked, so that the rows stay where they are read.
pub async fn shorten(tx: &mut PgConnection, generation: i32, keys: &[(&str, &str)]) -> Result<(), sqlx::Error> {
    if keys.is_empty() {
        return Ok(());
    }
    let rows: Vec<(String, String)> = sqlx::query_as(
        "SELECT s.ctid::text, s.cart FROM unnest($2::text[], $3::text[]) AS k(project, session_id)
         CROSS JOIN LATERAL (
             SELECT ctid, cart FROM session_keys
             WHERE generation = $1 AND project = k.project AND session_id = k.session_id OFFSET 0) s",
    )
    .bind(generation)
    .bind(keys.iter().map(|(project, _)| *project).collect::<Vec<_>>())
    .bind(keys.iter().map(|(_, key)| *key).collect::<Vec<_>>())
    .fetch_all(&mut *tx)
    .await?;
    let mut shorter = Vec::new();
    for (place, text) in &rows {
        let mut lines = Lines::default();
        needed(read(text)?).iter().for_each(|event| lines.add(event));
        if lines.text.len() < text.len() {
            shorter.push((&**place, lines.text));
        }
    }
    if shorter.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE session_keys s SET cart = k.cart FROM unnest($1::text[], $2::text[]) AS k(place, cart)
         WHERE s.ctid = k.place::tid",
    )
    .bind(shorter.iter().map(|(place, _)| *place).collect::<Vec<_>>())
    .bind(shorter.iter().map(|(_, text)| &**text).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

/// Removes carts of live generations that nobody can see any more. Gives how many; at most `most`, so that it may have to
/// be called again. Rows that a batch holds are passed over.
pub async fn prune(pool: &PgPool, now: DateTime<Utc>, most: i64) -> Result<u64, sqlx::Error> {
    let done = sqlx::query(
        "UPDATE session_keys SET cart = NULL, cart_slot = NULL WHERE ctid = ANY (ARRAY(
             SELECT k.ctid FROM projects p CROSS JOIN LATERAL (
                 SELECT ctid FROM session_keys
                 WHERE generation = p.generation AND project = p.id AND cart_slot < $1
                 LIMIT $2 FOR UPDATE SKIP LOCKED) k
             LIMIT $2))",
    )
    .bind(slot((now - PRUNED).timestamp_micros()))
    .bind(most)
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// A cart, and what its copies are stamped with.
pub struct Stored {
    /// Project and session key.
    pub key: (String, String),
    /// Raised when Postgres comes back older.
    pub epoch: i64,
    /// The project's live generation.
    pub generation: i32,
    /// The version of the session key.
    pub version: i64,
    /// What is in it.
    pub cart: Cart,
}

/// The carts of these keys in their projects' live generations; keys without a cart event are left out.
pub async fn load(pool: &PgPool, keys: &[(&str, &str)]) -> Result<Vec<Stored>, sqlx::Error> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "SELECT k.n, (SELECT epoch FROM timeline), p.generation, s.version, s.cart
         FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k(project, session_id, n)
         JOIN projects p ON p.id = k.project
         CROSS JOIN LATERAL (
             SELECT version, cart FROM session_keys
             WHERE generation = p.generation AND project = k.project AND session_id = k.session_id OFFSET 0) s
         WHERE s.cart IS NOT NULL",
    )
    .bind(keys.iter().map(|(project, _)| *project).collect::<Vec<_>>())
    .bind(keys.iter().map(|(_, key)| *key).collect::<Vec<_>>())
    .fetch_all(pool)
    .await?;
    let mut carts = Vec::with_capacity(rows.len());
    for row in &rows {
        let (project, key) = keys[row.try_get::<i64, _>(0)? as usize - 1];
        let Some(cart) = Cart::of(read(row.try_get(4)?)?) else { continue };
        carts.push(Stored {
            key: (project.to_owned(), key.to_owned()),
            epoch: row.try_get(1)?,
            generation: row.try_get(2)?,
            version: row.try_get(3)?,
            cart,
        });
    }
    Ok(carts)
}

fn read(text: &str) -> Result<Vec<CartEvent<'_>>, sqlx::Error> {
    Lines::read(text).map_err(|error| sqlx::Error::Decode(error.into()))
}

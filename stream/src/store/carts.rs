//! Carts: the events that they are made of, under the locks of their session keys.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, Row};

use super::{Counted, Touched};
use crate::decimal::Decimal;
use crate::fold::carts::{Cart, CartEvent};
use crate::session_key;
use crate::time::utc;

/// Adds the batch's cart events, and forgets those that no cart depends on any more. Events without a session id have
/// no cart. The keys have to be locked.
pub async fn apply(
    tx: &mut PgConnection,
    generation: i32,
    events: &[&Counted],
    touched: &mut Touched,
) -> Result<(), sqlx::Error> {
    let mut changes = Vec::new();
    for counted in events {
        let event = counted.event();
        let Some(session_id) = event.session_id else { continue };
        let Some(change) = CartEvent::of(&event, &counted.properties()) else { continue };
        changes.push((&**counted.project(), session_key::of_session(session_id), change));
    }
    if changes.is_empty() {
        return Ok(());
    }
    // Those of a cart lie together then, and are read together.
    changes.sort_unstable_by(|(a, x, _), (b, y, _)| (a, x).cmp(&(b, y)));
    insert(tx, generation, &changes).await?;
    let keys: BTreeSet<(&str, &str)> = changes.iter().map(|(project, key, _)| (*project, &**key)).collect();
    forget(tx, generation, &keys).await?;
    touched.carts.extend(keys.into_iter().map(|(project, key)| (project.to_owned(), key.to_owned())));
    Ok(())
}

async fn insert(
    tx: &mut PgConnection,
    generation: i32,
    changes: &[(&str, Cow<'_, str>, CartEvent<'_>)],
) -> Result<(), sqlx::Error> {
    let price = |price: &Option<Decimal>| price.map(|price| price.to_string());
    sqlx::query(
        "INSERT INTO cart_events (generation, project, session_id, at, event_id, item, quantity, price)
         SELECT $1, k.project, k.session_id, k.at, k.event_id, k.item, k.quantity, k.price::numeric
         FROM unnest($2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::text[], $7::bigint[], $8::text[])
              AS k(project, session_id, at, event_id, item, quantity, price)
         ON CONFLICT DO NOTHING",
    )
    .bind(generation)
    .bind(changes.iter().map(|(project, _, _)| *project).collect::<Vec<_>>())
    .bind(changes.iter().map(|(_, key, _)| &**key).collect::<Vec<_>>())
    .bind(changes.iter().map(|(_, _, change)| utc(change.at)).collect::<Vec<_>>())
    .bind(changes.iter().map(|(_, _, change)| &*change.event_id).collect::<Vec<_>>())
    .bind(changes.iter().map(|(_, _, change)| change.item.as_deref()).collect::<Vec<_>>())
    .bind(changes.iter().map(|(_, _, change)| change.quantity).collect::<Vec<_>>())
    .bind(changes.iter().map(|(_, _, change)| price(&change.price)).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

/// What is not later than the last purchase, or a day older than the latest event, means nothing to [`Cart::of`], now or
/// ever.
async fn forget(tx: &mut PgConnection, generation: i32, keys: &BTreeSet<(&str, &str)>) -> Result<(), sqlx::Error> {
    sqlx::query(
        "DELETE FROM cart_events WHERE ctid = ANY (ARRAY(
             SELECT c.ctid FROM unnest($2::text[], $3::text[]) AS k(project, session_id)
             CROSS JOIN LATERAL (
                 SELECT greatest(max(at) FILTER (WHERE item IS NULL), max(at) - interval '24 hours') AS bound
                 FROM cart_events WHERE generation = $1 AND project = k.project AND session_id = k.session_id) b
             CROSS JOIN LATERAL (
                 SELECT ctid FROM cart_events
                 WHERE generation = $1 AND project = k.project AND session_id = k.session_id AND at <= b.bound
                   AND (at < b.bound OR item IS NOT NULL) OFFSET 0) c))",
    )
    .bind(generation)
    .bind(keys.iter().map(|(project, _)| *project).collect::<Vec<_>>())
    .bind(keys.iter().map(|(_, key)| *key).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

/// Deletes events of carts that nobody can see any more, being older than two days: a cart is shown for a day behind its
/// latest event, and depends on a day before that. Gives how many; at most `most`, so that it may have to be called
/// again. Rows that a batch holds are passed over.
pub async fn prune(pool: &PgPool, now: DateTime<Utc>, most: i64) -> Result<u64, sqlx::Error> {
    let done = sqlx::query(
        "DELETE FROM cart_events WHERE ctid = ANY (ARRAY(
             SELECT ctid FROM cart_events WHERE at < $1::timestamptz - interval '48 hours' LIMIT $2
             FOR UPDATE SKIP LOCKED))",
    )
    .bind(now)
    .bind(most)
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Epoch, generation and version, and the events of a cart.
type Found<'a> = ((i64, i32, i64), Vec<CartEvent<'a>>);

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
        "SELECT k.n, p.generation, v.version, c.at, c.event_id, c.item, c.quantity, c.price::text,
                (SELECT epoch FROM timeline)
         FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k(project, session_id, n)
         JOIN projects p ON p.id = k.project
         CROSS JOIN LATERAL (
             SELECT version FROM session_keys
             WHERE generation = p.generation AND project = k.project AND session_id = k.session_id OFFSET 0) v
         CROSS JOIN LATERAL (
             SELECT * FROM cart_events
             WHERE generation = p.generation AND project = k.project AND session_id = k.session_id OFFSET 0) c",
    )
    .bind(keys.iter().map(|(project, _)| *project).collect::<Vec<_>>())
    .bind(keys.iter().map(|(_, key)| *key).collect::<Vec<_>>())
    .fetch_all(pool)
    .await?;
    let mut carts = HashMap::<usize, Found<'_>>::new();
    for row in &rows {
        let place = row.try_get::<i64, _>(0)? as usize - 1;
        let event = CartEvent {
            at: row.try_get::<DateTime<Utc>, _>(3)?.timestamp_micros(),
            event_id: Cow::Borrowed(row.try_get(4)?),
            item: row.try_get::<Option<&str>, _>(5)?.map(Cow::Borrowed),
            quantity: row.try_get(6)?,
            price: row.try_get::<Option<&str>, _>(7)?.and_then(Decimal::parse),
        };
        let stamp = (row.try_get(8)?, row.try_get(1)?, row.try_get(2)?);
        carts.entry(place).or_insert((stamp, Vec::new())).1.push(event);
    }
    let stored = |(place, ((epoch, generation, version), events)): (usize, Found<'_>)| {
        let (project, key) = keys[place];
        let cart = Cart::of(events)?;
        Some(Stored { key: (project.to_owned(), key.to_owned()), epoch, generation, version, cart })
    };
    Ok(carts.into_iter().filter_map(stored).collect())
}

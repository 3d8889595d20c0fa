//! `GET /v1/sessions/{id}/cart`: from Redis, or where that has no copy, from the events that Postgres keeps.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgPool;
use tidemill_common::problem::Problem;
use tidemill_common::projects::Project;
use tidemill_common::redis::Redis;
use tidemill_stream::fold::carts::{Cart, KEPT};
use tidemill_stream::store::carts;

use crate::metrics::rfc3339;
use crate::money::Money;
use crate::sessions::{self, unknown};
use crate::{hot, postgres};

/// A session id's cart.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    session_id: String,
    /// By name.
    items: Vec<Item>,
    total_items: i64,
    total_value: Money,
    /// The time of its last event; null: there is none, or the last is more than a day old.
    changed_at: Option<String>,
}

#[derive(Debug, Serialize)]
struct Item {
    item: String,
    quantity: i64,
    /// Of one; null: no event names one.
    price: Option<Money>,
}

/// Answers for one session id. A session without a cart has an empty one.
pub async fn answer(
    pool: &PgPool,
    redis: &Redis,
    project: &Project,
    session_id: &str,
    now: DateTime<Utc>,
) -> Result<Answer, Problem> {
    let key = sessions::key(session_id)?;
    let cart = match hot::cart(redis, project, &key).await {
        Some(cart) => Some(cart),
        None => {
            let stored = carts::load(pool, &[(&project.id, &key)]).await.map_err(postgres::problem)?;
            stored.into_iter().next().map(|stored| stored.cart)
        }
    };
    let cart = cart.filter(|cart| cart.changed_at.saturating_add(KEPT) > now.timestamp_micros());
    if cart.is_none() && !postgres::is_known(pool, project, &key).await.map_err(postgres::problem)? {
        return Err(unknown(session_id));
    }
    Ok(shown(session_id, cart))
}

fn shown(session_id: &str, cart: Option<Cart>) -> Answer {
    let changed_at = cart.as_ref().and_then(|cart| DateTime::from_timestamp_micros(cart.changed_at)).map(rfc3339);
    let cart = cart.unwrap_or_default();
    Answer {
        session_id: session_id.to_owned(),
        total_items: cart.total_items(),
        total_value: Money(cart.total_value()),
        changed_at,
        items: cart
            .lines
            .into_iter()
            .map(|(item, line)| Item { item, quantity: line.quantity, price: line.price.map(Money) })
            .collect(),
    }
}

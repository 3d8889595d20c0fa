//! Carts: what was put in since the last purchase and within a day before the last cart event, less what was taken out.

use std::collections::BTreeMap;

use serde_json::Value;
use tidemill_common::event::Event;

use super::sessions::key;
use super::traits::{number, properties};

const DAY: i64 = 24 * 3_600 * 1_000_000;
const ITEM: [&str; 9] = ["productId", "product_id", "itemId", "item_id", "sku", "variant", "product", "item", "name"];

/// What is in a cart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cart {
    /// Its last event, in microseconds.
    pub changed: i64,
    /// Number of each item, and what one costs in cents.
    pub lines: BTreeMap<String, (i64, Option<i64>)>,
    /// The events that it depends on, by time and eventId.
    pub events: BTreeMap<(i64, String), Change>,
}

/// What an event does to a cart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The item; none: all of it was bought.
    pub item: Option<String>,
    /// How many were put in; negative when they were taken out.
    pub quantity: i64,
    /// What one costs, in cents.
    pub price: Option<i64>,
}

/// The carts of these events, by session key.
pub fn carts<'a>(events: impl Iterator<Item = &'a Event>) -> BTreeMap<String, Cart> {
    let mut carts = BTreeMap::<String, Cart>::new();
    for event in events.filter(|event| event.session_id.is_some()) {
        if let (Some(key), Some(change)) = (key(event), change(event)) {
            carts.entry(key).or_default().events.insert((event.timestamp, event.event_id.clone()), change);
        }
    }
    carts.values_mut().for_each(Cart::settle);
    carts
}

impl Cart {
    fn settle(&mut self) {
        let bought = self.events.iter().filter(|(_, change)| change.item.is_none()).map(|((at, _), _)| *at).max();
        self.changed = self.events.keys().map(|(at, _)| *at).max().unwrap_or_default();
        let since = bought.unwrap_or(i64::MIN).max(self.changed - DAY);
        self.events.retain(|(at, _), change| *at > since || (*at == since && change.item.is_none()));
        for ((at, _), change) in &self.events {
            let Some(item) = change.item.clone().filter(|_| *at > since) else { continue };
            let (quantity, price) = self.lines.entry(item).or_default();
            *quantity += change.quantity;
            *price = change.price.or(*price);
        }
        self.lines.retain(|_, (quantity, _)| *quantity > 0);
    }
}

fn change(event: &Event) -> Option<Change> {
    let sign = match &*event.event_type {
        "add_to_cart" => 1,
        "remove_from_cart" => -1,
        "purchase" => return Some(Change { item: None, quantity: 0, price: None }),
        _ => return None,
    };
    let properties = properties(event);
    let item = ITEM.iter().find_map(|name| label(&properties[*name]))?;
    let quantity = match &properties["quantity"] {
        Value::Null => 100,
        given => number(given)?,
    };
    let whole = quantity > 0 && quantity % 100 == 0;
    whole.then(|| Change { item: Some(item), quantity: sign * quantity / 100, price: number(&properties["price"]) })
}

fn label(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64, event_type: &str, properties: &str) -> Event {
        let event = tidemill_testkit::event(&seconds.to_string(), event_type, seconds);
        Event { session_id: Some("s".into()), properties: Some(properties.to_owned()), ..event }
    }

    #[test]
    fn a_cart_is_what_came_behind_the_last_purchase() {
        let events = [
            at(1, "add_to_cart", r#"{"sku":"a"}"#),
            at(5, "remove_from_cart", r#"{"sku":"b","quantity":"2"}"#),
            at(2, "purchase", "{}"),
            at(4, "add_to_cart", r#"{"sku":"b","quantity":3,"price":1.5}"#),
            at(6, "add_to_cart", r#"{"sku":"c","quantity":0.5}"#),
        ];
        let carts = carts(events.iter());
        assert_eq!(carts["s"].lines, BTreeMap::from([("b".to_owned(), (1, Some(150)))]));
        assert_eq!((carts["s"].changed, carts["s"].events.len()), (5_000_000, 3), "the purchase is one of them");
    }

    #[test]
    fn a_day_later_an_item_is_forgotten() {
        let lines = |later: i64| {
            let events = [at(0, "add_to_cart", r#"{"sku":"a"}"#), at(later, "add_to_cart", r#"{"sku":"b"}"#)];
            carts(events.iter())["s"].lines.len()
        };
        assert_eq!((lines(86_399), lines(86_400)), (2, 1));
    }
}

//! Carts, as what a session id's cart events make of each other in event time.
//!
//! A cart holds, for every item, what was put in minus what was taken out later than the last purchase and less than
//! [`KEPT`] before the latest cart event; its price is the latest that was named. A purchase empties the cart of all
//! that is not later than it. That is said of a set of events, so the order of arrival does not matter.

use std::borrow::Cow;
use std::collections::BTreeMap;

use tidemill_common::event::EventRef;

use crate::decimal::Decimal;
use crate::properties::{Properties, storable};

/// A cart is made of its latest events, so many at most: what strangers send has limits.
const MOST: usize = 500;

/// How long a cart event counts, and a cart is shown behind its last one: 24 hours, in microseconds.
pub const KEPT: i64 = 24 * 3_600 * 1_000_000;

/// The types of events that carts are made of.
pub const CART_EVENTS: [&str; 3] = ["add_to_cart", "remove_from_cart", "purchase"];

/// Longest name of an item that is kept, in characters.
const MAX_ITEM: usize = 256;
/// The largest number of one item that one event can put in or take out; more counts as this.
const MAX_QUANTITY: i64 = 1_000_000;
/// Where an item's name is looked for.
const ITEM: [&str; 9] = ["productId", "product_id", "itemId", "item_id", "sku", "variant", "product", "item", "name"];

/// A cart event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CartEvent<'a> {
    /// When, in microseconds since 1970.
    pub at: i64,
    /// Settles ties.
    pub event_id: Cow<'a, str>,
    /// What was put in or taken out; none: all was bought.
    pub item: Option<Cow<'a, str>>,
    /// How many; negative when they were taken out.
    pub quantity: i64,
    /// What one of them costs.
    pub price: Option<Decimal>,
}

/// An item in a cart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Line {
    /// How many.
    pub quantity: i64,
    /// What one of them costs, if an event has said so.
    pub price: Option<Decimal>,
}

/// A cart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cart {
    /// Its last event, in microseconds since 1970.
    pub changed_at: i64,
    /// The items in it, by their names.
    pub lines: BTreeMap<String, Line>,
}

impl<'a> CartEvent<'a> {
    /// What an event does to its session's cart. `add_to_cart` and `remove_from_cart` name an item (the first there
    /// is of `productId`, `itemId`, `sku`, `variant`, `product`, `item` and `name`), a whole `quantity` (else it is 1)
    /// and perhaps a `price`; `purchase` empties it. One that names no item, or no sensible quantity, does nothing.
    pub fn of(event: &EventRef<'a>, properties: &Properties<'a, '_>) -> Option<Self> {
        let sign = match event.event_type {
            "add_to_cart" => 1,
            "remove_from_cart" => -1,
            "purchase" => 0,
            _ => return None,
        };
        let mut change =
            Self { at: event.timestamp, event_id: event.event_id.into(), item: None, quantity: 0, price: None };
        if sign != 0 {
            let name = |name: &&str| properties.get(name)?.label().filter(|name| !name.is_empty());
            change.item = Some(storable(ITEM.iter().find_map(name)?, MAX_ITEM));
            change.quantity = sign * quantity(properties)?;
            change.price = properties.get("price").and_then(|price| price.number());
        }
        Some(change)
    }
}

fn quantity(properties: &Properties<'_, '_>) -> Option<i64> {
    let Some(given) = properties.get("quantity").filter(|given| !given.is_null()) else { return Some(1) };
    let whole = given.number()?.to_string().parse::<i64>().ok()?;
    (whole > 0).then_some(whole.min(MAX_QUANTITY))
}

/// Those of a session id's cart events that its cart depends on, whatever else will come, each once and in order of time.
/// What is not later than the last purchase, or a day older than the latest event, means nothing any more: both bounds only
/// ever move on. Of the rest it is the latest [`MOST`].
pub fn needed(events: Vec<CartEvent<'_>>) -> Vec<CartEvent<'_>> {
    latest(events, MOST)
}

fn latest(mut events: Vec<CartEvent<'_>>, most: usize) -> Vec<CartEvent<'_>> {
    events.sort_by(|a, b| (a.at, &a.event_id).cmp(&(b.at, &b.event_id)));
    events.dedup_by(|b, a| (a.at, &a.event_id) == (b.at, &b.event_id));
    let Some(last) = events.last() else { return events };
    let bought_at = events.iter().rev().find(|event| event.item.is_none()).map(|event| event.at);
    let bound = bought_at.unwrap_or(i64::MIN).max(last.at - KEPT);
    events.retain(|event| event.at > bound || (event.at == bound && event.item.is_none()));
    // Only then, so that what has gone here is earlier than `most` that are left, and so is all that its bound kept out.
    let too_many = events.len().saturating_sub(most);
    events.drain(..too_many);
    events
}

/// Cart events as they are kept: each a line of JSON, `[at, eventId, item, quantity, price]`, so that some are added by
/// writing them behind the others.
#[derive(Debug)]
pub struct Lines {
    /// The lines.
    pub text: String,
    /// When the latest of the events happened, in microseconds since 1970.
    pub latest: i64,
}

/// A line: see [`Lines`]; a price is a text, since JSON's numbers are not exact.
type Written<'a> = (i64, Cow<'a, str>, Option<Cow<'a, str>>, i64, Option<Cow<'a, str>>);

impl Default for Lines {
    fn default() -> Self {
        Self { text: String::new(), latest: i64::MIN }
    }
}

impl Lines {
    /// Adds an event.
    pub fn add(&mut self, event: &CartEvent<'_>) {
        let CartEvent { at, event_id, item, quantity, price } = event;
        let price = price.map(|price| price.to_string());
        let line = serde_json::to_string(&(at, event_id, item, quantity, price));
        self.text.push_str(&line.expect("texts and numbers are JSON"));
        self.text.push('\n');
        self.latest = self.latest.max(*at);
    }

    /// The events in a text.
    pub fn read(text: &str) -> serde_json::Result<Vec<CartEvent<'_>>> {
        let read = |line| {
            let (at, event_id, item, quantity, price): Written<'_> = serde_json::from_str(line)?;
            let price = price.and_then(|price| Decimal::parse(&price));
            Ok(CartEvent { at, event_id, item, quantity, price })
        };
        text.lines().map(read).collect()
    }
}

impl Cart {
    /// The cart that a session id's events make; none without any. Those that are not [`needed`] may be among them or
    /// not.
    pub fn of(events: Vec<CartEvent<'_>>) -> Option<Self> {
        let events = needed(events);
        let changed_at = events.last()?.at;
        let mut lines = BTreeMap::<String, Line>::new();
        for event in events {
            let Some(item) = event.item else { continue };
            let line = lines.entry(item.into_owned()).or_default();
            line.quantity += event.quantity;
            line.price = event.price.or(line.price);
        }
        lines.retain(|_, line| line.quantity > 0);
        Some(Self { changed_at, lines })
    }

    /// How many things are in it.
    pub fn total_items(&self) -> i64 {
        self.lines.values().map(|line| line.quantity).sum()
    }

    /// What they cost together; those without a price cost nothing.
    pub fn total_value(&self) -> Decimal {
        self.lines.values().map(|line| line.price.unwrap_or_default() * line.quantity).sum()
    }
}

/// A cart as a Redis hash: what the stream writes is what the query service reads.
pub mod hash {
    use std::collections::HashMap;

    use super::{Cart, Decimal, Line};

    /// Items beyond these, by name, are not in the hash, only in its totals.
    const MOST: usize = 1_000;
    /// What the fields of items begin with; their values are a quantity and, behind a space, a price if there is one.
    const ITEM: &str = "item:";

    /// Fields and values.
    pub fn fields(cart: &Cart) -> Vec<(String, String)> {
        let mut fields = vec![
            ("total_items".to_owned(), cart.total_items().to_string()),
            ("total_value".to_owned(), cart.total_value().to_string()),
            ("changed_at".to_owned(), cart.changed_at.to_string()),
        ];
        fields.extend(cart.lines.iter().take(MOST).map(|(item, line)| {
            let price = line.price.map(|price| format!(" {price}")).unwrap_or_default();
            (format!("{ITEM}{item}"), format!("{}{price}", line.quantity))
        }));
        fields
    }

    /// The cart in a hash; none where fields are missing, or items that were too many.
    pub fn cart(hash: &HashMap<String, String>) -> Option<Cart> {
        let mut cart = Cart { changed_at: hash.get("changed_at")?.parse().ok()?, ..Cart::default() };
        for (field, value) in hash {
            let Some(item) = field.strip_prefix(ITEM) else { continue };
            let (quantity, price) = match value.split_once(' ') {
                Some((quantity, price)) => (quantity, Some(Decimal::parse(price)?)),
                None => (value.as_str(), None),
            };
            cart.lines.insert(item.to_owned(), Line { quantity: quantity.parse().ok()?, price });
        }
        (hash.get("total_items")?.parse() == Ok(cart.total_items())).then_some(cart)
    }
}

#[cfg(test)]
mod tests {
    use tidemill_common::event::Event;

    use super::*;
    use crate::properties::Fields;
    use proptest::prelude::*;

    fn change(at: i64, id: &str, item: Option<&str>, quantity: i64, price: Option<i64>) -> CartEvent<'static> {
        let (event_id, item) = (Cow::Owned(id.to_owned()), item.map(|item| Cow::Owned(item.to_owned())));
        CartEvent { at, event_id, item, quantity, price: price.map(Decimal::from) }
    }

    fn read(event_type: &str, json: &str) -> Option<(Option<String>, i64, Option<String>)> {
        let event = Event::new("e", event_type, 0);
        let fields = Fields::read(json);
        let change = CartEvent::of(&event.as_ref(), &fields.of(json))?;
        Some((change.item.map(Cow::into_owned), change.quantity, change.price.map(|price| price.to_string())))
    }

    #[test]
    fn events_say_what_they_do() {
        let item = |name: &str| Some(name.to_owned());
        assert_eq!(
            read("add_to_cart", r#"{"sku":"a","quantity":"2","price":9.50}"#),
            Some((item("a"), 2, item("9.5")))
        );
        assert_eq!(read("remove_from_cart", r#"{"product_id":7,"name":"x"}"#), Some((item("7"), -1, None)));
        assert_eq!(read("purchase", r#"{"sku":"a"}"#), Some((None, 0, None)));
        for nothing in
            [r#"{"price":1}"#, r#"{"sku":""}"#, r#"{"sku":"a","quantity":0}"#, r#"{"sku":"a","quantity":1.5}"#]
        {
            assert_eq!(read("add_to_cart", nothing), None, "{nothing}");
        }
        assert_eq!(read("view", r#"{"sku":"a"}"#), None);
        let hostile = format!(r#"{{"sku":"a\u0000{}","quantity":999999999999}}"#, "b".repeat(500));
        let (name, quantity, _) = read("add_to_cart", &hostile).expect("an item");
        assert!(name.expect("a name").starts_with("a\u{fffd}b"));
        assert_eq!(quantity, MAX_QUANTITY);
    }

    #[test]
    fn a_purchase_empties_what_came_before_it() {
        let cart = Cart::of(vec![
            change(1, "a", Some("x"), 2, Some(5)),
            change(3, "b", None, 0, None),
            change(3, "c", Some("tie"), 1, None),
            change(4, "d", Some("y"), 3, Some(7)),
            change(5, "e", Some("y"), -1, None),
            change(6, "f", Some("z"), -4, None),
        ])
        .expect("a cart");
        assert_eq!(cart.lines.keys().collect::<Vec<_>>(), ["y"]);
        assert_eq!((cart.total_items(), cart.total_value()), (2, Decimal::from(14)));
        assert_eq!(cart.changed_at, 6);
        let mut fields: std::collections::HashMap<_, _> = hash::fields(&cart).into_iter().collect();
        assert_eq!((&*fields["item:y"], &*fields["total_items"], &*fields["total_value"]), ("2 7", "2", "14"));
        assert_eq!(hash::cart(&fields), Some(cart));
        fields.remove("item:y");
        assert_eq!(hash::cart(&fields), None, "a torn copy is none");
        assert_eq!(Cart::of(Vec::new()), None);
    }

    #[test]
    fn a_day_later_an_item_is_forgotten() {
        let at = |later: i64| {
            let events = vec![change(0, "a", Some("x"), 1, None), change(later, "b", Some("y"), 1, None)];
            Cart::of(events).expect("a cart").lines.len()
        };
        assert_eq!((at(KEPT - 1), at(KEPT)), (2, 1));
    }

    #[test]
    fn a_cart_is_made_of_its_latest_events() {
        let put = |at: i64| change(at, "e", Some("x"), 1, None);
        let cart = Cart::of((0..MOST as i64 + 5).map(put).collect()).expect("a cart");
        assert_eq!(cart.total_items(), MOST as i64);
        assert_eq!(Cart::of(vec![put(1), put(1), put(2)]).expect("a cart").total_items(), 2, "the same event again");
    }

    #[test]
    fn events_are_lines() {
        let events = [
            change(-5, "a", Some("x\n\"é\u{1}"), 2, Some(7)),
            change(9, "b", None, 0, None),
            CartEvent { price: Decimal::parse("0.10"), ..change(7, "c", Some(""), -1, None) },
        ];
        let mut lines = Lines::default();
        events.iter().for_each(|event| lines.add(event));
        assert_eq!((lines.latest, lines.text.lines().count()), (9, 3));
        assert_eq!(Lines::read(&lines.text).expect("lines"), events);
        assert!(Lines::read("[1]\n").is_err());
    }

    proptest! {
        /// In any order, with what is not needed thrown away at any time, as the store does.
        #[test]
        fn the_order_of_arrival_does_not_matter(
            drawn in prop::collection::vec((0i64..40, 0usize..4, -2i64..4, prop::option::of(0i64..9)), 1..30),
            batch in 1usize..6,
            most in 1usize..30,
        ) {
            const ITEMS: [Option<&str>; 4] = [None, Some("x"), Some("y"), Some("z")];
            let events: Vec<_> = drawn
                .iter()
                .enumerate()
                .map(|(i, &(at, item, quantity, price))| change(at * KEPT / 12, &i.to_string(), ITEMS[item], quantity, price))
                .collect();
            let mut kept = Vec::new();
            for batch in events.chunks(batch) {
                kept.extend_from_slice(batch);
                kept = latest(kept, most);
            }
            let whole = latest(events.into_iter().rev().collect(), most);
            prop_assert_eq!(kept, whole);
        }
    }
}

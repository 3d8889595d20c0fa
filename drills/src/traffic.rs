//! Made-up traffic, decided by a seed: events of users in sessions that go on while others begin, some of them late,
//! some sent again later, some that are no events at all. They buy and fill carts, come from somewhere, and leave things
//! out.

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};
use tidemill_common::event::Event;

use crate::oracle::{ADDRESSES, AGENTS, ORIGINS};

const MINUTE: i64 = 60 * 1_000_000;
/// Copies are drawn from this many of the latest events.
const RECENT: usize = 2_000;
const TYPES: [&str; 11] = [
    "page_view",
    "click",
    "search",
    "product_view",
    "add_to_cart",
    "remove_from_cart",
    "purchase",
    "order_completed",
    "scroll",
    "share",
    "login",
];

/// What traffic is like.
#[derive(Debug, Clone)]
pub struct Style {
    /// How many users there are.
    pub users: u32,
    /// The share of records that are copies of earlier events.
    pub copies: f64,
    /// The share of records that are no events.
    pub garbage: f64,
    /// The share of events that happened up to `latest` before they are sent; others up to five seconds.
    pub late: f64,
    /// In microseconds.
    pub latest: i64,
    /// What is added to the producer's clock, in microseconds: one of these.
    pub clocks: Vec<i64>,
}

impl Default for Style {
    fn default() -> Self {
        Self { users: 60, copies: 0.03, garbage: 0.004, late: 0.2, latest: 50 * MINUTE, clocks: vec![0] }
    }
}

/// Something to send.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// An event.
    Event(Event),
    /// Bytes that are none.
    Garbage {
        /// The record's key, by which it is known.
        key: String,
        /// What is wrong with it.
        flaw: Flaw,
    },
}

/// Why something is not an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Not the framing.
    NotAvro,
    /// A datum that ends too early.
    CutShort,
    /// An event of 1970.
    Ancient,
}

/// A source of items.
#[derive(Debug)]
pub struct Traffic {
    random: StdRng,
    run: String,
    number: u64,
    /// Which session each user is in.
    visits: Vec<u32>,
    recent: VecDeque<Event>,
    style: Style,
}

impl Traffic {
    /// Traffic whose ids begin with `run`.
    pub fn new(seed: u64, run: &str, style: Style) -> Self {
        let visits = vec![0; style.users as usize];
        let (random, recent) = (StdRng::seed_from_u64(seed), VecDeque::new());
        Self { random, run: run.to_owned(), number: 0, visits, recent, style }
    }

    /// The next items, sent at `now` (microseconds since 1970).
    pub fn items(&mut self, count: usize, now: i64) -> Vec<Item> {
        (0..count).map(|_| self.item(now)).collect()
    }

    /// The next new events.
    pub fn events(&mut self, count: usize, now: i64) -> Vec<Event> {
        (0..count).map(|_| self.event(now)).collect()
    }

    fn item(&mut self, now: i64) -> Item {
        if self.random.random_bool(self.style.garbage) {
            self.number += 1;
            let flaw = *[Flaw::NotAvro, Flaw::CutShort, Flaw::Ancient].choose(&mut self.random).expect("not empty");
            return Item::Garbage { key: format!("{}-bad-{}", self.run, self.number), flaw };
        }
        if !self.recent.is_empty() && self.random.random_bool(self.style.copies) {
            let index = self.random.random_range(0..self.recent.len());
            return Item::Event(self.recent[index].clone());
        }
        Item::Event(self.event(now))
    }

    fn event(&mut self, now: i64) -> Event {
        self.number += 1;
        let user = self.random.random_range(0..self.visits.len());
        if self.random.random_bool(0.04) {
            self.visits[user] += 1;
        }
        let event_type = *TYPES.choose(&mut self.random).expect("not empty");
        let event = Event::new(format!("{}-{}", self.run, self.number), event_type, self.time(now));
        let event = Event {
            properties: Some(self.properties(event_type)),
            user_agent: self.maybe(0.8, |random| Some(AGENTS.choose(random)?.0.to_owned())),
            client_address: self.maybe(0.8, |random| Some((*ADDRESSES.choose(random)?).to_owned())),
            ..self.named(user, event)
        };
        self.recent.push_back(event.clone());
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        event
    }

    fn time(&mut self, now: i64) -> i64 {
        let latest = if self.random.random_bool(self.style.late) { self.style.latest } else { 5_000_000 };
        let clock = self.style.clocks.choose(&mut self.random).copied().unwrap_or_default();
        now + clock - self.random.random_range(0..latest)
    }

    /// Most events name a session and a user; some only the user, whose sessions they make; and some in a hundred
    /// neither: they count only in metrics. Some session ids look like the keys of users.
    fn named(&mut self, user: usize, event: Event) -> Event {
        let (named, in_session) = (self.random.random_bool(0.95), self.random.random_bool(0.85));
        let mark = if user.is_multiple_of(20) { "\u{1}" } else { "" };
        Event {
            user_id: named.then(|| format!("u-{user}")),
            session_id: (named && in_session).then(|| format!("{mark}s-{user}-{}", self.visits[user])),
            ..event
        }
    }

    fn properties(&mut self, event_type: &str) -> String {
        let product = self.random.random_range(0..40);
        let mut properties = match event_type {
            "page_view" => match self.random.random_range(0..10) {
                0 => json!({}),
                1 => json!({ "path": format!("/q/{product}") }),
                _ => json!({ "page": format!("/p/{product}") }),
            },
            "product_view" => json!({ "product": product }),
            "scroll" => json!({ "depth": product }),
            "purchase" | "order_completed" => self.order(),
            "add_to_cart" | "remove_from_cart" => self.line(product),
            _ => json!({}),
        };
        let origin = self.maybe(0.2, |random| ORIGINS.choose(random));
        if let (Some((name, value, _)), Some(properties)) = (origin, properties.as_object_mut()) {
            properties.insert((*name).to_owned(), json!(value));
        }
        properties.to_string()
    }

    /// What was bought: an amount, perhaps in quotes, perhaps negative or not said.
    fn order(&mut self) -> Value {
        let mut order = Map::new();
        let name = ["total", "total", "total", "revenue", "value"].choose(&mut self.random).copied();
        let amount = self.amount(-500..20_000);
        let quoted = self.random.random_bool(0.2);
        let amount = if quoted { json!(amount.to_string()) } else { json!(amount) };
        order.extend(name.map(|name| (name.to_owned(), amount)).filter(|_| self.random.random_bool(0.9)));
        let currency = self.maybe(0.9, |random| ["EUR", "USD", "JPY"].choose(random));
        order.extend(currency.map(|currency| ("currency".to_owned(), json!(currency))));
        Value::Object(order)
    }

    /// An item of a cart: some are without a number or a price, few without a name.
    fn line(&mut self, product: i32) -> Value {
        let mut line = Map::new();
        let name = *["productId", "sku", "item"].choose(&mut self.random).expect("not empty");
        // Few items for each session, so that some are put in twice and taken out again.
        let item = if product < 2 { Value::Null } else { json!(format!("i-{}", product % 4)) };
        line.insert(name.to_owned(), item);
        let (quantity, price) = (self.random.random_range(1..=3), self.amount(1..5_000));
        line.extend(self.maybe(0.7, |_| Some(("quantity".to_owned(), json!(quantity)))));
        line.extend(self.maybe(0.8, |_| Some(("price".to_owned(), json!(price)))));
        Value::Object(line)
    }

    /// An amount of so many cents.
    fn amount(&mut self, cents: std::ops::Range<i32>) -> f64 {
        f64::from(self.random.random_range(cents)) / 100.0
    }

    fn maybe<T>(&mut self, share: f64, make: impl FnOnce(&mut StdRng) -> Option<T>) -> Option<T> {
        self.random.random_bool(share).then(|| make(&mut self.random)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000_000;

    #[test]
    fn a_seed_decides_everything() {
        let items = |seed| Traffic::new(seed, "r", Style::default()).items(500, NOW);
        assert_eq!(items(1), items(1));
        assert_ne!(items(1), items(2));
    }

    #[test]
    fn some_items_are_copies_and_some_are_garbage() {
        let items = Traffic::new(1, "r", Style::default()).items(5_000, NOW);
        let garbage = items.iter().filter(|item| matches!(item, Item::Garbage { .. })).count();
        let mut ids: Vec<&str> = items
            .iter()
            .filter_map(|item| match item {
                Item::Event(event) => Some(event.event_id.as_str()),
                Item::Garbage { .. } => None,
            })
            .collect();
        ids.sort_unstable();
        let all = ids.len();
        ids.dedup();
        assert!((5..60).contains(&garbage), "{garbage}");
        assert!((50..300).contains(&(all - ids.len())), "{}", all - ids.len());
    }
}

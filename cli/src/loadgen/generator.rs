//! A shop's visitors, made up. Pure: the same seed gives the same events, apart from the times it is told.
//!
//! Some of the users are visiting at any time. Each event is the next step of one of the visits; a visit has a
//! session id of its own and lasts up to some minutes, then another user comes.

use chrono::{DateTime, SecondsFormat, Utc};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use serde_json::{Value, json};

/// Event types and how often they happen. Only `page_view` names a page.
const TYPES: [(&str, u32); 10] = [
    ("page_view", 40),
    ("product_view", 25),
    ("search", 10),
    ("add_to_cart", 8),
    ("purchase", 3),
    ("remove_from_cart", 2),
    ("checkout_start", 4),
    ("wishlist_add", 3),
    ("login", 3),
    ("review", 2),
];
/// How often each further type happens, beyond those above.
const OTHER_WEIGHT: u32 = 2;
const PAGES: [&str; 8] = ["/", "/sale", "/shoes", "/shirts", "/coats", "/bags", "/help", "/account"];
const SEARCHES: [&str; 6] = ["red shoes", "rain coat", "linen shirt", "backpack", "gift card", "größe 42"];
const PRODUCTS: u32 = 2_000;
/// This share of the users is visiting at any time.
const VISITING: f64 = 0.4;
/// Mean and limits of a visit's length, in seconds.
const VISIT_MEAN: f64 = 90.0;
const VISIT: std::ops::RangeInclusive<f64> = 10.0..=300.0;

/// What the traffic is like.
#[derive(Debug, Clone)]
pub struct Shape {
    pub seed: u64,
    /// Stands in every event and session id, so that runs do not repeat each other's.
    pub run: String,
    pub users: u32,
    pub types: u32,
    /// Events per second, which decide how many events a visit has.
    pub rate: f64,
    /// The share of events that are marked to be sent twice.
    pub duplicates: f64,
}

/// An event as it is sent.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub event_id: String,
    pub event_type: String,
    pub timestamp: String,
    pub user_id: String,
    pub session_id: String,
    pub properties: Value,
}

/// An event, and whether it is to be sent a second time.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    pub event: Event,
    pub again: bool,
}

pub struct Generator {
    shape: Shape,
    rng: StdRng,
    types: Vec<(String, u32)>,
    visits: Vec<Visit>,
    /// Users that are not visiting.
    away: Vec<u32>,
    events: u64,
    sessions: u64,
}

struct Visit {
    user: u32,
    session_id: String,
    /// In seconds since the first event.
    ends: f64,
    /// Prices of the products in the cart, in cents.
    cart: Vec<u32>,
}

impl Generator {
    pub fn new(shape: Shape) -> Self {
        let mut generator = Self {
            rng: StdRng::seed_from_u64(shape.seed),
            types: types(shape.types),
            visits: Vec::new(),
            away: (0..shape.users).collect(),
            events: 0,
            sessions: 0,
            shape,
        };
        let visiting = (f64::from(generator.shape.users) * VISITING).ceil().max(1.0) as usize;
        while generator.visits.len() < visiting {
            let visit = generator.arrive(0.0);
            generator.visits.push(visit);
        }
        generator
    }

    /// The next event, which happens at `now`.
    pub fn next(&mut self, now: DateTime<Utc>) -> Planned {
        // By the planned pace, not by the clock: else two runs would not be alike.
        let at = self.events as f64 / self.shape.rate;
        self.events += 1;
        let slot = self.rng.random_range(0..self.visits.len());
        if self.visits[slot].ends <= at {
            let next = self.arrive(at);
            let left = std::mem::replace(&mut self.visits[slot], next);
            self.away.push(left.user);
        }
        let id = uuid::Builder::from_random_bytes(self.rng.random()).into_uuid();
        let (event_type, properties) = self.step(slot);
        let visit = &self.visits[slot];
        let event = Event {
            event_id: format!("{}-{id}", self.shape.run),
            event_type,
            timestamp: now.to_rfc3339_opts(SecondsFormat::Millis, true),
            user_id: format!("user-{:05}", visit.user),
            session_id: visit.session_id.clone(),
            properties,
        };
        Planned { event, again: self.rng.random_bool(self.shape.duplicates) }
    }

    /// Somebody who is away comes for a visit.
    fn arrive(&mut self, at: f64) -> Visit {
        // With a single user there is nobody away but the one who leaves.
        let user = match self.away.len() {
            0 => self.shape.users.saturating_sub(1),
            away => self.away.swap_remove(self.rng.random_range(0..away)),
        };
        self.sessions += 1;
        let length = -VISIT_MEAN * (1.0 - self.rng.random::<f64>()).ln();
        Visit {
            user,
            session_id: format!("{}-s{}", self.shape.run, self.sessions),
            ends: at + length.clamp(*VISIT.start(), *VISIT.end()),
            cart: Vec::new(),
        }
    }

    /// What the visitor does next, as far as the cart allows.
    fn step(&mut self, slot: usize) -> (String, Value) {
        let rng = &mut self.rng;
        let chosen = self.types.choose_weighted(rng, |(_, weight)| *weight).map(|(name, _)| name.as_str());
        let cart = &mut self.visits[slot].cart;
        let event_type = match chosen.unwrap_or(TYPES[0].0) {
            "purchase" | "checkout_start" | "remove_from_cart" if cart.is_empty() => TYPES[0].0,
            chosen => chosen,
        };
        let product = rng.random_range(0..PRODUCTS);
        let (sku, cents) = (format!("sku-{product:04}"), price(product));
        let properties = match event_type {
            "page_view" => json!({ "page": pick(&PAGES, rng), "referrer": pick(&["direct", "search", "mail"], rng) }),
            "search" => json!({ "query": pick(&SEARCHES, rng), "results": rng.random_range(0..200) }),
            "add_to_cart" => {
                cart.push(cents);
                json!({ "product": sku, "price": euros(cents), "quantity": 1 })
            }
            "remove_from_cart" => json!({ "price": euros(cart.pop().unwrap_or(0)), "quantity": 1 }),
            "checkout_start" => json!({ "items": cart.len(), "total": euros(cart.iter().sum()) }),
            "purchase" => {
                let (items, total) = (cart.len(), cart.drain(..).sum());
                json!({ "items": items, "total": euros(total), "currency": "EUR" })
            }
            "login" => json!({ "method": pick(&["password", "passkey", "link"], rng) }),
            "review" => json!({ "product": sku, "stars": rng.random_range(1..=5) }),
            _ => json!({ "product": sku, "price": euros(cents) }),
        };
        (event_type.to_owned(), properties)
    }
}

fn types(count: u32) -> Vec<(String, u32)> {
    let known = TYPES.iter().map(|(name, weight)| ((*name).to_owned(), *weight));
    let others = (TYPES.len() + 1..).map(|i| (format!("custom_{i}"), OTHER_WEIGHT));
    known.chain(others).take(count.max(1) as usize).collect()
}

/// A product costs the same every time.
fn price(product: u32) -> u32 {
    499 + product.wrapping_mul(7_919) % 20_000
}

fn euros(cents: u32) -> f64 {
    f64::from(cents) / 100.0
}

fn pick<'a>(choices: &[&'a str], rng: &mut StdRng) -> &'a str {
    choices.choose(rng).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use chrono::TimeDelta;

    use super::*;

    fn shape() -> Shape {
        Shape { seed: 7, run: "r".to_owned(), users: 50, types: 10, rate: 100.0, duplicates: 0.02 }
    }

    fn events(shape: Shape, count: usize) -> Vec<Planned> {
        let mut generator = Generator::new(shape);
        let start = DateTime::UNIX_EPOCH + TimeDelta::days(20_000);
        (0..count).map(|i| generator.next(start + TimeDelta::milliseconds(10 * i as i64))).collect()
    }

    #[test]
    fn a_seed_decides_everything() {
        assert_eq!(events(shape(), 2_000), events(shape(), 2_000));
        let other = Shape { seed: 8, ..shape() };
        assert_ne!(events(shape(), 10), events(other, 10));
    }

    #[test]
    fn ids_are_unique_and_bear_the_run() {
        let events = events(shape(), 20_000);
        let ids: HashSet<&str> = events.iter().map(|planned| planned.event.event_id.as_str()).collect();
        assert_eq!(ids.len(), events.len());
        assert!(ids.iter().all(|id| id.starts_with("r-") && id.len() <= 128));
    }

    #[test]
    fn a_session_is_one_users_and_a_user_has_one_at_a_time() {
        let events = events(shape(), 60_000); // ten minutes
        let mut owner = HashMap::new();
        let mut current: HashMap<&str, &str> = HashMap::new();
        let mut over = HashSet::new();
        for Planned { event, .. } in &events {
            assert_eq!(*owner.entry(&event.session_id).or_insert(&event.user_id), &event.user_id);
            assert!(!over.contains(event.session_id.as_str()), "{} goes on after the next began", event.session_id);
            if let Some(before) = current.insert(&event.user_id, &event.session_id)
                && before != event.session_id
            {
                over.insert(before);
            }
        }
        assert!(owner.len() > 60 && !over.is_empty(), "visits end and others begin: {}", owner.len());
    }

    #[test]
    fn all_types_occur_and_some_events_are_to_be_sent_again() {
        let events = events(Shape { types: 12, ..shape() }, 20_000);
        let types: HashSet<&str> = events.iter().map(|planned| planned.event.event_type.as_str()).collect();
        assert_eq!(types.len(), 12);
        assert!(types.contains("custom_12") && types.contains("purchase"));
        let again = events.iter().filter(|planned| planned.again).count();
        assert!((300..500).contains(&again), "2 % of 20000, not {again}");
        let pages = events.iter().filter(|planned| planned.event.properties.get("page").is_some());
        assert!(pages.into_iter().all(|planned| planned.event.event_type == "page_view"));
    }

    #[test]
    fn one_user_and_one_type_are_enough() {
        let events = events(Shape { users: 1, types: 1, rate: 1.0, ..shape() }, 2_000);
        assert!(events.iter().all(|p| p.event.user_id == "user-00000" && p.event.event_type == "page_view"));
    }
}

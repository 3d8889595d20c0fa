//! What stands in an event: about 300 bytes as a shop's pages send them.

use std::fmt::Write;

use tidemill_common::event::EventRef;

use super::traffic::{Arrival, Traffic};
use crate::random::{ID_BYTES, Random, uuid};

/// The ten event types and their shares in a thousand.
const TYPES: [(&str, u64); 10] = [
    ("page_view", 430),
    ("product_view", 190),
    ("click", 130),
    ("scroll", 70),
    ("search", 60),
    ("add_to_cart", 50),
    ("remove_from_cart", 15),
    ("checkout", 20),
    ("purchase", 15),
    ("login", 20),
];
const AGENTS: [&str; 4] = [
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Version/17.5 Safari/604.1",
    "Mozilla/5.0 (Linux; Android 14) AppleWebKit/537.36 Chrome/126.0 Mobile Safari/537.36",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/126.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) AppleWebKit/605.1.15 Version/17.5 Safari/605.1.15",
];
const REFERRERS: [&str; 4] =
    ["https://www.google.com/", "https://news.example.com/a", "https://t.co/x1", "https://www.bing.com/"];
const COUNTRIES: [&str; 6] = ["FR", "AT", "NL", "PL", "SE", "DE"];
const SECTIONS: [&str; 6] = ["", "sale", "men/jackets", "women/shoes", "outdoor", "account/orders"];

/// Makes events of traffic; holds the texts of the last one.
pub struct Content<'a> {
    traffic: &'a Traffic,
    /// The time at which the traffic starts, in microseconds since 1970.
    start_us: i64,
    id: [u8; ID_BYTES],
    user: String,
    session: String,
    properties: String,
}

impl<'a> Content<'a> {
    /// The events of traffic that starts at a time, in microseconds since 1970.
    pub fn new(traffic: &'a Traffic, start_us: i64) -> Self {
        let text = String::new;
        Self { traffic, start_us, id: [b'0'; ID_BYTES], user: text(), session: text(), properties: text() }
    }

    /// The event of a record. A copy gives the same bytes as its original.
    pub fn event(&mut self, record: &Arrival) -> EventRef<'_> {
        let mut random = Random::new(self.traffic.shape.seed, u64::from(record.visit) << 16 | u64::from(record.number));
        self.id = uuid(random.next(), random.next());
        let user = self.traffic.user(record.session);
        set(&mut self.user, format_args!("user-{user}"));
        set(&mut self.session, format_args!("s-{:012x}", u64::from(record.session) * 0x9e37_79b1));
        let event_type = event_type(&mut random);
        self.properties.clear();
        properties(&mut self.properties, event_type, record, &mut random);
        if self.traffic.shape.countries {
            add_country(&mut self.properties, user);
        }
        let timestamp = self.start_us + i64::from(record.time_ms) * 1_000;
        EventRef {
            event_id: std::str::from_utf8(&self.id).unwrap_or_default(),
            event_type,
            timestamp,
            received_at: Some(timestamp + 40_000),
            user_id: Some(&self.user),
            session_id: Some(&self.session),
            event_action: None,
            properties: Some(&self.properties),
            client_address: Some("203.0.113.0"),
            user_agent: Some(AGENTS[user as usize % AGENTS.len()]),
        }
    }
}

fn set(text: &mut String, to: std::fmt::Arguments<'_>) {
    text.clear();
    let _ = text.write_fmt(to); // a String takes everything
}

fn event_type(random: &mut Random) -> &'static str {
    let mut drawn = random.below(1_000);
    for (name, share) in TYPES {
        if drawn < share {
            return name;
        }
        drawn -= share;
    }
    TYPES[0].0
}

fn properties(out: &mut String, event_type: &str, record: &Arrival, random: &mut Random) {
    let section = SECTIONS[random.below(SECTIONS.len() as u64) as usize];
    let (product, price) = (random.below(5_000), 500 + random.below(20_000));
    let _ = write!(out, r#"{{"page":"/{section}"#);
    let _ = match event_type {
        "page_view" | "click" | "login" => {
            write!(out, r#"","title":"Outdoor clothing and shoes","element":"nav-{}""#, product % 40)
        }
        "scroll" => write!(out, r#"","depth":{},"viewport":"1440x900""#, price % 100),
        "search" => write!(out, r#"","query":"rain jacket {}","results":{}"#, product % 300, price % 90),
        "purchase" | "checkout" => write!(
            out,
            r#"","orderId":"o-{product}{price}","revenue":{}.{:02},"currency":"EUR","items":{}"#,
            price / 100,
            price % 100,
            1 + product % 4
        ),
        _ => write!(
            out,
            r#"/{product}","productId":"p-{product}","price":{}.{:02},"currency":"EUR","quantity":{}"#,
            price / 100,
            price % 100,
            1 + product % 3
        ),
    };
    // Where a visitor came from stands in the first event only.
    let _ = match record.number {
        0 => write!(
            out,
            r#","referrer":"{}","utm_source":"newsletter"}}"#,
            REFERRERS[record.visit as usize % REFERRERS.len()]
        ),
        _ => write!(out, r#","referrer":"https://shop.example.com/{section}"}}"#),
    };
}

/// Most visitors come from the first countries.
fn add_country(properties: &mut String, user: u64) {
    let country = COUNTRIES[(1 + user % 63).ilog2() as usize % COUNTRIES.len()];
    properties.pop(); // the closing bracket
    let _ = write!(properties, r#","country":"{country}"}}"#);
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::stream::traffic::{Sessions, Shape};

    #[test]
    fn events_are_valid_and_as_long_as_real_ones() {
        let traffic = Traffic::new(Shape::dense(20_000, Sessions::Visits, 3));
        let now = 1_800_000_000_000_000;
        let mut content = Content::new(&traffic, now);
        let (mut types, mut bytes) = (HashMap::<String, u64>::new(), 0);
        for record in &traffic.records {
            let event = content.event(record);
            assert_eq!(event.validate(now + 3_600_000_000), Ok(()));
            let json: serde_json::Value = serde_json::from_str(event.properties.expect("some")).expect("JSON");
            assert!(json["page"].is_string());
            *types.entry(event.event_type.to_owned()).or_default() += 1;
            bytes += event.properties.map_or(0, str::len) + event.user_agent.map_or(0, str::len) + 36 + 16 + 12 + 11;
        }
        assert_eq!(types.len(), 10);
        assert!((8_000..9_200).contains(&types["page_view"]), "{types:?}");
        let mean = bytes as u64 / 20_000;
        assert!((270..330).contains(&mean), "{mean}");
    }

    #[test]
    fn countries_are_added_where_they_are_wanted() {
        let shape = Shape { countries: true, ..Shape::dense(20_000, Sessions::Visits, 3) };
        let traffic = Traffic::new(shape);
        let mut content = Content::new(&traffic, 0);
        let mut countries = HashMap::<String, u64>::new();
        for record in &traffic.records {
            let properties = content.event(record).properties.expect("some");
            let json: serde_json::Value = serde_json::from_str(properties).expect("JSON");
            *countries.entry(json["country"].as_str().expect("text").to_owned()).or_default() += 1;
        }
        assert_eq!(countries.len(), COUNTRIES.len());
        assert!(countries["DE"] > countries["FR"], "{countries:?}");
    }

    #[test]
    fn a_copy_is_the_same_event() {
        let traffic = Traffic::new(Shape::dense(20_000, Sessions::Drawn, 3));
        let (mut one, mut other) = (Content::new(&traffic, 0), Content::new(&traffic, 0));
        let copy = traffic.records.iter().find(|record| record.copy).expect("a copy");
        let is_original =
            |record: &&Arrival| (record.visit, record.number, record.copy) == (copy.visit, copy.number, false);
        let original = traffic.records.iter().find(is_original).expect("its original");
        assert_eq!(format!("{:?}", one.event(copy)), format!("{:?}", other.event(original)));
    }
}

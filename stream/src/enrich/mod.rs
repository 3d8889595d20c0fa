//! What an event says beside its own fields: device, source, country, page, and what was bought. Found out once per
//! event, for the processed topic, the session and the cart alike.

mod country;
mod device;
mod source;

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::net::IpAddr;
use std::path::Path;

use tidemill_common::event::EventRef;

pub use country::{BadFile, Country};
pub use device::Device;
pub use source::{DIRECT, Source};

use crate::decimal::Decimal;
use crate::properties::Properties;
use crate::quick_map::QuickMap;
use country::Countries;

/// So many user agents, hosts and addresses are remembered.
const REMEMBERED: usize = 20_000;
/// Longer texts are looked through anew each time, so that they cannot fill the memory.
const LONGEST: usize = 512;

/// What was found out about an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traits {
    /// What it was sent from; none without a user agent.
    pub device: Option<Device>,
    /// What brought its user here; none: nothing says so.
    pub source: Option<Source>,
    /// Where its client is.
    pub country: Option<Country>,
    /// Whether its type is one of the conversions.
    pub conversion: bool,
    /// What a conversion brought in.
    pub revenue: Option<Decimal>,
}

/// Finds out. Remembers what it has seen.
pub struct Enricher {
    conversions: HashSet<String, ahash::RandomState>,
    countries: Option<Countries>,
    devices: Memory<Box<str>, Device>,
    hosts: Memory<Box<str>, Source>,
    places: Memory<Box<str>, Option<Country>>,
}

impl Enricher {
    /// An enricher for which these event types are conversions, with a file of countries if there is one.
    pub fn new(conversions: &[String], countries: Option<&Path>) -> Result<Self, BadFile> {
        Ok(Self {
            conversions: conversions.iter().cloned().collect(),
            countries: countries.map(Countries::open).transpose()?,
            devices: Memory::default(),
            hosts: Memory::default(),
            places: Memory::default(),
        })
    }

    /// Everything about one event.
    pub fn traits(&mut self, event: &EventRef<'_>, properties: &Properties<'_, '_>) -> Traits {
        let conversion = self.conversions.contains(event.event_type);
        Traits {
            device: event.user_agent.map(|user_agent| self.devices.recall(user_agent, Device::of)),
            source: Source::of(properties, |host| self.hosts.recall(host, Source::of_host)),
            country: event.client_address.and_then(|address| self.country(address)),
            conversion,
            revenue: if conversion { revenue(properties) } else { None },
        }
    }

    fn country(&mut self, address: &str) -> Option<Country> {
        let countries = self.countries.as_ref()?;
        self.places.recall(address, |address| countries.find(address.parse::<IpAddr>().ok()?))
    }
}

/// The first of `revenue`, `total` and `value` that is a number, also one in quotes; a negative one takes away.
fn revenue(properties: &Properties<'_, '_>) -> Option<Decimal> {
    ["revenue", "total", "value"].iter().find_map(|name| properties.get(name)?.number())
}

/// Answers by question. When there are too many it begins anew, which costs less than to know which are old.
struct Memory<K, V>(QuickMap<K, V>);

impl<K, V> Default for Memory<K, V> {
    fn default() -> Self {
        Self(QuickMap::default())
    }
}

impl<V: Copy> Memory<Box<str>, V> {
    fn recall(&mut self, question: &str, answer: impl FnOnce(&str) -> V) -> V
    where
        Box<str>: Borrow<str> + Hash,
    {
        if let Some(known) = self.0.get(question) {
            return *known;
        }
        let found = answer(question);
        if question.len() <= LONGEST {
            if self.0.len() >= REMEMBERED {
                self.0.clear();
            }
            self.0.insert(question.into(), found);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use tidemill_common::event::Event;

    use super::*;
    use crate::properties::Fields;

    fn event(event_type: &str, properties: &str) -> Event {
        Event {
            properties: Some(properties.into()),
            client_address: Some("8.8.8.0".into()),
            user_agent: Some("curl/8".into()),
            ..Event::new("e", event_type, 0)
        }
    }

    fn traits(enricher: &mut Enricher, event_type: &str, properties: &str) -> Traits {
        let fields = Fields::read(properties);
        enricher.traits(&event(event_type, properties).as_ref(), &fields.of(properties))
    }

    #[test]
    fn conversions_bring_revenue() {
        let mut enricher = Enricher::new(&["purchase".into()], None).expect("an enricher");
        let mut revenue = |event_type: &str, properties: &str| {
            traits(&mut enricher, event_type, properties).revenue.map(|revenue| revenue.to_string())
        };
        assert_eq!(revenue("purchase", r#"{"value":1,"total":"2.50","price":9}"#).as_deref(), Some("2.5"));
        assert_eq!(revenue("purchase", r#"{"revenue":null,"total":-3}"#).as_deref(), Some("-3"));
        assert_eq!(revenue("purchase", r#"{"price":9}"#), None);
        assert_eq!(revenue("view", r#"{"revenue":9}"#), None);
    }

    #[test]
    fn all_of_it_at_once() {
        let path = std::env::temp_dir().join(format!("countries-{}.mmdb", uuid()));
        std::fs::write(&path, tidemill_testkit::countries("NL", "JP")).expect("a file");
        let mut enricher = Enricher::new(&["purchase".into()], Some(&path)).expect("an enricher");
        std::fs::remove_file(&path).expect("the file");
        for _ in 0..2 {
            let found = traits(&mut enricher, "purchase", r#"{"utm_medium":"cpc","total":0.10}"#);
            let expected = Traits {
                device: Some(Device::Bot),
                source: Some(Source::Paid),
                country: Country::parse("NL"),
                conversion: true,
                revenue: Decimal::parse("0.1"),
            };
            assert_eq!(found, expected);
        }
    }

    fn uuid() -> String {
        format!("{}-{:?}", std::process::id(), std::thread::current().id()).replace(['(', ')'], "")
    }

    #[test]
    fn memory_is_bounded() {
        let mut memory = Memory::<Box<str>, usize>::default();
        for i in 0..REMEMBERED + 5 {
            memory.recall(&i.to_string(), str::len);
        }
        assert_eq!(memory.0.len(), 5);
        memory.recall(&"x".repeat(LONGEST + 1), str::len);
        assert_eq!(memory.0.len(), 5);
        assert_eq!(memory.recall("3", |_| 7), 7, "forgotten");
    }

    /// `cargo test --release -- --ignored --nocapture what_it_costs`
    #[test]
    #[ignore = "a measurement"]
    fn what_it_costs() {
        let mut enricher = Enricher::new(&["purchase".into()], None).expect("an enricher");
        let text = r#"{"page":"/products/7","device":"mobile","price":12.5,"referrer":"https://www.google.com/","title":"A jacket"}"#;
        let mut event = event("view", text);
        let agents: Vec<String> = (0..1_000)
            .map(|i| format!("Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/{i}.0 Safari/537.36"))
            .collect();
        let started = std::time::Instant::now();
        let count = 1_000_000_u32;
        for i in 0..count as usize {
            event.user_agent.clone_from(&Some(agents[i % agents.len()].clone()));
            let fields = Fields::read(text);
            std::hint::black_box(enricher.traits(&event.as_ref(), &fields.of(text)));
        }
        println!("{:?} per event, reading the properties included", started.elapsed() / count);
    }
}

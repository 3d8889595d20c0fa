//! What is kept of events until their batch is committed.

use std::ops::Range;
use std::sync::Arc;

use tidemill_common::event::EventRef;
use tidemill_common::origin::Origin;

use crate::enrich::Traits;
use crate::metric::{Enriched, Subject};
use crate::properties::{Fields, Properties};

/// A first sight, to be counted: an event without what only enrichment reads, and with what that has found.
#[derive(Debug)]
pub struct Counted {
    piece: Arc<Piece>,
    place: Place,
    /// What else it says.
    pub traits: Traits,
    /// Where it stands in the log.
    pub origin: Origin,
}

/// What events have that were kept together. There are two hundred thousand of them at a time, made by one thread and
/// dropped by another, so memory for each would cost as much as judging it.
#[derive(Debug)]
struct Piece {
    project: Arc<str>,
    generation: i32,
    /// Their texts, one behind the other.
    text: Box<str>,
    /// Those of all their properties.
    fields: Fields,
}

/// Where an event stands in its piece, and its numbers.
#[derive(Debug)]
struct Place {
    timestamp: i64,
    received_at: Option<i64>,
    start: usize,
    /// Where the id, the type, and each of the optional texts ends, from there.
    ends: [u32; 6],
    fields: Range<u32>,
    /// Which of the optional texts are there.
    present: [bool; 4],
}

/// Events that will be kept together.
#[derive(Debug, Default)]
pub struct Keeping {
    text: String,
    fields: Fields,
    kept: Vec<(Place, Traits, Origin)>,
}

impl Keeping {
    /// Reads the properties of an event that may be kept; none if they are no object.
    pub fn read(&mut self, properties: &str) -> Option<Range<u32>> {
        self.fields.add(properties)
    }

    /// Adds an event, and what `find_out` says of it; gives that.
    pub fn keep(
        &mut self,
        event: &EventRef<'_>,
        origin: Origin,
        find_out: impl FnOnce(&Properties<'_, '_>) -> Traits,
    ) -> &Traits {
        let fields = event.properties.and_then(|properties| self.read(properties)).unwrap_or_default();
        self.keep_read(event, fields, origin, find_out)
    }

    /// Adds an event whose properties were [read](Self::read). An event comes from a record of Kafka, so its texts are
    /// shorter than 2 GiB.
    pub fn keep_read(
        &mut self,
        event: &EventRef<'_>,
        fields: Range<u32>,
        origin: Origin,
        find_out: impl FnOnce(&Properties<'_, '_>) -> Traits,
    ) -> &Traits {
        let optional = [event.user_id, event.session_id, event.event_action, event.properties];
        let [user, session, action, properties] = optional.map(Option::unwrap_or_default);
        let start = self.text.len();
        let ends = [event.event_id, event.event_type, user, session, action, properties].map(|text| {
            self.text.push_str(text);
            (self.text.len() - start) as u32
        });
        let traits = find_out(&self.fields.part(fields.clone(), properties));
        let present = optional.map(|text| text.is_some());
        let (timestamp, received_at) = (event.timestamp, event.received_at);
        self.kept.push((Place { timestamp, received_at, start, ends, fields, present }, traits, origin));
        &self.kept[self.kept.len() - 1].1
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.text.clear();
        self.fields.clear();
        self.kept.clear();
    }

    /// Gives them, to be counted in this project and generation.
    pub fn take(&mut self, project: Arc<str>, generation: i32, into: &mut Vec<Counted>) {
        if self.kept.is_empty() {
            return;
        }
        // Copied, so that there is no room to spare.
        let piece =
            Arc::new(Piece { project, generation, text: self.text.as_str().into(), fields: self.fields.clone() });
        let counted = |(place, traits, origin)| Counted { piece: Arc::clone(&piece), place, traits, origin };
        into.extend(self.kept.drain(..).map(counted));
        self.clear();
    }
}

impl Counted {
    /// One that is kept alone, and of which nothing was found out.
    pub fn new(project: impl Into<Arc<str>>, generation: i32, event: &EventRef<'_>, origin: Origin) -> Self {
        let (mut keeping, mut counted) = (Keeping::default(), Vec::new());
        keeping.keep(event, origin, |_| Traits::default());
        keeping.take(project.into(), generation, &mut counted);
        counted.remove(0)
    }

    /// Its project.
    pub fn project(&self) -> &Arc<str> {
        &self.piece.project
    }

    /// The generation in which it counts.
    pub fn generation(&self) -> i32 {
        self.piece.generation
    }

    /// The event, without what only enrichment reads.
    pub fn event(&self) -> EventRef<'_> {
        EventRef {
            event_id: self.text(0),
            event_type: self.text(1),
            timestamp: self.place.timestamp,
            received_at: self.place.received_at,
            user_id: self.user_id(),
            session_id: self.optional(1),
            event_action: self.optional(2),
            properties: self.optional(3),
            client_address: None,
            user_agent: None,
        }
    }

    /// When it happened.
    pub fn timestamp(&self) -> i64 {
        self.place.timestamp
    }

    /// Who did it.
    pub fn user_id(&self) -> Option<&str> {
        self.optional(0)
    }

    /// Its properties.
    pub fn properties(&self) -> Properties<'_, '_> {
        self.piece.fields.part(self.place.fields.clone(), self.text(5))
    }

    /// The event as metrics see it.
    pub fn subject(&self) -> Subject<'_> {
        let Traits { device, source, country, .. } = &self.traits;
        let enriched = Enriched {
            device_type: device.map(|device| device.as_str()),
            traffic_source: source.map(|source| source.as_str()),
            country: country.as_ref().map(|country| country.as_str()),
        };
        Subject { enriched, ..Subject::new(self.event(), self.properties()) }
    }

    #[inline]
    fn text(&self, n: usize) -> &str {
        let Place { start, ends, .. } = &self.place;
        let from = if n == 0 { 0 } else { ends[n - 1] };
        &self.piece.text[start + from as usize..start + ends[n] as usize]
    }

    #[inline]
    fn optional(&self, n: usize) -> Option<&str> {
        self.place.present[n].then(|| self.text(n + 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrich::{Country, Device, Source};
    use proptest::prelude::*;
    use tidemill_common::event::Event;

    prop_compose! {
        fn event()(
            event_id in ".{0,9}", event_type in ".{0,9}", timestamp: i64, received_at: Option<i64>,
            optional in proptest::array::uniform5(proptest::option::of(".{0,9}")),
            number in proptest::option::of(0..9),
        ) -> Event {
            let [user_id, session_id, event_action, user_agent, properties] = optional;
            let properties = number.map(|n| format!("{{\"n\":{n},\"\\u00fc\":\"{n}\"}}")).or(properties);
            let client_address = user_agent.clone();
            Event {
                event_id, event_type, timestamp, received_at, user_id, session_id, event_action, properties, client_address,
                user_agent,
            }
        }
    }

    proptest! {
        #[test]
        fn they_are_the_same_events_without_what_only_enrichment_reads(events in prop::collection::vec(event(), 1..5)) {
            let (mut keeping, mut counted) = (Keeping::default(), Vec::new());
            keeping.keep(&Event::new("gone", "", 0).as_ref(), Origin::default(), |_| Traits::default());
            keeping.clear();
            for (event, offset) in events.iter().zip(0..) {
                let conversion = offset % 2 == 0;
                let origin = Origin { offset, ..Origin::default() };
                let found = keeping.keep(&event.as_ref(), origin, |_| Traits { conversion, ..Traits::default() });
                prop_assert_eq!(found.conversion, conversion);
            }
            keeping.take("p".into(), 7, &mut counted);
            prop_assert_eq!(counted.len(), events.len());
            for (event, (counted, offset)) in events.iter().zip(counted.iter().zip(0..)) {
                let event = event.as_ref();
                prop_assert_eq!(counted.event(), EventRef { client_address: None, user_agent: None, ..event });
                prop_assert_eq!((&**counted.project(), counted.generation(), counted.origin.offset), ("p", 7, offset));
                prop_assert_eq!(counted.traits.conversion, offset % 2 == 0);
                let text = event.properties.unwrap_or_default();
                let fields = Fields::read(text);
                for name in ["n", "ü"] {
                    prop_assert_eq!(counted.properties().get(name), fields.of(text).get(name));
                }
            }
        }
    }

    #[test]
    fn metrics_see_what_was_found_out() {
        let event = EventRef { event_id: "e", event_type: "view", ..EventRef::default() };
        let mut counted = Counted::new("p", 0, &event, Origin::default());
        let seen = |counted: &Counted| {
            let Enriched { device_type, traffic_source, country } = counted.subject().enriched;
            [device_type, traffic_source, country].map(|name| name.map(str::to_owned))
        };
        assert_eq!(seen(&counted), [const { None }; 3]);
        let (device, source) = (Some(Device::Mobile), Some(Source::Paid));
        counted.traits = Traits { device, source, country: Country::parse("NL"), ..Traits::default() };
        assert_eq!(seen(&counted), ["mobile", "paid", "NL"].map(|name| Some(name.to_owned())));
    }
}

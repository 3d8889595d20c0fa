//! What is kept of an event until its batch is committed.

use tidemill_common::event::EventRef;

/// An event without what only enrichment reads. Its texts stand one behind the other in one piece of memory: there are a
/// hundred thousand of them at a time, made by one thread and dropped by another.
#[derive(Debug, Clone)]
pub struct KeptEvent {
    timestamp: i64,
    received_at: Option<i64>,
    text: Box<str>,
    /// Where the id, the type, and each of the optional texts ends.
    ends: [u32; 6],
    /// Which of the optional texts are there.
    present: [bool; 4],
}

impl KeptEvent {
    /// Copies it. An event comes from a record of Kafka, so its texts are shorter than 2 GiB.
    pub fn new(event: &EventRef<'_>) -> Self {
        let optional = [event.user_id, event.session_id, event.event_action, event.properties];
        let [user, session, action, properties] = optional.map(Option::unwrap_or_default);
        let texts = [event.event_id, event.event_type, user, session, action, properties];
        let mut text = String::with_capacity(texts.iter().map(|text| text.len()).sum());
        let ends = texts.map(|each| {
            text.push_str(each);
            text.len() as u32
        });
        let present = optional.map(|text| text.is_some());
        Self { timestamp: event.timestamp, received_at: event.received_at, text: text.into(), ends, present }
    }

    /// The event, borrowed.
    pub fn as_ref(&self) -> EventRef<'_> {
        EventRef {
            event_id: self.text(0),
            event_type: self.text(1),
            timestamp: self.timestamp,
            received_at: self.received_at,
            user_id: self.user_id(),
            session_id: self.optional(1),
            event_action: self.optional(2),
            properties: self.properties(),
            client_address: None,
            user_agent: None,
        }
    }

    /// When it happened.
    pub fn timestamp(&self) -> i64 {
        self.timestamp
    }

    /// Who did it.
    pub fn user_id(&self) -> Option<&str> {
        self.optional(0)
    }

    /// A JSON object, as text.
    pub fn properties(&self) -> Option<&str> {
        self.optional(3)
    }

    #[inline]
    fn text(&self, n: usize) -> &str {
        let from = if n == 0 { 0 } else { self.ends[n - 1] };
        &self.text[from as usize..self.ends[n] as usize]
    }

    #[inline]
    fn optional(&self, n: usize) -> Option<&str> {
        self.present[n].then(|| self.text(n + 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_the_same_event_without_what_only_enrichment_reads(
            event_id in ".{0,9}", event_type in ".{0,9}", timestamp: i64, received_at: Option<i64>,
            optional in proptest::array::uniform5(proptest::option::of(".{0,9}")),
        ) {
            let [user_id, session_id, event_action, properties, user_agent] = optional.each_ref().map(Option::as_deref);
            let event = EventRef {
                event_id: &event_id, event_type: &event_type, timestamp, received_at, user_id, session_id, event_action,
                properties, client_address: user_agent, user_agent,
            };
            let expected = EventRef { client_address: None, user_agent: None, ..event };
            let kept = KeptEvent::new(&event);
            prop_assert_eq!(kept.as_ref(), expected);
        }
    }
}

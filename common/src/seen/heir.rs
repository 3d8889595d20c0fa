//! What a partition inherits that a project has got by growing, or with a route. Pure.
//!
//! It is its parent's sightings below the cutoff, of events whose home it is from then on, at negative offsets: before all
//! of its own, in their order. Nothing that has inherited within a window is a parent, so there are no grandparents.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::event::EventRef;
use crate::home::{Layout, Parent};
use crate::kafka::{Span, TopicPartition};
use crate::names::{ROUTE, own_topic};

/// A partition that has a parent.
pub struct Heir {
    /// The parent.
    pub from: TopicPartition,
    /// Our number in the project.
    number: i32,
    parent: Parent,
    layout: Arc<Layout>,
}

impl Heir {
    /// The heir that a partition is, if it is one.
    pub fn of(layout: &Arc<Layout>, at: &TopicPartition) -> Option<Self> {
        let number = at.number();
        let parent = layout.parent(number)?;
        // Routes inherit from the project's own topic, and everybody from the topic that they are in.
        let topic = match parent.partition / ROUTE == number / ROUTE {
            true => at.topic.clone(),
            false => own_topic(&at.topic).into(),
        };
        let from = TopicPartition { topic, partition: parent.partition % ROUTE };
        Some(Self { from, number, parent, layout: Arc::clone(layout) })
    }

    /// An offset of the parent as one of ours; none: it is not before the cutoff.
    pub fn offset(&self, offset: i64) -> Option<i64> {
        (offset < self.parent.cutoff).then_some(offset - self.parent.cutoff)
    }

    /// The same for a sighting of an event; none: it is not ours.
    pub fn inherits(&self, event: &EventRef<'_>, offset: i64) -> Option<i64> {
        self.offset(offset).filter(|_| self.layout.moves(&self.parent, self.number, event))
    }

    /// The parent's part of what is missing in our store.
    pub fn lacks(&self, missing: &Range<i64>) -> Option<Span> {
        let (from, to) = (missing.start.saturating_add(self.parent.cutoff), missing.end.min(0) + self.parent.cutoff);
        (missing.start < missing.end.min(0)).then(|| Span { at: self.from.clone(), from: from.max(0), to })
    }
}

/// One span for each partition, with all of its spans in it.
pub fn union(spans: impl Iterator<Item = Span>) -> Vec<Span> {
    let mut all = BTreeMap::<TopicPartition, Span>::new();
    for span in spans {
        let known = all.entry(span.at.clone()).or_insert_with(|| span.clone());
        (known.from, known.to) = (known.from.min(span.from), known.to.max(span.to));
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::{Era, Key, Route, Spread};

    fn at(partition: i32) -> TopicPartition {
        TopicPartition { topic: "events.p".into(), partition }
    }

    fn grown() -> Arc<Layout> {
        let spread = Spread { partitions: 2, routes: 0 };
        Arc::new(Layout::new(4, Vec::new(), vec![Era { spread, cutoffs: vec![vec![50, 70, 0, 3]] }]))
    }

    fn event(event_id: &str) -> EventRef<'_> {
        EventRef { event_id, event_type: "click", ..EventRef::default() }
    }

    #[test]
    fn a_route_has_what_its_project_saw_of_its_types() {
        let (name, event_types) = ("clicks".to_owned(), vec!["click".to_owned()]);
        let route = Route { name, event_types, times: 2, key: Key::EventId };
        let era = Era { spread: Spread { partitions: 2, routes: 0 }, cutoffs: vec![vec![5, 8], vec![0; 4]] };
        let layout = Arc::new(Layout::new(2, vec![route], vec![era]));
        let at = TopicPartition { topic: "events.p.1-clicks".into(), partition: 3 };
        let heir = Heir::of(&layout, &at).expect("an heir");
        assert_eq!((&*heir.from.topic, heir.from.partition), ("events.p", 1));
        assert_eq!(heir.inherits(&event("e-17"), 2), Some(-6));
        assert_eq!(heir.inherits(&EventRef { event_type: "view", ..event("e-17") }, 2), None);
    }

    #[test]
    fn a_child_has_its_parents_sightings_before_its_own() {
        let layout = grown();
        assert!(Heir::of(&layout, &at(1)).is_none());
        let heir = Heir::of(&layout, &at(3)).expect("a child");
        assert_eq!(heir.from, at(1));
        assert_eq!([0, 69, 70].map(|offset| heir.offset(offset)), [Some(-70), Some(-1), None]);
        assert_eq!(
            [10, 80].map(|offset| heir.inherits(&event("e-17"), offset)),
            [Some(-60), None],
            "its home is 3 of 4"
        );
        assert_eq!(heir.inherits(&event("e-0"), 10), None, "that of this one is not");
    }

    #[test]
    fn what_is_missing_is_read_where_it_is() {
        let layout = grown();
        let heir = Heir::of(&layout, &at(3)).expect("a child");
        let lacks = |missing| heir.lacks(&missing).map(|span| (span.at.partition, span.from, span.to));
        assert_eq!(lacks(-20..9), Some((1, 50, 70)));
        assert_eq!(lacks(-20..-5), Some((1, 50, 65)));
        assert_eq!([lacks(0..9), lacks(4..9), lacks(-5..-5)], [None; 3]);
        let spans = [(1, 50, 70), (0, 3, 4), (1, 20, 60)];
        let spans = spans.map(|(partition, from, to)| Span { at: at(partition), from, to });
        let spans: Vec<_> = union(spans.into_iter()).into_iter().map(|s| (s.at.partition, s.from, s.to)).collect();
        assert_eq!(spans, [(0, 3, 4), (1, 20, 70)]);
    }
}

//! What a partition inherits that its topic has got by growing. Pure.
//!
//! It is its parent's sightings below the cutoff, of events whose home it is from then on, at negative offsets: before all
//! of its own, in their order. A topic does not grow twice within a window, so nothing is inherited from grandparents.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::home::{Layout, Parent};
use crate::kafka::{Span, TopicPartition};

/// A partition that has a parent.
pub struct Heir {
    /// The parent.
    pub from: TopicPartition,
    partition: i32,
    parent: Parent,
}

impl Heir {
    /// The heir that a partition is, if it is one.
    pub fn of(layout: &Layout, at: &TopicPartition) -> Option<Self> {
        let parent = layout.parent(at.partition)?;
        let from = TopicPartition { topic: at.topic.clone(), partition: parent.partition };
        Some(Self { from, partition: at.partition, parent })
    }

    /// An offset of the parent as one of ours; none: it is not before the cutoff.
    pub fn offset(&self, offset: i64) -> Option<i64> {
        (offset < self.parent.cutoff).then_some(offset - self.parent.cutoff)
    }

    /// The same for a sighting of an event; none: it is not ours.
    pub fn inherits(&self, event_id: &str, offset: i64) -> Option<i64> {
        self.offset(offset).filter(|_| self.parent.leaves_to(self.partition, event_id.as_bytes()))
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
    use crate::home::Era;

    fn at(partition: i32) -> TopicPartition {
        TopicPartition { topic: "events.p".into(), partition }
    }

    #[test]
    fn a_child_has_its_parents_sightings_before_its_own() {
        let layout = Layout::new(4, vec![Era { partitions: 2, cutoffs: vec![50, 70, 0, 3] }]);
        assert!(Heir::of(&layout, &at(1)).is_none());
        let heir = Heir::of(&layout, &at(3)).expect("a child");
        assert_eq!(heir.from, at(1));
        assert_eq!([0, 69, 70].map(|offset| heir.offset(offset)), [Some(-70), Some(-1), None]);
        assert_eq!([10, 80].map(|offset| heir.inherits("e-17", offset)), [Some(-60), None], "its home is 3 of 4");
        assert_eq!(heir.inherits("e-0", 10), None, "that of this one is not");
    }

    #[test]
    fn what_is_missing_is_read_where_it_is() {
        let layout = Layout::new(4, vec![Era { partitions: 2, cutoffs: vec![50, 70, 0, 3] }]);
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

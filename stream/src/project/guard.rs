//! What is known of our partitions' marks, and what those that Redis and Postgres hold say about it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use tidemill_common::names::project_of;

use super::marks::{self, Held, Mark};
use super::pending::Positions;
use super::{ByPlace, project};
use crate::ledger::{Place, Position, Standing};
use crate::timeline::{Timeline, behind};

/// Our partitions, in the latest epoch.
#[derive(Default)]
pub struct Guard {
    ours: ByPlace<Ours>,
    /// The nodes that answered at the last look, and which process each was.
    servers: BTreeMap<String, String>,
    whole: BTreeSet<String>,
}

struct Ours {
    /// Where the ledger stood when it became ours.
    opened: i64,
    /// Where it stands since our last batch.
    next: i64,
    /// What was last said of it, before and after writing.
    began: i64,
    shown: i64,
    looked: bool,
    /// This Redis has heard of it, or has been told to be filled again.
    known: bool,
    /// A mark, left before it became ours, that the ledger had not come to then.
    doubt: Option<i64>,
}

/// What is wrong with Redis.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Projects of which it holds less than it did, without being another process or empty.
    pub older: BTreeSet<String>,
    /// Projects that have to be projected again; the older ones, too.
    pub not_whole: BTreeSet<String>,
    /// Positions that it does not hold any more.
    pub unsaid: Positions,
}

impl Guard {
    /// A partition is ours from here on.
    pub fn live(&mut self, place: Place, Position { next, projected }: Position) {
        let same = |other: &Place| other.partition == place.partition && other.topic == place.topic;
        let known = self.ours.iter().any(|(other, ours)| same(other) && ours.known);
        // Of another incarnation, or another generation, it is ours no more.
        self.ours.retain(|other, _| !same(other) || *other == place);
        let shown = projected.min(next);
        let ours = Ours { opened: next, next, began: -1, shown, looked: false, known, doubt: None };
        self.ours.insert(place, ours);
    }

    /// A batch was committed up to here.
    pub fn reached(&mut self, place: &Place, next: i64) {
        if let Some(ours) = self.ours.get_mut(place) {
            ours.next = ours.next.max(next);
        }
    }

    /// A partition is not ours any more.
    pub fn gone(&mut self, place: &Place) {
        self.ours.remove(place);
    }

    /// Our partitions.
    pub fn places(&self) -> Vec<Place> {
        self.ours.keys().cloned().collect()
    }

    /// Their projects, sorted.
    pub fn projects(&self) -> BTreeSet<String> {
        self.ours.keys().filter_map(project).collect()
    }

    /// Whether a project lacked nothing at the last look.
    pub fn is_whole(&self, project: &str) -> bool {
        self.whole.contains(project)
    }

    /// The newest generation of a project that we know of, and what it is whole for at each node of the last look.
    pub fn whole(&self, of: &str, epoch: i64) -> (i32, BTreeMap<String, String>) {
        let ours = self.ours.keys().filter(|place| project_of(&place.topic) == Some(of));
        let generation = ours.map(|place| place.generation).max().unwrap_or_default();
        let whole = |(node, server): (&String, &String)| (node.clone(), marks::whole(server, epoch, generation));
        (generation, self.servers.iter().map(whole).collect())
    }

    /// Whether a node answered at the last look.
    pub fn is_there(&self, node: &str) -> bool {
        self.servers.contains_key(node)
    }

    /// What has to be said before writing.
    pub fn to_begin(&self) -> Positions {
        let moved = self.ours.iter().filter(|(_, ours)| ours.began < ours.next);
        moved.map(|(place, ours)| (place.clone(), ours.next)).collect()
    }

    /// That was said.
    pub fn has_begun(&mut self, began: Positions) {
        for (place, next) in began {
            if let Some(ours) = self.ours.get_mut(&place) {
                ours.began = next;
            }
        }
    }

    /// Everything of a partition below `next` is shown. False: it is not ours.
    pub fn show(&mut self, place: &Place, next: i64) -> bool {
        let Some(ours) = self.ours.get_mut(place) else { return false };
        ours.shown = ours.shown.max(next);
        true
    }

    /// Why Postgres must have come back older, and what the next epoch has to be above. `held` was read before
    /// `standing`; there is none while Redis is away.
    pub fn older_postgres(
        &mut self,
        timeline: &Timeline,
        held: Option<&Held>,
        standing: &Standing,
    ) -> Option<(i64, String)> {
        if timeline.epoch.is_some_and(|epoch| epoch < standing.epoch) {
            return None; // somebody has noticed
        }
        let known = timeline.epoch.unwrap_or(0);
        let Some(held) = held else { return timeline.broken(standing).map(|reason| (known, reason)) };
        let newest = held.began.values().map(|mark| mark.epoch).max().unwrap_or(0).max(known);
        if let Some(reason) = timeline.broken(standing) {
            return Some((newest, reason));
        }
        for (place, ours) in &mut self.ours {
            let (Some(mark), Some(position)) = (held.began.get(place), standing.positions.get(place)) else { continue };
            if mark.epoch > standing.epoch {
                return Some((
                    newest,
                    format!("redis was written in epoch {}, and it is in {}", mark.epoch, standing.epoch),
                ));
            }
            if mark.epoch < standing.epoch {
                continue;
            }
            if !ours.looked && mark.offset > ours.opened {
                ours.doubt = Some(mark.offset);
            }
            // Had another worker brought the ledger there, our own batches could not have: but if they have, it was
            // there before, in another history.
            if mark.offset > position.next || ours.doubt.is_some_and(|left| ours.next >= left) {
                return Some((newest, behind(place, position.next.min(ours.opened), mark.offset)));
            }
        }
        self.ours.values_mut().for_each(|ours| ours.looked = true);
        None
    }

    /// What Redis lacks, in this epoch, at any node that answered.
    pub fn redis(&mut self, epoch: i64, held: &Held) -> Look {
        self.servers = held.on.iter().map(|(node, on)| (node.clone(), on.server.clone())).collect();
        let mut look = Look::default();
        let of_epoch = |mark: Option<&Mark>| mark.filter(|mark| mark.epoch == epoch).map(|mark| mark.offset);
        for (place, ours) in &mut self.ours {
            let Some(project) = project(place) else { continue };
            if held.unbegun.contains(place) || of_epoch(held.began.get(place)).is_none() {
                ours.began = -1;
            }
            for on in held.on.values() {
                match of_epoch(on.shown.get(place)) {
                    Some(shown) if shown < ours.shown => drop(look.older.insert(project.clone())),
                    Some(_) => {}
                    None => {
                        // What was shown before it became ours was shown elsewhere: workers move to another Redis one by
                        // one, and the first of them has filled it while the others went on with the old one.
                        if !ours.known && ours.shown > 0 && !on.shown.contains_key(place) {
                            look.older.insert(project.clone());
                        }
                        look.unsaid.insert(place.clone(), ours.shown);
                    }
                }
                let whole = |held: &String| marks::is_whole(held, &on.server, epoch, place.generation);
                if !on.whole.get(&project).is_some_and(whole) {
                    look.not_whole.insert(project.clone());
                }
            }
            ours.known |= !held.on.is_empty();
        }
        look.not_whole.extend(look.older.iter().cloned());
        self.whole = self.projects().into_iter().filter(|project| !look.not_whole.contains(project)).collect();
        look
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::marks::OnNode;
    use super::*;

    fn place() -> Place {
        Place { topic: "events.p".to_owned(), partition: 0, incarnation: "i".to_owned(), generation: 0 }
    }

    fn opened(next: i64) -> (Guard, Timeline) {
        let (mut guard, mut timeline) = (Guard::default(), Timeline::default());
        timeline.enter(5);
        timeline.reached(&place(), next);
        guard.live(place(), Position { next, projected: next });
        (guard, timeline)
    }

    fn standing(next: i64) -> Standing {
        Standing {
            epoch: 5,
            positions: HashMap::from([(place(), Position { next, projected: 0 })]),
            ..Standing::default()
        }
    }

    fn held(began: (i64, i64), shown: (i64, i64), whole: &str) -> Held {
        let mark = |(epoch, offset)| HashMap::from([(place(), Mark { epoch, offset })]);
        let whole = HashMap::from([("p".to_owned(), whole.to_owned())]);
        on(&[OnNode { server: "redis-1".to_owned(), whole, began: mark(began), shown: mark(shown) }])
    }

    fn on(nodes: &[OnNode]) -> Held {
        Held::of((0..).zip(nodes.iter().cloned()).map(|(n, node)| (format!("node-{n}"), node)).collect(), &[place()])
    }

    fn empty() -> OnNode {
        OnNode { server: "redis-1".to_owned(), ..OnNode::default() }
    }

    #[test]
    fn each_node_tells_of_its_own_loss() {
        let (mut guard, timeline) = opened(100);
        let whole = |server: &str, shown| {
            let node = held((5, 100), (5, shown), &format!("{server}:5:0")).on.into_values().next().expect("a node");
            OnNode { server: server.to_owned(), ..node }
        };
        assert_eq!(guard.redis(5, &on(&[whole("a", 100), whole("b", 100)])), Look::default());
        assert_eq!(guard.whole("p", 5).1["node-1"], "b:5:0");
        assert!(guard.is_there("node-1"));
        let flushed = guard.redis(5, &on(&[whole("a", 100), empty()]));
        assert!(flushed.not_whole.contains("p") && flushed.older.is_empty());
        assert_eq!((flushed.unsaid[&place()], guard.to_begin()[&place()]), (100, 100), "what it does not know is said");
        let replaced = on(&[OnNode { server: "c".to_owned(), ..whole("a", 100) }, whole("b", 100)]);
        assert!(guard.redis(5, &replaced).not_whole.contains("p"), "node-0 failed over");
        assert!(guard.redis(5, &on(&[whole("a", 100), whole("b", 99)])).older.contains("p"));
        assert_eq!(guard.redis(5, &on(&[whole("a", 100)])), Look::default(), "who does not answer is found later");
        assert!(!guard.is_there("node-1"));
        let ahead = on(&[empty(), whole("b", 100)]);
        let (mut guard, _) = opened(90);
        assert!(guard.older_postgres(&timeline, Some(&ahead), &standing(90)).is_some(), "one node knows it");
    }

    #[test]
    fn a_ledger_behind_a_mark_is_older() {
        let (mut guard, timeline) = opened(100);
        let whole = held((5, 100), (5, 100), "redis-1:5:0");
        assert_eq!(guard.older_postgres(&timeline, Some(&whole), &standing(100)), None);
        let (mut guard, timeline) = opened(90);
        assert!(guard.older_postgres(&timeline, Some(&whole), &standing(90)).is_some(), "the mark is from its future");
        let (mut guard, timeline) = opened(90);
        let later = held((7, 3), (7, 3), "redis-1:7:0");
        let (above, _) = guard.older_postgres(&timeline, Some(&later), &standing(90)).expect("an epoch that is lost");
        assert_eq!(above, 7);
        let (mut guard, timeline) = opened(90);
        let before = held((4, 1_000), (4, 1_000), "redis-1:4:0");
        assert_eq!(guard.older_postgres(&timeline, Some(&before), &standing(90)), None, "another history's mark");
        assert!(guard.older_postgres(&timeline, Some(&before), &standing(80)).is_some(), "it was at 90");
    }

    #[test]
    fn a_mark_that_was_passed_by_our_own_batches_was_from_another_history() {
        // Redis was away when the partition became ours, so its mark is read late.
        let (mut guard, mut timeline) = opened(90);
        timeline.reached(&place(), 95);
        guard.reached(&place(), 95);
        let mark = held((5, 100), (5, 100), "redis-1:5:0");
        assert_eq!(
            guard.older_postgres(&timeline, Some(&mark), &standing(105)),
            None,
            "another worker may be ahead of us"
        );
        guard.reached(&place(), 105);
        assert!(guard.older_postgres(&timeline, Some(&mark), &standing(105)).is_some(), "but all of it was ours");
        // Whereas our own mark says nothing.
        let (mut guard, timeline) = opened(90);
        let none = on(&[empty()]);
        assert_eq!(guard.older_postgres(&timeline, Some(&none), &standing(90)), None);
        guard.reached(&place(), 105);
        let own = held((5, 105), (5, 105), "redis-1:5:0");
        assert_eq!(guard.older_postgres(&timeline, Some(&own), &standing(105)), None);
    }

    #[test]
    fn redis_lacks_something_when_it_is_empty_another_one_or_older() {
        let (mut guard, _) = opened(100);
        assert_eq!(guard.redis(5, &held((5, 100), (5, 100), "redis-1:5:0")), Look::default());
        assert!(guard.is_whole("p"));
        let look = guard.redis(5, &on(&[empty()]));
        assert!(look.not_whole.contains("p") && look.older.is_empty());
        assert_eq!(look.unsaid[&place()], 100, "the mark is to be written again");
        assert_eq!(guard.to_begin()[&place()], 100);
        assert!(!guard.is_whole("p"));
        for other in ["redis-0:5:0", "redis-1:4:0"] {
            let look = guard.redis(5, &held((5, 100), (5, 100), other));
            assert!(look.not_whole.contains("p") && look.older.is_empty(), "{other}");
        }
        let look = guard.redis(5, &held((5, 100), (5, 99), "redis-1:5:0"));
        assert!(look.older.contains("p") && look.not_whole.contains("p"));
        let of_another = Place { generation: 1, ..place() };
        guard.live(of_another.clone(), Position { next: 100, projected: 100 });
        assert_eq!(guard.places(), [of_another], "the generation before is not live any more");
        assert!(guard.redis(5, &held((5, 100), (5, 100), "redis-1:5:0")).not_whole.contains("p"), "it left this");
        let whole = BTreeMap::from([("node-0".to_owned(), "redis-1:5:1".to_owned())]);
        assert_eq!(guard.whole("p", 5), (1, whole));
        let (mut guard, _) = opened(100);
        assert_eq!(guard.redis(5, &held((5, 100), (5, 100), "redis-1:5:0")), Look::default());
        // After a flush another worker has projected it all again; only our marks are missing.
        let without_ours = || {
            let kept = held((5, 100), (5, 0), "redis-1:5:0").on.into_values().next().expect("a node");
            on(&[OnNode { shown: HashMap::new(), ..kept }])
        };
        assert!(guard.redis(5, &without_ours()).not_whole.is_empty());
        // But before we have seen any, they may never have been here.
        let (mut guard, _) = opened(100);
        assert_eq!(guard.redis(5, &on(&[])), Look::default(), "nobody answers");
        assert!(guard.redis(5, &without_ours()).older.contains("p"), "it was shown elsewhere");
        assert!(guard.redis(5, &without_ours()).older.is_empty(), "it is told once");
        let (mut guard, _) = opened(0);
        assert!(guard.redis(5, &without_ours()).older.is_empty(), "nothing has been shown");
        let (mut guard, _) = opened(100);
        assert!(guard.redis(5, &held((5, 100), (4, 100), "redis-1:5:0")).older.is_empty(), "it was, in another epoch");
        guard.live(Place { generation: 1, ..place() }, Position { next: 100, projected: 100 });
        assert!(guard.redis(5, &held((5, 100), (5, 100), "redis-1:5:1")).older.is_empty(), "it was ours before");
    }
}

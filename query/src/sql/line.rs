//! Who may run a query, and who waits: interactive queries come before batches, and a project that runs few before
//! one that runs many.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

/// How soon an answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Somebody is waiting.
    Interactive,
    /// Nobody is: it gives way.
    Batch,
}

impl Priority {
    /// The priority with this name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "interactive" => Some(Self::Interactive),
            "batch" => Some(Self::Batch),
            _ => None,
        }
    }
}

/// Places for queries, and the line before them. Cheap to clone.
#[derive(Clone)]
pub struct Line(Arc<Shared>);

struct Shared {
    places: usize,
    /// As many may wait.
    room: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: usize,
    batches: usize,
    by_project: HashMap<String, usize>,
    /// In the order in which they came.
    waiting: Vec<Waiting>,
}

struct Waiting {
    project: String,
    priority: Priority,
    go: oneshot::Sender<Place>,
}

/// The right to run a query, as long as it is held.
pub struct Place {
    line: Line,
    project: String,
    priority: Priority,
}

impl Line {
    /// So many queries run at once, and so many wait.
    pub fn new(places: usize, room: usize) -> Self {
        Self(Arc::new(Shared { places, room, state: Mutex::default() }))
    }

    /// Waits for a place. None: the line is full, or was needed for somebody more urgent.
    pub async fn enter(&self, project: &str, priority: Priority) -> Option<Place> {
        let (go, called) = oneshot::channel();
        {
            let mut state = self.state();
            if self.may_run(&state, priority) && state.waiting.iter().all(|other| other.priority > priority) {
                return Some(self.admit(&mut state, project.to_owned(), priority));
            }
            self.make_room(&mut state, priority)?;
            state.waiting.push(Waiting { project: project.to_owned(), priority, go });
        }
        called.await.ok()
    }

    /// One place is never a batch's, so that nobody interactive waits for batches alone.
    fn may_run(&self, state: &State, priority: Priority) -> bool {
        let places = self.0.places;
        state.running < places && (priority == Priority::Interactive || state.batches < (places - 1).max(1))
    }

    /// A batch that came last gives its room to somebody interactive.
    fn make_room(&self, state: &mut State, priority: Priority) -> Option<()> {
        state.waiting.retain(|waiting| !waiting.go.is_closed());
        if state.waiting.len() < self.0.room {
            return Some(());
        }
        let last = state.waiting.iter().rposition(|waiting| waiting.priority > priority)?;
        state.waiting.remove(last);
        Some(())
    }

    fn admit(&self, state: &mut State, project: String, priority: Priority) -> Place {
        state.running += 1;
        state.batches += usize::from(priority == Priority::Batch);
        *state.by_project.entry(project.clone()).or_default() += 1;
        Place { line: self.clone(), project, priority }
    }

    /// Lets in who is next, as long as there are places.
    fn call_next(&self) {
        loop {
            let (go, place) = {
                let mut state = self.state();
                let of = |waiting: &Waiting| state.by_project.get(&waiting.project).copied().unwrap_or(0);
                let able = state.waiting.iter().enumerate().filter(|(_, w)| self.may_run(&state, w.priority));
                let next = able.min_by_key(|(at, waiting)| (waiting.priority, of(waiting), *at));
                let Some((at, _)) = next else { return };
                let Waiting { project, priority, go } = state.waiting.remove(at);
                (go, self.admit(&mut state, project, priority))
            };
            // Outside of the lock: whoever has gone away gives the place back at once.
            drop(go.send(place));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no holder panics")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut state = self.line.state();
            state.running -= 1;
            state.batches -= usize::from(self.priority == Priority::Batch);
            if let Some(running) = state.by_project.get_mut(&self.project) {
                *running -= 1;
                if *running == 0 {
                    state.by_project.remove(&self.project);
                }
            }
        }
        self.line.call_next();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::Priority::{Batch, Interactive};
    use super::*;

    /// Who comes, in the order of the list; a place is given back each time, and the names tell who got it.
    fn order(line: &Line, first: Place, come: &[(&'static str, Priority)]) -> Vec<&'static str> {
        let mut waiting: Vec<_> =
            come.iter().map(|(project, priority)| (*project, Box::pin(line.enter(project, *priority)))).collect();
        for (_, enter) in &mut waiting {
            assert!(enter.as_mut().now_or_never().is_none_or(|place| place.is_none()));
        }
        let (mut order, mut held) = (Vec::new(), Some(first));
        while held.take().is_some() {
            for at in 0..waiting.len() {
                if let Some(Some(place)) = waiting[at].1.as_mut().now_or_never() {
                    order.push(waiting.remove(at).0);
                    held = Some(place);
                    break;
                }
            }
        }
        order
    }

    fn enter(line: &Line, project: &str, priority: Priority) -> Option<Place> {
        line.enter(project, priority).now_or_never().flatten()
    }

    #[test]
    fn interactive_comes_first_then_in_order() {
        let line = Line::new(1, 9);
        let first = enter(&line, "x", Interactive).expect("a place");
        let come = [("a", Batch), ("b", Interactive), ("c", Batch), ("d", Interactive)];
        assert_eq!(order(&line, first, &come), ["b", "d", "a", "c"]);
        assert!(enter(&line, "x", Batch).is_some(), "all places are free again");
    }

    #[test]
    fn a_project_that_runs_few_comes_before_one_that_runs_many() {
        let line = Line::new(2, 9);
        let (first, _second) = (enter(&line, "x", Interactive).expect("a place"), enter(&line, "a", Interactive));
        assert_eq!(order(&line, first, &[("a", Interactive), ("b", Interactive)]), ["b", "a"]);
    }

    #[test]
    fn batches_leave_a_place() {
        let line = Line::new(3, 0);
        let held: Vec<Place> = (0..2).filter_map(|_| enter(&line, "a", Batch)).collect();
        assert_eq!(held.len(), 2);
        assert!(enter(&line, "a", Batch).is_none());
        assert!(enter(&line, "a", Interactive).is_some());
        let line = Line::new(1, 0);
        assert!(enter(&line, "a", Batch).is_some(), "with one place all take turns");
    }

    #[test]
    fn a_full_line_turns_away_and_batches_give_way() {
        let line = Line::new(1, 2);
        let place = enter(&line, "x", Interactive);
        let (mut a, mut b) = (Box::pin(line.enter("a", Batch)), Box::pin(line.enter("b", Batch)));
        assert!(a.as_mut().now_or_never().is_none() && b.as_mut().now_or_never().is_none());
        assert!(matches!(line.enter("c", Batch).now_or_never(), Some(None)), "full");
        let mut d = Box::pin(line.enter("d", Interactive));
        assert!(d.as_mut().now_or_never().is_none());
        assert!(matches!(b.as_mut().now_or_never(), Some(None)), "the last batch gives way");
        drop(a);
        drop(place);
        assert!(matches!(d.as_mut().now_or_never(), Some(Some(_))));
    }

    #[test]
    fn who_goes_away_leaves_the_place_to_the_next() {
        let line = Line::new(1, 9);
        let place = enter(&line, "x", Interactive);
        let (mut a, mut b) = (Box::pin(line.enter("a", Interactive)), Box::pin(line.enter("b", Interactive)));
        assert!(a.as_mut().now_or_never().is_none() && b.as_mut().now_or_never().is_none());
        drop(a);
        drop(place);
        assert!(matches!(b.as_mut().now_or_never(), Some(Some(_))));
    }
}

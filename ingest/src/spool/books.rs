//! What the spool holds, who may add to it and whose turn it is to leave it. Pure: no files, no clock.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, Range};

/// A segment is closed at this size: the unit in which a spool is drained and removed.
pub const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;
/// And at this age, so that a slow project's fresh records do not share the fate of old ones.
const SEGMENT_MS: i64 = 10 * 60 * 1_000;
/// Copies of an event are told from new events for 24 h. What has waited for half of it waits for an operator's
/// word: its sender may have sent it another way since, and it could count twice.
pub const FRESH_MS: i64 = 12 * 3_600 * 1_000;
const SHORTEST_REST_MS: i64 = 1_000;
const LONGEST_REST_MS: i64 = 10_000;

/// A file of records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Its place in its project's order.
    pub sequence: u64,
    /// Bytes that are safe on disk.
    pub bytes: u64,
    /// Records that are safe on disk.
    pub records: u64,
    /// When its oldest record was spooled, in milliseconds.
    pub oldest: i64,
    closed: bool,
    writing: bool,
}

impl Segment {
    /// A segment that nothing is added to any more.
    pub fn closed(sequence: u64, bytes: u64, records: u64, oldest: i64) -> Self {
        Self { sequence, bytes, records, oldest, closed: true, writing: false }
    }
}

#[derive(Debug, Default)]
struct Project {
    /// In their order; the first is the next to be drained.
    segments: VecDeque<Segment>,
    next_sequence: u64,
    /// Bytes of its segments, of what is on its way into them, and of what is kept.
    held: u64,
    /// Bytes of files that are kept for a person: damaged or refused.
    kept: u64,
    /// Its first segment is being drained.
    taken: bool,
    /// Which places of its first segment are left, once it was drained in part.
    left: Option<Vec<Range<usize>>>,
    failures: u32,
    rests_until: i64,
    /// An operator's word covers what was spooled up to then.
    released: i64,
}

/// Where records are written to.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// The segment.
    pub sequence: u64,
    /// Where in it; at 0 it is to be made.
    pub start: u64,
}

/// A segment whose turn it is to be drained. It ends in [`Books::finish`] or [`Books::put_back`].
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Taken {
    /// Its project.
    pub project: String,
    /// Its place in the project's order.
    pub sequence: u64,
    /// Its size.
    pub bytes: u64,
    /// Where the records are that are left, if some have been drained.
    pub left: Option<Vec<Range<usize>>>,
}

/// What the spool holds, for health and metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Bytes on disk or on their way to it.
    pub bytes: u64,
    /// The most there may be.
    pub limit: u64,
    /// Records that wait for Kafka.
    pub records: u64,
    /// Bytes of damaged and refused records, kept for a person.
    pub kept: u64,
    /// Projects whose records are so old that they wait for an operator's word.
    pub waiting: Vec<String>,
    /// Projects whose events Kafka did not take, and how often in a row.
    pub failing: Vec<(String, u32)>,
}

/// The spool's accounts.
#[derive(Debug)]
pub struct Books {
    limit: u64,
    projects: BTreeMap<String, Project>,
    /// Whose turn it was last.
    last: String,
}

impl Project {
    fn waits_for_word(&self, now: i64) -> bool {
        self.segments.front().is_some_and(|first| {
            first.records > 0 && now.saturating_sub(first.oldest) >= FRESH_MS && first.oldest > self.released
        })
    }

    fn ready(&self, now: i64) -> bool {
        !self.taken && self.rests_until <= now && !self.waits_for_word(now)
    }
}

impl Books {
    /// An empty spool that may hold `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self { limit, projects: BTreeMap::new(), last: String::new() }
    }

    /// Adds what a project's folder holds.
    pub fn load(&mut self, project: &str, segments: Vec<Segment>, next_sequence: u64, kept: u64) {
        let held = kept + segments.iter().map(|segment| segment.bytes).sum::<u64>();
        let loaded = Project { segments: segments.into(), next_sequence, held, kept, ..Project::default() };
        self.projects.insert(project.to_owned(), loaded);
    }

    /// Sets room aside for records to come, if the project may have it.
    ///
    /// A project may hold at most as much as then stays free. So one alone gets half of the spool, and `n` that
    /// fill it together get an equal share each, 1/(n+1); and there is always room for the next one to begin with.
    pub fn reserve(&mut self, project: &str, bytes: u64) -> bool {
        let used: u64 = self.projects.values().map(|project| project.held).sum();
        let own = self.projects.get(project).map_or(0, |project| project.held);
        let free = self.limit.saturating_sub(used).checked_sub(bytes);
        let granted = free.is_some_and(|free| own + bytes <= free);
        if granted {
            self.project(project).held += bytes;
        }
        granted
    }

    /// Where records that were spooled at `oldest` or later are to be written; ends in [`Books::written`] or
    /// [`Books::failed`].
    pub fn begin(&mut self, project: &str, oldest: i64) -> Place {
        let project = self.project(project);
        let open = project.segments.back_mut().filter(|segment| {
            !segment.closed && segment.bytes < SEGMENT_BYTES && oldest.saturating_sub(segment.oldest) < SEGMENT_MS
        });
        if let Some(segment) = open {
            segment.writing = true;
            return Place { sequence: segment.sequence, start: segment.bytes };
        }
        let sequence = project.next_sequence;
        project.next_sequence += 1;
        let segment = Segment { writing: true, closed: false, ..Segment::closed(sequence, 0, 0, oldest) };
        project.segments.push_back(segment);
        Place { sequence, start: 0 }
    }

    /// Records that were reserved are safe in the segment where they began.
    pub fn written(&mut self, project: &str, bytes: u64, records: u64, oldest: i64) {
        let segments = &mut self.project(project).segments;
        if let Some(segment) = segments.iter_mut().find(|segment| segment.writing) {
            segment.writing = false;
            segment.bytes += bytes;
            segment.records += records;
            segment.oldest = segment.oldest.min(oldest);
        }
    }

    /// Records that were reserved could not be written. Their segment gets no more: who knows what it ends with.
    pub fn failed(&mut self, project: &str, bytes: u64) {
        let project = self.project(project);
        project.held -= bytes;
        if let Some(segment) = project.segments.iter_mut().find(|segment| segment.writing) {
            segment.writing = false;
            segment.closed = true;
        }
        project.segments.retain(|segment| segment.bytes > 0 || segment.writing);
    }

    /// The next segment to drain: projects take turns, each in its own order.
    pub fn take(&mut self, now: i64) -> Option<Taken> {
        // What is being written to waits, and is closed: so that this write is its last one.
        let fronts = self.projects.values_mut().filter(|project| project.ready(now));
        fronts.filter_map(|project| project.segments.front_mut()).for_each(|first| first.closed |= first.writing);
        let free = |project: &Project| project.segments.front().is_some_and(|first| !first.writing);
        let after = (Bound::Excluded(self.last.as_str()), Bound::Unbounded);
        let mut turns = self.projects.range::<str, _>(after).chain(&self.projects);
        self.last = turns.find(|(_, project)| project.ready(now) && free(project))?.0.clone();
        let project = self.projects.get_mut(&self.last)?;
        project.taken = true;
        let first = project.segments.front_mut()?;
        first.closed = true;
        let (sequence, bytes, left) = (first.sequence, first.bytes, project.left.take());
        Some(Taken { project: self.last.clone(), sequence, bytes, left })
    }

    /// All of a segment has been drained, and its file removed; `kept` bytes of it stay for a person.
    pub fn finish(&mut self, project: &str, kept: u64) {
        let project = self.project(project);
        project.held -= project.segments.pop_front().map_or(0, |segment| segment.bytes);
        project.held += kept;
        project.kept += kept;
        project.taken = false;
        project.failures = 0;
    }

    /// A segment could not be drained, or not all of it. Its project rests, the longer the more often.
    pub fn put_back(&mut self, project: &str, left: Option<Vec<Range<usize>>>, now: i64) {
        let project = self.project(project);
        let rest = SHORTEST_REST_MS << project.failures.min(10);
        project.rests_until = now + rest.min(LONGEST_REST_MS);
        project.failures += 1;
        project.left = left;
        project.taken = false;
    }

    /// A file with records for a person has grown.
    pub fn keep(&mut self, project: &str, bytes: u64) {
        let project = self.project(project);
        project.held += bytes;
        project.kept += bytes;
    }

    /// An operator's word for what was spooled up to `at`.
    pub fn release(&mut self, project: &str, at: i64) {
        self.project(project).released = at;
    }

    /// What there is.
    pub fn status(&self, now: i64) -> Status {
        let mut status = Status { limit: self.limit, ..Status::default() };
        for (id, project) in &self.projects {
            status.bytes += project.held;
            status.records += project.segments.iter().map(|segment| segment.records).sum::<u64>();
            status.kept += project.kept;
            if project.waits_for_word(now) {
                status.waiting.push(id.clone());
            }
            if project.failures > 0 {
                status.failing.push((id.clone(), project.failures));
            }
        }
        status
    }

    fn project(&mut self, project: &str) -> &mut Project {
        if !self.projects.contains_key(project) {
            self.projects.insert(project.to_owned(), Project { next_sequence: 1, ..Project::default() });
        }
        self.projects.get_mut(project).expect("just inserted")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool(books: &mut Books, project: &str, bytes: u64, at: i64) -> bool {
        let granted = books.reserve(project, bytes);
        if granted {
            books.begin(project, at);
            books.written(project, bytes, 1, at);
        }
        granted
    }

    fn fill(books: &mut Books, project: &str) -> u64 {
        (0..).take_while(|_| spool(books, project, 1, 0)).count() as u64
    }

    #[test]
    fn one_project_cannot_starve_the_others() {
        let mut books = Books::new(1_200);
        assert_eq!(fill(&mut books, "greedy"), 600);
        assert_eq!(fill(&mut books, "second"), 300);
        assert_eq!(fill(&mut books, "third"), 150);
        assert!(!spool(&mut books, "greedy", 1, 0));
        assert_eq!(books.status(0).bytes, 1_050);
    }

    #[test]
    fn projects_that_fill_the_spool_together_share_it() {
        let mut books = Books::new(1_200);
        let mut counts = [0; 3];
        while let grants = ["a", "b", "c"].map(|project| spool(&mut books, project, 1, 0))
            && grants.contains(&true)
        {
            counts.iter_mut().zip(grants).for_each(|(count, granted)| *count += i32::from(granted));
        }
        assert_eq!(counts, [300, 300, 300]);
    }

    #[test]
    fn room_on_its_way_to_disk_counts_and_is_given_back_after_a_failure() {
        let mut books = Books::new(100);
        assert!(books.reserve("a", 50));
        assert!(!books.reserve("a", 1));
        assert_eq!(books.begin("a", 0), Place { sequence: 1, start: 0 });
        books.failed("a", 50);
        assert_eq!(books.status(0).bytes, 0);
        assert!(spool(&mut books, "a", 50, 0));
        assert_eq!(books.take(0).map(|taken| taken.sequence), Some(2), "the failed segment is never used again");
    }

    #[test]
    fn projects_take_turns_in_their_own_order() {
        let mut books = Books::new(u64::MAX);
        for (project, at) in [("a", 0), ("a", SEGMENT_MS), ("b", 0), ("b", SEGMENT_MS), ("c", 0)] {
            assert!(spool(&mut books, project, 10, at));
        }
        let mut order = Vec::new();
        while let Some(taken) = books.take(0) {
            books.finish(&taken.project, 0);
            order.push((taken.project, taken.sequence));
        }
        assert_eq!(order, [("a", 1), ("b", 1), ("c", 1), ("a", 2), ("b", 2)].map(|(p, s)| (p.to_owned(), s)));
        assert_eq!(books.status(0).bytes, 0);
    }

    #[test]
    fn what_is_being_drained_is_neither_written_to_nor_drained_twice() {
        let mut books = Books::new(u64::MAX);
        assert!(spool(&mut books, "a", 10, 0) && books.reserve("a", 10));
        assert_eq!(books.begin("a", 0), Place { sequence: 1, start: 10 });
        assert_eq!(books.take(0), None, "it is being written to");
        books.written("a", 10, 1, 0);
        assert_eq!(books.take(0).map(|taken| taken.bytes), Some(20));
        assert_eq!(books.take(0), None);
        assert!(books.reserve("a", 10));
        assert_eq!(books.begin("a", 0), Place { sequence: 2, start: 0 });
    }

    #[test]
    fn a_project_that_fails_rests_and_goes_on_where_it_was() {
        let mut books = Books::new(u64::MAX);
        assert!(spool(&mut books, "a", 10, 0));
        let mut now = 0;
        for rest in [1_000, 2_000, 4_000, 8_000, 10_000, 10_000] {
            let taken = books.take(now).expect("its turn");
            books.put_back(&taken.project, Some(vec![3..4, 6..9]), now);
            assert_eq!(books.take(now + rest - 1), None);
            now += rest;
        }
        assert_eq!(books.take(now).expect("its turn").left, Some(vec![3..4, 6..9]));
    }

    #[test]
    fn what_is_old_waits_for_an_operator_and_stops_nobody_else() {
        let mut books = Books::new(u64::MAX);
        assert!(spool(&mut books, "old", 10, 1) && spool(&mut books, "new", 10, 2));
        let now = 1 + FRESH_MS;
        assert_eq!(books.take(now - 1).map(|taken| taken.project), Some("new".to_owned()));
        books.put_back("new", None, 0);
        assert_eq!(books.status(now).waiting, ["old"]);
        assert_eq!(books.take(now).map(|taken| taken.project), Some("new".to_owned()));
        assert_eq!(books.take(now), None);
        books.release("old", 0);
        assert_eq!(books.take(now), None, "the word was given before it was spooled");
        books.release("old", 1);
        assert_eq!(books.take(now).map(|taken| taken.project), Some("old".to_owned()));
    }
}

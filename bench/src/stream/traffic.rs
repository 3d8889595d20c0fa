//! Which events there are, and in which order they arrive. Nothing here but a seed decides it.
//!
//! A *visit* is what one person does within some minutes: 8 to 58 events, 33 in the middle. One event in twenty
//! arrives late, by half a minute in the mean; one record in a hundred is a copy, up to a minute behind its original.

use std::collections::HashMap;

use crate::random::{Random, mix};

/// Milliseconds of event time per record, from 3 million records in an hour.
const MS_PER_RECORD: f64 = 3_600_000.0 / 3_000_000.0;
/// Records per user: 50,000 of 3 million.
const RECORDS_PER_USER: u64 = 60;
const RECORDS_PER_COPY: u64 = 100;
const EVENTS_PER_LATE_ONE: u64 = 20;
const VISIT: std::ops::RangeInclusive<u64> = 8..=58;
/// Mean pause between two events of a visit, and the longest, in milliseconds.
const PAUSE_MS: f64 = 9_000.0;
const LONGEST_PAUSE_MS: f64 = 120_000.0;
/// What a visit hardly ever exceeds; what of one lies behind that is left out of steady traffic.
const LONGEST_VISIT_MS: f64 = 1_200_000.0;
/// Mean delay of a late event, and the longest.
const DELAY_MS: f64 = 30_000.0;
const LONGEST_DELAY_MS: f64 = 600_000.0;
/// A copy comes at most so much later.
const COPY_MS: u64 = 60_000;
/// A pause above this ends a session.
const GAP_MS: u32 = 30 * 60 * 1_000;

/// How an event's session is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sessions {
    /// A visit is a session: what real traffic is like.
    Visits,
    /// Drawn at random for each event: every batch touches about as many sessions as it has events.
    Drawn,
}

/// What traffic is like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Records, copies included.
    pub records: u64,
    /// The event time that they span, in milliseconds.
    pub span_ms: u32,
    /// How sessions are chosen.
    pub sessions: Sessions,
    /// Other seeds give other traffic.
    pub seed: u64,
    /// Whether properties name the visitor's country.
    pub countries: bool,
    /// Whether visits are under way at the start and at the end, so that every second has as many records. Otherwise they
    /// lie within the time, and most records in its middle.
    pub steady: bool,
}

impl Shape {
    /// As dense as 3 million records in an hour.
    pub fn dense(records: u64, sessions: Sessions, seed: u64) -> Self {
        let span_ms = (records as f64 * MS_PER_RECORD) as u32;
        Self { records, span_ms, sessions, seed, countries: false, steady: false }
    }

    /// So many records in every second.
    pub fn steady(per_second: u64, seconds: u32, seed: u64) -> Self {
        let (records, span_ms) = (per_second * u64::from(seconds), seconds * 1_000);
        Self { records, span_ms, sessions: Sessions::Visits, seed, countries: false, steady: true }
    }
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival {
    /// When it arrives, in milliseconds since the traffic's start.
    pub at_ms: u32,
    /// The event's time; at most `at_ms`.
    pub time_ms: u32,
    /// Visit and number within the visit tell an event from all others.
    pub visit: u32,
    /// See `visit`.
    pub number: u16,
    /// The session that the event names.
    pub session: u32,
    /// Whether it has arrived before.
    pub copy: bool,
}

/// All records, in the order in which they arrive.
pub struct Traffic {
    /// What it is like.
    pub shape: Shape,
    /// How many users there are.
    pub users: u64,
    /// The records.
    pub records: Vec<Arrival>,
}

/// What has to come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Events, each counted once.
    pub events: u64,
    /// Sessions by the definition: no two neighbours more than 30 minutes apart.
    pub sessions: u64,
}

impl Traffic {
    /// The traffic of a shape.
    pub fn new(shape: Shape) -> Self {
        let copies = shape.records / RECORDS_PER_COPY;
        let events = shape.records - copies;
        let mut records = Vec::with_capacity(shape.records as usize);
        let mut visit = 0;
        while (records.len() as u64) < events {
            add_visit(&shape, visit, events - records.len() as u64, &mut records);
            visit += 1;
        }
        if shape.sessions == Sessions::Drawn {
            for record in &mut records {
                let event = u64::from(record.visit) << 16 | u64::from(record.number);
                record.session = Random::new(shape.seed, !event).below(u64::from(visit)) as u32;
            }
        }
        add_copies(&shape, copies, &mut records);
        records.sort_unstable();
        Self { shape, users: (shape.records / RECORDS_PER_USER).max(1), records }
    }

    /// The user of a session.
    pub fn user(&self, session: u32) -> u64 {
        mix(self.shape.seed ^ mix(u64::from(session))) % self.users
    }

    /// What has to come out, from the definitions.
    pub fn expected(&self) -> Expected {
        let originals = self.records.iter().filter(|record| !record.copy);
        let mut times: HashMap<u32, Vec<u32>> = HashMap::new();
        originals.clone().for_each(|record| times.entry(record.session).or_default().push(record.time_ms));
        let sessions = times.values_mut().map(|times| {
            times.sort_unstable();
            1 + times.windows(2).filter(|pair| pair[1] - pair[0] > GAP_MS).count() as u64
        });
        Expected { events: originals.count() as u64, sessions: sessions.sum() }
    }
}

/// Adds the events of a visit, at most `room` of them.
fn add_visit(shape: &Shape, visit: u32, room: u64, records: &mut Vec<Arrival>) {
    let mut random = Random::new(shape.seed, u64::from(visit));
    let events = (VISIT.start() + random.below(VISIT.end() - VISIT.start() + 1)).min(room);
    let mut times: Vec<f64> = Vec::with_capacity(events as usize);
    let mut time = 0.0;
    for _ in 0..events {
        times.push(time);
        time += random.exponential(PAUSE_MS).clamp(1.0, LONGEST_PAUSE_MS);
    }
    let span_ms = f64::from(shape.span_ms);
    let (scale, start) = if shape.steady {
        (1.0, random.below((span_ms + LONGEST_VISIT_MS) as u64) as f64 - LONGEST_VISIT_MS)
    } else {
        // A visit fits into the time there is, however short that is.
        let scale = (span_ms / 2.0 / time).min(1.0);
        (scale, random.below((span_ms - time * scale).max(1.0) as u64) as f64)
    };
    for (number, time) in times.into_iter().enumerate() {
        let time = start + time * scale;
        if !(0.0..span_ms).contains(&time) {
            continue;
        }
        let time_ms = time as u32;
        let late = random.below(EVENTS_PER_LATE_ONE) == 0;
        let delay = if late { random.exponential(DELAY_MS).clamp(1_000.0, LONGEST_DELAY_MS) } else { 0.0 };
        let at_ms = time_ms + delay as u32;
        records.push(Arrival { at_ms, time_ms, visit, number: number as u16, session: visit, copy: false });
    }
}

fn add_copies(shape: &Shape, copies: u64, records: &mut Vec<Arrival>) {
    let originals = records.len() as u64;
    let mut random = Random::new(shape.seed, u64::MAX);
    for _ in 0..copies {
        let original = records[random.below(originals) as usize];
        let at_ms = original.at_ms + 1 + random.below(COPY_MS) as u32;
        records.push(Arrival { at_ms, copy: true, ..original });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn traffic(sessions: Sessions) -> Traffic {
        Traffic::new(Shape { span_ms: 3_600_000, ..Shape::dense(200_000, sessions, 7) })
    }

    fn event(record: &Arrival) -> (u32, u16) {
        (record.visit, record.number)
    }

    #[test]
    fn one_record_in_a_hundred_is_a_copy_behind_its_original() {
        let traffic = traffic(Sessions::Visits);
        assert_eq!(traffic.records.len(), 200_000);
        let mut seen = HashSet::new();
        let mut copies = 0;
        for record in &traffic.records {
            assert_eq!(seen.insert(event(record)), !record.copy, "{record:?}");
            copies += u64::from(record.copy);
        }
        assert_eq!(copies, 2_000);
        assert_eq!(traffic.expected().events, 198_000);
    }

    #[test]
    fn one_event_in_twenty_is_out_of_order() {
        let traffic = traffic(Sessions::Visits);
        let (mut latest, mut late, mut events) = (0, 0.0, 0.0);
        for record in traffic.records.iter().filter(|record| !record.copy) {
            assert!(record.time_ms <= record.at_ms);
            late += f64::from(u8::from(record.time_ms < latest));
            events += 1.0;
            latest = latest.max(record.time_ms);
        }
        assert!((0.045..0.055).contains(&(late / events)), "{}", late / events);
    }

    #[test]
    fn visits_have_33_events_within_minutes_and_start_all_along() {
        let traffic = traffic(Sessions::Visits);
        let mut visits: HashMap<u32, Vec<u32>> = HashMap::new();
        let originals = traffic.records.iter().filter(|record| !record.copy);
        originals.for_each(|record| visits.entry(record.visit).or_default().push(record.time_ms));
        let mean = 198_000.0 / visits.len() as f64;
        assert!((32.0..34.0).contains(&mean), "{mean}");
        let mut quarters = [0; 4];
        for times in visits.values() {
            let (first, last) = (*times.iter().min().expect("one"), *times.iter().max().expect("one"));
            assert!(last - first <= 20 * 60_000);
            assert!(last < traffic.shape.span_ms);
            quarters[(u64::from(first) * 4 / u64::from(traffic.shape.span_ms)) as usize] += 1;
        }
        assert!(quarters[..3].iter().all(|started| *started > visits.len() / 6), "{quarters:?}");
        assert_eq!(traffic.expected().sessions, visits.len() as u64);
        assert_eq!(traffic.users, 3_333);
    }

    #[test]
    fn steady_traffic_has_as_many_records_in_every_second() {
        let traffic = Traffic::new(Shape::steady(2_000, 100, 7));
        let mut tenths = [0; 10];
        let in_time = traffic.records.iter().filter(|record| record.at_ms < 100_000);
        in_time.for_each(|record| tenths[record.at_ms as usize / 10_000] += 1);
        assert!(tenths.iter().all(|records| (18_500..21_000).contains(records)), "{tenths:?}");
        // An event in nine seconds is what a visit has, so a second has hardly two of one.
        let second = traffic.records.iter().filter(|record| record.at_ms / 1_000 == 50);
        let visits = second.clone().map(|record| record.visit).collect::<HashSet<_>>().len();
        assert!(visits * 10 > second.count() * 9, "{visits}");
    }

    #[test]
    fn drawn_sessions_are_spread_over_the_whole_time() {
        let drawn = traffic(Sessions::Drawn);
        // Of a thousand records in a row, nearly every one has another session; of visits, far fewer have.
        let distinct = |traffic: &Traffic| {
            let middle = &traffic.records[100_000..101_000];
            middle.iter().map(|record| record.session).collect::<HashSet<_>>().len()
        };
        assert!(distinct(&drawn) > 900, "{}", distinct(&drawn));
        assert!(distinct(&traffic(Sessions::Visits)) < 600);
        for record in drawn.records.iter().filter(|record| record.copy).take(100) {
            let original = drawn.records.iter().find(|other| event(other) == event(record)).expect("one");
            assert_eq!((original.session, original.time_ms), (record.session, record.time_ms));
        }
    }

    #[test]
    fn a_pause_above_30_minutes_ends_a_session() {
        let at = |time_ms, number| Arrival { at_ms: time_ms, time_ms, visit: 0, number, session: 3, copy: false };
        let shape = Shape::dense(3, Sessions::Visits, 0);
        let expected = |records: Vec<Arrival>| Traffic { shape, users: 1, records }.expected();
        assert_eq!(expected(vec![at(GAP_MS, 1), at(0, 0)]), Expected { events: 2, sessions: 1 });
        assert_eq!(expected(vec![at(GAP_MS + 1, 1), at(0, 0)]), Expected { events: 2, sessions: 2 });
    }

    #[test]
    fn a_seed_gives_the_same_traffic_again() {
        let of = |seed| Traffic::new(Shape::steady(50, 20, seed)).records;
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }
}

//! Sessions as a merging of intervals of event time.
//!
//! A session is a run of events of one session id in which no two neighbours are more than [`GAP`] apart.
//! Every field is a merge that is commutative and associative: sums, earliest and latest values, with ties
//! in time settled by the value. So the sessions of a set of events are the same in any order of arrival.

use std::borrow::Cow;

use tidemill_common::event::EventRef;

use crate::decimal::Decimal;
use crate::enrich::Traits;
use crate::metric;
use crate::properties::{Properties, storable};

/// The longest pause within a session, in microseconds. Exactly this long still belongs together.
pub const GAP: i64 = 30 * 60 * 1_000_000;

/// The half hour in which a time lies, counted since 1970: what sessions are found by that are live.
pub fn slot(micros: i64) -> i32 {
    i32::try_from(micros.div_euclid(GAP)).unwrap_or(i32::MAX)
}

/// Longest name of a page that is kept, in characters.
const MAX_PAGE: usize = 1_024;

/// A value and the time of the event it comes from, in microseconds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct At<'a> {
    /// When.
    pub at: i64,
    /// What.
    pub value: Cow<'a, str>,
}

/// One session, or a part of one: an interval of event time and what happened in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session<'a> {
    /// Its first event, in microseconds since 1970.
    pub first_event_at: i64,
    /// Its last event.
    pub last_event_at: i64,
    /// How many events it has.
    pub total_events: i64,
    /// How many of them are page views.
    pub page_views: i64,
    /// How many of them are conversions.
    pub conversions: i64,
    /// What those brought in; none if none of them says.
    pub revenue: Option<Decimal>,
    /// The earliest user named.
    pub user: Option<At<'a>>,
    /// Whether that is the user's first event of all.
    pub is_new: bool,
    /// The earliest page named.
    pub entry: Option<At<'a>>,
    /// The latest page named.
    pub page: Option<At<'a>>,
    /// The earliest traffic source named.
    pub source: Option<At<'a>>,
    /// The earliest kind of device known.
    pub device: Option<At<'a>>,
    /// The earliest country known.
    pub country: Option<At<'a>>,
}

/// What a change of sessions adds to a metric, in the windows around a time; negative when it takes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// The metric's name.
    pub metric: &'static str,
    /// The start of the session that it is about, in microseconds since 1970.
    pub at: i64,
    /// Added to the count.
    pub count: i64,
    /// Added to the sum.
    pub sum: Decimal,
}

impl<'a> Session<'a> {
    /// The session of a single event. Whether its user is new is not known from it.
    pub fn of(event: &EventRef<'a>, properties: &Properties<'a, '_>, traits: &'a Traits) -> Self {
        let page = page(event, properties);
        let at = |value: Cow<'a, str>| At { at: event.timestamp, value };
        let name = |value: &'a str| at(Cow::Borrowed(value));
        let page_views = i64::from(page.is_some());
        let page = page.flatten().map(at);
        Self {
            first_event_at: event.timestamp,
            last_event_at: event.timestamp,
            total_events: 1,
            page_views,
            conversions: i64::from(traits.conversion),
            revenue: traits.revenue,
            user: event.user_id.map(name),
            is_new: false,
            entry: page.clone(),
            page,
            source: traits.source.map(|source| name(source.as_str())),
            device: traits.device.map(|device| name(device.as_str())),
            country: traits.country.as_ref().map(|country| name(country.as_str())),
        }
    }

    /// Whether both belong to one session.
    fn reaches(&self, other: &Self) -> bool {
        other.first_event_at - self.last_event_at <= GAP && self.first_event_at - other.last_event_at <= GAP
    }

    fn absorb(&mut self, other: Self) {
        self.first_event_at = self.first_event_at.min(other.first_event_at);
        self.last_event_at = self.last_event_at.max(other.last_event_at);
        self.total_events += other.total_events;
        self.page_views += other.page_views;
        self.conversions += other.conversions;
        self.revenue = match (self.revenue, other.revenue) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
        if is_earlier(&other.user, &self.user) {
            (self.user, self.is_new) = (other.user, other.is_new);
        }
        for (mine, others) in [
            (&mut self.entry, other.entry),
            (&mut self.source, other.source),
            (&mut self.device, other.device),
            (&mut self.country, other.country),
        ] {
            if is_earlier(&others, mine) {
                *mine = others;
            }
        }
        self.page = self.page.take().max(other.page); // none is less than any
    }

    /// What it counts for in a metric.
    fn counts(&self, metric: &'static str) -> (i64, Decimal) {
        let count = match metric {
            metric::SESSIONS => 1,
            metric::BOUNCES => i64::from(self.total_events == 1),
            metric::NEW_USERS => i64::from(self.is_new),
            metric::CONVERSIONS => self.conversions,
            _ => return (self.conversions, self.revenue.unwrap_or_default()),
        };
        (count, Decimal::ZERO)
    }
}

fn is_earlier(a: &Option<At<'_>>, b: &Option<At<'_>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a < b,
        (a, b) => a.is_some() && b.is_none(),
    }
}

/// Adds a part to the parts of one session id. Most events follow each other, so most parts grow at once.
pub fn add<'a>(parts: &mut Vec<Session<'a>>, part: Session<'a>) {
    match parts.last_mut() {
        Some(last) if last.reaches(&part) => last.absorb(part),
        _ => parts.push(part),
    }
}

/// Merges the parts of one session id into its sessions, in order of time. Parts must be all that lie
/// within reach of each other.
pub fn merge(mut parts: Vec<Session<'_>>) -> Vec<Session<'_>> {
    parts.sort_by_key(|part| (part.first_event_at, part.last_event_at));
    let mut sessions = Vec::with_capacity(parts.len());
    parts.into_iter().for_each(|part| add(&mut sessions, part));
    sessions
}

/// What it means to metrics that the sessions of one id were these and now are those, each in order of time. A
/// session counts in the windows around its start.
pub fn differences(before: &[Session<'_>], after: &[Session<'_>], mut each: impl FnMut(Difference)) {
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let next = |session: Option<&&Session<'_>>| session.map_or(i64::MAX, |session| session.first_event_at);
        let at = next(before.peek()).min(next(after.peek()));
        let old = before.next_if(|session| session.first_event_at == at);
        let new = after.next_if(|session| session.first_event_at == at);
        if old.is_none() && new.is_none() {
            return;
        }
        for metric in metric::OF_SESSIONS {
            let counts = |session: Option<&Session<'_>>| session.map_or_else(Default::default, |s| s.counts(metric));
            let ((had, sum_had), (has, sum_has)) = (counts(old), counts(new));
            let difference = Difference { metric, at, count: has - had, sum: sum_has - sum_had };
            if (difference.count, difference.sum) != (0, Decimal::ZERO) {
                each(difference);
            }
        }
    }
}

/// What an event counts for that has neither a session nor a user: conversions are counted all the same.
pub fn alone(event: &EventRef<'_>, traits: &Traits, mut each: impl FnMut(Difference)) {
    if traits.conversion {
        let sum = traits.revenue.unwrap_or_default();
        each(Difference { metric: metric::CONVERSIONS, at: event.timestamp, count: 1, sum: Decimal::ZERO });
        each(Difference { metric: metric::REVENUE, at: event.timestamp, count: 1, sum });
    }
}

/// The name of the page that an event shows: none, or one without a name (`Some(None)`).
fn page<'a>(event: &EventRef<'_>, properties: &Properties<'a, '_>) -> Option<Option<Cow<'a, str>>> {
    let text = |name: &str| properties.get(name)?.text();
    let named = named_page(properties);
    let shown = (named.is_some() || views_page(event.event_type))
        .then(|| named.or_else(|| text("path")).or_else(|| text("url")));
    shown.map(|name| name.map(|name| storable(name, MAX_PAGE)))
}

/// Whether every event of this type is a page view.
pub(super) fn views_page(event_type: &str) -> bool {
    matches!(event_type, "page" | "page_view" | "pageview" | "screen")
}

/// The page that an event names; one of any type that does is a page view.
pub(super) fn named_page<'a>(properties: &Properties<'a, '_>) -> Option<Cow<'a, str>> {
    properties.get("page")?.text()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use tidemill_common::event::Event;

    use super::*;

    /// Counts and sums by metric and time.
    type Sums = HashMap<(&'static str, i64), (i64, Decimal)>;

    use crate::enrich::{Country, Device, Source};
    use crate::properties::Fields;
    use proptest::prelude::*;

    const MINUTE: i64 = 60 * 1_000_000;

    fn event(at: i64, event_type: &str, user: Option<&str>, page: Option<&str>) -> Event {
        Event {
            user_id: user.map(str::to_owned),
            properties: page.map(|page| format!("{{\"page\":{page:?}}}")),
            ..Event::new("", event_type, at)
        }
    }

    fn part<'a>(event: &'a Event, traits: &'a Traits) -> Session<'a> {
        let text = event.properties.as_deref().unwrap_or_default();
        Session::of(&event.as_ref(), &Fields::read(text).of(text), traits)
    }

    const NONE: Traits = Traits { device: None, source: None, country: None, conversion: false, revenue: None };
    const BOUGHT: Traits = Traits { conversion: true, ..NONE };

    fn sessions(events: &[Event]) -> Vec<Session<'_>> {
        merge(events.iter().map(|event| part(event, &NONE)).collect())
    }

    #[test]
    fn a_gap_of_exactly_thirty_minutes_joins() {
        let at = |minutes: i64, more: i64| event(minutes * MINUTE + more, "click", None, None);
        assert_eq!(sessions(&[at(0, 0), at(30, 0)]).len(), 1);
        assert_eq!(sessions(&[at(30, 0), at(0, 0)]).len(), 1);
        assert_eq!(sessions(&[at(0, 0), at(30, 1)]).len(), 2);
    }

    #[test]
    fn a_late_event_bridges_two_sessions() {
        let first = event(0, "click", Some("b"), Some("home"));
        let second = event(50 * MINUTE, "purchase", Some("a"), Some("cart"));
        let late = event(25 * MINUTE, "click", None, None);
        let mut stored = merge(vec![part(&second, &BOUGHT), part(&first, &NONE)]);
        stored.iter_mut().for_each(|session| session.is_new = true);
        assert_eq!(stored.len(), 2);
        let joined = merge([stored.clone(), vec![part(&late, &NONE)]].concat());
        assert_eq!(joined.len(), 1);
        assert_eq!((joined[0].total_events, joined[0].page_views, joined[0].conversions), (3, 2, 1));
        let value = |at: &Option<At<'_>>| at.as_ref().map(|at| at.value.to_string());
        assert_eq!(value(&joined[0].user).as_deref(), Some("b"), "the earliest user");
        assert_eq!(value(&joined[0].entry).as_deref(), Some("home"));
        assert_eq!(value(&joined[0].page).as_deref(), Some("cart"), "the latest page");

        let mut found = Vec::new();
        differences(&stored, &joined, |difference| found.push((difference.metric, difference.at, difference.count)));
        let expected = [
            (metric::BOUNCES, 0, -1),
            (metric::CONVERSIONS, 0, 1),
            (metric::REVENUE, 0, 1),
            (metric::SESSIONS, 50 * MINUTE, -1),
            (metric::BOUNCES, 50 * MINUTE, -1),
            (metric::NEW_USERS, 50 * MINUTE, -1),
            (metric::CONVERSIONS, 50 * MINUTE, -1),
            (metric::REVENUE, 50 * MINUTE, -1),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn page_views_are_events_that_show_a_page() {
        assert_eq!(part(&event(0, "page_view", None, None), &NONE).page_views, 1);
        assert_eq!(part(&event(0, "click", None, Some("home")), &NONE).page_views, 1);
        assert_eq!(part(&event(0, "click", None, None), &NONE).page_views, 0);
    }

    #[test]
    fn names_of_pages_can_be_stored() {
        let mut hostile = event(0, "page", None, None);
        hostile.properties = Some(format!("{{\"page\":\"a\\u0000{}\"}}", "b".repeat(5_000)));
        let page = part(&hostile, &NONE).page.expect("a page").value;
        assert!(page.starts_with("a\u{fffd}b"));
        assert_eq!(page.chars().count(), MAX_PAGE);
    }

    /// An event to draw: its time in steps of ten minutes and a microsecond more or not, and what it names.
    type Drawn = (i64, bool, [usize; 6]);

    fn drawn() -> impl Strategy<Value = Vec<Drawn>> {
        prop::collection::vec((0i64..20, any::<bool>(), prop::array::uniform6(0usize..4)), 1..40)
    }

    fn made(drawn: &[Drawn]) -> Vec<(Event, Traits)> {
        const NAMES: [Option<&str>; 4] = [None, Some("a"), Some("b"), Some("c")];
        const DEVICES: [Option<Device>; 4] = [None, Some(Device::Bot), Some(Device::Mobile), Some(Device::Other)];
        const SOURCES: [Option<Source>; 4] = [None, Some(Source::Paid), Some(Source::Email), Some(Source::Social)];
        let one = |&(at, late, [user, page, device, source, country, sum]): &Drawn| {
            let conversion = sum > 1;
            let revenue = conversion.then(|| Decimal::parse(&format!("{sum}.1"))).flatten();
            let country = [None, Country::parse("NL"), Country::parse("JP"), Country::parse("DE")][country];
            let event = event(at * 10 * MINUTE + i64::from(late), "click", NAMES[user], NAMES[page]);
            (event, Traits { device: DEVICES[device], source: SOURCES[source], country, conversion, revenue })
        };
        drawn.iter().map(one).collect()
    }

    /// From the definition: sort by time, cut where the pause is too long, and look for each thing by itself.
    fn oracle(events: &[(Event, Traits)]) -> Vec<Session<'_>> {
        let mut firsts = BTreeMap::<&str, i64>::new();
        for (event, user) in events.iter().filter_map(|(event, _)| Some((event, event.user_id.as_deref()?))) {
            let first = firsts.entry(user).or_insert(event.timestamp);
            *first = (*first).min(event.timestamp);
        }
        let mut sorted: Vec<&(Event, Traits)> = events.iter().collect();
        sorted.sort_by_key(|(event, _)| event.timestamp);
        sorted
            .chunk_by(|a, b| b.0.timestamp - a.0.timestamp <= GAP)
            .map(|run| {
                let named = |of: &dyn Fn(&'_ (Event, Traits)) -> Option<String>| {
                    let mut found: Vec<At<'_>> =
                        run.iter().filter_map(|one| Some(At { at: one.0.timestamp, value: of(one)?.into() })).collect();
                    found.sort();
                    (found.first().cloned(), found.last().cloned())
                };
                let page = |one: &(Event, Traits)| {
                    let json: serde_json::Value = serde_json::from_str(one.0.properties.as_deref()?).expect("JSON");
                    Some(json["page"].as_str()?.to_owned())
                };
                let user = named(&|one| one.0.user_id.clone()).0;
                let revenues: Vec<Decimal> = run.iter().filter_map(|(_, traits)| traits.revenue).collect();
                Session {
                    first_event_at: run[0].0.timestamp,
                    last_event_at: run[run.len() - 1].0.timestamp,
                    total_events: run.len() as i64,
                    page_views: run.iter().filter(|one| page(one).is_some()).count() as i64,
                    conversions: run.iter().filter(|(_, traits)| traits.conversion).count() as i64,
                    revenue: (!revenues.is_empty()).then(|| revenues.iter().copied().sum()),
                    is_new: user.as_ref().is_some_and(|user| firsts[&*user.value] == user.at),
                    user,
                    entry: named(&page).0,
                    page: named(&page).1,
                    source: named(&|one| one.1.source.map(|source| source.as_str().to_owned())).0,
                    device: named(&|one| one.1.device.map(|device| device.as_str().to_owned())).0,
                    country: named(&|one| one.1.country.map(|country| country.as_str().to_owned())).0,
                }
            })
            .collect()
    }

    /// As the store does it, batch by batch: users first, then what of the stored sessions is touched.
    fn folded<'a>(events: &'a [(Event, Traits)], batch: usize) -> (Vec<Session<'a>>, Sums) {
        let (mut stored, mut firsts, mut sums) =
            (Vec::<Session<'a>>::new(), HashMap::<&str, i64>::new(), HashMap::new());
        for batch in events.chunks(batch) {
            for (event, _) in batch {
                let Some(user) = event.user_id.as_deref() else { continue };
                let first = firsts.entry(user).or_insert(event.timestamp);
                *first = (*first).min(event.timestamp);
            }
            let mut parts = stored.clone();
            for (event, traits) in batch {
                add(&mut parts, part(event, traits));
            }
            for part in &mut parts {
                part.is_new = part.user.as_ref().is_some_and(|user| firsts[&*user.value] == user.at);
            }
            let merged = merge(parts);
            differences(&stored, &merged, |difference| {
                let sum: &mut (i64, Decimal) = sums.entry((difference.metric, difference.at)).or_default();
                *sum = (sum.0 + difference.count, sum.1 + difference.sum);
            });
            stored = merged;
        }
        sums.retain(|_, sum| *sum != (0, Decimal::ZERO));
        (stored, sums)
    }

    proptest! {
        /// Any order and any split into batches, the stored sessions being merged with each batch.
        #[test]
        fn the_order_of_arrival_does_not_matter(drawn in drawn(), batch in 1usize..8) {
            let events = made(&drawn);
            let expected = oracle(&events);
            let (sessions, sums) = folded(&events, batch);
            prop_assert_eq!(&sessions, &expected);
            let mut counted = HashMap::<_, (i64, Decimal)>::new();
            for session in &expected {
                let start = session.first_event_at;
                counted.insert((metric::SESSIONS, start), (1, Decimal::ZERO));
                counted.insert((metric::BOUNCES, start), (i64::from(session.total_events == 1), Decimal::ZERO));
                counted.insert((metric::NEW_USERS, start), (i64::from(session.is_new), Decimal::ZERO));
                counted.insert((metric::CONVERSIONS, start), (session.conversions, Decimal::ZERO));
                let revenue = session.revenue.unwrap_or_default();
                counted.insert((metric::REVENUE, start), (session.conversions, revenue));
            }
            counted.retain(|_, sum| *sum != (0, Decimal::ZERO));
            prop_assert_eq!(sums, counted);
        }
    }
}

//! Sessions: their keys are locked, what is within reach is loaded, merged in memory, and written back. What makes their
//! carts is added with the lock.

use std::borrow::Cow;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::users::{Firsts, SessionKey};
use super::{Counted, Touched, carts};
use crate::decimal::Decimal;
use crate::fold::carts::{CartEvent, Lines};
use crate::fold::rollups::Changes;
use crate::fold::sessions::{At, GAP, Session, add, alone, differences, merge, slot};
use crate::live_session::{LiveSession, Stamp};
use crate::quick_map::QuickMap;
use crate::session_key;
use crate::time::utc;

/// Keys whose sessions are in memory at a time.
const KEYS: usize = 10_000;

/// What a batch has of one key.
struct Group<'a> {
    project: &'a str,
    key: Cow<'a, str>,
    /// The time in which stored sessions are of interest, but for the reach of [`GAP`].
    span: (i64, i64),
    /// The events of its cart. There is one only for session ids.
    cart: Option<Box<Lines>>,
}

/// The batch's events by key.
struct Grouped<'a> {
    /// In the order of locks.
    groups: Vec<Group<'a>>,
    /// Events that have a key, in the order in which they lie in memory, and the place of their group.
    events: Vec<(&'a Counted, usize)>,
}

/// What Postgres has of one key within reach: sessions in order of time, and where each row lies.
#[derive(Default)]
struct Stored<'a> {
    sessions: Vec<Session<'a>>,
    places: Vec<&'a str>,
}

/// A session to write, and its project and key.
type Written<'a> = (&'a str, &'a str, Session<'a>);

/// What is to be done to the table. A session that has only gone on is changed in its place, with the few fields
/// that this takes; that is what most of them do. Under the lock of its key a row stays where it was read.
#[derive(Default)]
struct Writes<'a> {
    gone: Vec<&'a str>,
    moved: Vec<(&'a str, Session<'a>)>,
    written: Vec<Written<'a>>,
}

/// Applies the events to their sessions, and adds the difference to `changes`. Keys of sessions whose users have
/// turned out not to be new get a new version too, since what Redis shows of them has changed. With `show`, which is the
/// epoch, what it is to show of those sessions that are the latest of their keys is said at once, and need not be read.
pub async fn apply(
    tx: &mut PgConnection,
    generation: i32,
    show: Option<i64>,
    events: &[&Counted],
    firsts: &Firsts<'_>,
    changes: &mut Changes,
    touched: &mut Touched,
) -> Result<(), sqlx::Error> {
    let grouped = Grouped::new(events, &firsts.renewed, changes);
    // They are in the order of locks, so their parts are, too.
    for (start, groups) in (0..).step_by(KEYS).zip(grouped.groups.chunks(KEYS)) {
        let parts = grouped.parts(start, groups.len());
        apply_to(tx, generation, show, (groups, parts), firsts, changes, touched).await?;
    }
    Ok(())
}

async fn apply_to(
    tx: &mut PgConnection,
    generation: i32,
    show: Option<i64>,
    (groups, parts): (&[Group<'_>], Vec<Vec<Session<'_>>>),
    firsts: &Firsts<'_>,
    changes: &mut Changes,
    touched: &mut Touched,
) -> Result<(), sqlx::Error> {
    let locked = lock(tx, generation, groups).await?;
    shorten_carts(tx, generation, groups, &locked).await?;
    let rows = load(tx, generation, groups).await?;
    let mut stored: Vec<Stored<'_>> = Vec::new();
    stored.resize_with(groups.len(), Stored::default);
    for row in &rows {
        let Stored { sessions, places } = &mut stored[row.try_get::<i64, _>(0)? as usize - 1];
        let session = session(row)?;
        let place = sessions.partition_point(|earlier| earlier.first_event_at < session.first_event_at);
        sessions.insert(place, session);
        places.insert(place, row.try_get(20)?);
    }
    let mut writes = Writes::default();
    for (((group, mut parts), stored), locked) in groups.iter().zip(parts).zip(&stored).zip(locked) {
        parts.iter_mut().for_each(|part| part.is_new = names_first(part, group.project, firsts));
        parts.extend(stored.sessions.iter().cloned().map(|session| withdrawn(session, group.project, firsts)));
        let merged = merge(parts);
        differences(&stored.sessions, &merged, |d| changes.add(group.project, d.metric, d.at, d.count, d.sum));
        if let (Some(epoch), Some(latest)) = (show, merged.last().filter(|last| last.last_event_at == locked.latest)) {
            let key = (group.project.to_owned(), group.key.clone().into_owned());
            touched.latest.push(LiveSession::new(key, Stamp { epoch, generation, version: locked.version }, latest));
        }
        writes.add(group.project, &group.key, stored, merged);
    }
    delete(tx, &writes.gone).await?;
    go_on(tx, &writes.moved).await?;
    write(tx, generation, &writes.written).await?;
    let named = |group: &Group<'_>| (group.project.to_owned(), group.key.clone().into_owned());
    touched.carts.extend(groups.iter().filter(|group| group.cart.is_some()).map(named));
    touched.sessions.extend(groups.iter().map(named));
    Ok(())
}

async fn shorten_carts(
    tx: &mut PgConnection,
    generation: i32,
    groups: &[Group<'_>],
    locked: &[Locked],
) -> Result<(), sqlx::Error> {
    let long = groups.iter().zip(locked).filter(|(group, locked)| group.cart.is_some() && locked.has_long_cart);
    let long: Vec<(&str, &str)> = long.map(|(group, _)| (group.project, &*group.key)).collect();
    carts::shorten(tx, generation, &long).await
}

impl<'a> Writes<'a> {
    fn add(&mut self, project: &'a str, key: &'a str, stored: &Stored<'a>, merged: Vec<Session<'a>>) {
        let starts = |at: i64| merged.binary_search_by_key(&at, |session| session.first_event_at).is_ok();
        let gone = stored.sessions.iter().zip(&stored.places).filter(|(old, _)| !starts(old.first_event_at));
        self.gone.extend(gone.map(|(_, place)| *place));
        for new in merged {
            let old = stored.sessions.binary_search_by_key(&new.first_event_at, |session| session.first_event_at);
            match old.map(|place| (&stored.sessions[place], stored.places[place])) {
                Ok((old, _)) if *old == new => {}
                Ok((old, place)) if has_gone_on(old, &new) => self.moved.push((place, new)),
                _ => self.written.push((project, key, new)),
            }
        }
    }
}

/// Whether nothing has changed but what later events change.
fn has_gone_on(old: &Session<'_>, new: &Session<'_>) -> bool {
    let same = |old: &Option<At<'_>>, new: &Option<At<'_>>| old == new;
    old.is_new == new.is_new
        && same(&old.user, &new.user)
        && same(&old.entry, &new.entry)
        && same(&old.source, &new.source)
        && same(&old.device, &new.device)
        && same(&old.country, &new.country)
}

fn names_first(part: &Session<'_>, project: &str, firsts: &Firsts<'_>) -> bool {
    part.user.as_ref().is_some_and(|user| firsts.is_first(project, &user.value, user.at))
}

fn withdrawn<'a>(mut session: Session<'a>, project: &str, firsts: &Firsts<'_>) -> Session<'a> {
    let moved = |user: &At<'_>| firsts.is_moved(project, &user.value, user.at);
    session.is_new &= !session.user.as_ref().is_some_and(moved);
    session
}

impl<'a> Grouped<'a> {
    /// Events without a key are counted at once.
    fn new(events: &[&'a Counted], renewed: &'a [(SessionKey, i64)], changes: &mut Changes) -> Self {
        let mut places = QuickMap::<(&str, Cow<'a, str>), usize>::default();
        let mut groups = Vec::<Group<'a>>::new();
        let mut put = |project: &'a str, key: Cow<'a, str>, at: i64, of_cart: Option<CartEvent<'_>>| {
            let place = *places.entry((project, key)).or_insert_with_key(|(project, key)| {
                groups.push(Group { project, key: key.clone(), span: (at, at), cart: None });
                groups.len() - 1
            });
            let group = &mut groups[place];
            group.span = (group.span.0.min(at), group.span.1.max(at));
            if let Some(event) = of_cart {
                group.cart.get_or_insert_default().add(&event);
            }
            place
        };
        let mut with_key = Vec::with_capacity(events.len());
        for counted in events {
            let event = counted.event();
            match session_key::of(&event) {
                Some(key) => {
                    let in_session = event.session_id.is_some();
                    let of_cart = in_session.then(|| CartEvent::of(&event, &counted.properties())).flatten();
                    with_key.push((*counted, put(counted.project(), key, event.timestamp, of_cart)));
                }
                None => {
                    alone(&event, &counted.traits, |d| changes.add(counted.project(), d.metric, d.at, d.count, d.sum))
                }
            }
        }
        for ((project, key), moment) in renewed {
            put(project, Cow::Borrowed(key), *moment, None);
        }
        let mut grouped = Self { groups, events: with_key };
        grouped.sort();
        grouped
    }

    /// Puts the groups into the order of locks.
    fn sort(&mut self) {
        let groups = std::mem::take(&mut self.groups);
        let mut sorted: Vec<_> = groups.into_iter().enumerate().collect();
        sorted.sort_unstable_by(|(_, a), (_, b)| (a.project, &a.key).cmp(&(b.project, &b.key)));
        let mut ranks = vec![0; sorted.len()];
        sorted.iter().enumerate().for_each(|(rank, (place, _))| ranks[*place] = rank);
        self.events.iter_mut().for_each(|(_, place)| *place = ranks[*place]);
        self.groups = sorted.into_iter().map(|(_, group)| group).collect();
    }

    /// The batch's own sessions of each of `len` groups from `start` on. Merging them first keeps what is compared small. The
    /// events are taken as they lie in memory, since going from one of a session to its next would wait for each of them.
    fn parts(&self, start: usize, len: usize) -> Vec<Vec<Session<'a>>> {
        let mut parts = Vec::new();
        parts.resize_with(len, || Vec::with_capacity(1));
        for (counted, place) in &self.events {
            let Some(parts) = place.checked_sub(start).and_then(|place| parts.get_mut(place)) else { continue };
            add(parts, Session::of(&counted.event(), &counted.properties(), &counted.traits));
        }
        parts
    }
}

/// What its lock says of a key.
struct Locked {
    /// The version that it has from now on.
    version: i64,
    /// When the latest of all its events happened, in microseconds since 1970.
    latest: i64,
    /// Whether its cart may hold much that it does not need.
    has_long_cart: bool,
}

/// Locks the keys, in order, raises their versions, and adds to their carts.
async fn lock(tx: &mut PgConnection, generation: i32, groups: &[Group<'_>]) -> Result<Vec<Locked>, sqlx::Error> {
    let carts = || groups.iter().map(|group| group.cart.as_ref());
    let rows = sqlx::query(
        "INSERT INTO session_keys AS s (generation, project, session_id, version, latest_event_at, cart, cart_slot)
         SELECT $1, project, session_id, 1, latest, cart, cart_slot
         FROM unnest($2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::int[])
              AS k(project, session_id, latest, cart, cart_slot)
         ON CONFLICT (generation, project, session_id) DO UPDATE
         SET version = s.version + 1, latest_event_at = greatest(s.latest_event_at, excluded.latest_event_at),
             cart = coalesce(s.cart || excluded.cart, s.cart, excluded.cart),
             cart_slot = greatest(s.cart_slot, excluded.cart_slot)
         RETURNING session_id, version, latest_event_at, coalesce(octet_length(cart) > $7, false)",
    )
    .bind(generation)
    .bind(groups.iter().map(|group| group.project).collect::<Vec<_>>())
    .bind(groups.iter().map(|group| &*group.key).collect::<Vec<_>>())
    .bind(groups.iter().map(|group| utc(group.span.1)).collect::<Vec<_>>())
    .bind(carts().map(|cart| Some(&*cart?.text)).collect::<Vec<_>>())
    .bind(carts().map(|cart| Some(slot(cart?.latest))).collect::<Vec<_>>())
    .bind(carts::LONG)
    .fetch_all(tx)
    .await?;
    if rows.len() != groups.len() {
        return Err(out_of_order());
    }
    let locked = |(row, group): (&PgRow, &Group<'_>)| {
        if row.try_get::<&str, _>(0)? != group.key {
            return Err(out_of_order());
        }
        let latest: DateTime<Utc> = row.try_get(2)?;
        Ok(Locked { version: row.try_get(1)?, latest: latest.timestamp_micros(), has_long_cart: row.try_get(3)? })
    };
    rows.iter().zip(groups).map(locked).collect()
}

/// Postgres inserts row by row, as they are given, and returns them so, but does not promise it.
fn out_of_order() -> sqlx::Error {
    sqlx::Error::Protocol("session keys came back in another order".to_owned())
}

/// The columns of a session `s`, as [`session`] reads them behind another one.
pub const SESSION: &str = "s.first_event_at, s.last_event_at, s.total_events, s.page_views, s.conversions, \
    s.revenue::text, s.is_new, s.user_id, s.user_at, s.entry_page, s.entry_at, s.current_page, s.page_at, \
    s.traffic_source, s.source_at, s.device_type, s.device_at, s.country, s.country_at";

/// The stored sessions within reach of the batch's, each after the place of its group. In a statement of its own, so
/// that it sees what others have committed before the locks were given. OFFSET keeps the planner from joining: without
/// statistics, as on a new table, it compares everything with everything.
async fn load(tx: &mut PgConnection, generation: i32, groups: &[Group<'_>]) -> Result<Vec<PgRow>, sqlx::Error> {
    let reach = TimeDelta::microseconds(GAP);
    sqlx::query(AssertSqlSafe(format!(
        "SELECT k.n, {SESSION}, s.ctid::text
         FROM unnest($2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[]) WITH ORDINALITY
              AS k(project, session_id, reach_from, reach_to, n)
         CROSS JOIN LATERAL (
             SELECT ctid, * FROM sessions
             WHERE generation = $1 AND project = k.project AND session_id = k.session_id
               AND first_event_at <= k.reach_to AND last_event_at >= k.reach_from OFFSET 0) s"
    )))
    .bind(generation)
    .bind(groups.iter().map(|group| group.project).collect::<Vec<_>>())
    .bind(groups.iter().map(|group| &*group.key).collect::<Vec<_>>())
    .bind(groups.iter().map(|group| utc(group.span.0) - reach).collect::<Vec<_>>())
    .bind(groups.iter().map(|group| utc(group.span.1) + reach).collect::<Vec<_>>())
    .fetch_all(tx)
    .await
}

/// The session in a row that has the columns [`SESSION`] from the second on.
pub fn session(row: &PgRow) -> Result<Session<'_>, sqlx::Error> {
    let micros = |i: usize| row.try_get::<DateTime<Utc>, _>(i).map(|time| time.timestamp_micros());
    let at = |i: usize| -> Result<Option<At<'_>>, sqlx::Error> {
        let Some(value) = row.try_get::<Option<&str>, _>(i)? else { return Ok(None) };
        Ok(Some(At { at: micros(i + 1)?, value: Cow::Borrowed(value) }))
    };
    Ok(Session {
        first_event_at: micros(1)?,
        last_event_at: micros(2)?,
        total_events: row.try_get(3)?,
        page_views: row.try_get(4)?,
        conversions: row.try_get(5)?,
        revenue: row.try_get::<Option<&str>, _>(6)?.and_then(Decimal::parse),
        is_new: row.try_get(7)?,
        user: at(8)?,
        entry: at(10)?,
        page: at(12)?,
        source: at(14)?,
        device: at(16)?,
        country: at(18)?,
    })
}

async fn delete(tx: &mut PgConnection, gone: &[&str]) -> Result<(), sqlx::Error> {
    if gone.is_empty() {
        return Ok(());
    }
    sqlx::query("DELETE FROM sessions WHERE ctid = ANY ($1::text[]::tid[])").bind(gone).execute(tx).await?;
    Ok(())
}

async fn go_on(tx: &mut PgConnection, moved: &[(&str, Session<'_>)]) -> Result<(), sqlx::Error> {
    if moved.is_empty() {
        return Ok(());
    }
    let page = |session: &Session<'_>| session.page.as_ref().map(|page| utc(page.at));
    sqlx::query(
        "UPDATE sessions s SET last_event_at = k.last, last_slot = k.slot, total_events = k.events,
                               page_views = k.views, conversions = k.conversions, revenue = k.revenue::numeric,
                               current_page = k.page, page_at = k.page_at
         FROM unnest($1::text[], $2::timestamptz[], $3::int[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[],
                     $8::text[], $9::timestamptz[])
              AS k(place, last, slot, events, views, conversions, revenue, page, page_at)
         WHERE s.ctid = k.place::tid",
    )
    .bind(moved.iter().map(|(place, _)| *place).collect::<Vec<_>>())
    .bind(moved.iter().map(|(_, s)| utc(s.last_event_at)).collect::<Vec<_>>())
    .bind(moved.iter().map(|(_, s)| slot(s.last_event_at)).collect::<Vec<_>>())
    .bind(moved.iter().map(|(_, s)| s.total_events).collect::<Vec<_>>())
    .bind(moved.iter().map(|(_, s)| s.page_views).collect::<Vec<_>>())
    .bind(moved.iter().map(|(_, s)| s.conversions).collect::<Vec<_>>())
    .bind(moved.iter().map(|(_, s)| s.revenue.map(|revenue| revenue.to_string())).collect::<Vec<_>>())
    .bind(moved.iter().map(|(_, s)| s.page.as_ref().map(|page| &*page.value)).collect::<Vec<_>>())
    .bind(moved.iter().map(|(_, s)| page(s)).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

async fn write(tx: &mut PgConnection, generation: i32, written: &[Written<'_>]) -> Result<(), sqlx::Error> {
    if written.is_empty() {
        return Ok(());
    }
    let sessions = || written.iter().map(|(_, _, session)| session);
    type Field = for<'s, 'a> fn(&'s Session<'a>) -> &'s Option<At<'a>>;
    let values = |field: Field| sessions().map(|s| field(s).as_ref().map(|at| &*at.value)).collect::<Vec<_>>();
    let times = |field: Field| sessions().map(|s| field(s).as_ref().map(|at| utc(at.at))).collect::<Vec<_>>();
    sqlx::query(
        "INSERT INTO sessions (generation, project, session_id, first_event_at, last_event_at, total_events, page_views,
                               conversions, revenue, is_new, user_id, user_at, entry_page, entry_at, current_page,
                               page_at, traffic_source, source_at, device_type, device_at, country, country_at,
                               last_slot)
         SELECT $1, k.project, k.session_id, k.first, k.last, k.events, k.views, k.conversions, k.revenue::numeric,
                k.is_new, k.c11, k.c12, k.c13, k.c14, k.c15, k.c16, k.c17, k.c18, k.c19, k.c20, k.c21, k.c22, k.slot
         FROM unnest($2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::bigint[], $7::bigint[],
                     $8::bigint[], $9::text[], $10::boolean[], $11::text[], $12::timestamptz[], $13::text[],
                     $14::timestamptz[], $15::text[], $16::timestamptz[], $17::text[], $18::timestamptz[],
                     $19::text[], $20::timestamptz[], $21::text[], $22::timestamptz[], $23::int[])
              AS k(project, session_id, first, last, events, views, conversions, revenue, is_new, c11, c12, c13, c14,
                   c15, c16, c17, c18, c19, c20, c21, c22, slot)
         ON CONFLICT (generation, project, session_id, first_event_at) DO UPDATE SET
             last_event_at = excluded.last_event_at, total_events = excluded.total_events,
             page_views = excluded.page_views, conversions = excluded.conversions, revenue = excluded.revenue,
             is_new = excluded.is_new, user_id = excluded.user_id, user_at = excluded.user_at,
             entry_page = excluded.entry_page, entry_at = excluded.entry_at, current_page = excluded.current_page,
             page_at = excluded.page_at, traffic_source = excluded.traffic_source, source_at = excluded.source_at,
             device_type = excluded.device_type, device_at = excluded.device_at, country = excluded.country,
             country_at = excluded.country_at, last_slot = excluded.last_slot",
    )
    .bind(generation)
    .bind(written.iter().map(|(project, _, _)| *project).collect::<Vec<_>>())
    .bind(written.iter().map(|(_, key, _)| *key).collect::<Vec<_>>())
    .bind(sessions().map(|s| utc(s.first_event_at)).collect::<Vec<_>>())
    .bind(sessions().map(|s| utc(s.last_event_at)).collect::<Vec<_>>())
    .bind(sessions().map(|s| s.total_events).collect::<Vec<_>>())
    .bind(sessions().map(|s| s.page_views).collect::<Vec<_>>())
    .bind(sessions().map(|s| s.conversions).collect::<Vec<_>>())
    .bind(sessions().map(|s| s.revenue.map(|revenue| revenue.to_string())).collect::<Vec<_>>())
    .bind(sessions().map(|s| s.is_new).collect::<Vec<_>>())
    .bind(values(|s| &s.user))
    .bind(times(|s| &s.user))
    .bind(values(|s| &s.entry))
    .bind(times(|s| &s.entry))
    .bind(values(|s| &s.page))
    .bind(times(|s| &s.page))
    .bind(values(|s| &s.source))
    .bind(times(|s| &s.source))
    .bind(values(|s| &s.device))
    .bind(times(|s| &s.device))
    .bind(values(|s| &s.country))
    .bind(times(|s| &s.country))
    .bind(sessions().map(|s| slot(s.last_event_at)).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

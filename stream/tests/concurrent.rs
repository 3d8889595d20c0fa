//! Many workers' transactions on the same sessions, users and carts at the same time: no deadlock, and what comes out
//! is what the definitions say of the set of events.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use sqlx::{PgPool, Row};
use tidemill_common::event::Event;
use tidemill_common::names;
use tidemill_common::origin::Origin;
use tidemill_stream::decimal::Decimal;
use tidemill_stream::enrich::{Device, Enricher, Source};
use tidemill_stream::fold::carts::{Cart, CartEvent};
use tidemill_stream::ledger::{self, Advance, Place};
use tidemill_stream::metric::Definitions;
use tidemill_stream::store::{Batch, Counted, SHARDS, Shards, Store, carts};
use tidemill_stream::{forget, session_key};
use tidemill_testkit::{Stack, event, eventually};

/// 2024-03-01T00:00:00Z
const T0: i64 = 1_709_251_200;
const GAP: i64 = 1_800_000_000;
const WORKERS: u64 = 16;

/// Numbers that look random and are the same every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % limit
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// Events of a day in few sessions and of few users, with everything that there is to be said of them; some have no
/// session, some no user, some neither.
fn traffic(count: usize, random: &mut Random) -> Vec<Event> {
    const TYPES: [&str; 6] = ["view", "click", "purchase", "add_to_cart", "remove_from_cart", "page_view"];
    const AGENTS: [&str; 3] = ["curl/8", "Mozilla/5.0 (X11; Linux x86_64)", "Mozilla/5.0 (iPhone) Mobile"];
    const REFERRERS: [&str; 4] = ["https://www.google.com/", "https://t.co/x", "https://blog.example/", ""];
    (0..count)
        .map(|i| {
            // Steps of seven and a half minutes, so that gaps of exactly thirty are common.
            let at = T0 + random.below(192) as i64 * 450;
            let mut event = event(&format!("e-{i}"), TYPES[random.below(6) as usize], at);
            event.timestamp += random.below(2) as i64;
            event.user_id = (random.below(3) > 0).then(|| format!("u-{}", random.below(30)));
            event.session_id = (random.below(4) > 0).then(|| format!("s-{}", random.below(60)));
            event.user_agent = (random.below(3) > 0).then(|| AGENTS[random.below(3) as usize].to_owned());
            let json = serde_json::json!({
                "page": format!("p{}", random.below(9)), "referrer": REFERRERS[random.below(4) as usize],
                "sku": format!("i{}", random.below(3)), "quantity": random.below(3) + 1,
                "price": format!("{}.05", random.below(9)), "total": format!("{}.1", random.below(90)),
            });
            event.properties = (random.below(3) > 0).then(|| json.to_string());
            event
        })
        .collect()
}

fn counted(project: &str, events: &[Event], enricher: &mut Enricher) -> Vec<Counted> {
    let one = |event: &Event| {
        let mut counted = Counted::new(project, 0, &event.as_ref(), Origin::default());
        counted.traits = enricher.traits(&event.as_ref(), &counted.properties());
        counted
    };
    events.iter().map(one).collect()
}

fn store(pool: &PgPool) -> Store {
    let definitions = Definitions::new(pool.clone(), None).unwrap();
    Store::new(pool.clone(), definitions, Shards::new(SHARDS))
}

fn enricher() -> Enricher {
    Enricher::new(&["purchase".to_owned()], None).unwrap()
}

/// A session by its key and start: last event, numbers of events, views and conversions, revenue, whether it is new,
/// then user, entry, page, source and device.
type Rows = BTreeMap<(String, i64), Values>;
type Values = (i64, [i64; 3], Option<Decimal>, bool, [Option<String>; 5]);

fn page(counted: &Counted) -> Option<String> {
    let json: serde_json::Value = serde_json::from_str(counted.event().properties?).unwrap();
    Some(json["page"].as_str()?.to_owned())
}

fn is_page_view(counted: &Counted) -> bool {
    page(counted).is_some() || counted.event().event_type == "page_view"
}

/// From the definitions, one question after the other.
fn oracle(all: &[Counted]) -> Rows {
    let mut firsts = HashMap::<&str, i64>::new();
    let mut keys = BTreeMap::<String, Vec<&Counted>>::new();
    for counted in all {
        let event = counted.event();
        if let Some(user) = event.user_id {
            let first = firsts.entry(user).or_insert(event.timestamp);
            *first = event.timestamp.min(*first);
        }
        if let Some(key) = session_key::of(&event) {
            keys.entry(key.into_owned()).or_default().push(counted);
        }
    }
    let mut rows = Rows::new();
    for (key, mut events) in keys {
        events.sort_by_key(|counted| counted.event().timestamp);
        for run in events.chunk_by(|a, b| b.event().timestamp - a.event().timestamp <= GAP) {
            let named = |of: &dyn Fn(&Counted) -> Option<String>| {
                let mut found: Vec<_> = run.iter().filter_map(|c| Some((c.event().timestamp, of(c)?))).collect();
                found.sort();
                (found.first().cloned(), found.last().cloned())
            };
            let count = |is: &dyn Fn(&Counted) -> bool| run.iter().filter(|counted| is(counted)).count() as i64;
            let user = named(&|c| c.event().user_id.map(str::to_owned)).0;
            let revenues: Vec<Decimal> = run.iter().filter_map(|c| c.traits.revenue).collect();
            let value = |found: Option<(i64, String)>| found.map(|(_, value)| value);
            let row = (
                run[run.len() - 1].event().timestamp,
                [run.len() as i64, count(&is_page_view), count(&|c| c.event().event_type == "purchase")],
                (!revenues.is_empty()).then(|| revenues.iter().copied().sum()),
                user.as_ref().is_some_and(|(at, user)| firsts[user.as_str()] == *at),
                [
                    value(user),
                    value(named(&page).0),
                    value(named(&page).1),
                    value(named(&|c| c.traits.source.map(|source| Source::as_str(source).to_owned())).0),
                    value(named(&|c| c.traits.device.map(|device| Device::as_str(device).to_owned())).0),
                ],
            );
            rows.insert((key.clone(), run[0].event().timestamp), row);
        }
    }
    rows
}

async fn stored(pool: &PgPool) -> Rows {
    let rows = sqlx::query(
        "SELECT session_id, (extract(epoch FROM first_event_at) * 1000000)::bigint,
                (extract(epoch FROM last_event_at) * 1000000)::bigint, total_events, page_views, conversions,
                revenue::text, is_new, user_id, entry_page, current_page, traffic_source, device_type,
                last_slot = floor(extract(epoch FROM last_event_at) / 1800)
         FROM sessions",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let row = |row: sqlx::postgres::PgRow| {
        assert!(row.get::<bool, _>(13), "the slot is the last event's");
        let revenue = row.get::<Option<&str>, _>(6).and_then(Decimal::parse);
        let names = [8, 9, 10, 11, 12].map(|i| row.get(i));
        ((row.get(0), row.get(1)), (row.get(2), [3, 4, 5].map(|i| row.get(i)), revenue, row.get(7), names))
    };
    rows.into_iter().map(row).collect()
}

/// What the rollups say of a day, all shards together: count and sum by built-in metric.
async fn metrics(pool: &PgPool) -> BTreeMap<String, (i64, Decimal)> {
    let rows = sqlx::query(
        "SELECT metric_name, sum(count)::bigint, coalesce(sum(sum), 0)::text FROM metric_rollups
         WHERE granularity = '1d' AND metric_name = ANY ('{sessions,bounces,new_users,conversions,revenue,page_views}')
         GROUP BY 1",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    rows.iter().map(|row| (row.get(0), (row.get(1), Decimal::parse(row.get(2)).unwrap()))).collect()
}

fn expected_metrics(rows: &Rows, all: &[Counted]) -> BTreeMap<String, (i64, Decimal)> {
    let number = |is: &dyn Fn(&Values) -> bool| (rows.values().filter(|row| is(row)).count() as i64, Decimal::ZERO);
    // Those of neither session nor user count, too.
    let purchases = all.iter().filter(|counted| counted.event().event_type == "purchase").count() as i64;
    let revenue = all.iter().filter_map(|counted| counted.traits.revenue).sum();
    BTreeMap::from([
        ("page_views".to_owned(), (all.iter().filter(|counted| is_page_view(counted)).count() as i64, Decimal::ZERO)),
        ("sessions".to_owned(), number(&|_| true)),
        ("bounces".to_owned(), number(&|row| row.1[0] == 1)),
        ("new_users".to_owned(), number(&|row| row.3)),
        ("conversions".to_owned(), (purchases, Decimal::ZERO)),
        ("revenue".to_owned(), (purchases, revenue)),
    ])
}

async fn assert_carts(stack: &Stack, all: &[Counted]) {
    let mut events = HashMap::<&str, Vec<CartEvent<'_>>>::new();
    for counted in all {
        let Some(session_id) = counted.event().session_id else { continue };
        events.entry(session_id).or_default().extend(CartEvent::of(&counted.event(), &counted.properties()));
    }
    let of_carts: usize = events.values().map(Vec::len).sum();
    let keys: Vec<(&str, &str)> = events.keys().map(|session_id| (&*stack.project, *session_id)).collect();
    let found = carts::load(&stack.pool, &keys).await.unwrap();
    let found: BTreeMap<String, Cart> = found.into_iter().map(|stored| (stored.key.1, stored.cart)).collect();
    let expected: BTreeMap<String, Cart> =
        events.into_iter().filter_map(|(id, events)| Some((id.to_owned(), Cart::of(events)?))).collect();
    assert!(expected.values().any(|cart| cart.total_items() > 0));
    assert_eq!(found, expected);
    let kept: Vec<String> =
        sqlx::query_scalar("SELECT cart FROM session_keys WHERE cart <> ''").fetch_all(&stack.pool).await.unwrap();
    assert!(kept.iter().map(|cart| cart.lines().count()).sum::<usize>() < of_carts, "what no cart needs was taken out");
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_workers_agree_on_the_same_sessions_without_deadlock() {
    let stack = Stack::new().await;
    let mut random = Random(7);
    let mut events = traffic(12_000, &mut random);
    random.shuffle(&mut events);
    let all = counted(&stack.project, &events, &mut enricher());
    let mut hands: Vec<Vec<Event>> = vec![Vec::new(); WORKERS as usize];
    for event in events {
        hands[random.below(WORKERS) as usize].push(event);
    }
    let workers = hands.into_iter().enumerate().map(|(number, events)| {
        let (store, project) = (store(&stack.pool), stack.project.clone());
        tokio::spawn(async move {
            let (mut random, mut enricher, mut rest) = (Random(number as u64), enricher(), &events[..]);
            while !rest.is_empty() {
                let (batch, later) = rest.split_at((random.below(120) as usize + 1).min(rest.len()));
                rest = later;
                let batch = Batch { events: counted(&project, batch, &mut enricher), ..Batch::default() };
                store.commit(&batch).await.unwrap().expect("no ledger in the way");
            }
        })
    });
    for worker in futures::future::join_all(workers).await {
        worker.unwrap();
    }
    let expected = oracle(&all);
    assert!(expected.len() > 200 && expected.values().any(|row| row.3) && expected.values().any(|row| !row.3));
    assert_eq!(stored(&stack.pool).await, expected);
    assert_eq!(metrics(&stack.pool).await, expected_metrics(&expected, &all));
    assert_carts(&stack, &all).await;
    // Backends tell what they have counted within a second.
    eventually("statistics are there", || async {
        sqlx::query_scalar::<_, bool>(
            "SELECT xact_commit > 16 FROM pg_stat_database WHERE datname = current_database()",
        )
        .fetch_one(&stack.pool)
        .await
        .unwrap()
    })
    .await;
    let deadlocks: i64 =
        sqlx::query_scalar("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
            .fetch_one(&stack.pool)
            .await
            .unwrap();
    assert_eq!(deadlocks, 0);
}

/// What Redis is to show of a session id, and its version: the fields that come from the latest row.
async fn latest(pool: &PgPool, key: &str) -> (i64, BTreeMap<String, String>) {
    let row: (i64, serde_json::Value) = sqlx::query_as(
        "SELECT k.version, jsonb_strip_nulls(jsonb_build_object(
                'totalEvents', s.total_events::text, 'pageViews', s.page_views::text, 'isNew', s.is_new::text,
                'conversions', s.conversions::text, 'userId', s.user_id, 'currentPage', s.current_page,
                'entryPage', s.entry_page, 'revenue', s.revenue::text, 'deviceType', s.device_type,
                'trafficSource', coalesce(s.traffic_source, 'direct'), 'last', extract(epoch FROM s.last_event_at)))
         FROM session_keys k JOIN sessions s USING (generation, project, session_id)
         WHERE session_id = $1 ORDER BY s.first_event_at DESC LIMIT 1",
    )
    .bind(key)
    .fetch_one(pool)
    .await
    .unwrap();
    let mut fields: BTreeMap<String, serde_json::Value> = serde_json::from_value(row.1).unwrap();
    let last = fields.remove("last").and_then(|last| last.as_f64()).unwrap();
    fields.insert("expires".into(), format!("{:.3}", last + 1_800.0).into());
    (row.0, fields.into_iter().map(|(name, value)| (name, value.as_str().unwrap().to_owned())).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_knows_what_is_to_be_shown_of_those_sessions_that_have_their_keys_latest_events() {
    let stack = Stack::new().await;
    let mut random = Random(11);
    let mut events = traffic(1_200, &mut random);
    events.sort_by_cached_key(|event| event.timestamp + random.below(12) as i64 * GAP);
    let (store, mut enricher) = (store(&stack.pool), enricher());
    let (mut newest, mut shown, mut late, mut unknown) = (HashMap::<String, i64>::new(), 0, 0, 0);
    for batch in events.chunks(40) {
        let touched = {
            let events = counted(&stack.project, batch, &mut enricher);
            store.commit(&Batch { events, ..Batch::default() }).await.unwrap().unwrap()
        };
        let before = newest.clone();
        for event in batch {
            let Some(key) = session_key::of(&event.as_ref()) else { continue };
            let newest = newest.entry(key.into_owned()).or_default();
            *newest = event.timestamp.max(*newest);
        }
        for session in &touched.latest {
            let (version, expected) = latest(&stack.pool, &session.key.1).await;
            let ours = session.fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
            let mut ours: BTreeMap<String, String> = ours.collect();
            ours.insert("expires".into(), format!("{:.3}", session.expires_ms as f64 / 1_000.0));
            ours.retain(|name, _| expected.contains_key(name) || name == "revenue" || name == "userId");
            assert_eq!((session.stamp.version, ours), (version, expected), "{}", session.key.1);
        }
        let known: Vec<&String> = touched.latest.iter().map(|session| &session.key.1).collect();
        let moved = newest.iter().filter(|(key, at)| before.get(*key) != Some(at)).map(|(key, _)| key);
        assert!(moved.into_iter().all(|key| known.contains(&key)), "whose latest event is in the batch is known");
        shown += known.len();
        late += known.iter().filter(|key| before.get(**key) == newest.get(**key)).count();
        unknown += touched.sessions.len() - known.len();
    }
    assert!(shown > 100 && late > 20 && unknown > 20, "{shown} known, {late} by late events, {unknown} not");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_known_is_not_new_until_he_is_forgotten() {
    let stack = Stack::new().await;
    let place =
        Place { topic: names::events_topic(&stack.project), partition: 0, incarnation: "i".to_owned(), generation: 0 };
    ledger::open(&stack.pool, std::slice::from_ref(&place)).await.unwrap();
    let store = store(&stack.pool);
    let new_users = async |offset: i64| {
        let mut event = event(&format!("e-{offset}"), "view", T0 + offset);
        event.user_id = Some("ann".to_owned());
        let events = counted(&stack.project, &[event], &mut enricher());
        let (place, newest_ms) = (place.clone(), chrono::Utc::now().timestamp_millis());
        let step = Advance { place, start: offset, next: offset + 1, projected: 0, newest_ms };
        let batch = Batch { steps: vec![step], events, ..Batch::default() };
        store.commit(&batch).await.unwrap().expect("it stands there").users
    };
    let ann = [(stack.project.clone(), "ann".to_owned())];
    assert_eq!(new_users(0).await, ann);
    for offset in 1..4 {
        assert_eq!(new_users(offset).await, [], "{offset}");
    }
    let mut connection = stack.pool.acquire().await.unwrap();
    forget::user(&mut connection, &stack.project, "ann").await.unwrap();
    assert_eq!(new_users(4).await, ann);
    assert_eq!(new_users(5).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_cart_needs_goes_when_there_is_much_of_it_and_old_carts_are_pruned() {
    let stack = Stack::new().await;
    let change = |i: i64, kind: &str, seconds: i64| {
        let mut event = event(&format!("e-{i}"), kind, T0 + seconds);
        event.session_id = Some("s".to_owned());
        event.properties = Some(r#"{"sku":"x"}"#.to_owned());
        event
    };
    let kept = || async {
        let cart = sqlx::query_scalar::<_, Option<String>>("SELECT cart FROM session_keys");
        cart.fetch_one(&stack.pool).await.unwrap().map_or(0, |cart| cart.lines().count())
    };
    let apply = |events: Vec<Event>| {
        let events = counted(&stack.project, &events, &mut enricher());
        let store = store(&stack.pool);
        async move { store.commit(&Batch { events, ..Batch::default() }).await.unwrap().unwrap() }
    };
    let touched = apply((0..50).map(|i| change(i, "add_to_cart", i)).collect()).await;
    assert_eq!(touched.carts, [(stack.project.clone(), "s".to_owned())]);
    assert_eq!(kept().await, 50);
    let touched = apply(vec![change(50, "view", 45)]).await;
    assert_eq!((touched.carts.len(), kept().await), (0, 50), "not an event of carts");
    apply(vec![change(51, "purchase", 40)]).await;
    assert_eq!(kept().await, 10, "a late purchase takes what came before it");
    apply(vec![change(52, "add_to_cart", 39), change(53, "remove_from_cart", 86_441)]).await;
    assert_eq!(kept().await, 12, "there is not much of it");
    let loaded = carts::load(&stack.pool, &[(&stack.project, "s")]).await.unwrap();
    assert_eq!(loaded[0].cart.total_items(), 7, "42 to 49 less one: the others are a day older");
    let prune = async |seconds: i64| {
        let now = chrono::DateTime::from_timestamp(T0 + seconds, 0).unwrap();
        carts::prune(&stack.pool, now, 10).await.unwrap()
    };
    assert_eq!((prune(86_441 + 2 * 86_400).await, kept().await), (0, 12));
    assert_eq!((prune(86_441 + 2 * 86_400 + 1_800).await, kept().await), (1, 0));
    apply(vec![change(54, "view", 86_441)]).await;
    assert_eq!(carts::load(&stack.pool, &[(&stack.project, "s")]).await.unwrap().len(), 0);
}

/// What a batch costs Postgres: an hour of 90,000 sessions, each some 33 events within minutes, in batches of 50,000.
/// `cargo test --workspace --test concurrent -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn what_a_touched_session_costs_postgres() {
    let stack = Stack::new().await;
    let pool = tidemill_common::postgres::pool(&stack.connections.database_url, 1).unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&pool).await.unwrap();
    let cpu = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        Duration::from_millis((fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10)
    };
    let mut random = Random(3);
    let mut events: Vec<(i64, Event)> = Vec::new();
    let sessions: u64 = std::env::var("SESSIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(15_000);
    for session in 0..sessions {
        let (start, user) = (random.below(3_600 * sessions / 90_000 + 60) as i64, random.below(50_000));
        for i in 0..33 {
            let at = start + random.below(400) as i64;
            let mut event = event(&format!("{session}-{i}"), ["view", "click", "search"][i % 3], T0 + at);
            event.user_id = Some(format!("user-{user}"));
            event.session_id = Some(format!("session-{session:012x}"));
            event.user_agent = Some("Mozilla/5.0 (X11; Linux x86_64)".to_owned());
            event.properties = Some(format!(r#"{{"page":"/products/{i}","referrer":"https://www.google.com/"}}"#));
            events.push((at, event));
        }
    }
    events.sort_by_key(|(at, _)| *at);
    let (store, mut enricher) = (store(&pool), enricher());
    for batch in events.chunks(50_000) {
        let batch: Vec<Event> = batch.iter().map(|(_, event)| event.clone()).collect();
        let batch = Batch { events: counted(&stack.project, &batch, &mut enricher), ..Batch::default() };
        let (began, before) = (Instant::now(), cpu());
        let touched = store.commit(&batch).await.unwrap().unwrap();
        let (used, touched) = (cpu() - before, touched.sessions.len() as u32);
        println!("{touched} sessions: {:?} of Postgres for each, {:?} in all", used / touched, began.elapsed());
    }
    let hot: (i64, i64) = sqlx::query_as(
        "SELECT coalesce(sum(n_tup_hot_upd), 0)::bigint, coalesce(sum(n_tup_upd), 0)::bigint
         FROM pg_stat_user_tables WHERE relname IN ('sessions', 'session_keys')",
    )
    .fetch_one(&stack.pool)
    .await
    .unwrap();
    println!("{} of {} updates were HOT", hot.0, hot.1);
}

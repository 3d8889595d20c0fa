//! Declared metrics: declared over HTTP, counted by the stream's own store, and read in every way.
#![allow(clippy::unwrap_used)]

mod support;

use chrono::Utc;
use reqwest::Method;
use serde_json::{Value, json};
use support::{Api, new_key};
use tidemill_common::event::Event;
use tidemill_common::origin::Origin;
use tidemill_stream::keys;
use tidemill_stream::metric::Definitions;
use tidemill_stream::store::{Batch, Counted, Shards, Store};
use tidemill_stream::window::Granularity;
use tidemill_testkit::event;

/// 2026-01-01T00:00:00Z
const T0: i64 = 1_767_225_600;
const DAY: &str = "startTime=2026-01-01T00:00:00Z&endTime=2026-01-02T00:00:00Z";

async fn declare(api: &Api, name: &str, definition: Value) {
    let admin = new_key(&api.stack, &api.stack.project, "admin").await;
    let (status, answer) = api.send(&admin, Method::PUT, &format!("/v1/metrics/{name}"), &definition).await;
    assert_eq!(status, 201, "{answer}");
}

/// Counts events as workers do, each batch in a shard of its own.
async fn count(api: &Api, batches: impl IntoIterator<Item = Vec<Event>>) {
    let definitions = Definitions::new(api.stack.pool.clone(), None).unwrap();
    for events in batches {
        let events: Vec<Counted> = events
            .into_iter()
            .map(|event| Counted::new(&*api.stack.project, 0, &event.as_ref(), Origin::default()))
            .collect();
        let mut taken = Vec::new();
        for _ in 0..shard_of(&events) {
            let mut tx = api.stack.pool.begin().await.unwrap();
            Shards::new(16).take(&mut tx, 0).await.unwrap();
            taken.push(tx);
        }
        let store = Store::new(api.stack.pool.clone(), definitions.clone(), Shards::new(16));
        store.commit(&Batch { events, ..Batch::default() }).await.unwrap().unwrap();
    }
}

/// Some shard, so that windows have several rows.
fn shard_of(events: &[Counted]) -> usize {
    events.first().map_or(0, |first| first.event().timestamp as usize % 3)
}

fn with(at: i64, user: &str, properties: Value) -> Event {
    Event { user_id: Some(user.to_owned()), properties: Some(properties.to_string()), ..event("", "buy", at) }
}

async fn data(api: &Api, path: &str) -> Vec<Value> {
    let (status, answer) = api.get(path).await;
    assert_eq!(status, 200, "{path}: {answer}");
    answer["data"].as_array().unwrap().clone()
}

/// The one value of an answer.
async fn value(api: &Api, path: &str) -> Value {
    let points = data(api, path).await;
    assert_eq!(points.len(), 1, "{path}: {points:?}");
    points[0]["value"].clone()
}

#[tokio::test]
async fn every_aggregation_over_any_range_and_dimension() {
    let api = Api::start().await;
    for aggregation in ["sum", "min", "max", "avg", "unique", "p50", "p95", "p99"] {
        let definition = json!({"aggregation": aggregation, "field": "amount", "dimensions": ["country"]});
        declare(&api, &format!("of_{aggregation}"), definition).await;
    }
    declare(&api, "visitors", json!({"aggregation": "unique", "field": "userId", "dimensions": ["country"]})).await;
    // Two events a minute over a day and more; half of the users are there on the second day, too.
    let minutes: Vec<Event> = (0..3_000_i64)
        .flat_map(|i| {
            let country = ["DE", "FR", "IT"][i as usize % 3];
            let cents = format!("{}.{:02}", i % 100, i % 100);
            let amount: Value = serde_json::from_str(&cents).unwrap();
            let properties = json!({"amount": amount, "country": country});
            [0, 30].map(|s| with(T0 + i * 60 + s, &format!("u-{}", i % 2_160), properties.clone()))
        })
        .collect();
    count(&api, minutes.chunks(500).map(<[Event]>::to_vec)).await;

    // A range that begins and ends within an hour, and has a whole day in it or not.
    let all = "granularity=all&startTime=2026-01-01T00:10:00Z&endTime=2026-01-03T01:20:00Z";
    let within: Vec<i64> = (10..2_960).collect();
    let exact: i64 = 2 * within.iter().map(|i| (i % 100) * 101).sum::<i64>();
    let sum = value(&api, &format!("/v1/metrics/of_sum?{all}")).await;
    assert_eq!(sum, serde_json::from_str::<Value>(&format!("{}.{:02}", exact / 100, exact % 100)).unwrap());
    assert_eq!(value(&api, &format!("/v1/metrics/of_max?{all}")).await, json!(99.99));
    assert_eq!(value(&api, &format!("/v1/metrics/of_min?{all}")).await, json!(0));
    let avg = value(&api, &format!("/v1/metrics/of_avg?{all}")).await.as_f64().unwrap();
    assert!((avg - exact as f64 / 100.0 / (2.0 * within.len() as f64)).abs() < 1e-6);
    assert_eq!(value(&api, &format!("/v1/metrics/of_unique?{all}")).await, json!(100));
    for (name, exact) in [("of_p50", 49.49), ("of_p95", 94.94), ("of_p99", 98.98)] {
        let found = value(&api, &format!("/v1/metrics/{name}?{all}")).await.as_f64().unwrap();
        assert!((found / exact - 1.0).abs() <= 0.021, "{name}: {found}"); // a rank beside is 1 %, too
    }
    let users = value(&api, &format!("/v1/metrics/visitors?{all}")).await.as_f64().unwrap();
    assert!((users / 2_160.0 - 1.0).abs() < 0.02, "of the whole range, not of its days: {users}");

    let by_country = data(&api, &format!("/v1/metrics/visitors?{all}&groupBy=country")).await;
    assert_eq!(by_country.iter().map(|point| point["country"].clone()).collect::<Vec<_>>(), ["DE", "FR", "IT"]);
    for point in &by_country {
        assert!((point["value"].as_f64().unwrap() / 720.0 - 1.0).abs() < 0.02, "{point}");
    }
    let two = value(&api, &format!("/v1/metrics/visitors?{all}&filter=country:DE,IT")).await.as_f64().unwrap();
    assert!((two / 1_440.0 - 1.0).abs() < 0.02, "{two}");

    let hours = data(&api, &format!("/v1/metrics/of_sum?{DAY}&granularity=1h&filter=country:FR")).await;
    assert_eq!((hours.len(), &hours[1]["count"]), (24, &json!(40)));
    let days = data(&api, &format!("/v1/metrics/of_sum?{DAY}&granularity=1d&groupBy=country")).await;
    assert_eq!(days.iter().map(|point| point["count"].as_i64().unwrap()).collect::<Vec<_>>(), [960, 960, 960]);
}

#[tokio::test]
async fn rare_values_are_put_together_and_the_answer_says_so() {
    let api = Api::start().await;
    declare(&api, "amounts", json!({"aggregation": "sum", "field": "amount", "dimensions": ["shop"]})).await;
    let of = |i: i64| with(T0 + i % 3_600, "u", json!({"amount": 1, "shop": format!("s{:02}", i % 12)}));
    // The first two shops sell more than the others.
    let more = (0..100).map(|i| with(T0, "u", json!({"amount": 2, "shop": format!("s{:02}", i % 2)})));
    let none = with(T0, "u", json!({"amount": 5}));
    count(&api, [(0..120).map(of).collect(), more.chain([none]).collect()]).await;
    let (_, answer) = api.get(&format!("/v1/metrics/amounts?{DAY}&granularity=1d&groupBy=shop&limit=2")).await;
    let groups: Vec<Value> =
        answer["data"].as_array().unwrap().iter().map(|point| json!([point["shop"], point["value"]])).collect();
    assert_eq!(groups, [json!(["__other__", 105]), json!(["s00", 110]), json!(["s01", 110])]);
    assert_eq!(answer["groups"], json!({"dimension": "shop", "shown": 2, "folded": 11, "limited": false}));
    let (_, answer) = api.get(&format!("/v1/metrics/amounts?{DAY}&granularity=1d&groupBy=shop")).await;
    assert_eq!(answer["groups"], json!({"dimension": "shop", "shown": 13, "folded": 0, "limited": false}));
    assert_eq!(answer["data"][0]["shop"], Value::Null, "events without a shop");
}

#[tokio::test]
async fn a_runaway_dimension_is_cut_and_nothing_is_lost() {
    let api = Api::start().await;
    declare(&api, "clicks", json!({"dimensions": ["id"], "maxValues": 20})).await;
    let of = |i: i64| with(T0 + i, "u", json!({"id": i % 200}));
    count(&api, [(0..500).map(of).collect(), (500..1_000).map(of).collect::<Vec<_>>()]).await;
    let path = format!("/v1/metrics/clicks?{DAY}&granularity=1d");
    assert_eq!(value(&api, &path).await, json!(1_000), "the total is exact");
    let (_, answer) = api.get(&format!("{path}&groupBy=id")).await;
    let points = answer["data"].as_array().unwrap();
    assert_eq!(points.iter().map(|point| point["value"].as_i64().unwrap()).sum::<i64>(), 1_000);
    let told_apart: Vec<&Value> = points.iter().filter(|point| point["id"] != "__other__").collect();
    assert_eq!(told_apart.len(), 20);
    assert!(told_apart.iter().all(|point| point["value"] == 5), "each of them is complete: {told_apart:?}");
    assert_eq!(answer["groups"]["limited"], true);
    let kept = told_apart[0]["id"].as_str().unwrap();
    let lost = (0..200).map(|i| i.to_string()).find(|id| told_apart.iter().all(|point| point["id"] != **id)).unwrap();
    let (_, answer) = api.get(&format!("{path}&filter=id:{kept},{lost}")).await;
    assert_eq!(answer["groups"]["incomplete"], json!([lost]));
}

#[tokio::test]
async fn dimensions_that_are_counted_together() {
    let api = Api::start().await;
    let together = json!(["country", ["country", "plan", "eventType"], ["country", "plan"]]);
    declare(&api, "sold", json!({"aggregation": "sum", "field": "amount", "dimensions": together})).await;
    declare(&api, "buying", json!({"aggregation": "unique", "field": "userId", "dimensions": together})).await;
    // An amount of one cent more with every event, so that each group has another sum.
    let (countries, plans) = (["DE", "FR", "IT"], ["free", "a,b", ""]);
    let of = |i: i64| {
        let plan = Some(plans[i as usize / 3 % 3]).filter(|plan| !plan.is_empty());
        let properties = json!({"amount": i, "country": countries[i as usize % 3], "plan": plan});
        with(T0 + i, &format!("u-{}", i % 45), properties)
    };
    count(&api, [(0..200).map(of).collect(), (200..450).map(of).collect::<Vec<_>>()]).await;
    let expected = |country: Option<usize>, plan: Option<usize>| -> i64 {
        let counts =
            |i: &i64| country.is_none_or(|c| *i as usize % 3 == c) && plan.is_none_or(|p| *i as usize / 3 % 3 == p);
        (0..450).filter(counts).sum()
    };
    let path = |name: &str| format!("/v1/metrics/{name}?{DAY}&granularity=1d");

    let both = data(&api, &format!("{}&groupBy=plan,country", path("sold"))).await;
    assert_eq!(both.len(), 9);
    for point in &both {
        let country = countries.iter().position(|country| point["country"] == **country);
        let plan = plans.iter().position(|plan| point["plan"].as_str().unwrap_or_default() == *plan);
        assert_eq!(point["value"], json!(expected(country, plan)), "{point}");
    }
    let by_plan = data(&api, &format!("{}&filter=country:DE,FR&groupBy=plan", path("sold"))).await;
    let found: Vec<Value> = by_plan.iter().map(|point| json!([point["plan"], point["value"]])).collect();
    let two = |plan: usize| expected(Some(0), Some(plan)) + expected(Some(1), Some(plan));
    assert_eq!(found, [json!([null, two(2)]), json!(["a,b", two(1)]), json!(["free", two(0)])]);
    assert_eq!(by_plan[0].get("country"), None, "only what was asked for");
    let one = value(&api, &format!(r#"{}&filter=country:FR&filter=plan:["a,b"]"#, path("sold"))).await;
    assert_eq!(one, json!(expected(Some(1), Some(1))));
    let most = data(&api, &format!("{}&groupBy=country,plan&limit=2&filter=country:IT", path("sold"))).await;
    let rest = most.iter().find(|point| point["plan"] == "__other__").unwrap();
    assert_eq!((most.len(), &rest["country"], &rest["count"]), (3, &json!("__other__"), &json!(50)));
    let users = data(&api, &format!("{}&filter=country:DE;eventType:buy&groupBy=plan", path("buying"))).await;
    assert_eq!(users.iter().map(|point| point["value"].clone()).collect::<Vec<_>>(), [5, 5, 5]);

    for (params, expected) in [
        ("groupBy=plan", "plan is not counted by itself"),
        ("groupBy=plan&filter=eventType:buy", r#"declare ["eventType", "plan"] as one of the dimensions"#),
        (
            "groupBy=shop",
            "shop is no dimension of this metric, which has country; country,plan,eventType; country,plan",
        ),
        ("groupBy=country&groupBy=plan", "stands there twice"),
    ] {
        let (status, problem) = api.get(&format!("{}&{params}", path("sold"))).await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(status == 400 && detail.contains(expected), "{params}: {problem}");
    }
}

/// What is told apart of a combination is complete, whatever part of it is shown.
#[tokio::test]
async fn a_runaway_combination_is_cut_and_what_is_shown_is_exact() {
    let api = Api::start().await;
    declare(&api, "clicks", json!({"dimensions": [["id", "side"]], "maxValues": 40})).await;
    let side = |i: i64| if i / 50 % 2 == 0 { "left" } else { "right" };
    let of = |i: i64| with(T0 + i, "u", json!({"id": i % 50, "side": side(i)}));
    count(&api, [(0..500).map(of).collect(), (500..1_000).map(of).collect::<Vec<_>>()]).await;
    let path = format!("/v1/metrics/clicks?{DAY}&granularity=1d");
    let (_, answer) = api.get(&format!("{path}&groupBy=id,side")).await;
    let points = answer["data"].as_array().unwrap();
    assert_eq!(points.iter().map(|point| point["value"].as_i64().unwrap()).sum::<i64>(), 1_000, "nothing is lost");
    let told_apart = points.iter().filter(|point| point["id"] != "__other__");
    assert!(told_apart.clone().count() == 40 && told_apart.clone().all(|point| point["value"] == 10), "{points:?}");
    let (_, answer) = api.get(&format!("{path}&groupBy=id&filter=side:left,right")).await;
    let points = answer["data"].as_array().unwrap();
    let told_apart: Vec<_> = points.iter().filter(|point| point["id"] != "__other__").collect();
    assert!(!told_apart.is_empty() && told_apart.iter().all(|point| point["value"] == 20), "both sides: {points:?}");
    assert_eq!(answer["groups"]["limited"], true);
}

#[tokio::test]
async fn metrics_are_declared_by_admins_and_listed() {
    let api = Api::start().await;
    let admin = new_key(&api.stack, &api.stack.project, "admin").await;
    let put = |name: &'static str, body: Value| {
        let (api, admin) = (&api, &admin);
        async move { api.send(admin, Method::PUT, &format!("/v1/metrics/{name}"), &body).await }
    };
    assert_eq!(api.send(&api.key, Method::PUT, "/v1/metrics/a", &json!({})).await.0, 403);
    let (status, answer) = put("signups", json!({"eventTypes": ["signup"]})).await;
    assert_eq!((status, &answer["definition"]["aggregation"]), (201, &json!("count")));
    assert!(answer["effective"].as_str().unwrap().contains("from then on"));
    assert_eq!(put("signups", json!({"eventTypes": ["signup", "join"]})).await.0, 200);
    for (name, body, expected) in [
        ("events", json!({}), "built-in"),
        ("sum", json!({"aggregation": "sum"}), "needs one"),
        ("a", json!({"name": "b"}), "the one in the path"),
        ("a", json!([]), "JSON object"),
    ] {
        let (status, problem) = put(name, body).await;
        assert_eq!(status, 422);
        assert!(problem["detail"].as_str().unwrap().contains(expected), "{problem}");
    }
    count(&api, [vec![event("", "taken", T0)]]).await;
    assert_eq!(put("taken", json!({})).await.0, 422, "an event type's name");
    let (_, list) = api.get("/v1/metrics").await;
    let named =
        |name: &str| list["definitions"].as_array().unwrap().iter().find(|m| m["name"] == name).cloned().unwrap();
    assert_eq!((&named("signups")["kind"], &named("signups")["scope"]), (&json!("declared"), &json!("project")));
    assert_eq!(named("signups")["eventTypes"], json!(["signup", "join"]));
    assert_eq!((&named("order_value")["scope"], &named("taken")["kind"]), (&json!("all"), &json!("event-type")));
    assert_eq!(named("bounce_rate")["kind"], "built-in");
    assert_eq!(api.send(&admin, Method::DELETE, "/v1/metrics/signups", &Value::Null).await.0, 204);
    assert_eq!(api.send(&admin, Method::DELETE, "/v1/metrics/signups", &Value::Null).await.0, 404);
    assert!(!api.get("/v1/metrics").await.1["metrics"].as_array().unwrap().contains(&json!("signups")));
    for i in 0..tidemill_stream::metric::MAX_DECLARED {
        let (status, _) = api.send(&admin, Method::PUT, &format!("/v1/metrics/m{i}"), &json!({})).await;
        assert_eq!(status, 201);
    }
    let (status, problem) = put("one_more", json!({})).await;
    assert!(status == 422 && problem["detail"].as_str().unwrap().contains("at most 100"), "{problem}");
}

#[tokio::test]
async fn hot_copies_are_only_those_of_the_metric_itself() {
    let api = Api::start().await;
    declare(&api, "sold", json!({"aggregation": "sum", "field": "amount"})).await;
    let minute = Granularity::Minute.window(Utc::now().timestamp_micros()) - 60;
    count(&api, [vec![with(minute, "u", json!({"amount": "7.25"}))]]).await;
    let from = chrono::DateTime::from_timestamp(minute, 0).unwrap().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let path = format!("/v1/metrics/sold?granularity=1m&startTime={from}");
    let key = keys::metric(&api.stack.project, "sold", Granularity::Minute, minute);
    let stamp = r#""generation":0,"epoch":0,"version":1"#;
    for (copy, expected) in [
        (
            format!(r#"{{"count":9,"aggregation":"sum","value":"12345678901234567.89",{stamp}}}"#),
            "12345678901234567.89",
        ),
        (format!(r#"{{"count":9,"aggregation":"max","value":"99",{stamp}}}"#), "7.25"),
        (format!(r#"{{"count":9,"unique_users":3,{stamp}}}"#), "7.25"),
    ] {
        api.redis(&["SET", &key, &copy, "EX", "600"]).await;
        let request = api.client.get(format!("{}{path}", api.base)).bearer_auth(&api.key);
        let text = request.send().await.unwrap().text().await.unwrap();
        assert!(text.contains(&format!(r#""value":{expected},"#)), "{copy}: {text}");
    }
}

#[tokio::test]
async fn the_bounce_rate_is_a_ratio() {
    let api = Api::start().await;
    for (metric, count) in [("sessions", 8), ("bounces", 2)] {
        for shard in [0, 1] {
            let row = support::Rollup {
                generation: 0,
                project: &api.stack.project,
                metric,
                event_type: None,
                granularity: "1d",
                start: T0,
                shard,
                count,
                users: &[],
            };
            row.insert(&api.stack).await;
        }
    }
    let (_, answer) = api.get(&format!("/v1/metrics/bounce_rate?{DAY}&granularity=1d")).await;
    assert_eq!((&answer["data"][0]["value"], &answer["data"][0]["count"]), (&json!(0.25), &json!(16)));
    assert_eq!(value(&api, &format!("/v1/metrics/sessions?{DAY}&granularity=1d")).await, json!(16));
}

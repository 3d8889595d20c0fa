//! Sessions, on rows and hashes filled in by hand.
#![allow(clippy::unwrap_used)]

mod support;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use support::{Api, insert_session, insert_user, new_key, time};
use tidemill_stream::{keys, packed, session_key};

#[tokio::test]
async fn a_session_id_has_its_latest_session_and_all_of_them() {
    let api = Api::start().await;
    let project = api.stack.project.clone();
    insert_session(&api.stack, &project, "s/1 ä", Some("u"), time("2026-01-01T10:00:00.5Z"), 10).await;
    insert_session(&api.stack, &project, "s/1 ä", Some("u"), time("2026-01-02T10:00:00Z"), 5).await;
    insert_user(&api.stack, &project, "u", time("2026-01-01T10:00:01Z")).await;
    let (status, answer) = api.get("/v1/sessions/s%2F1%20%C3%A4").await;
    assert_eq!(status, 200, "{answer}");
    let later = json!({
        "userId": "u", "firstEventAt": "2026-01-02T10:00:00Z", "lastEventAt": "2026-01-02T10:05:00Z", "pageViews": 3,
        "totalEvents": 5, "hasConversion": true, "conversions": 1, "revenue": 0, "isNew": false, "bounce": false,
        "duration": 300.0, "trafficSource": "direct", "deviceType": null, "country": null, "entryPage": null,
        "exitPage": "/cart", "currentPage": "/cart",
    });
    let mut earlier = later.clone();
    earlier["firstEventAt"] = json!("2026-01-01T10:00:00.500Z");
    earlier["lastEventAt"] = json!("2026-01-01T10:10:00.500Z");
    earlier["isNew"] = json!(true);
    earlier["duration"] = json!(600.0);
    let mut expected = later.clone();
    expected["sessionId"] = json!("s/1 ä");
    expected["live"] = json!(false);
    expected["sessions"] = json!([later, earlier]);
    assert_eq!(answer, expected);
}

#[tokio::test]
async fn unknown_sessions_and_those_of_others_are_not_found() {
    let api = Api::start().await;
    let other = format!("{}-b", api.stack.project);
    api.stack.insert_project(&other).await;
    insert_session(&api.stack, &other, "theirs", None, time("2026-01-01T10:00:00Z"), 1).await;
    let other_key = new_key(&api.stack, &other, "read").await;
    assert_eq!(api.get_as(&other_key, "/v1/sessions/theirs").await.0, 200);
    for id in ["theirs", "nobodys", "a%00b"] {
        let (status, problem) = api.get(&format!("/v1/sessions/{id}")).await;
        assert_eq!((status, &problem["type"]), (404, &json!("urn:tidemill:problem:no-session")), "{id}");
    }
}

async fn hash(api: &Api, last: DateTime<Utc>, generation: &str, total: &str) {
    let key = keys::session(&api.stack.project, "live");
    let (first, last) = ((last - TimeDelta::minutes(5)).to_rfc3339(), last.to_rfc3339());
    api.redis(&["DEL", &key]).await;
    let fields = [
        "HSET",
        &key,
        "sessionId",
        "live",
        "firstEventAt",
        &first,
        "lastEventAt",
        &last,
        "totalEvents",
        total,
        "pageViews",
        "1",
        "hasConversion",
        "false",
        "conversions",
        "0",
        "trafficSource",
        "organic",
        "isNew",
        "true",
        "generation",
        generation,
    ];
    api.redis(&fields).await;
    api.redis(&["EXPIRE", &key, "600"]).await;
}

/// The hash that stands there, as workers write it that compress.
async fn compress(api: &Api) {
    let key = keys::session(&api.stack.project, "live");
    let client = redis::Client::open(api.stack.connections.redis_url.as_str()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let fields: Vec<(String, String)> = redis::AsyncCommands::hgetall(&mut connection, &key).await.unwrap();
    let fields: Vec<(&'static str, String)> = fields
        .into_iter()
        .map(|(name, value)| (&*name.leak(), value))
        .filter(|(name, _)| *name != "generation")
        .collect();
    let longer = [&fields[..], &[("currentPage", "/?".to_owned() + &"utm_source=x&".repeat(50))]].concat();
    let packed = packed::pack(&longer, Some(0)).unwrap();
    let mut write = redis::pipe();
    write.del(&key).hset(&key, "generation", "0").hset(&key, packed::FIELD, packed).expire(&key, 600);
    write.query_async::<()>(&mut connection).await.unwrap();
}

#[tokio::test]
async fn a_live_session_comes_from_redis_unless_postgres_knows_more() {
    let api = Api::start().await;
    let last = DateTime::from_timestamp_millis(Utc::now().timestamp_millis()).unwrap();
    insert_session(&api.stack, &api.stack.project, "live", None, last - TimeDelta::minutes(5), 5).await;
    let total = || async {
        let (status, answer) = api.get("/v1/sessions/live").await;
        assert_eq!((status, &answer["live"]), (200, &json!(true)), "{answer}");
        answer["totalEvents"].as_i64().unwrap()
    };
    assert_eq!(total().await, 5, "no hash");
    hash(&api, last, "0", "70").await;
    assert_eq!(total().await, 70);
    compress(&api).await;
    assert_eq!(total().await, 70);
    assert!(api.get("/v1/sessions/live").await.1["currentPage"].as_str().unwrap().ends_with("utm_source=x&"));
    hash(&api, last, "1", "70").await;
    assert_eq!(total().await, 5, "another generation");
    hash(&api, last - TimeDelta::seconds(1), "0", "70").await;
    assert_eq!(total().await, 5, "an older copy");
    hash(&api, last, "0", "4").await;
    assert_eq!(total().await, 5, "an older copy, by a late event");
}

#[tokio::test]
async fn live_sessions_are_listed_with_the_latest_first() {
    let api = Api::start().await;
    let (project, now) = (api.stack.project.clone(), Utc::now());
    let ago = |minutes: i64| now - TimeDelta::minutes(minutes);
    insert_session(&api.stack, &project, "over", Some("u"), ago(90), 59).await;
    insert_session(&api.stack, &project, "older", Some("u"), ago(90), 70).await;
    insert_session(&api.stack, &project, &session_key::of_user("v"), Some("v"), ago(10), 5).await;
    let (status, answer) = api.get("/v1/sessions?active=true").await;
    assert_eq!((status, &answer["truncated"]), (200, &json!(false)), "{answer}");
    let listed = |answer: &serde_json::Value| {
        let all = answer["sessions"].as_array().unwrap();
        all.iter().map(|s| (s["sessionId"].clone(), s["userId"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(listed(&answer), [(json!(null), json!("v")), (json!("older"), json!("u"))]);
    let (_, first) = api.get("/v1/sessions?active=true&limit=1").await;
    assert_eq!((listed(&first).len(), &first["truncated"]), (1, &json!(true)));
    for bad in ["", "?active=false", "?active=true&limit=0", "?active=true&limit=x"] {
        assert_eq!(api.get(&format!("/v1/sessions{bad}")).await.0, 400, "{bad}");
    }
}

/// One more event of the cart; no item: a purchase.
async fn cart_event(api: &Api, at: DateTime<Utc>, item: Option<&str>, quantity: i64, price: Option<&str>) {
    let line = json!([at.timestamp_micros(), format!("e-{item:?}"), item, quantity, price]);
    let sql =
        "INSERT INTO session_keys AS s (generation, project, session_id, version, cart) VALUES (0, $1, 's', 1, $2)
         ON CONFLICT (generation, project, session_id) DO UPDATE SET cart = s.cart || excluded.cart";
    sqlx::query(sql).bind(&api.stack.project).bind(format!("{line}\n")).execute(&api.stack.pool).await.unwrap();
}

#[tokio::test]
async fn a_cart_comes_from_redis_or_from_its_events() {
    let api = Api::start().await;
    let now = DateTime::from_timestamp_millis(Utc::now().timestamp_millis()).unwrap();
    assert_eq!(api.get("/v1/sessions/s/cart").await.0, 404);
    let ago = |hours: i64| now - TimeDelta::hours(hours);
    cart_event(&api, ago(30), Some("forgotten"), 1, None).await;
    let (status, empty) = api.get("/v1/sessions/s/cart").await;
    assert_eq!((status, &empty["items"], &empty["changedAt"]), (200, &json!([]), &json!(null)));
    cart_event(&api, ago(3), Some("bought"), 1, Some("5")).await;
    cart_event(&api, ago(2), None, 0, None).await;
    cart_event(&api, ago(1), Some("a"), 3, Some("0.10")).await;
    cart_event(&api, now, Some("a"), -1, None).await;
    cart_event(&api, now, Some("b"), 1, None).await;
    let (_, cart) = api.get("/v1/sessions/s/cart").await;
    let expected = json!({
        "sessionId": "s", "totalItems": 3, "totalValue": 0.2,
        "items": [{ "item": "a", "quantity": 2, "price": 0.1 }, { "item": "b", "quantity": 1, "price": null }],
        "changedAt": now.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true),
    });
    assert_eq!(cart, expected);

    let key = keys::cart(&api.stack.project, "s");
    let at = now.timestamp_micros().to_string();
    let hash = ["HSET", &key, "total_items", "4", "total_value", "8", "changed_at", &at, "item:c", "4 2", "generation"];
    api.redis(&[&hash[..], &["0"]].concat()).await;
    let (_, cart) = api.get("/v1/sessions/s/cart").await;
    assert_eq!((&cart["items"][0]["item"], &cart["totalValue"]), (&json!("c"), &json!(8)));
    api.redis(&["HSET", &key, "generation", "1"]).await;
    assert_eq!(api.get("/v1/sessions/s/cart").await.1["items"][0]["item"], "a", "a copy of another generation");
    api.redis(&["DEL", &key]).await;
}

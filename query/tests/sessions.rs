//! Sessions, on rows and hashes filled in by hand.
#![allow(clippy::unwrap_used)]

mod support;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use support::{Api, insert_session, insert_user, new_key, time};
use tidemill_stream::keys;

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
        "totalEvents": 5, "hasConversion": true, "isNew": false, "currentPage": "/cart",
    });
    let mut earlier = later.clone();
    earlier["firstEventAt"] = json!("2026-01-01T10:00:00.500Z");
    earlier["lastEventAt"] = json!("2026-01-01T10:10:00.500Z");
    earlier["isNew"] = json!(true);
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
        "isNew",
        "true",
        "generation",
        generation,
    ];
    api.redis(&fields).await;
    api.redis(&["EXPIRE", &key, "600"]).await;
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
    hash(&api, last, "1", "70").await;
    assert_eq!(total().await, 5, "another generation");
    hash(&api, last - TimeDelta::seconds(1), "0", "70").await;
    assert_eq!(total().await, 5, "an older copy");
    hash(&api, last, "0", "4").await;
    assert_eq!(total().await, 5, "an older copy, by a late event");
}

//! SQL over the archive, as the archiver writes it.
#![allow(clippy::unwrap_used)]

mod support;

use chrono::{DateTime, Utc};
use serde_json::json;
use support::{Api, insert_session, new_key};
use tidemill_common::event::Event;
use tidemill_testkit::{event, eventually};

/// 2026-01-01T00:00:00Z
const START: i64 = 1_767_225_600;

/// Event `n` happens in hour `n`, every third is a purchase, and user `n % 5` is behind it.
fn events() -> Vec<Event> {
    let one = |n: i64| {
        let kind = if n % 3 == 0 { "purchase" } else { "view" };
        let mut event = event(&format!("e-{n}"), kind, START + n * 3_600);
        event.user_id = Some(format!("u{}", n % 5));
        event.session_id = Some("s1".to_owned());
        event.properties = Some(format!("{{\"n\":{n}}}"));
        event
    };
    (0..60).map(one).collect()
}

#[tokio::test]
async fn events_are_a_table() {
    let api = Api::start().await;
    assert_eq!(api.rows("SELECT count(*) AS n FROM events").await, json!([{ "n": 0 }]), "before there is a table");
    let _archiver = api.archiver(|_| ()).await;
    api.stack.send_all(&events()).await;
    let all = json!([{ "n": 60 }]);
    eventually("all events are archived", || async {
        api.sql("SELECT count(*) AS n FROM events").await.1["rows"] == all
    })
    .await;
    insert_session(&api.stack, &api.stack.project, "s1", None, DateTime::<Utc>::from_timestamp(START, 0).unwrap(), 9)
        .await;
    for (sql, expected) in [
        (
            "SELECT eventType, count(*) AS n, count(DISTINCT userId) AS users FROM events GROUP BY EVENTTYPE ORDER BY n",
            json!([{ "eventType": "purchase", "n": 20, "users": 5 }, { "eventType": "view", "n": 40, "users": 5 }]),
        ),
        (
            "SELECT date_trunc('day', timestamp) AS day, count(*) AS n FROM events GROUP BY day ORDER BY day",
            json!([
                { "day": "2026-01-01T00:00:00Z", "n": 24 },
                { "day": "2026-01-02T00:00:00Z", "n": 24 },
                { "day": "2026-01-03T00:00:00Z", "n": 12 },
            ]),
        ),
        (
            "SELECT eventId, timestamp, properties, session_id FROM events WHERE event_id = 'e-30'",
            json!([{
                "eventId": "e-30", "timestamp": "2026-01-02T06:00:00Z", "properties": "{\"n\":30}", "session_id": "s1",
            }]),
        ),
        (
            "SELECT count(*) AS n FROM events WHERE occurred_at >= '2026-01-02T00:00:00Z' AND timestamp < '2026-01-03'",
            json!([{ "n": 24 }]),
        ),
        (
            "SELECT count(*) AS n FROM events WHERE occurred_at > timestamp '2026-01-03 10:30:00' - interval '1 hour'",
            json!([{ "n": 2 }]),
        ),
        (
            "SELECT count(*) AS n FROM events WHERE userId IN ('u1', 'u2') OR event_action IS NOT NULL",
            json!([{ "n": 24 }]),
        ),
        ("SELECT count(*) AS n FROM events WHERE append_time > now() - interval '1 hour'", json!([{ "n": 60 }])),
        (
            "SELECT s.page_views, count(*) AS n FROM events e JOIN sessions s ON e.sessionId = s.sessionId GROUP BY 1",
            json!([{ "page_views": 3, "n": 60 }]),
        ),
    ] {
        assert_eq!(api.rows(sql).await, expected, "{sql}");
    }
    let everything = api.rows("SELECT * FROM events LIMIT 1").await;
    assert_eq!(everything[0].as_object().unwrap().len(), 13, "{everything}");
    let plan = api.rows("EXPLAIN ANALYZE SELECT * FROM events WHERE user_id = 'u1'").await.to_string();
    assert!(plan.contains(".parquet") && !plan.contains(&api.stack.folder("").display().to_string()[1..]), "{plan}");
    let other = format!("{}-b", api.stack.project);
    api.stack.insert_project(&other).await;
    let other_key = new_key(&api.stack, &other, "read").await;
    assert_eq!(api.sql_as(&other_key, "SELECT count(*) AS n FROM events").await.1["rows"], json!([{ "n": 0 }]));
}

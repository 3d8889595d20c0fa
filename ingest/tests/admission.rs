//! "Admission at the gateway": what an event is answered, and what that means.
#![allow(clippy::unwrap_used)]

mod support;

use futures::future::join_all;
use serde_json::{Value, json};
use support::{Gateway, answer, create_key, event};
use tidemill_common::codec::Decoder;
use tidemill_common::home::home_partition;
use tidemill_common::kafka::History;
use tidemill_common::registry::Registry;
use tidemill_testkit::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn accepted_is_in_the_log_where_the_answer_says() {
    let gateway = Gateway::start().await;
    let body = json!({"eventId": "e-1", "eventType": "purchase", "timestamp": "2026-01-31T12:00:00.5Z", "userId": "ü",
        "sessionId": "s", "eventAction": "a", "properties": {"price": 12.5}, "unknown": [1]});
    let accepted = gateway.post(&body).await;
    let topic = format!("events.{}", gateway.stack.project);
    let records = gateway.stack.records(&topic).await; // at once: no waiting between the answer and the look

    assert_eq!(accepted.status, 202, "{accepted:?}");
    assert_eq!((&accepted.body["eventId"], &accepted.body["status"]), (&json!("e-1"), &json!("accepted")));
    let [record] = &records[..] else { panic!("one record, not {}", records.len()) };
    assert_eq!(accepted.body["position"], format!("{}:{}", record.partition, record.offset));
    assert_eq!(record.key(), Some(&b"e-1"[..]));

    let decoder = Decoder::new(Registry::new(&gateway.stack.connections.registry_url).unwrap());
    let event = decoder.decode(record.value()).await.unwrap();
    assert_eq!((event.event_id.as_str(), event.event_type.as_str()), ("e-1", "purchase"));
    assert_eq!(event.timestamp, 1_769_860_800_500_000);
    assert_eq!(event.user_id.as_deref(), Some("ü"));
    assert_eq!((event.session_id.as_deref(), event.event_action.as_deref()), (Some("s"), Some("a")));
    assert_eq!(event.properties.as_deref(), Some(r#"{"price":12.5}"#));
    assert_eq!(event.client_address.as_deref(), Some("127.0.0.0"));
    assert!(event.received_at.is_some_and(|at| (at / 1_000 - record.append_ms).abs() < 60_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_delivery_is_told_to_retry_and_a_later_try_is_accepted() {
    let (gateway, project, key) = Gateway::without_topics().await;
    let failed = gateway.post_as(&key, &event("e-1")).await;
    assert_eq!((failed.status, failed.problem()), (503, "retry"));
    assert!(failed.retry_after.is_some());
    assert_eq!(failed.body["eventId"], "e-1");
    assert_eq!(gateway.claim(&project, "e-1").await, None, "the claim is given back");
    let both = gateway.post_as(&key, &json!([event("e-1"), event("e-1")])).await;
    assert_eq!((both.status, both.problem()), (503, "retry"), "a copy in the request shares the first one's fate");

    gateway.stack.create_topics(&project).await;
    eventually("a later try is accepted", || async {
        let answer = gateway.post_as(&key, &event("e-1")).await;
        assert!(answer.status == 202 || answer.problem() == "retry", "{answer:?}");
        answer.status == 202
    })
    .await;
    assert_eq!(gateway.post_as(&key, &event("e-1")).await.problem(), "duplicate");
    assert!(gateway.in_log(&project, "e-1").await >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_a_duplicate_and_another_body_is_not() {
    let gateway = Gateway::start().await;
    let first = gateway.post(&event("e-1")).await;
    assert_eq!(first.status, 202, "{first:?}");

    let respelled =
        r#"{"properties":{"price": 1,"page":"\u002f"},"userId":"u-1","eventType":"page_view","eventId":"e-1"}"#;
    let request = gateway.request().header("content-type", "application/json; charset=utf-8").body(respelled);
    for copy in [gateway.post(&event("e-1")).await, answer(request).await] {
        assert_eq!((copy.status, copy.problem()), (409, "duplicate"));
        assert_eq!((&copy.body["eventId"], &copy.body["position"]), (&json!("e-1"), &first.body["position"]));
    }
    let mut other = event("e-1");
    other["properties"]["price"] = json!(2);
    let reused = gateway.post(&other).await;
    assert_eq!((reused.status, reused.problem()), (409, "event-id-reused"));
    assert_eq!((&reused.body["eventId"], &reused.body["field"]), (&json!("e-1"), &json!("eventId")));
    assert_eq!(gateway.in_log(&gateway.stack.project, "e-1").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_an_event_in_flight_is_told_to_retry() {
    let (gateway, project, key) = Gateway::without_topics().await;
    let (first, second) = (event("e-1"), event("e-1"));
    let first = gateway.post_as(&key, &first);
    let second = async {
        gateway.in_flight(&project, "e-1").await;
        let second = gateway.post_as(&key, &second).await;
        gateway.stack.create_topics(&project).await;
        second
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!((second.status, second.problem()), (503, "retry"));
    assert!(first.status == 202 || first.problem() == "retry", "{first:?}");
    eventually("it is accepted in the end", || async {
        let answer = gateway.post_as(&key, &event("e-1")).await;
        answer.status == 202 || answer.problem() == "duplicate"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn anothers_claim_is_waited_for() {
    let gateway = Gateway::start().await;
    gateway.set_claim(&gateway.stack.project, "e-1", "P:another", 60_000).await;
    let answer = gateway.post(&event("e-1")).await;
    assert_eq!((answer.status, answer.problem()), (503, "retry"));
    assert!(answer.retry_after.is_some_and(|seconds| (50..=60).contains(&seconds)), "{answer:?}");
    let several = gateway.post(&json!([event("e-1"), event("e-2")])).await;
    assert_eq!(several.statuses(), ["retry", "accepted"]);
    assert!(several.retry_after.is_some());
    let claim = gateway.claim(&gateway.stack.project, "e-1").await;
    assert_eq!(claim.as_deref(), Some("P:another"), "another's claim is not ours to release");
    assert_eq!(gateway.in_log(&gateway.stack.project, "e-1").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_became_anothers_is_not_released() {
    let (gateway, project, key) = Gateway::without_topics().await;
    let body = event("e-1");
    let overtake = async {
        gateway.in_flight(&project, "e-1").await;
        gateway.set_claim(&project, "e-1", "P:another", 60_000).await;
    };
    let (answer, ()) = tokio::join!(gateway.post_as(&key, &body), overtake);
    assert_eq!(answer.problem(), "retry");
    assert_eq!(gateway.claim(&project, "e-1").await.as_deref(), Some("P:another"));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_race_one_wins() {
    let gateway = Gateway::start().await;
    for round in 0..5 {
        let body = event(&format!("e-{round}"));
        let answers = join_all((0..16).map(|_| gateway.post(&body))).await;
        assert_eq!(answers.iter().filter(|answer| answer.status == 202).count(), 1, "{answers:?}");
        for loser in answers.iter().filter(|answer| answer.status != 202) {
            assert!(["retry", "duplicate"].contains(&loser.problem()), "{loser:?}");
        }
        assert_eq!(gateway.in_log(&gateway.stack.project, &format!("e-{round}")).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_of_an_array_has_an_answer_of_its_own() {
    let gateway = Gateway::start().await;
    let known = gateway.post(&event("known")).await;
    let mut reused = event("e-1");
    reused["userId"] = json!("someone else");
    let body = json!([event("e-1"), event("e-1"), reused, {"eventId": "e-2"}, event("known"), 7, event("e-3")]);
    let answer = gateway.post(&body).await;
    let expected = ["accepted", "duplicate", "invalid", "invalid", "duplicate", "invalid", "accepted"];
    assert_eq!(answer.statuses(), expected);

    let results = answer.body["results"].as_array().unwrap();
    let ids: Vec<&Value> = results.iter().map(|result| &result["eventId"]).collect();
    assert_eq!(json!(ids), json!(["e-1", "e-1", "e-1", "e-2", "known", null, "e-3"]));
    assert_eq!(results[1]["position"], results[0]["position"]);
    assert_eq!(results[4]["position"], known.body["position"]);
    assert_eq!(results[2]["error"]["type"], "urn:tidemill:problem:event-id-reused");
    assert_eq!(results[3]["error"]["field"], "eventType");
    assert_eq!(results[5]["error"]["field"], "event");
    assert_eq!(results[6]["error"], Value::Null);
    assert_eq!(gateway.stack.records(&format!("events.{}", gateway.stack.project)).await.len(), 3);
    let one = gateway.post(&json!([event("e-4")])).await;
    assert_eq!(one.statuses(), ["accepted"], "an array of one is an array");
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_have_event_ids_of_their_own() {
    let gateway = Gateway::start().await;
    let project = format!("{}-2", gateway.stack.project);
    gateway.stack.create_project(&project).await;
    let key = create_key(&gateway.stack, &project, &["write"], None).await;
    assert_eq!(gateway.post(&event("e-1")).await.status, 202);
    assert_eq!(gateway.post_as(&key, &event("e-1")).await.status, 202);
    assert_eq!(gateway.in_log(&gateway.stack.project, "e-1").await, 1);
    assert_eq!(gateway.in_log(&project, "e-1").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_project_says_how_many_home_partitions_there_are() {
    let gateway = Gateway::start().await;
    sqlx::query("UPDATE projects SET partitions = 2").execute(&gateway.stack.pool).await.unwrap();
    let events: Vec<Value> = (0..50).map(|i| event(&format!("e-{i}"))).collect();
    assert!(gateway.post(&json!(events)).await.statuses().iter().all(|status| *status == "accepted"));
    for record in gateway.stack.records(&format!("events.{}", gateway.stack.project)).await {
        assert_eq!(record.partition, home_partition(record.key().unwrap(), 2), "not what Kafka's metadata says");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn confirmations_say_where_the_event_is() {
    let gateway = Gateway::start().await;
    let topic = format!("events.{}", gateway.stack.project);
    let history = History::new(gateway.stack.connections.kafka.clone());
    let incarnation = history.incarnations([&topic], support::QUICK).unwrap().remove(&topic).unwrap();
    let number = std::sync::atomic::AtomicU32::new(0);
    eventually("confirmations name the topic's incarnation", || async {
        let id = format!("e-{}", number.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let position = gateway.post(&event(&id)).await.body["position"].as_str().unwrap().to_owned();
        let claim = gateway.claim(&gateway.stack.project, &id).await.unwrap();
        claim.starts_with(&format!("C:{incarnation}:{position}:"))
    })
    .await;
    gateway
        .set_claim(&gateway.stack.project, "e-old", "C:another-topic:0:0:00000000000000000000000000000000", 60_000)
        .await;
    assert_eq!(gateway.post(&event("e-old")).await.status, 202, "it is not in today's log");
    assert_eq!(gateway.in_log(&gateway.stack.project, "e-old").await, 1);
}

//! Events of a type that has a topic of its own.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::json;
use support::Gateway;
use tidemill_testkit::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn a_type_with_a_route_goes_to_its_topic() {
    let gateway = Gateway::start().await;
    let event = |id: &str, event_type: &str| json!({ "eventId": id, "eventType": event_type });
    assert_eq!(gateway.post(&event("before", "click")).await.status, 202);
    gateway.stack.route("clicks", "click").await;
    let route = gateway.stack.project().await.topics().remove(1);
    // Gateways know within seconds; until then, the stream sends home what they send.
    let mut tried = 0..;
    eventually("the gateway knows of the route", || {
        let id = format!("try-{}", tried.next().unwrap());
        let gateway = &gateway;
        async move {
            let answer = gateway.post(&event(&id, "click")).await;
            let position = answer.body["position"].as_str().unwrap().to_owned();
            position.split_once(':').unwrap().0.parse::<i32>().unwrap() >= 10_000
        }
    })
    .await;
    let both = json!([event("a", "click"), event("b", "view"), event("a", "click")]);
    let answer = gateway.post(&both).await;
    assert_eq!(answer.statuses(), ["accepted", "accepted", "duplicate"]);
    let ids = async |topic: &str| -> Vec<String> {
        let records = gateway.stack.records(topic).await.into_iter();
        records.map(|record| String::from_utf8(record.key().unwrap().to_vec()).unwrap()).collect()
    };
    let (own, routed) = (ids(&format!("events.{}", gateway.stack.project)).await, ids(&route).await);
    assert!(own.contains(&"b".to_owned()) && !own.contains(&"a".to_owned()) && routed.contains(&"a".to_owned()));
    // A copy of what stands in either topic is known.
    for id in ["before", "a"] {
        let copy = gateway.post(&event(id, "click")).await;
        assert_eq!((copy.status, copy.problem()), (409, "duplicate"), "{id}");
    }
    let position = answer.body["results"][0]["position"].as_str().unwrap().to_owned();
    assert_eq!(gateway.post(&event("a", "click")).await.body["position"], position, "and where it stands");
}

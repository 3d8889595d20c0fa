//! The client's side of the contract, kept by the two clients of `docs/clients` and the load generator's: the same
//! failures for all three, and the same that must come of them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod drivers;
mod gateway;
mod real;
// The binary has no library to take them from.
#[allow(dead_code)]
#[path = "../../src/loadgen/generator.rs"]
mod generator;
#[allow(dead_code)]
#[path = "../../src/loadgen/sender.rs"]
mod sender;

use std::collections::HashSet;
use std::time::SystemTime;

use drivers::{CLIENTS, Client, Order, Report};
use gateway::{Gateway, Step};
use serde_json::{Value, json};
use tokio::net::TcpSocket;

/// An event with all that the load generator's have. Without a type, it is invalid.
fn event(event_id: &str, event_type: &str) -> Value {
    json!({"eventId": event_id, "eventType": event_type, "timestamp": "2026-01-01T00:00:00.000Z", "userId": "u",
        "sessionId": "s", "properties": {"page": "größe"}})
}

/// Four events, the third of which is invalid.
fn four() -> Vec<Value> {
    [("e0", "a"), ("e1", "b"), ("e2", ""), ("e3", "c")].map(|(id, event_type)| event(id, event_type)).into()
}

fn order(url: &str, events: Vec<Value>) -> Order {
    Order { url: url.to_owned(), key: "the-key".to_owned(), retries: 3, timeout: 30, real: false, events }
}

/// What the gateway does, and what is to come of it for the four events.
struct Case {
    name: &'static str,
    retries: u32,
    timeout: u64,
    script: Vec<Step>,
    /// Between the requests, in seconds.
    pauses: Vec<f64>,
    /// Which of the events each request has, by their numbers.
    requests: Vec<&'static str>,
    /// What becomes of the events: Accepted, Duplicate, Invalid, Refused, Failed.
    verdicts: &'static str,
}

fn case(name: &'static str, script: impl Into<Vec<Step>>, pauses: &[f64], verdicts: &'static str) -> Case {
    let requests = vec!["0123"; pauses.len() + 1];
    Case { name, retries: 3, timeout: 30, script: script.into(), pauses: pauses.into(), requests, verdicts }
}

fn refuse(status: u16) -> Step {
    Step::Refuse(status, None)
}

fn after(status: u16, retry_after: &str) -> Step {
    Step::Refuse(status, Some(retry_after.to_owned()))
}

fn whole_requests() -> Vec<Case> {
    let fails = [refuse(500), refuse(502), refuse(503), refuse(504), refuse(599)];
    vec![
        case("nothing fails", [], &[], "AAIA"),
        case("three failures are survived", fails[..3].to_vec(), &[1.0, 2.0, 4.0], "AAIA"),
        case("a fourth is one too many", fails[..4].to_vec(), &[1.0, 2.0, 4.0], "FFFF"),
        Case {
            retries: 5,
            ..case("five, where five are configured", fails.clone(), &[1.0, 2.0, 4.0, 8.0, 8.0], "AAIA")
        },
        Case { retries: 0, ..case("none, where none are", [refuse(503)], &[], "FFFF") },
        case("overloaded", [after(429, "5"), after(503, "1"), after(503, "60")], &[5.0, 2.0, 60.0], "AAIA"),
        case(
            "Retry-After that says nothing",
            [after(503, "soon"), after(429, "-1"), after(429, "")],
            &[1.0, 2.0, 4.0],
            "AAIA",
        ),
        case("a date that is over", [after(503, "Sun, 06 Nov 1994 08:49:37 GMT")], &[1.0], "AAIA"),
        case("later than anybody waits", [after(429, "61")], &[], "FFFF"),
        case("later than a number says", [after(429, "99999999999999999999")], &[], "FFFF"),
        case("the body was slow", [refuse(408)], &[1.0], "AAIA"),
        case("cut before the events are taken", [Step::CutBefore, Step::CutBefore], &[1.0, 2.0], "AAIA"),
        case("cut after they are taken", [Step::CutAfter, Step::CutAfter], &[1.0, 2.0], "DDID"),
        case("cut within the answer", [Step::CutWithin], &[1.0], "DDID"),
        Case { timeout: 2, ..case("no answer in time", [Step::Silent], &[1.0], "DDID") },
        case("no key", [refuse(401)], &[], "RRRR"),
        case("too large", [refuse(413)], &[], "RRRR"),
        case("elsewhere", [refuse(307)], &[], "RRRR"),
    ]
}

fn single_events() -> Vec<Case> {
    let partly = |events, status, after: &str| Step::Partly(events, status, Some(after.to_owned()));
    let strange = r#"{"results":[{"index":9,"status":"accepted"},{"index":1,"status":"perhaps"}]}"#;
    let first = r#"{"results":[{"index":0,"eventId":"e0","status":"accepted","position":"0:7"}]}"#;
    vec![
        Case {
            requests: vec!["0123", "13", "3"],
            ..case(
                "only what is open",
                [partly(&[1, 3], "retry", "3"), partly(&[1], "limited", "1")],
                &[3.0, 2.0],
                "AAIA",
            )
        },
        Case {
            requests: vec!["0123", "1", "1", "1"],
            ..case(
                "open to the end",
                [Step::Partly(&[1], "retry", None), refuse(500), refuse(500), refuse(500)],
                &[1.0, 2.0, 4.0],
                "AFIA",
            )
        },
        Case {
            requests: vec!["0123", "03", "03"],
            ..case(
                "open, then taken unheard",
                [Step::Partly(&[0, 3], "retry", None), Step::CutAfter],
                &[1.0, 2.0],
                "DAID",
            )
        },
        case("no JSON", [Step::Babble("<html>"), Step::Babble(""), Step::Babble("[7]")], &[1.0, 2.0, 4.0], "AAIA"),
        case(
            "no verdicts",
            [Step::Babble(r#"{"results":null}"#), Step::Babble(r#"{"results":[7,null]}"#)],
            &[1.0, 2.0],
            "AAIA",
        ),
        case("strange verdicts", [Step::Babble(strange)], &[1.0], "AAIA"),
        Case { requests: vec!["0123", "123"], ..case("one verdict", [Step::Babble(first)], &[1.0], "AAIA") },
    ]
}

/// First letters of the statuses.
fn letters(report: &Report) -> String {
    report.verdicts.iter().map(|verdict| verdict.status[..1].to_uppercase()).collect()
}

async fn check(client: Client, cases: Vec<Case>) {
    for Case { name, retries, timeout, script, pauses, requests, verdicts } in cases {
        let gateway = Gateway::start(script).await;
        let report = client.run(&Order { retries, timeout, ..order(&gateway.url, four()) }).await;
        assert_eq!(letters(&report), verdicts, "{client:?}: {name}: {report:?}");
        assert_eq!(report.pauses, pauses, "{client:?}: {name}");
        let events: Vec<&Value> = report.verdicts.iter().map(|verdict| &verdict.event).collect();
        assert_eq!(events, four().iter().collect::<Vec<_>>(), "{client:?}: {name}: for the caller to keep");
        for verdict in &report.verdicts {
            let there = ["accepted", "duplicate"].contains(&verdict.status.as_str());
            assert_eq!(verdict.position.as_deref(), there.then_some("0:7"), "{client:?}: {name}");
            let told = verdict.error.as_ref().is_some_and(|error| error["detail"].is_string());
            assert!(client == Client::Loadgen || told != there, "{client:?}: {name}: {verdict:?}");
        }
        let sent: Vec<String> = gateway.requests().iter().map(|events| numbers(events)).collect();
        assert_eq!(sent, requests, "{client:?}: {name}");
        assert!(gateway.requests().iter().flatten().all(|sent| four().contains(sent)), "{client:?}: {name}");
    }
}

/// The numbers of the four events that these are.
fn numbers(events: &[Value]) -> String {
    events.iter().map(|event| event["eventId"].as_str().unwrap().trim_start_matches('e')).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_javascript_client_keeps_the_contract() {
    check(Client::JavaScript, whole_requests()).await;
    check(Client::JavaScript, single_events()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_keeps_the_contract() {
    check(Client::Python, whole_requests()).await;
    check(Client::Python, single_events()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_generator_keeps_the_contract() {
    check(Client::Loadgen, whole_requests()).await;
    check(Client::Loadgen, single_events()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_date_is_waited_for() {
    for client in CLIENTS {
        let date = chrono::DateTime::<chrono::Utc>::from(SystemTime::now()) + chrono::TimeDelta::seconds(40);
        let gateway = Gateway::start([after(503, &date.format("%a, %d %b %Y %H:%M:%S GMT").to_string())]).await;
        let report = client.run(&order(&gateway.url, four())).await;
        assert_eq!(letters(&report), "AAIA", "{client:?}");
        assert!(report.pauses.len() == 1 && (10.0..=40.0).contains(&report.pauses[0]), "{client:?}: {report:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there() {
    let taken = TcpSocket::new_v4().unwrap(); // bound, so that nobody else gets the port, but not listening
    taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", taken.local_addr().unwrap());
    for client in CLIENTS {
        let report = client.run(&order(&url, four())).await;
        assert_eq!((letters(&report).as_str(), &report.pauses[..]), ("FFFF", &[1.0, 2.0, 4.0][..]), "{client:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_an_id_gets_one_before_its_first_try() {
    for client in [Client::JavaScript, Client::Python] {
        let gateway = Gateway::start([refuse(500), Step::CutAfter]).await;
        let events = vec![json!({"eventType": "a"}), json!({"eventType": "a", "eventId": null})];
        let report = client.run(&order(&gateway.url, events)).await;
        assert_eq!(letters(&report), "DD", "{client:?}");
        let requests = gateway.requests();
        assert!(requests.len() == 3 && requests.iter().all(|events| events == &requests[0]), "{client:?}");
        let ids: HashSet<&str> = report.verdicts.iter().map(|verdict| verdict.event_id.as_str()).collect();
        assert!(ids.len() == 2 && ids.iter().all(|id| id.len() >= 32), "{client:?}: {ids:?}");
        for (verdict, sent) in report.verdicts.iter().zip(&requests[0]) {
            assert_eq!((&verdict.event, &verdict.event["eventId"]), (sent, &json!(verdict.event_id)), "{client:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_events_and_large_ones_go_in_several_requests() {
    for client in [Client::JavaScript, Client::Python] {
        let mut events: Vec<Value> = (0..1_100).map(|i| event(&format!("n{i}"), "a")).collect();
        let large = "x".repeat(600_000);
        events.extend((0..3).map(|i| json!({"eventId": format!("l{i}"), "eventType": large})));
        // The second request's try fails, and only that is repeated.
        let fails = [Step::Partly(&[], "", None), Step::CutAfter];
        let gateway = Gateway::start(fails).await;
        let report = client.run(&order(&gateway.url, events.clone())).await;
        let sizes: Vec<usize> = gateway.requests().iter().map(Vec::len).collect();
        assert_eq!(sizes, [500, 500, 500, 101, 1, 1], "{client:?}");
        assert_eq!(letters(&report), ["A".repeat(500), "D".repeat(500), "A".repeat(103)].concat(), "{client:?}");
        assert_eq!(report.verdicts.iter().map(|verdict| verdict.event.clone()).collect::<Vec<_>>(), events);
        assert_eq!(gateway.log().len(), events.len(), "{client:?}");
    }
}

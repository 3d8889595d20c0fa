//! Every format, as real clients send it.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use reqwest::{Body, Method};
use serde_json::{Value, json};
use support::{Answer, Gateway, answer, event};
use tidemill_testkit::{Stack, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn send(gateway: &Gateway, content_type: &str, body: impl Into<Body>) -> Answer {
    answer(gateway.request().header("content-type", content_type).body(body)).await
}

fn lines(ids: impl IntoIterator<Item = String>) -> String {
    ids.into_iter().map(|id| event(&id).to_string() + "\n").collect()
}

fn cloud_event(id: &str) -> Value {
    json!({"specversion": "1.0", "id": id, "type": "com.example.signup", "source": "/test", "subject": "u-9",
        "time": "2026-01-31T12:00:00.5Z", "sessionid": "s-1", "data": {"plan": "pro"}})
}

#[tokio::test(flavor = "multi_thread")]
async fn json_and_beacons_are_one_event_or_several() {
    let gateway = Gateway::start().await;
    for (content_type, id) in [("application/json", "a"), ("text/plain;charset=UTF-8", "b")] {
        assert_eq!(send(&gateway, content_type, event(id).to_string()).await.status, 202);
        let several = send(&gateway, content_type, json!([event(id), event(&format!("{id}2")), {}]).to_string()).await;
        assert_eq!(several.statuses(), ["duplicate", "accepted", "invalid"]);
    }
    // As navigator.sendBeacon sends it: the key in the URL.
    let beacon = gateway.to(&format!("/collect?api_key={}", gateway.key)).header("content-type", "text/plain");
    assert_eq!(answer(beacon.body(event("c").to_string())).await.status, 202);
    let refused = send(&gateway, "text/plain;charset=iso-8859-1", event("d").to_string()).await;
    assert_eq!((refused.status, refused.problem()), (415, "unsupported-media-type"));
    assert_eq!(gateway.stack.records(&format!("events.{}", gateway.stack.project)).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn cloud_events_come_structured_in_batches_and_in_headers() {
    let gateway = Gateway::with(Stack::new().await, |config, _| config.cloudevents_subject_is_user = true).await;
    let structured =
        send(&gateway, "application/cloudevents+json; charset=UTF-8", cloud_event("ce-1").to_string()).await;
    assert_eq!((structured.status, &structured.body["eventId"]), (202, &json!("ce-1")), "{structured:?}");
    let batch = json!([cloud_event("ce-1"), {"id": "ce-2"}, cloud_event("ce-3")]).to_string();
    let batch = send(&gateway, "application/cloudevents-batch+json", batch).await;
    assert_eq!(batch.statuses(), ["duplicate", "invalid", "accepted"]);
    assert_eq!(batch.body["results"][1]["error"]["field"], "specversion", "{batch:?}");

    let binary = || {
        let ce = [("ce-specversion", "1.0"), ("ce-type", "t"), ("ce-source", "/s"), ("ce-subject", "J%C3%BCrgen")];
        ce.into_iter().fold(gateway.request(), |request, (name, value)| request.header(name, value))
    };
    let good = answer(binary().header("ce-id", "ce%204").json(&json!({"a": 1}))).await;
    assert_eq!((good.status, &good.body["eventId"]), (202, &json!("ce 4")), "{good:?}");
    let nameless = answer(binary().json(&json!({}))).await;
    assert_eq!((nameless.status, nameless.body["field"].as_str()), (422, Some("id")));
    let xml = answer(binary().header("ce-id", "x").header("content-type", "application/xml").body("<a/>")).await;
    assert_eq!((xml.status, xml.problem()), (415, "unsupported-media-type"));
    let broken = answer(binary().header("ce-id", "x").header("content-type", "application/json").body("{")).await;
    assert_eq!((broken.status, broken.problem()), (400, "bad-body"));
    // The same as plain JSON, so the same event: what became of the fields is seen in its being a duplicate.
    let plain = json!({"eventId": "ce-3", "eventType": "com.example.signup", "userId": "u-9", "sessionId": "s-1",
        "timestamp": "2026-01-31T12:00:00.5Z", "properties": {"plan": "pro"}});
    assert_eq!(gateway.post(&json!([plain])).await.statuses(), ["duplicate"]);
    let plain = json!({"eventId": "ce 4", "eventType": "t", "userId": "Jürgen", "properties": {"a": 1}});
    assert_eq!(gateway.post(&json!([plain])).await.statuses(), ["duplicate"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ndjson_is_several_events_even_if_it_is_one() {
    let gateway = Gateway::start().await;
    for (content_type, id) in [("application/x-ndjson", "a"), ("application/ndjson", "b"), ("application/jsonl", "c")] {
        let one = send(&gateway, content_type, event(id).to_string()).await;
        assert_eq!(one.statuses(), ["accepted"], "without a newline at the end");
    }
    let body = format!("{}\r\n\n{{\"eventId\":\n{{}}\n{}\n", event("a"), event("d"));
    let mixed = send(&gateway, "application/x-ndjson", body).await;
    assert_eq!(mixed.statuses(), ["duplicate", "invalid", "invalid", "accepted"]);
    let empty = send(&gateway, "application/x-ndjson", "\n \n").await;
    assert_eq!((empty.status, empty.problem()), (400, "bad-body"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ndjson_is_admitted_while_it_streams_in() {
    let gateway = Gateway::with(Stack::new().await, |config, _| config.body_timeout_ms = 600_000).await;
    let (early, late) = (format!("{}\n{{\"eventId\"", event("early")), ":\"late\",\"eventType\":\"t\"}");
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(ndjson_head(&gateway, early.len() + late.len()).as_bytes()).await.unwrap();
    stream.write_all(early.as_bytes()).await.unwrap();
    eventually("the first line is in the log, while the second has not come", || async {
        gateway.in_log(&gateway.stack.project, "early").await == 1
    })
    .await;
    stream.write_all(late.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 202") && text.matches("\"accepted\"").count() == 2, "{text}");
}

fn ndjson_head(gateway: &Gateway, length: usize) -> String {
    format!(
        "POST /v1/events HTTP/1.1\r\nHost: t\r\nX-API-Key: {}\r\nContent-Type: application/x-ndjson\r\n\
         Connection: close\r\nContent-Length: {length}\r\n\r\n",
        gateway.key
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn ndjson_far_larger_than_the_room_for_bodies_is_taken() {
    // Room for 6 MB, a body of 24 MB.
    let gateway = Gateway::with(Stack::new().await, |config, _| config.max_bytes_in_flight = 6_000_000).await;
    let padding = "x".repeat(9_000);
    let body: String = (0..2_600)
        .map(|i| {
            json!({"eventId": format!("n-{i}"), "eventType": "t", "properties": {"a": padding}}).to_string() + "\n"
        })
        .collect();
    assert!(body.len() > 23_000_000);
    let all = send(&gateway, "application/x-ndjson", body).await;
    assert!(all.statuses().iter().all(|status| *status == "accepted"));
    assert_eq!(all.statuses().len(), 2_600);
    let json = send(&gateway, "application/json", vec![b' '; 4_900_000]).await;
    assert_eq!(json.status, 400, "all of the room has been given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_decided_is_told_when_a_limit_ends_the_request() {
    let gateway = Gateway::with(Stack::new().await, |config, _| {
        (config.max_ndjson_events, config.max_ndjson_bytes) = (2_500, 2_000_000);
        (config.body_timeout_ms, config.max_ndjson_ms) = (1_000, 3_000);
    })
    .await;
    let many = send(&gateway, "application/x-ndjson", lines((0..2_501).map(|i| format!("m-{i}")))).await;
    assert_eq!((many.status, many.problem()), (413, "too-large"));
    let results = many.body["results"].as_array().unwrap();
    assert!(results.len() >= 2_000 && results.iter().all(|result| result["status"] == "accepted"), "{}", results.len());
    assert!(many.body["detail"].as_str().unwrap().contains(&format!("first {} events", results.len())));

    let mut large = lines(["l-1".to_owned()]);
    large.extend(std::iter::repeat_n(' ', 2_000_000));
    let large = send(&gateway, "application/x-ndjson", large).await;
    assert_eq!((large.status, large.problem()), (413, "too-large"));

    for (drips, seconds) in [(0, "1 s"), (100, "3 s")] {
        let slow = dripping(&gateway, &event(&format!("slow-{drips}")).to_string(), drips).await;
        assert!(slow.starts_with("HTTP/1.1 408"), "{slow}");
        assert!(slow.contains(&format!("\"eventId\":\"slow-{drips}\",\"status\":\"accepted\"")), "{slow}");
        assert!(slow.contains(seconds), "{slow}");
    }
}

/// Sends a line, then now and then a byte of the next; gives the answer.
async fn dripping(gateway: &Gateway, line: &str, drips: usize) -> String {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = ndjson_head(gateway, 100_000) + line + "\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let drip = tokio::spawn(async move {
        for _ in 0..drips {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if writer.write_all(b"x").await.is_err() {
                return;
            }
        }
        std::future::pending::<()>().await; // the connection stays open
    });
    let mut text = String::new();
    let _ = tokio::time::timeout(support::QUICK, reader.read_to_string(&mut text)).await.unwrap();
    drip.abort();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_client_hangs_up_leaves_its_lines_admitted_and_its_room_free() {
    let gateway = Gateway::with(Stack::new().await, |config, _| config.max_requests = 1).await;
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!("{}{}\n{{\"half", ndjson_head(&gateway, 100_000), event("gone"));
    stream.write_all(head.as_bytes()).await.unwrap();
    eventually("the line is in the log", || async { gateway.in_log(&gateway.stack.project, "gone").await == 1 }).await;
    drop(stream);
    eventually("the only place is free again", || async { gateway.post(&event("next")).await.status == 202 }).await;
    eventually("it is confirmed", || async {
        gateway.claim(&gateway.stack.project, "gone").await.is_some_and(|claim| claim.starts_with("C:"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_listed_origins_may_send_and_read() {
    let gateway = Gateway::with(Stack::new().await, |config, _| {
        config.cors_origins = "https://shop.example, http://localhost:3000".to_owned();
    })
    .await;
    for path in ["/v1/events", "/collect", "/v1/batch"] {
        let ask = |origin: &str| {
            let request = reqwest::Client::new().request(Method::OPTIONS, format!("http://{}{path}", gateway.address));
            let request = request.header("origin", origin).header("access-control-request-method", "POST");
            request.header("access-control-request-headers", "authorization,content-type,ce-id,x-other").send()
        };
        let allowed = ask("https://shop.example").await.unwrap();
        let header = |name: &str| allowed.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!((allowed.status().as_u16(), header("access-control-allow-methods")), (204, Some("POST")));
        assert_eq!(header("access-control-allow-origin"), Some("https://shop.example"));
        assert_eq!(header("access-control-allow-credentials"), Some("true"));
        assert_eq!(header("access-control-allow-headers"), Some("authorization, content-type, ce-id"));
        assert!(header("access-control-max-age").is_some() && header("vary") == Some("Origin"));
        let other = ask("https://shop.example.evil.example").await.unwrap();
        assert!(!other.headers().keys().any(|name| name.as_str().starts_with("access-control")), "{other:?}");
    }
    let from = |origin: &str| gateway.request().header("origin", origin).body(event("cors").to_string()).send();
    let sent = from("http://localhost:3000").await.unwrap();
    assert_eq!(
        (sent.status().as_u16(), &sent.headers()["access-control-allow-origin"]),
        (202, &"http://localhost:3000".parse().unwrap())
    );
    assert!(sent.headers()["access-control-expose-headers"].to_str().unwrap().contains("Retry-After"));
    assert!(!from("https://other.example").await.unwrap().headers().contains_key("access-control-allow-origin"));
    let refused = gateway.anonymous().header("origin", "https://shop.example").body("{}").send().await.unwrap();
    assert_eq!(refused.status(), 401);
    assert!(refused.headers().contains_key("access-control-allow-origin"), "a page can read why it is refused");
    let server = gateway.request().body(event("cors").to_string()).send().await.unwrap();
    assert!(!server.headers().contains_key("vary"), "nothing is added where no page asks");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_origins_may_send_but_without_credentials() {
    let gateway = Gateway::with(Stack::new().await, |config, _| config.cors_origins = "*".to_owned()).await;
    let request = gateway.request().header("origin", "https://any.example").body(event("a").to_string());
    let sent = request.send().await.unwrap();
    assert_eq!(sent.headers()["access-control-allow-origin"], "*");
    assert!(!sent.headers().contains_key("access-control-allow-credentials"));
}

/// Over HTTP, in every format and coding; `TIDEMILL_REQUESTS` sets how many.
#[tokio::test(flavor = "multi_thread")]
async fn no_body_makes_the_gateway_fail() {
    let gateway = Gateway::start().await;
    let requests = std::env::var("TIDEMILL_REQUESTS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000);
    let good = [event("e").to_string(), json!([event("e"), {}]).to_string(), cloud_event("c").to_string()];
    let types = ["application/json", "application/x-ndjson", "application/cloudevents+json", "text/plain", "x/y"];
    let codings = ["identity", "identity", "gzip", "deflate", "br", "zstd"];
    let paths = ["/v1/events", "/collect", "/v1/batch", "/v1/page"];
    let change = (any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 0..4));
    let strategy = (
        prop::sample::select(good.to_vec()),
        prop::collection::vec(change, 0..4),
        prop::sample::select(types.to_vec()),
        prop::sample::select(codings.to_vec()),
        prop::sample::select(paths.to_vec()),
    );
    let mut runner = TestRunner::deterministic();
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..requests {
        let (good, changes, content_type, coding, path) = strategy.new_tree(&mut runner).unwrap().current();
        let mut body = good.into_bytes();
        for (at, piece) in changes {
            let at = at.index(body.len() + 1);
            body.splice(at..(at + 2).min(body.len()), piece);
        }
        let request = gateway.to(path).bearer_auth(&gateway.key).header("content-type", content_type);
        let answer = answer(request.header("content-encoding", coding).body(body.clone())).await;
        assert!(answer.status < 500, "{answer:?} to {content_type} {coding} {path} {}", body.escape_ascii());
        if answer.status < 300 { taken += 1 } else { refused += 1 }
    }
    assert!(taken > 0 && refused > 0, "{taken} taken, {refused} refused");
}

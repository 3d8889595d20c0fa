//! Random and mutated bodies for every parser: whatever comes, nothing panics, and what is taken can be encoded.
//! `TIDEMILL_BODIES` sets how many.

use axum::http::{HeaderMap, HeaderValue};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tidemill_common::codec::Encoder;

use super::{Format, ndjson, segment};
use crate::parse::{Body, NotJson, Parsed};
use crate::stages::{Encoded, Receipt};

/// Bodies that are good, for mutations to start from.
const SEEDS: [&str; 8] = [
    r#"{"eventId":"e-1","eventType":"t","timestamp":"2026-01-31T12:00:00Z","properties":{"a":[1,2.5e3,"\u00e4"]}}"#,
    r#"[{"eventId":"e-1","eventType":"t"},{"eventId":"e-2","eventType":"t","userId":"u","sessionId":null}]"#,
    "{\"eventId\":\"e-1\",\"eventType\":\"t\"}\n\r\n{\"eventId\":\"\\ud83d\\ude00\",\"eventType\":\"t\"}\n",
    r#"{"specversion":"1.0","id":"i","source":"/s","type":"t","time":"2026-01-31T12:00:00Z","data":{"a":1}}"#,
    r#"[{"specversion":"1.0","id":"i","source":"/s","type":"t","data_base64":"aGVsbG8="}]"#,
    r#"{"batch":[{"type":"page","messageId":"m","name":"Home","properties":{"url":"/"}},{"type":"track"}]}"#,
    r#"{"type":"group","messageId":"m","groupId":7,"traits":{"a":{}},"context":{"sessionId":"s"}}"#,
    r#"{"a":{"a":{"a":{"a":[[[[[[[[1]]]]]]]]}}}}"#,
];
/// Pieces that parsers may stumble over.
const PIECES: [&str; 14] =
    ["\"", "{", "}", "[", "]", ",", ":", "\\", "\\ud800", "\0", "\n", "null", "1e999", "\u{2028}"];

/// A change: where, what is put there, and how many bytes it replaces.
type Change = (prop::sample::Index, Vec<u8>, usize);

fn body() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::sample::select(&PIECES[..]).prop_map(|piece| piece.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..4),
        prop::sample::select(&SEEDS[..]).prop_map(|seed| seed.as_bytes().to_vec()),
    ];
    let change = (any::<prop::sample::Index>(), piece, 0_usize..6);
    let mutated = (prop::sample::select(&SEEDS[..]), prop::collection::vec(change, 0..5));
    prop_oneof![
        9 => mutated.prop_map(|(seed, changes)| changes.into_iter().fold(seed.as_bytes().to_vec(), changed)),
        1 => prop::collection::vec(any::<u8>(), 0..200),
    ]
}

fn changed(mut body: Vec<u8>, (at, piece, replaced): Change) -> Vec<u8> {
    let at = at.index(body.len() + 1);
    let end = (at + replaced).min(body.len());
    body.splice(at..end, piece);
    body
}

/// Encodes what was taken; says whether anything was.
fn encode(events: Vec<Parsed<'_>>) -> bool {
    let receipt = Receipt { at: 1_800_000_000_000_000, client_address: None, user_agent: None };
    let mut encoded = Encoded::default();
    for event in events.into_iter().flatten() {
        let properties = event.properties.as_deref().unwrap_or("{}");
        assert!(serde_json::from_str::<serde::de::IgnoredAny>(properties).is_ok(), "not JSON: {properties}");
        let _ = encoded.push(&event, &receipt, Encoder::new(1), &[], 6);
    }
    !encoded.events().is_empty()
}

fn read(parsed: Result<Body<'_>, NotJson>) -> bool {
    match parsed {
        Ok(Body::One(event)) => encode(vec![event]),
        Ok(Body::Many(events)) => encode(events),
        Err(_) => false,
    }
}

/// How many parsers took something of it.
fn read_by_all(body: &[u8]) -> usize {
    let mut headers = HeaderMap::new();
    for name in ["ce-specversion", "ce-id", "ce-type", "ce-source", "ce-subject"] {
        let version = (name == "ce-specversion").then(|| HeaderValue::from_static("1.0"));
        if let Some(value) = version.or_else(|| HeaderValue::from_bytes(body).ok()) {
            headers.insert(name, value);
        }
    }
    let formats = [Format::Json, Format::CloudEvent, Format::CloudEvents, Format::BinaryCloudEvent];
    let mut taken = formats.into_iter().filter(|format| read(format.parse(&headers, body, true))).count();
    let mut lines = ndjson::Lines::default();
    lines.push(body);
    lines.end_line();
    taken += usize::from(encode(lines.take().events()));
    taken += usize::from(segment::batch(body).is_ok_and(encode));
    taken + usize::from(segment::single(body, "page").is_ok_and(encode))
}

#[test]
fn nothing_that_comes_makes_a_parser_panic() {
    let bodies = std::env::var("TIDEMILL_BODIES").ok().and_then(|bodies| bodies.parse().ok()).unwrap_or(100_000);
    let config = ProptestConfig { cases: bodies, failure_persistence: None, ..ProptestConfig::default() };
    let taken = std::cell::Cell::new(0);
    TestRunner::new(config)
        .run(&body(), |body| {
            taken.set(taken.get() + read_by_all(&body));
            Ok(())
        })
        .expect("no panic");
    assert!(taken.get() > 0, "some mutations leave events good");
}

//! Compressed bodies: every coding, and what hostile ones cost.
#![allow(clippy::unwrap_used)]

mod support;

use async_compression::Level;
use async_compression::tokio::bufread::{BrotliEncoder, DeflateEncoder, GzipEncoder, ZlibEncoder, ZstdEncoder};
use async_compression::zstd::CParameter;
use serde_json::json;
use support::{Answer, Gateway, answer, event};
use tidemill_testkit::{Stack, eventually};
use tokio::io::{AsyncBufRead, AsyncReadExt, BufReader};

const CODINGS: [&str; 5] = ["gzip", "deflate", "deflate-raw", "br", "zstd"];
const MIB: usize = 1024 * 1024;

async fn compressed(coding: &str, data: impl AsyncBufRead + Unpin) -> Vec<u8> {
    let mut out = Vec::new();
    let fast = Level::Fastest;
    match coding {
        "gzip" => GzipEncoder::with_quality(data, fast).read_to_end(&mut out).await,
        "deflate" => ZlibEncoder::with_quality(data, fast).read_to_end(&mut out).await,
        "deflate-raw" => DeflateEncoder::with_quality(data, fast).read_to_end(&mut out).await,
        "br" => BrotliEncoder::with_quality(data, fast).read_to_end(&mut out).await,
        _ => ZstdEncoder::with_quality(data, fast).read_to_end(&mut out).await,
    }
    .unwrap();
    out
}

/// So many bytes of spaces, which are never held.
fn spaces(bytes: usize) -> impl AsyncBufRead + Unpin {
    BufReader::new(tokio::io::repeat(b' ').take(bytes as u64))
}

async fn send(gateway: &Gateway, coding: &str, content_type: &str, body: Vec<u8>) -> Answer {
    let request = gateway.request().header("content-type", content_type);
    answer(request.header("content-encoding", coding.trim_end_matches("-raw")).body(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_coding_is_read() {
    let gateway = Gateway::start().await;
    for coding in CODINGS {
        let body = compressed(coding, event(coding).to_string().as_bytes()).await;
        let one = send(&gateway, coding, "application/json", body).await;
        assert_eq!((one.status, one.body["eventId"].as_str()), (202, Some(coding)), "{one:?}");
        let lines: String = (0..3_000).map(|i| event(&format!("{coding}-{i}")).to_string() + "\n").collect();
        let body = compressed(coding, lines.as_bytes()).await;
        let several = send(&gateway, coding, "application/x-ndjson", body).await;
        assert_eq!(several.statuses(), vec!["accepted"; 3_000], "{coding}");
    }
    let identity = send(&gateway, "identity", "application/json", event("identity").to_string().into()).await;
    assert_eq!(identity.status, 202);
    let members = [compressed("gzip", &b"["[..]).await, compressed("gzip", &b"{}]"[..]).await].concat();
    assert_eq!(send(&gateway, "gzip", "application/json", members).await.statuses(), ["invalid"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_not_what_they_say_are_refused() {
    let gateway = Gateway::start().await;
    let text = json!([event("a"), event("b")]).to_string();
    for coding in CODINGS {
        let good = compressed(coding, text.as_bytes()).await;
        let cut = good[..good.len() - 3].to_vec();
        let longer = [&good[..], b"behind"].concat();
        let other = compressed(if coding == "gzip" { "zstd" } else { "gzip" }, text.as_bytes()).await;
        for (body, what) in [(cut, "cut"), (longer, "longer"), (other, "other"), (vec![], "empty")] {
            let refused = send(&gateway, coding, "application/json", body).await;
            assert_eq!((refused.status, refused.problem()), (400, "bad-body"), "{coding} {what} {refused:?}");
        }
    }
    for coding in ["compress", "gzip, br", "aws-chunked"] {
        let refused = send(&gateway, coding, "application/json", text.clone().into()).await;
        assert_eq!((refused.status, refused.problem()), (415, "unsupported-media-type"));
        assert!(refused.body["detail"].as_str().unwrap().contains("gzip, deflate, br, zstd"), "it names what is");
    }
    assert_eq!(gateway.stack.records(&format!("events.{}", gateway.stack.project)).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_end_at_the_limit_and_leave_memory_as_it_was() {
    let gateway = Gateway::with(Stack::new().await, |config, _| config.max_ndjson_bytes = 150 * MIB).await;
    let mut bombs = Vec::new();
    for coding in CODINGS {
        bombs.push((coding, compressed(coding, spaces(200 * MIB)).await));
    }
    let before = rss();
    for (coding, bomb) in &bombs {
        for content_type in ["application/json", "application/x-ndjson"] {
            let refused = send(&gateway, coding, content_type, bomb.clone()).await;
            assert_eq!((refused.status, refused.problem()), (413, "too-large"), "{coding} {content_type}");
        }
    }
    let grown = rss().saturating_sub(before);
    assert!(grown < 100 * MIB, "memory grew by {} MiB", grown / MIB);
    assert_eq!(gateway.post(&event("after")).await.status, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_beyond_the_standards_are_refused_before_they_are_allocated() {
    let gateway = Gateway::start().await;
    // A large window of 2^30 bytes, which RFC 7932 does not have.
    let brotli = send(&gateway, "br", "application/json", vec![0x11, 0x1e, 0, 0, 0]).await;
    assert_eq!((brotli.status, brotli.problem()), (400, "bad-body"));
    assert!(brotli.body["detail"].as_str().unwrap().contains("window"), "{brotli:?}");
    let mut zstd = Vec::new();
    let window = [CParameter::window_log(27), CParameter::enable_long_distance_matching(true)];
    ZstdEncoder::with_quality_and_params(spaces(300 * MIB), Level::Fastest, &window)
        .read_to_end(&mut zstd)
        .await
        .unwrap();
    let zstd = send(&gateway, "zstd", "application/json", zstd).await;
    assert_eq!((zstd.status, zstd.problem()), (400, "bad-body"), "{zstd:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_decompressing_takes_counts_as_bytes_in_flight() {
    let gateway = Gateway::with(Stack::new().await, |config, _| config.max_bytes_in_flight = MIB).await;
    for (coding, status) in [("gzip", 202), ("deflate", 202), ("zstd", 503), ("br", 503)] {
        let body = compressed(coding, event(coding).to_string().as_bytes()).await;
        let answer = send(&gateway, coding, "application/json", body).await;
        assert_eq!(answer.status, status, "{coding} {answer:?}");
    }
    let large = vec![b' '; MIB];
    // A request gives back what it took when it ends, which may be a moment after its answer.
    eventually("all is given back", || async {
        send(&gateway, "identity", "application/json", large.clone()).await.status == 400
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_bytes_that_come_to_nothing_are_counted_too() {
    let gateway = Gateway::with(Stack::new().await, |config, _| config.max_body_bytes = 10_000).await;
    let nothing = compressed("gzip", &b""[..]).await;
    let refused = send(&gateway, "gzip", "application/json", nothing.repeat(10_001 / nothing.len() + 1)).await;
    assert_eq!((refused.status, refused.problem()), (413, "too-large"), "{refused:?}");
}

/// Resident bytes of this process, in which the gateway runs.
fn rss() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}

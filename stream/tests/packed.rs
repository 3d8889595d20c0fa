//! What compressed copies of sessions save, and what they cost:
//! `cargo test --workspace --test packed -- --ignored --nocapture`
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use tidemill_stream::packed;
use tidemill_testkit::PrivateRedis;

const SESSIONS: usize = 500;

/// Campaign parameters and ids, as long URLs have them.
fn page(number: usize, query: usize) -> String {
    let mut page = format!("https://www.shop.example/category/shoes/product-{}.html?", number % 300);
    let names = ["utm_source", "utm_medium", "utm_campaign", "gclid", "fbclid", "ref", "session", "variant"];
    let mut noise = number as u64 + 1;
    for part in 0.. {
        if page.len() >= query + 60 {
            break;
        }
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        page.push_str(&format!("{}={:x}&", names[part % names.len()], noise >> 20));
    }
    page
}

fn session(number: usize, query: usize) -> Vec<(&'static str, String)> {
    vec![
        ("firstEventAt", "2026-11-21T21:00:00.123456Z".to_owned()),
        ("lastEventAt", "2026-11-21T21:17:31.654321Z".to_owned()),
        ("totalEvents", (number % 90).to_string()),
        ("pageViews", (number % 40).to_string()),
        ("conversions", "1".to_owned()),
        ("hasConversion", "true".to_owned()),
        ("isNew", "false".to_owned()),
        ("sessionId", format!("5f0c2a9e-{number:08}")),
        ("userId", format!("user-{number}")),
        ("currentPage", page(number, query)),
        ("entryPage", page(number + 1, query)),
        ("deviceType", "mobile".to_owned()),
        ("country", "DE".to_owned()),
        ("revenue", "129.90".to_owned()),
        ("trafficSource", "google".to_owned()),
    ]
}

#[tokio::test]
#[ignore = "it prints figures"]
async fn what_compression_saves_and_costs() {
    let redis = PrivateRedis::start().await;
    let mut connection = redis.connection().await;
    println!("query bytes, text bytes, bytes in Redis plain, compressed, us to compress, us to read back");
    for query in [0, 100, 200, 400, 800, 1_600] {
        let (mut text, mut plain, mut small, mut packing, mut reading) = (0, 0, 0, 0.0, 0.0);
        for number in 0..SESSIONS {
            let fields = session(number, query);
            text += fields.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
            let began = Instant::now();
            let packed = packed::pack(&fields, Some(0));
            packing += began.elapsed().as_secs_f64() * 1e6;
            let stamp = [("epoch", "0"), ("generation", "0"), ("version", "17")];
            for key in ["plain", "packed"] {
                let mut write = redis::cmd("HSET");
                write.arg(key);
                for (name, value) in stamp {
                    write.arg(name).arg(value);
                }
                if let Some(packed) = packed.as_ref().filter(|_| key == "packed") {
                    write.arg(packed::FIELD).arg(packed);
                } else {
                    for (name, value) in &fields {
                        write.arg(name).arg(value);
                    }
                }
                let _: () = redis::pipe().del(key).add_command(write).query_async(&mut connection).await.unwrap();
            }
            let mut usage: Vec<usize> = Vec::new();
            for key in ["plain", "packed"] {
                usage.push(redis::cmd("MEMORY").arg("USAGE").arg(key).query_async(&mut connection).await.unwrap());
            }
            (plain, small) = (plain + usage[0], small + usage[1]);
            let hash = redis::AsyncCommands::hgetall(&mut connection, "packed").await.unwrap();
            let began = Instant::now();
            assert!(packed::unpack(hash).is_some());
            reading += began.elapsed().as_secs_f64() * 1e6;
        }
        let each = SESSIONS as f64;
        let (packing, reading) = (packing / each, reading / each);
        println!(
            "{query:5} {:6} {:6} {:6} {packing:6.1} {reading:6.1}",
            text / SESSIONS,
            plain / SESSIONS,
            small / SESSIONS
        );
    }
}

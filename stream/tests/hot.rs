//! A partition that falls far behind the others: found, explained, told, and over when its lag is gone.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{Arc, Mutex};

use serde_json::Value;
use support::{counted, worker};
use tidemill_common::event::Event;
use tidemill_common::home::home_partition;
use tidemill_stream::hot::findings;
use tidemill_testkit::{PARTITIONS, Stack, event, eventually};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

/// The partition that becomes hot.
const HOT: i32 = 1;

/// Takes posts, refuses the first one, and keeps what it took.
async fn receiver() -> (String, Arc<Mutex<Vec<Value>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook?token=secret", listener.local_addr().unwrap());
    let taken: Arc<Mutex<Vec<Value>>> = Arc::default();
    let kept = Arc::clone(&taken);
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let (mut line, mut length) = (String::new(), 0);
            while stream.read_line(&mut line).await.unwrap() > 2 {
                let lower = line.to_ascii_lowercase();
                length = lower.strip_prefix("content-length:").map_or(length, |text| text.trim().parse().unwrap());
                line.clear();
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.unwrap();
            let status = if number == 0 { "503 Later" } else { "204 Taken" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            if number > 0 {
                kept.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
            }
        }
    });
    (url, taken)
}

/// Events of a partition's own.
fn at_home(partition: i32, name: &str, user: &str, event_type: &str, count: usize) -> Vec<Event> {
    let now = chrono::Utc::now().timestamp();
    let ids = (0..).map(|i| format!("{name}-{i}")).filter(|id| home_partition(id.as_bytes(), PARTITIONS) == partition);
    ids.take(count).map(|id| Event { user_id: Some(user.to_owned()), ..event(&id, event_type, now) }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_far_behind_is_found_explained_and_told() {
    let stack = Stack::new().await;
    let (url, told) = receiver().await;
    // Its schema is asked for until then, and the partition waits with it.
    let worker = worker(&stack, "hot", |config, _| {
        config.unknown_schema_wait_ms = 6_000;
        config.lag_interval_ms = 200;
        config.hot_after_ms = 1_000;
        config.hot_min_records = 300;
        config.hot_webhook_url = Some(url);
    })
    .await;
    for partition in 0..PARTITIONS {
        let users: Vec<Event> = (0..20)
            .flat_map(|user| at_home(partition, &format!("calm-{partition}-{user}"), &format!("u-{user}"), "view", 10))
            .collect();
        stack.send_all(&users).await;
    }
    stack.send_all(&at_home(HOT, "loud", "bot", "scroll", 800)).await;
    let before = 800 + 200 * i64::from(PARTITIONS);
    eventually("what came first is counted", || async { counted(&stack).await == before }).await;
    stack.send_raw(HOT, Some(b"held"), &[0, 0xff, 0xff, 0xff, 0xf0, 1, 2, 3]).await;
    stack.send_all(&at_home(HOT, "later", "bot", "scroll", 500)).await;

    eventually("it is entered", || async { !findings::found(&stack.pool, false).await.unwrap().is_empty() }).await;
    let found = findings::found(&stack.pool, false).await.unwrap();
    assert_eq!((found.len(), found[0].partition, found[0].lag), (1, HOT, 501));
    assert!(found[0].average > 100.0 && found[0].average < 140.0, "a quarter of it: {}", found[0].average);
    let (why, remedies) = (&found[0].explanation["why"], &found[0].explanation["remedies"]);
    assert_eq!((&why["users"][0]["name"], &why["types"][0]["name"]), (&Value::from("bot"), &Value::from("scroll")));
    assert!(why["users"][0]["share"].as_f64().unwrap() > 0.6, "{why}");
    let command = remedies[0]["command"].as_str().unwrap();
    let expected = format!("tidemill limits set --project {} --user=bot --rate ", stack.project);
    assert!(command.starts_with(&expected), "{command}");

    let metrics = reqwest::get(format!("{}/metrics", worker.url)).await.unwrap().text().await.unwrap();
    let labels = format!("{{view=\"stream\",topic=\"events.{}\",partition=\"{HOT}\"}}", stack.project);
    let metric = |name: &str| -> f64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name}{labels} ")));
        line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
    };
    assert_eq!((metric("tidemill_hot_partition"), metric("tidemill_partition_lag_records")), (4.0, 501.0));
    assert_eq!(metric("tidemill_partition_end_offset") - metric("tidemill_partition_offset"), 501.0);
    assert!(metric("tidemill_partition_lag_seconds") > 0.5 && metric("tidemill_partition_lag_seconds") < 60.0);
    assert!(metric("tidemill_partition_leader_changes_total") >= 0.0);

    eventually("its schema is given up, and the rest is counted", || async { counted(&stack).await == before + 500 })
        .await;
    eventually("it is over", || async { findings::found(&stack.pool, false).await.unwrap().is_empty() }).await;
    assert!(findings::found(&stack.pool, true).await.unwrap()[0].ended_at.is_some());
    eventually("both were told, the first one again", || async { told.lock().unwrap().len() == 2 }).await;
    let told = told.lock().unwrap().clone();
    assert_eq!(told.iter().map(|told| &told["event"]).collect::<Vec<_>>(), ["hot-partition", "hot-partition-over"]);
    assert_eq!(
        (&told[0]["finding"]["partition"], &told[0]["finding"]["project"]),
        (&HOT.into(), &stack.project.as_str().into())
    );
    worker.stop().await;
}

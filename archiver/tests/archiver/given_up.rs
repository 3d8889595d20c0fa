//! Records whose schema comes to the registry after the stream has given up on them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tidemill_common::codec::EVENT_SCHEMA;
use tidemill_testkit::{PARTITIONS, event, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{World, archived, config, events_with_copies, first_sights, give_up, rows, start, start_with};

/// A registry that has no schema until it is told to have one.
struct LateRegistry {
    url: String,
    asked: Arc<AtomicUsize>,
    knows: Arc<AtomicBool>,
}

impl LateRegistry {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let late = Self { url, asked: Arc::default(), knows: Arc::default() };
        let (asked, knows) = (late.asked.clone(), late.knows.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                asked.fetch_add(1, Ordering::SeqCst);
                answer(stream, knows.load(Ordering::SeqCst)).await;
            }
        });
        late
    }

    fn learn(&self) {
        self.knows.store(true, Ordering::SeqCst);
    }
}

async fn answer(mut stream: TcpStream, known: bool) {
    let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => head.extend_from_slice(&buffer[..read]),
            _ => return,
        }
    }
    let (status, body) = match known {
        true => ("200 OK", serde_json::json!({ "schema": EVENT_SCHEMA })),
        false => ("404 Not Found", serde_json::json!({ "error_code": 40403, "message": "Schema not found" })),
    };
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n");
    let answer = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    let _ = stream.write_all(answer.as_bytes()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_comes_too_late_for_the_stream_comes_too_late_for_the_archive() {
    let world = World::new().await;
    world.send_all(&events_with_copies(0, 40)).await;
    let registry = LateRegistry::new().await;
    let mut connections = world.connections.clone();
    connections.registry_url = registry.url.clone();
    let archiver = start_with(config(&world, "a"), connections).await;
    eventually("every partition waits for the schema", || async {
        registry.asked.load(Ordering::SeqCst) >= PARTITIONS as usize
    })
    .await;
    // The stream gives up on the record that waits and on the one behind it, and then the schema comes.
    give_up(&world, 1, &[0, 1]).await;
    registry.learn();
    archived(&world, &world.project).await;
    archiver.stop().await;
    let mut expected = first_sights(&world, |_| true).await;
    expected.retain(|(partition, offset, _)| *partition != 1 || *offset > 1);
    assert_eq!(rows(&world, &world.project).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archiver_that_comes_later_than_the_schema_knows_what_was_given_up() {
    let world = World::new().await;
    world.send_all(&events_with_copies(0, 40)).await;
    let dead = event("dead", "click", 1_700_000_000);
    let (partition, offset) = world.send(&dead).await;
    give_up(&world, partition, &[offset]).await;
    let archiver = start(&world, config(&world, "a")).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    let mut expected = first_sights(&world, |id| id != "dead").await;
    assert_eq!(rows(&world, &world.project).await, expected);

    // Sent through again it counts, also for an archiver that has to learn from the log what was seen.
    let (partition, offset) = world.send(&dead).await;
    let archiver = start(&world, config(&world, "b")).await;
    archived(&world, &world.project).await;
    archiver.stop().await;
    expected.push((partition, offset, "dead".to_owned()));
    expected.sort();
    assert_eq!(rows(&world, &world.project).await, expected);
}

//! A registry that learns a schema when it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tidemill_common::codec::EVENT_SCHEMA;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The schema of events, under every id but those it has not learned yet. Whatever is registered gets the id 1.
pub struct LateRegistry {
    /// Where it is.
    pub url: String,
    asked: Arc<AtomicUsize>,
    knows: Arc<AtomicBool>,
}

impl LateRegistry {
    /// One that lacks this schema, or all of them.
    pub async fn without(schema: Option<u32>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let late = Self { url, asked: Arc::default(), knows: Arc::default() };
        let (asked, knows) = (late.asked.clone(), late.knows.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, schema, asked.clone(), knows.clone()));
            }
        });
        late
    }

    /// Teaches it what it lacks.
    pub fn learn(&self) {
        self.knows.store(true, Ordering::SeqCst);
    }

    /// How often it was asked for what it lacks.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn answer(mut stream: TcpStream, lacks: Option<u32>, asked: Arc<AtomicUsize>, knows: Arc<AtomicBool>) {
    let (mut request, mut buffer) = (Vec::new(), [0; 16_384]);
    while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => request.extend_from_slice(&buffer[..read]),
            _ => return,
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let path = request.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default();
    let schema: Option<u32> = path.rsplit_once("/ids/").and_then(|(_, id)| id.parse().ok());
    let lacking = schema.is_some() && lacks.is_none_or(|lacks| Some(lacks) == schema);
    asked.fetch_add(usize::from(lacking), Ordering::SeqCst);
    let (status, body) = match schema {
        Some(_) if lacking && !knows.load(Ordering::SeqCst) => {
            ("404 Not Found", serde_json::json!({ "error_code": 40403, "message": "Schema not found" }))
        }
        Some(_) => ("200 OK", serde_json::json!({ "schema": EVENT_SCHEMA })),
        None if path.ends_with("/types") => ("200 OK", serde_json::json!(["AVRO"])),
        None => ("200 OK", serde_json::json!({ "id": 1 })),
    };
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n");
    let answer = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    let _ = stream.write_all(answer.as_bytes()).await;
    // What is left of the request has to be taken, else the client may see a reset before the answer.
    let _ = stream.shutdown().await;
    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
}

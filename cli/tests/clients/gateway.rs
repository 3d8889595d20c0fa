//! A gateway that fails as it is told: by hand on TCP, because it has to do what no HTTP server does.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What it does with a request. When it has done all that it was told, it does as it should.
#[derive(Debug, Clone)]
pub enum Step {
    /// Takes nothing and answers with a status, perhaps with `Retry-After`.
    Refuse(u16, Option<String>),
    /// Hangs up before it has taken anything.
    CutBefore,
    /// Takes the events and hangs up without a word.
    CutAfter,
    /// Takes the events and hangs up in the middle of the answer.
    CutWithin,
    /// Takes the events and says nothing until the client hangs up.
    Silent,
    /// Takes all but these (by their places in the request), whose verdict is another word, with `Retry-After`.
    Partly(&'static [usize], &'static str, Option<String>),
    /// Takes nothing and answers 202 with this.
    Babble(&'static str),
}

/// The fake gateway, and what it has seen.
#[derive(Clone)]
pub struct Gateway {
    pub url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    script: VecDeque<Step>,
    requests: Vec<Vec<Value>>,
    log: HashMap<String, Value>,
}

/// An answer: status, `Retry-After`, body.
type Answer = (u16, Option<String>, String);

impl Gateway {
    pub async fn start(script: impl IntoIterator<Item = Step>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = State { script: script.into_iter().collect(), ..State::default() };
        let gateway = Self { url, state: Arc::new(Mutex::new(state)) };
        let served = gateway.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let gateway = served.clone();
                tokio::spawn(async move { gateway.serve(BufReader::new(stream)).await });
            }
        });
        gateway
    }

    /// The events of each request, in order.
    pub fn requests(&self) -> Vec<Vec<Value>> {
        self.state.lock().unwrap().requests.clone()
    }

    /// What it has taken, by eventId.
    pub fn log(&self) -> HashMap<String, Value> {
        self.state.lock().unwrap().log.clone()
    }

    /// One request per connection.
    async fn serve(&self, mut stream: BufReader<TcpStream>) {
        let events = read(&mut stream).await;
        let step = {
            let mut state = self.state.lock().unwrap();
            state.requests.push(events.clone());
            state.script.pop_front().unwrap_or(Step::Partly(&[], "", None))
        };
        match step {
            Step::Refuse(status, after) => write(stream, (status, after, r#"{"detail":"no"}"#.to_owned()), false).await,
            Step::CutBefore => drop(stream),
            Step::CutAfter => drop(self.take(&events, &[], "")),
            Step::CutWithin => write(stream, (202, None, self.take(&events, &[], "")), true).await,
            Step::Silent => {
                self.take(&events, &[], "");
                let _ = stream.read(&mut [0]).await;
            }
            Step::Partly(places, status, after) => {
                write(stream, (202, after, self.take(&events, places, status)), false).await;
            }
            Step::Babble(body) => write(stream, (202, None, body.to_owned()), false).await,
        }
    }

    /// Takes events, all but those in some places, and gives the answer. An event without a type is invalid.
    fn take(&self, events: &[Value], but: &[usize], status: &str) -> String {
        let log = &mut self.state.lock().unwrap().log;
        let mut verdict = |(index, event): (usize, &Value)| {
            let id = event["eventId"].as_str().unwrap();
            let status = if event["eventType"] == "" {
                "invalid"
            } else if but.contains(&index) {
                status
            } else if log.get(id).is_some_and(|first| first != event) {
                "invalid" // another event under the same id
            } else if log.insert(id.to_owned(), event.clone()).is_some() {
                "duplicate"
            } else {
                "accepted"
            };
            let position = ["accepted", "duplicate"].contains(&status).then_some("0:7");
            let error = position.is_none().then(|| json!({ "detail": status }));
            json!({ "index": index, "eventId": id, "status": status, "position": position, "error": error })
        };
        let results: Vec<Value> = events.iter().enumerate().map(&mut verdict).collect();
        json!({ "results": results }).to_string()
    }
}

/// Reads a request, which has to be as it should.
async fn read(stream: &mut BufReader<TcpStream>) -> Vec<Value> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut head).await.unwrap(), 0, "the head broke off: {head}");
    }
    let header = |name: &str| {
        let fields = head.lines().filter_map(|line| line.split_once(": "));
        fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
    };
    assert!(head.starts_with("POST /v1/events HTTP/1.1\r\n"), "{head}");
    assert_eq!(header("authorization").as_deref(), Some("Bearer the-key"));
    assert_eq!(header("content-type").as_deref(), Some("application/json"));
    let mut body = vec![0; header("content-length").expect("its length").parse().unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    serde_json::from_slice(&body).expect("an array of events")
}

/// Writes an answer, or half of its body.
async fn write(mut stream: BufReader<TcpStream>, (status, after, body): Answer, half: bool) {
    let after = after.map(|after| format!("Retry-After: {after}\r\n")).unwrap_or_default();
    let location = if status == 307 { "Location: /v1/elsewhere\r\n" } else { "" };
    let head = format!("HTTP/1.1 {status} So\r\n{location}{after}Content-Length: {}\r\n", body.len());
    let body = if half { &body[..body.len() / 2] } else { &body };
    let _ = stream.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes()).await;
    let _ = stream.shutdown().await;
}

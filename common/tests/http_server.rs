//! The server loop, by what clients see of it.
#![allow(clippy::unwrap_used)]

mod http_support;

use http_support::{Client, Directory, QUICK, Server, closed, in_time, raw, tls_client};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_kept_alive() {
    let server = Server::start(|_| {}).await;
    let mut client = Client::http1(raw(&server).await).await;
    for _ in 0..3 {
        assert_eq!(client.get("/version").await, (200, "HTTP/1.1".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_without_tls_serves_many_requests_at_a_time() {
    let server = Server::start(|_| {}).await;
    let client = Client::http2(raw(&server).await).await;
    let waiting: Vec<_> = (0..20).map(|_| tokio::spawn(client.clone().get_owned("/wait"))).collect();
    server.waiting(20).await;
    assert_eq!(client.clone().get("/version").await, (200, "HTTP/2.0".to_owned()));
    server.release(20);
    for answer in waiting {
        assert_eq!(in_time(answer).await.unwrap().0, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_speaks_both_versions() {
    let files = Directory::new();
    let cert = files.write_certificate();
    let server = Server::start(|config| files.name_in(config)).await;
    let (http1, version) = tls_client(&server, &cert, &["http/1.1"]).await.unwrap();
    assert_eq!(version, Some(b"http/1.1".to_vec()));
    assert_eq!(Client::http1(http1).await.get("/version").await, (200, "HTTP/1.1".to_owned()));
    let (http2, version) = tls_client(&server, &cert, &["h2", "http/1.1"]).await.unwrap();
    assert_eq!(version, Some(b"h2".to_vec()));
    assert_eq!(Client::http2(http2).await.get("/version").await, (200, "HTTP/2.0".to_owned()));
    let (neither, version) = tls_client(&server, &cert, &[]).await.unwrap();
    assert_eq!(version, None);
    assert_eq!(Client::http1(neither).await.get("/version").await, (200, "HTTP/1.1".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_for_new_connections() {
    let files = Directory::new();
    let first = files.write_certificate();
    let server = Server::start(|config| files.name_in(config)).await;
    let (stream, _) = tls_client(&server, &first, &["http/1.1"]).await.unwrap();
    let mut before = Client::http1(stream).await;
    assert_eq!(before.get("/").await.0, 200);
    let second = files.write_certificate();
    in_time(async {
        while tls_client(&server, &second, &["http/1.1"]).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(tls_client(&server, &first, &["http/1.1"]).await.is_err(), "the old one is out of use");
    assert_eq!(before.get("/").await.0, 200, "connections go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_are_closed_and_others_served() {
    let server = Server::start(|config| config.head_timeout_ms = 300).await;
    let mut other = Client::http1(raw(&server).await).await;
    let mut silent = raw(&server).await;
    // A byte now and then keeps no connection alive, neither a new one nor one that has served a request.
    let mut slow = [raw(&server).await, raw(&server).await];
    slow[1].write_all(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n").await.unwrap();
    let drip = |mut stream: TcpStream| async move {
        stream.write_all(b"GET / HTTP/1.1\r\nX-Slow: ").await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let drips = async {
            while writer.write_all(b"x").await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            std::future::pending().await
        };
        tokio::select! { () = closed(&mut reader) => {}, () = drips => {} }
    };
    let [first, second] = slow.map(drip);
    let ended = async { tokio::join!(closed(&mut silent), first, second) };
    let mut ended = std::pin::pin!(ended);
    let mut served = 0;
    in_time(async {
        loop {
            tokio::select! {
                _ = &mut ended => break,
                answer = other.get("/") => served += usize::from(answer.0 == 200),
            }
        }
    })
    .await;
    assert!(served > 10, "{served} requests of others were answered meanwhile");
    // A connection on which nothing has begun may stay: the head's timeout is not for it.
    let (mut kept, mut silent) = (Client::http1(raw(&server).await).await, raw(&server).await);
    assert_eq!(kept.get("/").await.0, 200);
    closed(&mut silent).await;
    assert_eq!(kept.get("/").await.0, 200);
    let metrics = kept.get("/metrics").await.1;
    assert!(metrics.contains("tidemill_http_connections_cut_total{reason=\"head\"}"), "{metrics}");
    assert!(metrics.contains("tidemill_http_connections "), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_handshakes_must_end_in_time() {
    let files = Directory::new();
    files.write_certificate();
    let server = Server::start(|config| {
        config.head_timeout_ms = 300;
        files.name_in(config);
    })
    .await;
    closed(&mut raw(&server).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_closed() {
    let server = Server::start(|config| config.idle_timeout_ms = 300).await;
    let mut http1 = raw(&server).await;
    http1.write_all(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n").await.unwrap();
    closed(&mut http1).await;
    let mut http2 = Client::http2(raw(&server).await).await;
    assert_eq!(http2.get("/").await.0, 200);
    http2.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_are_limited() {
    let server = Server::start(|config| config.max_head_bytes = 16 * 1024).await;
    for (size, status) in [(12 * 1024, 200), (20 * 1024, 431), (60 * 1024, 431)] {
        let mut http1 = Client::http1(raw(&server).await).await;
        assert_eq!(http1.get_with("/", size).await, status, "HTTP/1.1, {size} bytes");
        let mut http2 = Client::http2(raw(&server).await).await;
        assert_eq!(http2.get_with("/", size).await, status, "HTTP/2, {size} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_make_room_for_newcomers() {
    let server = Server::start(|config| config.max_connections = 2).await;
    let mut busy = Client::http1(raw(&server).await).await;
    let waiting = tokio::spawn(async move { busy.get("/wait").await });
    server.waiting(1).await;
    let mut idle = raw(&server).await;
    let mut newcomer = Client::http1(raw(&server).await).await;
    assert_eq!(newcomer.get("/").await.0, 200);
    closed(&mut idle).await;
    assert_eq!(newcomer.get("/").await.0, 200, "it has a place of its own");
    server.release(1);
    assert_eq!(in_time(waiting).await.unwrap().0, 200, "a request at work is not cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn newcomers_wait_while_all_connections_are_at_work() {
    let server = Server::start(|config| config.max_connections = 1).await;
    let mut busy = Client::http2(raw(&server).await).await;
    let working = tokio::spawn(busy.clone().get_owned("/wait"));
    server.waiting(1).await;
    let stream = raw(&server).await;
    let newcomer = tokio::spawn(async move { Client::http1(stream).await.get("/").await });
    for _ in 0..200 {
        assert_eq!(busy.get("/").await.0, 200);
    }
    assert!(!newcomer.is_finished(), "there is no place for it");
    server.release(1);
    assert_eq!(in_time(working).await.unwrap().0, 200);
    assert_eq!(in_time(newcomer).await.unwrap().0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_reads_is_dropped() {
    let server = Server::start(|config| config.idle_timeout_ms = 500).await;
    let mut reader = Client::http1(raw(&server).await).await;
    let mut reading = reader.stream("/endless").await;
    let mut http1 = raw(&server).await;
    http1.write_all(b"GET /endless HTTP/1.1\r\nHost: t\r\n\r\n").await.unwrap();
    let mut http2 = Client::http2_without_window(raw(&server).await).await;
    let _unread = http2.stream("/endless").await;
    let steady = async {
        loop {
            assert!(reading.next().await, "who reads goes on reading");
        }
    };
    tokio::select! {
        () = server.dropped(2) => {}
        () = steady => {}
        () = tokio::time::sleep(QUICK) => panic!("the unread answers are still held"),
    }
    assert!(reading.next().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_lets_requests_finish() {
    let mut server = Server::start(|_| {}).await;
    let (mut busy, mut idle) = (Client::http1(raw(&server).await).await, Client::http1(raw(&server).await).await);
    assert_eq!(idle.get("/").await.0, 200);
    let waiting = tokio::spawn(async move { busy.get("/wait").await });
    server.waiting(1).await;
    server.shutdown.cancel();
    idle.ended().await;
    in_time(async { while TcpStream::connect(server.address).await.is_ok() {} }).await;
    server.release(1);
    assert_eq!(in_time(waiting).await.unwrap().0, 200);
    in_time(server.task.take().unwrap()).await.unwrap().unwrap();
}

//! Producers that send twice, elsewhere, late, or by another clock.

use std::time::{Duration, Instant};

use rand::Rng;
use tidemill_common::event::Event;
use tidemill_testkit::event;

use super::Row;
use crate::drill::{Drill, Options, Outcome};
use crate::flow::Stream;
use crate::send::Partitioner;
use crate::traffic::Style;

const MINUTE: i64 = 60 * 1_000_000;
const HOUR: i64 = 60 * MINUTE;
/// The dedupe window of the row about its edge.
const WINDOW_MS: i64 = 2_000;

pub fn rows() -> Vec<Row> {
    vec![
        Row::new("twice", |options| native(options, Partitioner::Murmur2)),
        Row::new("crc32", |options| native(options, Partitioner::Crc32)).short(),
        Row::new("window-edge", window_edge),
        Row::new("late-strays", late_strays),
        Row::new("joined-late", joined_late),
        Row::new("day-late", |options| {
            styled(options, Style { late: 0.6, latest: 24 * HOUR - MINUTE, ..Style::default() })
        }),
        Row::new("clocks", |options| styled(options, Style { clocks: vec![0, HOUR, -HOUR], ..Style::default() })),
    ]
}

/// Native producers send everything twice, and a worker dies between.
async fn native(options: Options, partitioner: Partitioner) -> anyhow::Result<Outcome> {
    with_a_kill(options, Stream { twice: true, partitioner, ..Stream::default() }).await
}

async fn styled(options: Options, style: Style) -> anyhow::Result<Outcome> {
    with_a_kill(options, Stream { style, ..Stream::default() }).await
}

async fn with_a_kill(options: Options, stream: Stream) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    let flow = drill.flow(stream)?;
    let mut first = drill.live_worker("a", &[]).await?;
    drill.sent(1_000).await?;
    first.kill()?;
    let fault = Instant::now();
    let _second = drill.worker("b", &[])?;
    let recovery = drill.recovered(fault).await?;
    drill.sent(500).await?;
    flow.stop().await?;
    drill.finish(recovery).await
}

/// Copies at distances round the edge of a short dedupe window, and a worker that dies meanwhile.
async fn window_edge(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    sqlx::query("UPDATE projects SET dedupe_window_ms = $1").bind(WINDOW_MS).execute(&drill.stack.pool).await?;
    let native = drill.native(Partitioner::Murmur2)?;
    let mut worker = drill.live_worker("a", &[]).await?;
    let mut traffic = drill.traffic("edge", Style::default());
    let began = Instant::now();
    let mut copies: Vec<(Duration, Event)> = Vec::new();
    let mut recovery = Duration::ZERO;
    for round in 0..200 {
        let now = began.elapsed();
        let (mut due, later): (Vec<_>, Vec<_>) = copies.into_iter().partition(|(at, _)| *at <= now);
        copies = later;
        due.extend(traffic.events(4, chrono::Utc::now().timestamp_micros()).into_iter().map(|event| (now, event)));
        let due: Vec<Event> = due.into_iter().map(|(_, event)| event).collect();
        native.send_events(&due).await?;
        for event in due.into_iter().filter(|_| round < 150) {
            let distance = WINDOW_MS + drill.random.random_range(-60..=60);
            copies.push((began.elapsed() + Duration::from_millis(distance as u64), event));
        }
        if round == 120 {
            worker.kill()?;
            let fault = Instant::now();
            worker = drill.worker("b", &[])?;
            recovery = drill.recovered(fault).await?;
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    drill.finish(recovery).await
}

/// Strays that reach their home more than a day after they were sent, by their headers.
async fn late_strays(options: Options) -> anyhow::Result<Outcome> {
    let mut drill = Drill::start(&options).await?;
    let native = drill.native(Partitioner::Murmur2)?;
    let _worker = drill.live_worker("a", &[]).await?;
    let mut traffic = drill.traffic("stray", Style::default());
    for age in [Duration::ZERO, Duration::from_secs(86_000), Duration::from_secs(86_500)] {
        native.send_strays(&traffic.events(20, chrono::Utc::now().timestamp_micros()), age).await?;
    }
    drill.finish(Duration::ZERO).await
}

/// Two workers hold the partitions; then events come, to both at once, that lie between two sessions and join them.
async fn joined_late(options: Options) -> anyhow::Result<Outcome> {
    const SESSIONS: i64 = 150;
    let mut drill = Drill::start(&options).await?;
    let native = drill.native(Partitioner::Murmur2)?;
    let (mut one, mut other) = (drill.worker("a", &[])?, drill.worker("a", &[])?);
    one.reaches("tidemill_stream_live_partitions", 1.0).await?;
    other.reaches("tidemill_stream_live_partitions", 1.0).await?;
    let now = chrono::Utc::now().timestamp();
    let at = |session: i64, minutes: i64| {
        let mut event = event(&format!("e-{session}-{minutes}"), "click", now - minutes * 60);
        (event.user_id, event.session_id) = (Some(format!("u-{session}")), Some(format!("s-{session}")));
        event
    };
    let apart: Vec<Event> = (0..SESSIONS).flat_map(|s| [at(s, 75), at(s, 20)]).collect();
    native.send_events(&apart).await?;
    drill.settle().await?;
    // 75 to 47, 47 to 20: each of three joins, and they come in all orders.
    let between: Vec<Event> = [47, 46, 48].iter().flat_map(|&m| (0..SESSIONS).map(move |s| at(s, m))).collect();
    native.send_events(&between).await?;
    let mut outcome = drill.finish(Duration::ZERO).await?;
    for worker in [&one, &other] {
        if worker.metric("analytics_events_processed_total").await == 0.0 {
            outcome.differences.push("one of the workers counted nothing, so nothing was joined by two".to_owned());
        }
    }
    Ok(outcome)
}

//! Dead letters that are sent through again: each counts at most once, and only while its letter is open.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use sqlx::Row;
use support::{Running, back_up, counted, drained, live_traffic, restore, worker};
use tidemill_common::codec::Encoder;
use tidemill_common::dead_letters::{LetterId, REDRIVE_OF, digest};
use tidemill_common::event::Event;
use tidemill_common::home::home_partition;
use tidemill_common::kafka::{History, Outgoing};
use tidemill_common::names::{dlq_topic, events_topic, processed_topic};
use tidemill_common::origin::Origin;
use tidemill_common::telemetry::metrics;
use tidemill_stream::dlq::redrive::{Outcomes, Redriver, Report, plan};
use tidemill_stream::dlq::{self, Filter, prune, watch};
use tidemill_testkit::{LateRegistry, PARTITIONS, Stack, eventually};

/// A schema that the registry lacks at first.
const LATE: u32 = 4_000_000;
const WAIT: Duration = Duration::from_secs(30);

fn home(event: &Event) -> i32 {
    home_partition(event.event_id.as_bytes(), PARTITIONS)
}

/// A worker that knows this registry.
async fn with(stack: &Stack, registry: &LateRegistry, group: &str) -> Running {
    worker(stack, group, |config, connections| {
        connections.registry_url = registry.url.clone();
        config.unknown_schema_wait_ms = 300;
        (config.poison_share, config.poison_records) = (0.5, 15);
    })
    .await
}

/// Sends an event under the late schema.
async fn send_late(stack: &Stack, event: &Event, partition: i32) -> i64 {
    let value = Encoder::new(LATE).encode(event);
    stack.send_raw(partition, Some(event.event_id.as_bytes()), &value).await.1
}

/// Sends an event with a header that names a letter.
async fn send_as(stack: &Stack, event: &Event, schema: Encoder, letter: &LetterId) {
    let (topic, value, letter) = (events_topic(&stack.project), schema.encode(event), letter.to_string());
    let (partition, key) = (home(event), Some(event.event_id.as_bytes()));
    let headers = &[(REDRIVE_OF, &*letter)];
    stack.producer.send(&Outgoing { topic: &topic, partition, key, value: &value, headers }).await.unwrap();
}

fn of_project(stack: &Stack) -> Filter {
    Filter { project: Some(stack.project.clone()), ..Filter::default() }
}

async fn redrive(stack: &Stack, filter: &Filter) -> Report {
    let (pool, kafka) = (stack.pool.clone(), stack.connections.kafka.clone());
    let redriver = Redriver { pool, kafka, project: stack.project().await };
    redriver.run(filter, 1_000, WAIT, |_| ()).await.unwrap()
}

/// As when a run is killed after it has sent letters and before it has noted that.
async fn unnote(stack: &Stack) {
    sqlx::query("UPDATE dead_letters SET sent_attempts = NULL").execute(&stack.pool).await.unwrap();
}

async fn letter_of(stack: &Stack, event: &Event) -> LetterId {
    let rows = dlq::list(&stack.pool, &of_project(stack), 1_000).await.unwrap();
    let records = stack.records(&events_topic(&stack.project)).await;
    let is_of = |letter: &&dlq::DeadLetter| {
        let at = |record: &&tidemill_common::kafka::Record| {
            (record.partition, record.offset) == (letter.partition, letter.offset)
        };
        records.iter().find(at).is_some_and(|record| record.key() == Some(event.event_id.as_bytes()))
    };
    let letter = rows.iter().find(is_of).expect("a letter");
    LetterId { incarnation: letter.topic_incarnation.clone(), partition: letter.partition, offset: letter.offset }
}

/// How many letters are in each state, by how often they were refused.
async fn states(stack: &Stack) -> Vec<(String, i32, i64)> {
    let sql = "SELECT state, attempts, count(*) FROM dead_letters GROUP BY 1, 2 ORDER BY 1, 2";
    let rows = sqlx::query(sql).fetch_all(&stack.pool).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

fn state(name: &str, attempts: i32, count: i64) -> (String, i32, i64) {
    (name.to_owned(), attempts, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_count_once_however_often_they_are_sent() {
    metrics();
    let stack = Stack::new().await;
    // So short that copies are forgotten between the steps: only the letter can tell.
    sqlx::query("UPDATE projects SET dedupe_window_ms = 1").execute(&stack.pool).await.unwrap();
    let registry = LateRegistry::without(Some(LATE)).await;
    let events = live_traffic(0..20, 5);
    for event in &events {
        send_late(&stack, event, home(event)).await;
    }
    let running = worker(&stack, "a", |config, connections| {
        (config.unknown_schema_wait_ms, connections.registry_url) = (300, registry.url.clone());
    })
    .await;
    eventually("all are dead letters", || async { states(&stack).await == [state("open", 1, 20)] }).await;
    running.stop().await;

    // Nothing was mended: they are refused once more, which stops no partition.
    let running = with(&stack, &registry, "b").await;
    let report = redrive(&stack, &of_project(&stack)).await;
    let refused = Outcomes { refused: 20, ..Outcomes::default() };
    assert_eq!(report, Report { sent: 20, gone: 0, outcomes: refused });
    assert_eq!(states(&stack).await, [state("open", 2, 20)]);
    let shown = format!("tidemill_dead_letters_open{{project=\"{}\",reason=\"unknown-schema\"}} 20", stack.project);
    assert!(metrics().render().contains(&shown), "the worker has counted them when it began");
    running.stop().await;

    // Sent while nobody is there; and again, since a run may have been killed before it noted that.
    registry.learn();
    let filter = of_project(&stack);
    let (pool, kafka) = (stack.pool.clone(), stack.connections.kafka.clone());
    let redriver = Redriver { pool, kafka, project: stack.project().await };
    let report = redriver.run(&filter, 1_000, Duration::ZERO, |_| ()).await.unwrap();
    assert_eq!((report.sent, report.outcomes.under_way), (20, 20));
    let planned = plan(&stack.pool, &filter).await.unwrap();
    assert_eq!((planned.letters, planned.under_way), (0, 20), "what is under way is not sent again");
    unnote(&stack).await;
    let report = redriver.run(&filter, 1_000, Duration::ZERO, |_| ()).await.unwrap();
    assert_eq!(report.sent, 20);
    let running = with(&stack, &registry, "c").await;
    drained(&stack).await;
    assert_eq!(states(&stack).await, [state("counted", 2, 20)]);
    assert_eq!(counted(&stack).await, 20);
    let outcomes: Vec<(String, i64)> = sqlx::query_as("SELECT outcome, count(*) FROM redrives GROUP BY 1 ORDER BY 1")
        .fetch_all(&stack.pool)
        .await
        .unwrap();
    let expected = [("closed".to_owned(), 20), ("counted".to_owned(), 20), ("refused".to_owned(), 20)];
    assert_eq!(outcomes, expected);
    let processed = stack.records(&processed_topic(&stack.project)).await;
    assert_eq!(processed.len(), 20, "and each is processed once");

    // Their copies in the dead-letter topic say where they were refused first, and how often.
    let mut attempts = Vec::new();
    for record in stack.records(&dlq_topic(&stack.project)).await {
        let header = |name: &str| {
            let (_, value) = record.headers.iter().find(|(key, _)| key == name).expect(name);
            String::from_utf8(value.clone()).unwrap()
        };
        assert!(Origin::of_sent_on(&record).unwrap().offset < 20, "not where it was sent to");
        attempts.push(header("attempts"));
    }
    attempts.sort();
    assert_eq!(attempts, [vec!["1"; 20], vec!["2"; 20]].concat());
    assert_eq!(running.health().await.0, 200);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_strays_nor_late_ones_nor_corrected_verdicts_are_lost() {
    let stack = Stack::new().await;
    sqlx::query("UPDATE projects SET dedupe_window_ms = 60000").execute(&stack.pool).await.unwrap();
    let registry = LateRegistry::without(Some(LATE)).await;
    let events = live_traffic(0..3, 3);
    let [late, stray, misjudged] = &events[..] else { unreachable!() };
    stack.send_stray(late, 90).await;
    send_late(&stack, stray, (home(stray) + 1) % PARTITIONS).await;
    let running = with(&stack, &registry, "a").await;
    eventually("both are dead letters", || async { states(&stack).await == [state("open", 1, 2)] }).await;
    running.stop().await;

    // A worker that was wrong has refused an event; the one that comes after it would not.
    let (partition, offset) = stack.send(misjudged).await;
    let key = misjudged.event_id.as_bytes();
    sqlx::query(
        r#"INSERT INTO dead_letters
               (project, topic, topic_incarnation, partition, "offset", append_time, stage, reason, detail, digest)
           SELECT $1, topic, topic_incarnation, $2, $3, now(), 'decode', 'bad-datum', 'a bug', $4
           FROM ledger WHERE partition = $2"#,
    )
    .bind(&stack.project)
    .bind(partition)
    .bind(offset)
    .bind(&digest(Some(key), &stack.encoder.encode(misjudged))[..])
    .execute(&stack.pool)
    .await
    .unwrap();
    sqlx::query("UPDATE ledger SET next_offset = $2 WHERE partition = $1")
        .bind(partition)
        .bind(offset + 1)
        .execute(&stack.pool)
        .await
        .unwrap();
    std::fs::remove_dir_all(stack.folder("seen-stream")).unwrap();
    registry.learn();
    let running = with(&stack, &registry, "b").await;
    let report = redrive(&stack, &of_project(&stack)).await;
    assert_eq!(
        report.outcomes,
        Outcomes { counted: 3, ..Outcomes::default() },
        "the third has its bytes in the log alone"
    );
    drained(&stack).await;
    assert_eq!(counted(&stack).await, 3);
    assert_eq!(states(&stack).await, [state("counted", 1, 3)]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_alone_gives_nothing_and_takes_nothing() {
    let stack = Stack::new().await;
    let registry = LateRegistry::without(Some(LATE)).await;
    let events = live_traffic(0..5, 5);
    let [open, discarded, other, nobodys, repaired] = &events[..] else { unreachable!() };
    let running = with(&stack, &registry, "a").await;
    for event in [open, discarded, repaired] {
        send_late(&stack, event, home(event)).await;
    }
    eventually("three dead letters", || async { states(&stack).await == [state("open", 1, 3)] }).await;
    registry.learn();

    // Another event in an open letter's name, in that of no letter, and nonsense: events like any other.
    let letter = letter_of(&stack, open).await;
    send_as(&stack, other, stack.encoder, &letter).await;
    let none = LetterId { offset: 999_999, ..letter.clone() };
    send_as(&stack, nobodys, stack.encoder, &none).await;
    // A letter that was discarded while it was under way is not counted, and no sighting: a copy of its own counts.
    let gone = letter_of(&stack, discarded).await;
    let only = Filter { at: Some((gone.partition, gone.offset)), ..of_project(&stack) };
    assert_eq!(dlq::discard(&stack.pool, &only, "a test").await.unwrap(), 1);
    send_as(&stack, discarded, Encoder::new(LATE), &gone).await;
    // A producer has sent a copy meanwhile, which counts in the letter's place.
    stack.send(repaired).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, 3);
    assert_eq!(states(&stack).await, [state("discarded", 1, 1), state("open", 1, 2)]);
    stack.send(discarded).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, 4, "nobody had seen it");

    let report = redrive(&stack, &of_project(&stack)).await;
    assert_eq!(report.outcomes, Outcomes { counted: 1, duplicate: 1, ..Outcomes::default() });
    assert_eq!(counted(&stack).await, 5);
    let rows = dlq::list(&stack.pool, &only, 1).await.unwrap();
    assert_eq!((rows[0].state.as_str(), rows[0].why.as_deref()), ("discarded", Some("a test")));

    // Bytes that are not the letter's are not sent, wherever they stand.
    sqlx::query("UPDATE dead_letters SET state = 'open', digest = '' WHERE state = 'discarded'")
        .execute(&stack.pool)
        .await
        .unwrap();
    let report = redrive(&stack, &of_project(&stack)).await;
    assert_eq!((report.sent, report.gone), (0, 1));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_comes_back_older_decides_again() {
    metrics();
    let stack = Stack::new().await;
    let registry = LateRegistry::without(Some(LATE)).await;
    let events = live_traffic(0..10, 5);
    let running = with(&stack, &registry, "a").await;
    for event in &events {
        send_late(&stack, event, home(event)).await;
    }
    eventually("all are dead letters", || async { states(&stack).await == [state("open", 1, 10)] }).await;
    let open = watch::open(&stack.pool).await.unwrap();
    assert_eq!((&*open[0].0, &*open[0].1, open[0].2), (&*stack.project, "unknown-schema", 10));
    let told = format!("{{project=\"{}\",reason=\"unknown-schema\"}} 10", stack.project);
    assert!(metrics().render().contains(&format!("tidemill_stream_dead_letters_total{told}")));
    back_up(&stack).await;
    registry.learn();
    let report = redrive(&stack, &of_project(&stack)).await;
    assert_eq!(report.outcomes.counted, 10);
    restore(&stack).await;
    eventually("all count again", || async { states(&stack).await == [state("counted", 1, 10)] }).await;
    drained(&stack).await;
    assert_eq!(counted(&stack).await, 10);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_is_closed_while_its_record_is_in_hand_does_not_count() {
    let stack = Stack::new().await;
    let registry = LateRegistry::without(Some(LATE)).await;
    let events = live_traffic(0..2, 2);
    let running = with(&stack, &registry, "a").await;
    for event in &events {
        send_late(&stack, event, home(event)).await;
    }
    eventually("both are dead letters", || async { states(&stack).await == [state("open", 1, 2)] }).await;
    registry.learn();
    let (kept, gone) = (letter_of(&stack, &events[0]).await, letter_of(&stack, &events[1]).await);
    let mut tx = stack.pool.begin().await.unwrap();
    sqlx::query(r#"UPDATE dead_letters SET state = 'discarded' WHERE partition = $1 AND "offset" = $2"#)
        .bind(gone.partition)
        .bind(gone.offset)
        .execute(&mut *tx)
        .await
        .unwrap();
    // To the worker it is open still, and so it goes into a batch, with another.
    send_as(&stack, &events[1], Encoder::new(LATE), &gone).await;
    eventually("its batch waits for us", || async {
        let sql = "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database()
                       AND wait_event_type = 'Lock' AND query LIKE '%dead_letters%')";
        sqlx::query_scalar::<_, bool>(sql).fetch_one(&stack.pool).await.unwrap()
    })
    .await;
    send_as(&stack, &events[0], Encoder::new(LATE), &kept).await;
    tx.commit().await.unwrap();
    drained(&stack).await;
    assert_eq!(states(&stack).await, [state("counted", 1, 1), state("discarded", 1, 1)]);
    assert_eq!(counted(&stack).await, 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_stays_for_as_long_as_its_record() {
    let stack = Stack::new().await;
    let topic = events_topic(&stack.project);
    for i in 0..20 {
        stack.send_raw(1, None, &[i]).await;
    }
    stack.delete_records(1, 8).await; // retention
    let history = History::new(stack.connections.kafka.clone());
    let (asked, name) = (history.clone(), topic.clone());
    let found = tokio::task::spawn_blocking(move || asked.incarnations([&name], WAIT)).await.unwrap();
    let now = found.unwrap()[&topic].clone();
    let gone = format!("events.{}-nobodys", stack.project);
    for (topic, incarnation, partition) in [(&topic, now.as_str(), 1), (&topic, "before", 2), (&gone, "gone", 0)] {
        let insert = r#"INSERT INTO redrives (topic, topic_incarnation, partition, "offset", letter_incarnation,
                                              letter_partition, letter_offset, outcome, created_at)
                        SELECT $1, $2, $3, o, 'l', 0, o, 'counted', now() - interval '3 days' * (o % 2)
                        FROM generate_series(4, 11) o"#;
        sqlx::query(insert).bind(topic).bind(incarnation).bind(partition).execute(&stack.pool).await.unwrap();
    }
    let left = async |topic: &str, incarnation: &str| -> Vec<i64> {
        let sql = r#"SELECT "offset" FROM redrives WHERE topic = $1 AND topic_incarnation = $2 ORDER BY 1"#;
        sqlx::query_scalar(sql).bind(topic).bind(incarnation).fetch_all(&stack.pool).await.unwrap()
    };
    assert_eq!(prune::verdicts(&stack.pool, &history, prune::KEPT).await.unwrap(), 2 + 4);
    assert_eq!(left(&topic, &now).await, [4, 6, 8, 9, 10, 11], "young, or in the log");
    assert_eq!(left(&topic, "before").await, [4, 6, 8, 10], "that log is gone as a whole");
    assert_eq!(left(&gone, "gone").await.len(), 8, "nothing is known of that topic");
    assert_eq!(prune::verdicts(&stack.pool, &history, Duration::ZERO).await.unwrap(), 2 + 4);
    assert_eq!(left(&topic, &now).await, [8, 9, 10, 11]);
}

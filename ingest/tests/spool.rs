//! The spool on a real disk: kill -9, full disks, damage, and Kafka down and back.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::mocking::MockCluster;
use tidemill_common::kafka::{KafkaConfig, Producer};
use tidemill_ingest::spool::{self, Drained, FRESH_MS, Record, Spool, SpoolError, drain};
use tidemill_testkit::{Stack, eventually};
use tokio_util::sync::CancellationToken;

const ROOM: u64 = 64 * 1024 * 1024;
const DELIVERY: Duration = Duration::from_secs(2);

/// A folder that is removed at the end.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("spool-{}", uuid::Uuid::new_v4().simple())))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn now() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

fn record<'a>(event_id: &'a str, value: &'a [u8]) -> Record<'a> {
    Record { partition: 0, spooled_at: now(), body: [7; 16], event_id, value }
}

async fn put(spool: &Spool, project: &str, event_id: &str) -> Result<(), SpoolError> {
    spool.append(project, &[record(event_id, b"value")]).await
}

/// The eventIds on disk, by project, in order.
fn on_disk(folder: &Path) -> BTreeMap<String, Vec<String>> {
    let mut ids = BTreeMap::<String, Vec<String>>::new();
    let visit = |project: &str, record: &Record<'_>| {
        ids.entry(project.to_owned()).or_default().push(record.event_id.to_owned());
    };
    spool::look(folder, visit).unwrap();
    ids
}

fn segments(folder: &Path, project: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder.join(project)).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "spool"));
    paths.sort();
    paths
}

/// A drain into a cluster, and what it says was delivered.
struct Draining {
    delivered: Arc<Mutex<Vec<(String, String)>>>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Draining {
    fn start(spool: &Spool, kafka: &KafkaConfig) -> Self {
        let producer = Producer::new(kafka, DELIVERY).unwrap();
        let (delivered, shutdown) = (Arc::new(Mutex::new(Vec::new())), CancellationToken::new());
        let log = Arc::clone(&delivered);
        let note = move |project: String, drained: Vec<Drained>| {
            log.lock().unwrap().extend(drained.into_iter().map(|drained| (project.clone(), drained.event_id)));
            std::future::ready(())
        };
        let task = tokio::spawn(drain(spool.clone(), producer, note, shutdown.clone()));
        Self { delivered, shutdown, task }
    }

    fn of(&self, project: &str) -> Vec<String> {
        let delivered = self.delivered.lock().unwrap();
        delivered.iter().filter(|(of, _)| of == project).map(|(_, id)| id.clone()).collect()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

fn mock(topics: &[&str]) -> (MockCluster<'static, rdkafka::producer::DefaultProducerContext>, KafkaConfig) {
    let cluster = MockCluster::new(1).unwrap();
    for topic in topics {
        cluster.create_topic(topic, 1, 1).unwrap();
    }
    let kafka = KafkaConfig { brokers: cluster.bootstrap_servers() };
    (cluster, kafka)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_spooled_while_kafka_is_down_is_drained_in_order_once_it_is_back() {
    let folder = Temporary::new();
    let (cluster, kafka) = mock(&["events.a", "events.b"]);
    cluster.broker_down(1).unwrap();
    let spool = Spool::open(&folder.0, ROOM).unwrap();
    let draining = Draining::start(&spool, &kafka);
    let ids: Vec<String> = (0..2_000).map(|i| format!("e-{i}")).collect();
    for chunk in ids.chunks(100) {
        for project in ["a", "b", "without-a-topic"] {
            let records: Vec<Record<'_>> = chunk.iter().map(|id| record(id, b"value")).collect();
            spool.append(project, &records).await.unwrap();
        }
    }
    assert_eq!(spool.status().records, 6_000);
    eventually("Kafka was tried", || async { spool.status().failing.len() == 3 }).await;
    cluster.broker_up(1).unwrap();
    eventually("all that can be is drained", || async { spool.status().records == 2_000 }).await;
    assert_eq!((draining.of("a"), draining.of("b")), (ids.clone(), ids.clone()));
    assert_eq!(on_disk(&folder.0).into_iter().collect::<Vec<_>>(), [("without-a-topic".to_owned(), ids.clone())]);
    draining.stop().await;
    drop(spool);

    // At the next start, with the topic there.
    cluster.create_topic("events.without-a-topic", 1, 1).unwrap();
    let spool = Spool::open(&folder.0, ROOM).unwrap();
    let draining = Draining::start(&spool, &kafka);
    eventually("the rest is drained", || async { spool.status().records == 0 }).await;
    assert_eq!(draining.of("without-a-topic"), ids);
    assert_eq!(spool.status().bytes, 0);
    draining.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_kafka_never_takes_is_set_aside_and_stops_nobody() {
    let folder = Temporary::new();
    let (_cluster, kafka) = mock(&["events.a"]);
    let spool = Spool::open(&folder.0, ROOM).unwrap();
    let huge = vec![0; 1_200_000];
    let records = [record("before", b"v"), record("huge", &huge), record("behind", b"v")];
    spool.append("a", &records).await.unwrap();
    let draining = Draining::start(&spool, &kafka);
    eventually("it is drained", || async { spool.status().records == 0 }).await;
    assert_eq!(draining.of("a"), ["before", "behind"]);
    let refused = fs::read(folder.0.join("a/refused.records")).unwrap();
    assert!(refused.len() > huge.len());
    assert_eq!(spool.status().kept, refused.len() as u64);
    draining.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_delivered_is_not_sent_again_with_what_was_not() {
    let folder = Temporary::new();
    let (_cluster, kafka) = mock(&["events.a"]);
    let spool = Spool::open(&folder.0, ROOM).unwrap();
    let lost = Record { partition: 5, ..record("for-a-missing-partition", b"v") };
    spool.append("a", &[record("before", b"v"), lost, record("behind", b"v")]).await.unwrap();
    let draining = Draining::start(&spool, &kafka);
    let tries = || spool.status().failing.first().map_or(0, |&(_, tries)| tries);
    eventually("it has been tried three times", || async { tries() >= 3 }).await;
    assert_eq!(draining.of("a"), ["before", "behind"]);
    assert_eq!(on_disk(&folder.0)["a"].len(), 3);
    draining.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_what_there_is_and_can_throw_it_away() {
    let folder = Temporary::new();
    let spool = Spool::open(&folder.0, ROOM).unwrap();
    let old = now() - FRESH_MS;
    spool.append("old", &[Record { spooled_at: old, ..record("e", b"v") }]).await.unwrap();
    put(&spool, "new", "e-1").await.unwrap();
    put(&spool, "new", "e-2").await.unwrap();
    let listed = spool::list(&folder.0, now()).unwrap();
    assert_eq!((listed["old"].records, listed["old"].oldest, listed["old"].waiting), (1, Some(old), true));
    assert_eq!((listed["new"].records, listed["new"].waiting), (2, false));
    assert_eq!(listed.values().map(|listed| listed.bytes).sum::<u64>(), spool.status().bytes);
    spool::release(&folder.0, "old").unwrap();
    assert!(!spool::list(&folder.0, now()).unwrap()["old"].waiting);
    assert!(matches!(spool::release(&folder.0, "../old"), Err(SpoolError::Unknown { .. })));
    assert!(matches!(spool::discard(&folder.0, "old"), Err(SpoolError::Shared(_))), "a gateway uses it");
    drop(spool);
    spool::discard(&folder.0, "old").unwrap();
    assert_eq!(on_disk(&folder.0).into_keys().collect::<Vec<_>>(), ["new"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_records_wait_for_an_operators_word() {
    let folder = Temporary::new();
    let (_cluster, kafka) = mock(&["events.old", "events.new"]);
    let spool = Spool::open(&folder.0, ROOM).unwrap();
    let old = Record { spooled_at: now() - FRESH_MS, ..record("e-old", b"v") };
    spool.append("old", &[old]).await.unwrap();
    put(&spool, "new", "e-new").await.unwrap();
    let draining = Draining::start(&spool, &kafka);
    eventually("the new one is drained", || async { spool.status().records == 1 }).await;
    assert_eq!(spool.status().waiting, ["old"]);
    assert!(draining.of("old").is_empty());
    spool::release(&folder.0, "old").unwrap();
    eventually("the old one is drained", || async { spool.status().records == 0 }).await;
    assert_eq!(draining.of("old"), ["e-old"]);
    draining.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_costs_one_record_which_is_kept() {
    let folder = Temporary::new();
    let (_cluster, kafka) = mock(&["events.a"]);
    let spool = Spool::open(&folder.0, ROOM).unwrap();
    for id in ["e-1", "e-2", "e-3"] {
        put(&spool, "a", id).await.unwrap();
    }
    drop(spool);
    let path = segments(&folder.0, "a").remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let spool = Spool::open(&folder.0, ROOM).unwrap();
    put(&spool, "a", "e-4").await.unwrap();
    let draining = Draining::start(&spool, &kafka);
    eventually("the good ones are drained", || async { spool.status().records == 0 }).await;
    assert_eq!(draining.of("a"), ["e-1", "e-3", "e-4"]);
    assert_eq!(fs::read(path.with_extension("damaged")).unwrap(), bytes);
    assert_eq!(spool.status().bytes, bytes.len() as u64);
    draining.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_write_is_cut_and_the_rest_is_read() {
    let folder = Temporary::new();
    let spool = Spool::open(&folder.0, ROOM).unwrap();
    for id in ["e-1", "e-2"] {
        put(&spool, "a", id).await.unwrap();
    }
    drop(spool);
    let path = segments(&folder.0, "a").remove(0);
    let whole = fs::read(&path).unwrap();
    for torn in 1..whole.len() / 2 {
        fs::write(&path, [&whole[..], &whole[..torn]].concat()).unwrap();
        drop(Spool::open(&folder.0, ROOM).unwrap());
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
    assert_eq!(on_disk(&folder.0)["a"], ["e-1", "e-2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_says_so_and_a_spool_has_one_owner() {
    let folder = Temporary::new();
    let spool = Spool::open(&folder.0, 10_000).unwrap();
    let value = [0; 1_000];
    let mut fits = 0;
    let full = loop {
        match spool.append("a", &[record("e", &value)]).await {
            Ok(()) => fits += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, SpoolError::Full), "{full}");
    assert_eq!((fits, on_disk(&folder.0)["a"].len()), (4, 4), "half of it, with headers");
    put(&spool, "b", "e").await.expect("there is room for others");
    assert!(put(&spool, "../b", "e").await.is_err());
    let second = Spool::open(&folder.0, ROOM).err().expect("a refusal");
    assert!(matches!(second, SpoolError::Shared(_)), "{second}");
    drop(spool);
    assert_eq!(Spool::open(&folder.0, ROOM).unwrap().status().records, 5);
}

/// This test binary again, as a process of its own that runs [`child`]; `limit` cuts the size of its files.
fn start(folder: &Path, role: &str, project: &str, run: usize, limit: Option<u32>) -> (Child, BufReader<ChildStdout>) {
    let limit = limit.map_or(String::new(), |blocks| format!("trap '' XFSZ; ulimit -f {blocks}; "));
    let mut child = Command::new("sh")
        .args(["-c", &format!("{limit}exec \"$0\" --exact child --nocapture")])
        .arg(std::env::current_exe().unwrap())
        .env("SPOOL_TEST", format!("{role} {project} {run} {}", folder.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (child, lines)
}

/// What a child has said, word by word.
fn said(line: &str) -> Option<(&str, &str, &str)> {
    let mut words = line.split_whitespace().skip_while(|word| !["safe", "failed", "drained"].contains(word));
    Some((words.next()?, words.next()?, words.next()?))
}

fn say(what: &str, project: &str, event_id: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{what} {project} {event_id}").unwrap();
    out.flush().unwrap();
}

/// Not a test of its own: what [`start`] runs.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Ok(task) = std::env::var("SPOOL_TEST") else { return };
    let task: Vec<&str> = task.splitn(4, ' ').collect();
    let &[role, project, run, folder] = &task[..] else { panic!("{task:?}") };
    let spool = Spool::open(Path::new(folder), ROOM).unwrap();
    let draining = (role == "drain").then(|| {
        let kafka = tidemill_common::config::Settings::load("test").unwrap().connections().kafka;
        let note = |project: String, drained: Vec<Drained>| {
            drained.iter().for_each(|drained| say("drained", &project, &drained.event_id));
            std::future::ready(())
        };
        let producer = Producer::new(&kafka, DELIVERY).unwrap();
        tokio::spawn(drain(spool.clone(), producer, note, CancellationToken::new()))
    });
    let senders =
        ["-x", "-y"].iter().flat_map(|suffix| (0..4).map(move |sender| (format!("{project}{suffix}"), sender)));
    let senders = senders.map(|(project, sender)| {
        let (spool, run) = (spool.clone(), run.to_owned());
        tokio::spawn(async move {
            for number in 0..2_000 {
                let id = format!("{run}.{sender}.{number}");
                let value = vec![b'v'; 100 + (number * 997) % 3_000];
                match spool.append(&project, &[record(&id, &value)]).await {
                    Ok(()) => say("safe", &project, &id),
                    Err(_) => say("failed", &project, &id),
                }
            }
        })
    });
    futures::future::join_all(senders.collect::<Vec<_>>()).await;
    if let Some(draining) = draining {
        draining.await.unwrap();
    }
}

/// Runs a child until it has said `lines` lines, kills it, and gives all that it had said.
fn kill_after(lines: usize, (mut child, mut out): (Child, BufReader<ChildStdout>)) -> Vec<(String, String, String)> {
    let (mut heard, mut line) = (Vec::new(), String::new());
    while out.read_line(&mut line).unwrap() > 0 {
        // The last line may be cut short by the kill.
        if let Some((what, project, id)) = said(&line).filter(|_| line.ends_with('\n')) {
            heard.push((what.to_owned(), project.to_owned(), id.to_owned()));
            if heard.len() == lines {
                child.kill().unwrap();
            }
        }
        line.clear();
    }
    child.wait().unwrap();
    heard
}

fn random(below: usize) -> usize {
    (uuid::Uuid::new_v4().as_u128() % below as u128) as usize
}

/// The order in which one sender's events must stand: by run and number.
fn order(id: &str) -> (&str, Vec<usize>) {
    let mut parts = id.split('.');
    let (run, sender, number) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    (sender, vec![run.parse().unwrap(), number.parse().unwrap()])
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9_while_spooling() {
    let folder = Temporary::new();
    let mut safe = HashSet::new();
    for run in 0..25 {
        let heard = kill_after(1 + random(1_500), start(&folder.0, "spool", "p", run, None));
        safe.extend(heard.into_iter().filter(|(what, ..)| what == "safe").map(|(_, project, id)| (project, id)));
    }
    drop(Spool::open(&folder.0, ROOM).unwrap());
    let disk = on_disk(&folder.0);
    let there: HashSet<(&str, &str)> =
        disk.iter().flat_map(|(project, ids)| ids.iter().map(|id| (project.as_str(), id.as_str()))).collect();
    assert!(safe.len() > 1_000, "{}", safe.len());
    let lost: Vec<_> = safe.iter().filter(|(project, id)| !there.contains(&(project, id))).collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), safe.len());
    for ids in disk.values() {
        let mut last = BTreeMap::new();
        for (sender, at) in ids.iter().map(|id| order(id)) {
            assert!(last.insert(sender, at.clone()).is_none_or(|before| before < at), "{sender} {at:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_by_kill_9_while_draining() {
    let (folder, stack) = (Temporary::new(), Stack::new().await);
    let projects = ["-x", "-y"].map(|suffix| format!("{}{suffix}", stack.project));
    for project in &projects {
        stack.create_project(project).await;
    }
    let (mut safe, mut drained) = (HashSet::new(), 0);
    for run in 0..8 {
        let heard = kill_after(1 + random(4_000), start(&folder.0, "drain", &stack.project, run, None));
        drained += heard.iter().filter(|(what, ..)| what == "drained").count();
        safe.extend(heard.into_iter().filter(|(what, ..)| what == "safe").map(|(_, project, id)| (project, id)));
    }
    assert!(safe.len() > 500 && drained > 100, "{} safe, {drained} drained", safe.len());
    let spool = Spool::open(&folder.0, ROOM).unwrap();
    let draining = Draining::start(&spool, &stack.connections.kafka);
    eventually("all is drained", || async { spool.status().records == 0 }).await;
    draining.stop().await;
    for project in &projects {
        let records = stack.records(&format!("events.{project}")).await;
        let there: HashSet<Vec<u8>> =
            records.into_iter().filter_map(|record| record.key().map(<[u8]>::to_vec)).collect();
        let lost: Vec<_> = safe.iter().filter(|(of, id)| of == project && !there.contains(id.as_bytes())).collect();
        assert!(lost.is_empty(), "{} lost: {lost:?}", lost.len());
    }
}

#[test]
fn a_write_that_the_disk_refuses_half_way_leaves_nothing() {
    let folder = Temporary::new();
    // 200 KB for each file: every segment meets its limit in the middle of a write.
    let heard = kill_after(4_000, start(&folder.0, "spool", "p", 0, Some(400)));
    let of = |wanted: &str| -> HashSet<(String, String)> {
        heard.iter().filter(|(what, ..)| what == wanted).map(|(_, project, id)| (project.clone(), id.clone())).collect()
    };
    let (safe, failed) = (of("safe"), of("failed"));
    assert!(safe.len() > 1_000 && failed.len() > 10, "{} safe, {} failed", safe.len(), failed.len());
    let disk = on_disk(&folder.0);
    let there: HashSet<(String, String)> =
        disk.into_iter().flat_map(|(project, ids)| ids.into_iter().map(move |id| (project.clone(), id))).collect();
    assert!(safe.is_subset(&there));
    assert!(failed.is_disjoint(&there), "a failed write is undone");
}

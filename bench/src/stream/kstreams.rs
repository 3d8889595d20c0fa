//! Kafka Streams (`bench/kstreams`) on the same topic.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use tidemill_common::codec::EVENT_SCHEMA;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::drain::{Drained, Meter, WARM_UP};
use super::place::Place;
use super::topic::Topic;
use crate::process::written_back;

/// Longer than it takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// What it says that its stores hold.
#[derive(Debug, Deserialize)]
struct Answers {
    /// In windows of each size.
    counted: Vec<u64>,
    in_sessions: u64,
    sessions: u64,
}

/// Has it drain a topic, and checks what its stores hold. `round` makes its name a new one.
pub async fn run(place: &Place, topic: &Topic, round: u32) -> anyhow::Result<Drained> {
    written_back().await?;
    let application = format!("bench-kstreams-{}-{round}", std::process::id());
    let state = place.logs.join(&application);
    let drained = drain(place, topic, &application, &state).await;
    // Its topics and stores are larger than what they were made of.
    place.delete_topics(&application).await?;
    if state.exists() {
        std::fs::remove_dir_all(&state).with_context(|| format!("cannot remove {}", state.display()))?;
    }
    drained
}

async fn drain(place: &Place, topic: &Topic, application: &str, state: &Path) -> anyhow::Result<Drained> {
    let expected = topic.expected;
    let warm_events = (expected.events as f64 * WARM_UP) as u64;
    let mut program = Program::start(place, topic, application, state, warm_events)?;
    let meter = Meter::new(place, vec![program.pid]);
    // Events that have been counted, both ways; as many records have been read in proportion.
    let records = topic.records();
    program.says("warm").await?;
    let warm = meter.sample(records * warm_events / expected.events)?;
    program.says("drained").await?;
    let done = meter.sample(records)?;
    let drained = meter.between(&warm, &done)?;
    let answers = program.answers().await?;
    // Everything has gone through it, or it would not have said so: what it cost is known. Of 3 million events it was
    // seen to show some sessions twice, as they were before they grew and after.
    let counted = answers.counted.iter().chain([&answers.in_sessions]).all(|counted| *counted == expected.events);
    if !counted || answers.sessions != expected.sessions {
        eprintln!("  Kafka Streams shows {answers:?} instead of {expected:?}");
    }
    Ok(drained)
}

/// The running program. It says `warm` and `drained`; a line makes it print what its stores hold and end.
struct Program {
    child: Child,
    pid: u32,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    log: String,
}

impl Program {
    fn start(place: &Place, topic: &Topic, application: &str, state: &Path, warm: u64) -> anyhow::Result<Self> {
        let jars = place.kstreams.as_ref().context("--kstreams names no folder; run this through dev/bench")?;
        let log = place.logs.join("kstreams.log");
        let file = std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let schema = place.logs.join("event.avsc");
        std::fs::write(&schema, EVENT_SCHEMA).with_context(|| format!("cannot write {}", schema.display()))?;
        let mut child = Command::new(&place.java)
            .args(["-Xms1g", "-Xmx1g", "-XX:-UsePerfData", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"])
            .arg(format!("{0}/*:{0}/libs/*", jars.display()))
            .args(["dev.tidemill.bench.Streams", &place.brokers, &topic.name, application])
            .args([state, schema.as_path()])
            .args([warm.to_string(), topic.expected.events.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", place.java.display()))?;
        let pid = child.id().context("it ended at once")?;
        let input = child.stdin.take().context("no standard input")?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        Ok(Self { child, pid, input, output, log: log.display().to_string() })
    }

    async fn line(&mut self) -> anyhow::Result<String> {
        let line = tokio::time::timeout(PATIENCE, self.output.next_line()).await;
        match line.with_context(|| format!("Kafka Streams is stuck; its log is {}", self.log))?? {
            Some(line) => Ok(line),
            None => bail!("Kafka Streams ended; its log is {}", self.log),
        }
    }

    async fn says(&mut self, word: &str) -> anyhow::Result<()> {
        let line = self.line().await?;
        ensure!(line == word, "Kafka Streams said {line:?} instead of {word:?}; its log is {}", self.log);
        Ok(())
    }

    async fn answers(mut self) -> anyhow::Result<Answers> {
        self.input.write_all(b"\n").await?;
        let answers = serde_json::from_str(&self.line().await?).context("its answer is not JSON")?;
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ended.context("Kafka Streams does not end")??;
        Ok(answers)
    }
}

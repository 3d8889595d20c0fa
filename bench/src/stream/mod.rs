//! The stream worker beside a bare consumer (the limit) and Kafka Streams (the peer), on one topic.

pub mod content;
pub mod drain;
mod freshness;
mod kstreams;
pub mod limit;
pub mod place;
mod report;
pub mod topic;
pub mod traffic;

use clap::{Args, ValueEnum};

use crate::figures::{self, Figures};
use drain::Drained;
use place::Place;
use topic::Topic;
use traffic::{Sessions, Shape};

/// The projects, which `dev/bench` has made: one per topic.
const VISITS: &str = "bench";
const DRAWN: &str = "bench-worst";
const FRESH: &str = "bench-fresh";
/// Names of the figures of 1 to 4 workers.
const SCALE: [(&str, &str); 4] = [
    ("scale1_us", "scale1_eps"),
    ("scale2_us", "scale2_eps"),
    ("scale3_us", "scale3_eps"),
    ("scale4_us", "scale4_eps"),
];

/// What is measured.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    place: Place,
    /// Records in the topic
    #[arg(long, default_value_t = 3_000_000, value_parser = clap::value_parser!(u64).range(10_000..))]
    events: u64,
    /// How often each measurement is made; the medians count
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measure only this
    #[arg(long, value_enum)]
    only: Vec<Subject>,
    /// Workers that share the topic; for `scale`, the most [default: 1; for `scale` 4]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=4))]
    workers: Option<u8>,
    /// Events per second that are offered for `freshness`
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(100..))]
    rate: u64,
    /// Other seeds give other events
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// A bare consumer that decodes
    Limit,
    /// Kafka Streams
    Kstreams,
    /// The worker
    Stream,
    /// The worker, each event's session drawn at random
    Worst,
    /// One worker to several
    Scale,
    /// From an event to its count over HTTP, at `--rate`
    Freshness,
}

/// Writes the topics, runs all rounds and prints the figures.
pub async fn run(options: &Options) -> anyhow::Result<bool> {
    let mut figures = Figures::default();
    let visits = [Subject::Limit, Subject::Kstreams, Subject::Stream, Subject::Scale];
    let visits = options.topic(&visits, VISITS, Sessions::Visits).await?;
    let drawn = options.topic(&[Subject::Worst], DRAWN, Sessions::Drawn).await?;
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        if let Some(topic) = &visits {
            options.visits(topic, round, &mut figures).await?;
        }
        if let Some(topic) = &drawn {
            let before = figures.clone();
            worst(&mut figures, drain::workers(&options.place, topic, options.workers(1)).await?);
            tell("worst", &figures, &before);
        }
    }
    if let Some(topic) = visits.filter(|_| options.wants(Subject::Scale)) {
        for (workers, (us, eps)) in (1..=options.workers(4)).zip(SCALE) {
            let before = figures.clone();
            let drained = drain::workers(&options.place, &topic, workers).await?;
            figures.add(us, drained.subject_us);
            figures.add(eps, drained.per_second);
            tell("scale", &figures, &before);
        }
    }
    if options.wants(Subject::Freshness) {
        let before = figures.clone();
        let fresh = freshness::measure(&options.place, FRESH, options.rate, options.seed).await?;
        figures.add("freshness_p50_ms", fresh.p50_ms);
        figures.add("freshness_p99_ms", fresh.p99_ms);
        tell("freshness", &figures, &before);
    }
    let medians = figures.medians();
    print!("{}", report::table(&medians));
    println!("{}", figures::json(&medians));
    Ok(true)
}

impl Options {
    fn wants(&self, subject: Subject) -> bool {
        self.only.is_empty() || self.only.contains(&subject)
    }

    fn workers(&self, default: usize) -> usize {
        self.workers.map_or(default, usize::from)
    }

    /// A topic with traffic, if one of these subjects needs it.
    async fn topic(
        &self,
        subjects: &[Subject],
        project: &'static str,
        sessions: Sessions,
    ) -> anyhow::Result<Option<Topic>> {
        if !subjects.iter().any(|subject| self.wants(*subject)) {
            return Ok(None);
        }
        let Place { brokers, registry, partitions, .. } = &self.place;
        let shape = Shape::dense(self.events, sessions, self.seed);
        topic::fill(brokers, registry, project, *partitions, shape).await.map(Some)
    }

    async fn visits(&self, topic: &Topic, round: u32, figures: &mut Figures) -> anyhow::Result<()> {
        if self.wants(Subject::Limit) {
            let before = figures.clone();
            let limit = drain::limit(&self.place, topic).await?;
            figures.add("limit_us", limit.cpu_us);
            figures.add("limit_eps", limit.per_second);
            tell("limit", figures, &before);
        }
        if self.wants(Subject::Kstreams) {
            let before = figures.clone();
            let drained = kstreams::run(&self.place, topic, round).await?;
            figures.add("kstreams_us", drained.subject_us);
            figures.add("kstreams_eps", drained.per_second);
            figures.add("kstreams_broker_us", drained.broker_us);
            figures.add("kstreams_rss_mb", drained.peak_mb);
            tell("kstreams", figures, &before);
        }
        if self.wants(Subject::Stream) {
            let before = figures.clone();
            stream(figures, drain::workers(&self.place, topic, self.workers(1)).await?);
            tell("stream", figures, &before);
        }
        Ok(())
    }
}

fn stream(figures: &mut Figures, drained: Drained) {
    figures.add("stream_us", drained.subject_us);
    figures.add("stream_eps", drained.per_second);
    figures.add("pg_us", drained.postgres_us);
    figures.add("redis_us", drained.redis_us);
    figures.add("broker_us", drained.broker_us);
    figures.add("stream_pg_redis_us", drained.subject_us + drained.postgres_us + drained.redis_us);
    figures.add("rss_mb", drained.peak_mb);
}

fn worst(figures: &mut Figures, drained: Drained) {
    figures.add("worst_us", drained.subject_us);
    figures.add("worst_eps", drained.per_second);
    figures.add("worst_pg_us", drained.postgres_us);
    figures.add("worst_redis_us", drained.redis_us);
    figures.add("worst_broker_us", drained.broker_us);
    figures.add("worst_rss_mb", drained.peak_mb);
}

fn tell(subject: &str, figures: &Figures, before: &Figures) {
    eprintln!("  {subject:9} {}", figures.added_since(before));
}

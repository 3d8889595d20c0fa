//! Events that are spread in another way from some moment on: what must hold all the same.

use std::collections::{BTreeMap, BTreeSet};

use tidemill_common::codec::processed;
use tidemill_common::names::processed_topic;
use tidemill_common::origin::Origin;
use tidemill_stream::Config;
use tidemill_stream::replay::{self, From, Rebuilding, Replay, Setup};
use tidemill_testkit::{PARTITIONS, Stack, eventually};

use super::{Running, counted, worker};

/// A worker with checkpoints.
pub async fn live(stack: &Stack) -> Running {
    worker(stack, "a", |config, _| {
        config.checkpoint_url = Some(format!("file://{}", stack.folder("checkpoints").display()));
        config.checkpoint_interval_ms = 100;
    })
    .await
}

/// Waits until all topics are counted to their ends, strays that go home too.
pub async fn settled(stack: &Stack) {
    loop {
        let before = stack.end_of_all().await;
        eventually("the ledger reaches the logs' ends", || async {
            let sql =
                "SELECT coalesce(sum(next_offset), 0)::bigint FROM ledger WHERE view = 'stream' AND generation = 0";
            sqlx::query_scalar::<_, i64>(sql).fetch_one(&stack.pool).await.unwrap() >= before
        })
        .await;
        if stack.end_of_all().await == before {
            return;
        }
    }
}

/// From which records the events in the processed topic come, by eventId.
pub async fn sources(stack: &Stack) -> BTreeMap<String, Vec<(i32, i64)>> {
    let mut sources = BTreeMap::<String, BTreeSet<(i32, i64)>>::new();
    for record in stack.records(&processed_topic(&stack.project)).await {
        let id = String::from_utf8(record.key().unwrap().to_vec()).unwrap();
        let Origin { partition, offset, .. } = processed::read(record.value()).unwrap().1;
        assert_eq!(partition % PARTITIONS, record.partition % PARTITIONS, "in the one of its number");
        sources.entry(id).or_default().insert((partition, offset));
    }
    sources.into_iter().map(|(id, sources)| (id, sources.into_iter().collect())).collect()
}

/// Every one of so many events counts once, and is sent on as one.
pub async fn assert_once(stack: &Stack, events: usize) {
    settled(stack).await;
    assert_eq!(counted(stack).await, events as i64);
    let sources = sources(stack).await;
    let twice: Vec<_> = sources.iter().filter(|(_, sources)| sources.len() > 1).collect();
    assert!(twice.is_empty() && sources.len() == events, "{} sent on; more than once: {twice:?}", sources.len());
}

/// A replay of everything, which gives the same; it goes on until it is stopped.
pub async fn rebuilt(stack: &Stack) -> (Replay, Rebuilding) {
    let plan =
        replay::plan(&stack.pool, &stack.connections.kafka, &stack.project, (&From::Beginning, None), None).await;
    let replay = replay::enter(&stack.pool, &plan.unwrap(), "a test").await.unwrap();
    let config =
        Config { session_timeout_ms: 6_000, seen_dir: stack.folder("replay").join("stream"), ..Config::default() };
    let setup = Setup { connections: stack.connections.clone(), config };
    let mut rebuilding = Rebuilding::start(&setup, &replay, None).await.unwrap();
    let both = async {
        replay::near(&stack.pool, &replay, |_| {}).await?;
        replay::compare(&stack.pool, replay::level(&stack.pool, &replay).await?, &replay).await
    };
    assert_eq!(rebuilding.during(both).await.unwrap(), []);
    (replay, rebuilding)
}

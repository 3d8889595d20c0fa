//! Sentinels, a cluster and a ring behind the one Redis client.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use redis::{Pipeline, Value};
use tidemill_common::redis::{Mode, Node, Redis, Role};
use tidemill_testkit::{Redises, eventually};

/// Sets `count` keys, then reads them, in one pipeline each.
fn writes(count: usize) -> Pipeline {
    let mut pipeline = redis::pipe();
    for number in 0..count {
        pipeline.set(format!("k:{number}"), number).ignore();
    }
    pipeline
}

fn reads(count: usize) -> Pipeline {
    let mut pipeline = redis::pipe();
    for number in 0..count {
        pipeline.get(format!("k:{number}"));
    }
    pipeline
}

async fn round_trip(redis: &Redis, count: usize) {
    redis.run::<()>(&writes(count)).await.unwrap();
    let values: Vec<usize> = redis.run(&reads(count)).await.unwrap();
    assert_eq!(values, (0..count).collect::<Vec<_>>(), "in the pipeline's order");
}

fn has(node: &Node, slot: &str) -> bool {
    let slot: u16 = slot.parse().unwrap();
    node.slots.iter().any(|(first, last)| (*first..=*last).contains(&slot))
}

/// Each node that has keys holds some.
async fn all_have_keys(redis: &Redis, nodes: &[Node]) {
    for node in nodes.iter().filter(|node| node.role == Role::Master) {
        let (size,): (usize,) = redis.on(node).unwrap().run(redis::pipe().cmd("DBSIZE")).await.unwrap();
        assert!(size > 100, "{node:?} has {size}");
    }
}

#[tokio::test]
async fn a_pipeline_goes_to_all_masters_of_a_cluster_and_follows_slots_and_masters() {
    let mut own = Redises::cluster().await;
    let redis = Redis::background(&own.url).unwrap();
    round_trip(&redis, 1_000).await;
    let nodes = redis.nodes().await.unwrap();
    assert_eq!((redis.mode(), nodes.len()), (Mode::Cluster, 6));
    all_have_keys(&redis, &nodes).await;
    let replica = nodes.iter().find(|node| node.role == Role::Replica).unwrap();
    let (size,): (usize,) = redis.on(replica).unwrap().run(redis::pipe().cmd("DBSIZE")).await.unwrap();
    assert!(size > 100 && replica.master.is_some() && (replica.share - 1.0 / 3.0).abs() < 0.01);
    // What has no key goes everywhere, so a script is known where it is called.
    let mut script = redis::pipe();
    script.cmd("SCRIPT").arg("LOAD").arg("return redis.call('GET', KEYS[1])").ignore();
    let hash = redis::Script::new("return redis.call('GET', KEYS[1])");
    for number in 0..50 {
        script.cmd("EVALSHA").arg(hash.get_hash()).arg(1).arg(format!("k:{number}"));
    }
    assert_eq!(redis.run::<Vec<usize>>(&script).await.unwrap(), (0..50).collect::<Vec<_>>());

    // Nothing else lies in the slot that is about to move; and what has no key goes to all.
    redis.run::<()>(redis::pipe().cmd("FLUSHALL").ignore()).await.unwrap();
    assert!(redis.run::<Vec<Option<usize>>>(&reads(1_000)).await.unwrap().iter().all(Option::is_none));

    // A slot on its way: what is there is asked for here, what is not is asked for there.
    let masters: Vec<Node> = nodes.into_iter().filter(|node| node.role == Role::Master).collect();
    let (from, to) = (&masters[0], &masters[1]);
    let key = format!("moving{}", from.tag);
    let slot = own.ask::<u16>(&from.address, &["CLUSTER", "KEYSLOT", &key]).await.unwrap().to_string();
    let id_of = |node: Node| {
        let own = &own;
        async move { own.ask::<String>(&node.address, &["CLUSTER", "MYID"]).await.unwrap() }
    };
    let (from_id, to_id) = (id_of(from.clone()).await, id_of(to.clone()).await);
    own.ask::<()>(&to.address, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).await.unwrap();
    own.ask::<()>(&from.address, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).await.unwrap();
    let mut both = redis::pipe();
    both.set(&key, "7").ignore().set("k:1", "1").ignore().get(&key).get("k:1");
    assert_eq!(redis.run::<(u64, u64)>(&both).await.unwrap(), (7, 1));
    assert_eq!(
        own.ask::<usize>(&from.address, &["CLUSTER", "COUNTKEYSINSLOT", &slot]).await.unwrap(),
        0,
        "ASK was followed"
    );
    for node in [&to.address, &from.address] {
        own.ask::<()>(node, &["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).await.unwrap();
    }
    assert_eq!(redis.run::<(u64, u64)>(&both).await.unwrap(), (7, 1), "MOVED was followed");
    eventually("the map is known anew", || async {
        let masters = redis.masters().await.unwrap();
        masters.iter().any(|node| node.address == to.address && has(node, &slot))
    })
    .await;

    // A master that is gone fails only its keys, until it is replaced.
    let dead = masters[2].clone();
    own.kill(&dead.address);
    let killed = Instant::now();
    let answers = redis.run_each(&reads(1_000)).await;
    let failed = answers.iter().filter(|answer| answer.is_err()).count();
    assert!((200..500).contains(&failed), "{failed} of 1,000");
    eventually("it is replaced", || async { redis.run::<Value>(&writes(1_000)).await.is_ok() }).await;
    eprintln!("a cluster's master was replaced within {:?}", killed.elapsed());
    round_trip(&redis, 1_000).await;
    eventually("the map is known anew", || async {
        redis.masters().await.unwrap().iter().all(|node| node.address != dead.address)
    })
    .await;
}

#[tokio::test]
async fn sentinels_are_asked_for_the_master_before_and_after() {
    let mut own = Redises::sentinel().await;
    let redis = Redis::background(&own.url).unwrap();
    round_trip(&redis, 10).await;
    let nodes = redis.nodes().await.unwrap();
    assert_eq!((redis.mode(), nodes.len()), (Mode::Sentinel, 3));
    let master = nodes.iter().find(|node| node.role == Role::Master).unwrap().address.clone();
    assert_eq!(own.masters().await, [&*master]);
    own.kill(&master);
    let killed = Instant::now();
    eventually("it is replaced", || async { redis.run::<Value>(&writes(10)).await.is_ok() }).await;
    eprintln!("sentinels replaced the master within {:?}", killed.elapsed());
    round_trip(&redis, 10).await;
    let new = redis.masters().await.unwrap()[0].address.clone();
    assert!(new != master && own.masters().await.contains(&new));
}

#[tokio::test]
async fn a_dead_node_of_a_ring_fails_only_its_keys() {
    let mut own = Redises::ring().await;
    let redis = Redis::background(&own.url).unwrap();
    round_trip(&redis, 1_000).await;
    let nodes = redis.nodes().await.unwrap();
    assert_eq!((redis.mode(), nodes.len()), (Mode::Ring, 3));
    all_have_keys(&redis, &nodes).await;
    let dead = nodes[1].address.clone();
    let lost: BTreeSet<usize> =
        (0..1_000).filter(|number| redis.place(format!("k:{number}").as_bytes()) == 1).collect();
    own.kill(&dead);
    // Its breaker opens, and nobody else's.
    for _ in 0..40 {
        let began = Instant::now();
        let failed = redis.run_each(&reads(1_000)).await.into_iter().enumerate().filter(|(_, answer)| answer.is_err());
        assert_eq!(failed.map(|(number, _)| number).collect::<BTreeSet<_>>(), lost);
        assert!(began.elapsed() < Duration::from_secs(3));
    }
    assert!(redis.run::<Value>(&reads(1_000)).await.is_err());
    own.start_again(&dead).await;
    eventually("it is there again", || async { redis.run::<Value>(&reads(1_000)).await.is_ok() }).await;
    round_trip(&redis, 1_000).await;
}

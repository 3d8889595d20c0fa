//! Who may send how much, and what is told of it.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Gateway, PrivateRedis, Proxy, answer, create_key, event};
use tidemill_ingest::event_limits::{self, Limited};
use tidemill_testkit::{Stack, eventually, eventually_within};

fn events(prefix: &str, number: usize) -> Value {
    (0..number).map(|i| event(&format!("{prefix}-{i}"))).collect()
}

async fn set_quota(stack: &Stack, quota: i32) {
    sqlx::query("UPDATE projects SET quota_per_second = $1").bind(quota).execute(&stack.pool).await.unwrap();
}

/// A second gateway on the same components, with the first one's key.
async fn beside(first: &Gateway) -> Gateway {
    let mut second = Gateway::with(Stack::new().await, |_, connections| {
        connections.clone_from(&first.stack.connections);
    })
    .await;
    second.key.clone_from(&first.key);
    second
}

/// Sends until the time is over; gives how many events were accepted.
async fn hammer(gateway: &Gateway, name: &str, until: Instant) -> usize {
    let (mut accepted, mut round) = (0, 0);
    while Instant::now() < until {
        let answer = gateway.post(&events(&format!("{name}-{round}"), 100)).await;
        accepted += answer.statuses().iter().filter(|status| **status == "accepted").count();
        round += 1;
    }
    accepted
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_share_a_quota() {
    let first = Gateway::start().await;
    set_quota(&first.stack, 500).await;
    let second = beside(&first).await;
    let start = Instant::now();
    let until = start + Duration::from_secs(4);
    let (a, b) = tokio::join!(hammer(&first, "a", until), hammer(&second, "b", until));
    // A full bucket at the start, and what it gets in the time that it really took.
    let most = 500.0 * (1.0 + start.elapsed().as_secs_f64());
    assert!((a + b) as f64 <= most * 1.02, "{a} + {b} of {most}");
    assert!((a + b) as f64 >= 500.0 * 4.0, "{a} + {b}: what there is can be used");
    assert!(a > 0 && b > 0, "{a}, {b}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_goes_on_without_redis() {
    let mut redis = PrivateRedis::start().await;
    let url = redis.url.clone();
    let stack = Stack::new().await;
    set_quota(&stack, 200).await;
    let gateway = Gateway::with(stack, |_, connections| connections.redis_url = url).await;
    assert_eq!(gateway.post(&event("before")).await.status, 202);
    redis.kill();
    let start = Instant::now();
    let accepted = hammer(&gateway, "e", start + Duration::from_secs(4)).await as f64;
    let most = 200.0 * (2.0 + start.elapsed().as_secs_f64());
    assert!((400.0..=most).contains(&accepted), "{accepted} of {most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_are_told_how_they_stand() {
    let gateway = Gateway::start().await;
    let headers = async |key: &str, body: Value| {
        let response = gateway.anonymous().bearer_auth(key).json(&body).send().await.unwrap();
        let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        (response.status().as_u16(), header("ratelimit-policy"), header("ratelimit"), header("retry-after"))
    };
    assert_eq!(headers(&gateway.key, event("e-1")).await, (202, None, None, None));
    set_quota(&gateway.stack, 100).await;
    let key = create_key(&gateway.stack, &gateway.stack.project, &["write"], Some(1)).await;
    let (status, policy, state, _) = headers(&key, event("e-2")).await;
    assert_eq!((status, policy.as_deref()), (202, Some(r#""key";q=1;w=1, "project";q=100;w=1"#)));
    assert!(state.unwrap().starts_with(r#""key";r=0;t=1, "project";r=99;t=1"#));
    let (status, _, state, retry_after) = headers(&key, events("f", 3)).await;
    assert_eq!(status, 202);
    assert!(state.unwrap().starts_with(r#""key";r=0;t=1"#) && retry_after.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn event_types_and_users_have_limits() {
    let gateway =
        Gateway::with(Stack::new().await, |config, _| (config.event_type_rate, config.user_rate) = (4, 2)).await;
    let of = |id: &str, event_type: &str, user: &str| json!({"eventId": id, "eventType": event_type, "userId": user});
    let body = json!([
        of("1", "a", "ann"),
        of("2", "a", "ann"),
        of("3", "a", "ann"),
        of("4", "a", "bob"),
        of("5", "a", "bob"),
        of("6", "b", "eve")
    ]);
    let answer = gateway.post(&body).await;
    assert_eq!(answer.statuses(), ["accepted", "accepted", "limited", "accepted", "limited", "accepted"]);
    for (index, whose) in [(2, "of the event's user is used up"), (4, "of the event's type is used up")] {
        let detail = answer.body["results"][index]["error"]["detail"].as_str().unwrap();
        assert!(detail.contains(whose), "{index}: {detail}");
    }
    assert!(answer.retry_after.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_and_expiry_work_within_five_seconds_everywhere() {
    let first = Gateway::start().await;
    let second = beside(&first).await;
    for change in ["revoked_at = now()", "revoked_at = NULL", "expires_at = now() + interval '1 second'"] {
        let wanted = if change == "revoked_at = NULL" { 202 } else { 401 };
        let sql = format!("UPDATE api_keys SET {change}");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&first.stack.pool).await.unwrap();
        let end = Instant::now() + Duration::from_secs(5);
        for gateway in [&first, &second] {
            eventually_within(end.saturating_duration_since(Instant::now()), change, || async {
                let status = gateway.post(&event(&uuid::Uuid::new_v4().to_string())).await.status;
                assert!(status == 202 || status == 401, "{status}");
                status == wanted
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_keys_are_remembered() {
    let stack = Stack::new().await;
    let (proxy, through) = Proxy::before(&stack.connections.database_url).await;
    let gateway = Gateway::with(stack, |_, connections| connections.database_url = through).await;
    let unknown = tidemill_common::auth::generate().key;
    assert_eq!(gateway.post_as(&unknown, &event("e-1")).await.status, 401);
    proxy.cut();
    assert_eq!(gateway.post_as(&unknown, &event("e-1")).await.status, 401, "Postgres is not asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_from_the_environment_are_let_in() {
    let stack = Stack::new().await;
    let keys = format!("dev-key-1:{p},dev-key-2:{p}:read,dev-key-3:nobody", p = stack.project);
    let gateway = Gateway::with(stack, |_, connections| connections.api_keys = Some(keys)).await;
    assert_eq!(gateway.post_as("dev-key-1", &event("e-1")).await.status, 202);
    assert_eq!(gateway.post_as("dev-key-2", &event("e-2")).await.status, 403);
    assert_eq!(gateway.post_as("dev-key-3", &event("e-3")).await.status, 401);
    assert_eq!(gateway.post_as("dev-key-4", &event("e-4")).await.status, 401);
    assert_eq!(gateway.post(&event("e-5")).await.status, 202);
}

type Row = (i64, i64, i64, i64, i64, i64, i64, i64);

async fn told(stack: &Stack) -> Row {
    sqlx::query_as(
        "SELECT coalesce(sum(requests), 0)::bigint, coalesce(sum(events), 0)::bigint, \
         coalesce(sum(accepted), 0)::bigint, coalesce(sum(duplicates), 0)::bigint, \
         coalesce(sum(invalid), 0)::bigint, coalesce(sum(limited), 0)::bigint, coalesce(sum(retry), 0)::bigint, \
         coalesce(sum((types->>'page_view')::bigint), 0)::bigint FROM ingest_batches WHERE project = $1",
    )
    .bind(&stack.project)
    .fetch_one(&stack.pool)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_is_told() {
    let mut gateway = Gateway::start().await;
    assert_eq!(gateway.post(&event("e-1")).await.status, 202);
    assert_eq!(gateway.post(&event("e-1")).await.status, 409);
    assert_eq!(gateway.post(&json!([event("e-2"), {"eventId": "e-3"}])).await.status, 202);
    let all = (3, 4, 2, 1, 1, 0, 0, 3);
    eventually("rows that add up", || async { told(&gateway.stack).await == all }).await;
    assert_eq!(gateway.post(&event("e-4")).await.status, 202);
    gateway.shutdown.cancel();
    gateway.service.take().unwrap().await.unwrap().unwrap();
    assert_eq!(told(&gateway.stack).await, (4, 5, 3, 1, 1, 0, 0, 4), "what is left is written at the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_do_not_wait_for_what_is_told() {
    let stack = Stack::new().await;
    let gateway = Gateway::with(stack, |_, _| ()).await;
    assert_eq!(gateway.post(&event("before")).await.status, 202);
    let mut lock = gateway.stack.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE ingest_batches").execute(&mut *lock).await.unwrap();
    let started = Instant::now();
    for i in 0..50 {
        assert_eq!(answer(gateway.request().json(&event(&format!("e-{i}")))).await.status, 202);
    }
    assert!(started.elapsed() < support::QUICK, "{:?}", started.elapsed());
    lock.rollback().await.unwrap();
    eventually("all is told later", || async { told(&gateway.stack).await.0 == 51 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_user_or_type_are_set_while_gateways_run_and_hold_over_all_of_them() {
    let first = Gateway::start().await;
    let second = beside(&first).await;
    let (pool, project) = (&first.stack.pool, first.stack.project.as_str());
    let one = async |gateway: &Gateway, event_type: &str, user: &str| {
        let id = uuid::Uuid::new_v4().to_string();
        gateway.post(&json!({"eventId": id, "eventType": event_type, "userId": user})).await
    };
    let limited = async |event_type: &str, user: &str, wanted: bool| {
        eventually_within(Duration::from_secs(5), "gateways know within 5 s", || async {
            let (a, b) = tokio::join!(one(&first, event_type, user), one(&second, event_type, user));
            assert!([a.status, b.status].iter().all(|status| *status == 202 || *status == 429), "{a:?} {b:?}");
            (a.status == 429, b.status == 429) == (wanted, wanted)
        })
        .await;
    };
    let (bot, scroll) = (Limited::User("bot".to_owned()), Limited::Type("scroll".to_owned()));
    assert_eq!(one(&first, "view", "bot").await.status, 202);
    event_limits::set(pool, project, &bot, 0).await.unwrap().unwrap();
    limited("view", "bot", true).await;
    assert_eq!(one(&first, "view", "ann").await.status, 202, "others pass");
    let answer = one(&second, "view", "bot").await;
    assert!(answer.retry_after.is_some() && answer.body["type"].as_str().unwrap().ends_with("limited"), "{answer:?}");
    assert!(answer.body["detail"].as_str().unwrap().contains("the event's user"), "{answer:?}");

    event_limits::set(pool, project, &bot, 20).await.unwrap().unwrap();
    limited("view", "bot", false).await;
    let (start, mut accepted) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(3) {
        let (a, b) = tokio::join!(one(&first, "view", "bot"), one(&second, "view", "bot"));
        accepted += [a, b].iter().filter(|answer| answer.status == 202).count();
    }
    // Each gateway begins with a second's worth on credit.
    let most = 20.0 * (2.0 + start.elapsed().as_secs_f64());
    assert!((20.0..=most).contains(&(accepted as f64)), "{accepted} of {most}");

    event_limits::set(pool, project, &scroll, 0).await.unwrap().unwrap();
    limited("scroll", "ann", true).await;
    assert_eq!(event_limits::all(pool, Some(project)).await.unwrap().len(), 2);
    for of in [&bot, &scroll] {
        assert!(event_limits::remove(pool, project, of).await.unwrap().is_some());
    }
    limited("scroll", "bot", false).await;
    assert!(event_limits::set(pool, "nobodys", &bot, 1).await.unwrap().is_none());
}

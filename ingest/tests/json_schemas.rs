//! JSON Schemas of events' properties: registered over HTTP, and what becomes of events that break them.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use support::{Answer, Gateway, PrivateRedis, Proxy, answer, create_key};
use tidemill_common::redis::Redis;
use tidemill_testkit::{Stack, eventually, eventually_within};

/// So long may a change take to be known everywhere.
const KNOWN: Duration = Duration::from_secs(5);

struct Admin<'a> {
    gateway: &'a Gateway,
    key: String,
}

impl<'a> Admin<'a> {
    async fn of(gateway: &'a Gateway) -> Self {
        Self { gateway, key: create_key(&gateway.stack, &gateway.stack.project, &["admin"], None).await }
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let url = format!("http://{}/v1/schemas{path}", self.gateway.address);
        let request = reqwest::Client::new().request(method, url).bearer_auth(&self.key);
        answer(match body {
            Some(body) => request.json(body),
            None => request,
        })
        .await
    }

    async fn register(&self, event_type: &str, schema: &Value, query: &str) -> Answer {
        self.call(Method::POST, query, Some(&json!({"eventType": event_type, "schema": schema}))).await
    }

    async fn mode(&self, mode: &str) {
        assert_eq!(self.call(Method::PUT, "/mode", Some(&json!({"mode": mode}))).await.body, json!({"mode": mode}));
    }
}

fn prices(types: &Value) -> Value {
    json!({"type": "object", "properties": {"price": {"type": types}}, "required": ["price"], "additionalProperties": false})
}

/// A fresh purchase.
fn purchase(properties: &Value) -> Value {
    json!({"eventId": uuid::Uuid::new_v4(), "eventType": "purchase", "properties": properties})
}

/// The number of a metric's series that has these labels.
async fn metric(gateway: &Gateway, series: &str) -> u64 {
    let metrics = gateway.get("/metrics").await.unwrap().text().await.unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix(series));
    line.map_or(0, |number| number.trim().parse().unwrap())
}

async fn strict_about_purchases(gateway: &Gateway) {
    let admin = Admin::of(gateway).await;
    assert_eq!(admin.register("purchase", &prices(&json!("integer")), "").await.status, 201);
    admin.mode("strict").await;
    refuses(gateway, "x").await;
}

/// Waits until a gateway refuses purchases of this price.
async fn refuses(gateway: &Gateway, price: &str) {
    eventually_within(KNOWN, "the schema is known", || async {
        gateway.post(&purchase(&json!({"price": price}))).await.status == 422
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_are_registered_listed_and_shown() {
    let gateway = Gateway::start().await;
    let (admin, project) = (Admin::of(&gateway).await, gateway.stack.project.clone());
    let (integer, number) = (prices(&json!("integer")), prices(&json!("number")));

    let dry = admin.register("a/b c", &integer, "?dryRun=true").await;
    assert_eq!((dry.status, &dry.body["version"], &dry.body["created"]), (200, &json!(1), &json!(false)));
    assert_eq!(admin.call(Method::GET, "", None).await.body, json!({"mode": "off", "schemas": []}));
    let first = admin.register("a/b c", &integer, "").await;
    assert_eq!(first.status, 201);
    assert_eq!(first.body, json!({"project": project, "eventType": "a/b c", "version": 1, "created": true}));
    let again = admin.register("a/b c", &integer, "").await;
    assert_eq!((again.status, &again.body["version"], &again.body["created"]), (200, &json!(1), &json!(false)));
    assert_eq!(admin.register("a/b c", &number, "").await.body["version"], 2);
    let refused = admin.register("a/b c", &integer, "").await;
    assert_eq!((refused.status, refused.problem()), (409, "schema-incompatible"));
    assert!(refused.body["detail"].as_str().unwrap().contains("properties/price: no longer allows number"));
    assert_eq!(admin.register("a/b c", &integer, "?force=true").await.body["version"], 3);

    let all = admin.call(Method::GET, "", None).await.body;
    let versions: Vec<&Value> = all["schemas"].as_array().unwrap().iter().map(|one| &one["version"]).collect();
    assert_eq!(versions, [1, 2, 3]);
    assert!(all["schemas"][0]["createdAt"].is_string() && all["schemas"][0]["eventType"] == "a/b c");
    assert_eq!(admin.call(Method::GET, "/a%2Fb%20c", None).await.body["version"], 3);
    assert_eq!(admin.call(Method::GET, "/a%2Fb%20c?version=2", None).await.body["schema"], number);
    for path in ["/a%2Fb%20c?version=9", "/nothing", "/mode"] {
        assert_eq!(admin.call(Method::GET, path, None).await.problem(), "not-found", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_admins_and_only_schemas() {
    let gateway = Gateway::start().await;
    let mut admin = Admin::of(&gateway).await;
    let remote = json!({"$ref": "http://127.0.0.1:1/schema.json"});
    for schema in [json!(7), json!({"type": "objekt"}), json!({"type": "string"}), remote] {
        let refused = admin.register("a", &schema, "").await;
        assert_eq!((refused.status, refused.problem()), (422, "invalid-schema"), "{schema}");
    }
    let large = admin.register("a", &json!({"title": "x".repeat(66_000)}), "").await;
    assert_eq!((large.status, large.problem()), (422, "invalid-schema"));
    let larger = admin.register("a", &json!({"title": "x".repeat(100_000)}), "").await;
    assert_eq!((larger.status, larger.problem()), (413, "too-large"));
    assert_eq!(admin.register(&"x".repeat(101), &json!({}), "").await.body["field"], "eventType");
    assert_eq!(admin.call(Method::POST, "", Some(&json!({"schema": {}}))).await.problem(), "bad-body");
    assert_eq!(admin.call(Method::POST, "?force=perhaps", Some(&json!({}))).await.problem(), "bad-request");
    assert_eq!(admin.call(Method::PUT, "/mode", Some(&json!({"mode": "loud"}))).await.problem(), "bad-body");
    assert_eq!(admin.call(Method::GET, "/a?version=x", None).await.problem(), "bad-request");
    admin.key = gateway.key.clone();
    for (method, path) in [(Method::POST, ""), (Method::GET, ""), (Method::GET, "/a"), (Method::PUT, "/mode")] {
        assert_eq!(admin.call(method, path, Some(&json!({}))).await.problem(), "forbidden");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mode_says_what_becomes_of_events() {
    let gateway = Gateway::start().await;
    let admin = Admin::of(&gateway).await;
    admin.register("purchase", &prices(&json!("integer")), "").await;
    let wrong = || purchase(&json!({"price": "free"}));
    assert_eq!(gateway.post(&wrong()).await.status, 202, "off");

    admin.mode("warn").await;
    let warned = "tidemill_schema_violations_total{mode=\"warn\"}";
    eventually_within(KNOWN, "warn is known", || async {
        assert_eq!(gateway.post(&wrong()).await.status, 202);
        metric(&gateway, warned).await > 0
    })
    .await;

    admin.mode("strict").await;
    refuses(&gateway, "free").await;
    let refused = gateway.post(&wrong()).await;
    assert_eq!((refused.status, refused.problem()), (422, "schema-violation"));
    assert_eq!(refused.body["field"], "properties/price");
    assert!(!refused.body["detail"].as_str().unwrap().contains("free"), "values are the sender's own");
    let mixed = json!([
        wrong(),
        purchase(&json!({"price": 3})),
        {"eventId": "other", "eventType": "no schema", "properties": {"price": "free"}},
        {"eventId": "none", "eventType": "purchase"},
        purchase(&json!({"price": 3, "more": 1})),
    ]);
    let answer = gateway.post(&mixed).await;
    assert_eq!(answer.statuses(), ["invalid", "accepted", "accepted", "invalid", "invalid"]);
    assert_eq!(answer.body["results"][3]["error"]["field"], "properties");

    admin.mode("off").await;
    eventually_within(KNOWN, "off is known", || async { gateway.post(&wrong()).await.status == 202 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_gateway_knows_within_seconds() {
    let gateway = Gateway::start().await;
    strict_about_purchases(&gateway).await;
    let other = Gateway::with(Stack::new().await, |_, connections| {
        connections.clone_from(&gateway.stack.connections);
    })
    .await;
    let send = |price: Value| {
        let (event, other, key) = (purchase(&json!({"price": price})), &other, &gateway.key);
        async move { other.post_as(key, &event).await.status }
    };
    assert_eq!(send(json!(1)).await, 202);
    assert_eq!(send(json!(1.5)).await, 422);
    let admin = Admin::of(&gateway).await;
    assert_eq!(admin.register("purchase", &prices(&json!("number")), "").await.status, 201);
    eventually_within(KNOWN, "the new version is known", || async { send(json!(1.5)).await == 202 }).await;
    assert_eq!(send(json!("x")).await, 422);
    // A type that was known to have none.
    let page = json!({"eventType": "page", "properties": {"price": "x"}});
    let view = || async {
        let mut page = page.clone();
        page["eventId"] = json!(uuid::Uuid::new_v4());
        other.post_as(&gateway.key, &page).await.status
    };
    assert_eq!(view().await, 202);
    admin.register("page", &prices(&json!("number")), "").await;
    eventually_within(KNOWN, "the first version is known", || async { view().await == 422 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_keeps_schemas_and_that_there_is_none() {
    let redis = PrivateRedis::start().await;
    let url = redis.url.clone();
    let gateway = Gateway::with(Stack::new().await, |_, connections| connections.redis_url = url).await;
    strict_about_purchases(&gateway).await;
    gateway.post(&json!({"eventId": "e-1", "eventType": "page"})).await;
    let client = Redis::new(&redis.url).unwrap();
    let read = async |event_type: &str| -> Option<(String, i64)> {
        let pattern = format!("schema:{}:{event_type}:*", gateway.stack.project);
        let (mut keys,): (Vec<String>,) = client.run(redis::pipe().cmd("KEYS").arg(pattern)).await.unwrap();
        keys.sort();
        let key = keys.pop()?;
        Some(client.run(redis::pipe().cmd("GET").arg(&key).cmd("TTL").arg(&key)).await.unwrap())
    };
    eventually("both are cached", || async { read("purchase").await.is_some() && read("page").await.is_some() }).await;
    let (schema, ttl) = read("purchase").await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&schema).unwrap(), prices(&json!("integer")));
    assert!((86_000..=86_400).contains(&ttl), "{ttl}");
    let (none, ttl) = read("page").await.unwrap();
    assert_eq!(none, "NOT_FOUND");
    assert!((3_500..=3_600).contains(&ttl), "{ttl}");

    redis.run(&["FLUSHALL"]).await;
    assert_eq!(gateway.post(&purchase(&json!({"price": "x"}))).await.status, 422);
    assert!(read("purchase").await.is_none(), "it was in memory");

    // A gateway that starts now reads what another one has cached, even without the table.
    let admin = Admin::of(&gateway).await;
    admin.register("purchase", &prices(&json!("number")), "").await;
    eventually("the new version is cached", || async {
        gateway.post(&purchase(&json!({"price": "x"}))).await;
        read("purchase").await.is_some_and(|(schema, _)| schema.contains("number"))
    })
    .await;
    sqlx::query("DELETE FROM event_schemas").execute(&gateway.stack.pool).await.unwrap();
    let other = Gateway::with(Stack::new().await, |_, connections| {
        connections.clone_from(&gateway.stack.connections);
        connections.redis_url.clone_from(&redis.url);
    })
    .await;
    assert_eq!(other.post_as(&gateway.key, &purchase(&json!({"price": "x"}))).await.status, 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn known_schemas_go_on_working_without_postgres_and_redis() {
    let (stack, mut redis) = (Stack::new().await, PrivateRedis::start().await);
    let (proxy, through) = Proxy::before(&stack.connections.database_url).await;
    let url = redis.url.clone();
    let gateway = Gateway::with(stack, |_, connections| {
        (connections.database_url, connections.redis_url) = (through, url);
    })
    .await;
    strict_about_purchases(&gateway).await;
    proxy.cut();
    redis.kill();
    let started = Instant::now();
    while started.elapsed() < KNOWN + Duration::from_secs(1) {
        assert_eq!(gateway.post(&purchase(&json!({"price": 1}))).await.status, 202);
        assert_eq!(gateway.post(&purchase(&json!({"price": "x"}))).await.status, 422);
    }
    let unknown = json!([purchase(&json!({"price": 1})), {"eventId": "u", "eventType": "unknown"}]);
    assert_eq!(gateway.post(&unknown).await.statuses(), ["accepted", "retry"], "nobody knows its schema");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_schemas_stand_in_nobodys_way_where_only_warnings_are_wanted() {
    let (stack, mut redis) = (Stack::new().await, PrivateRedis::start().await);
    let (proxy, through) = Proxy::before(&stack.connections.database_url).await;
    let url = redis.url.clone();
    let gateway = Gateway::with(stack, |_, connections| {
        (connections.database_url, connections.redis_url) = (through, url);
    })
    .await;
    let admin = Admin::of(&gateway).await;
    admin.register("purchase", &prices(&json!("integer")), "").await;
    admin.mode("warn").await;
    let warned = "tidemill_schema_violations_total{mode=\"warn\"}";
    eventually_within(KNOWN, "warn is known", || async {
        gateway.post(&purchase(&json!({"price": "x"}))).await;
        metric(&gateway, warned).await > 0
    })
    .await;
    proxy.cut();
    redis.kill();
    let before = metric(&gateway, "tidemill_schema_unchecked_total").await;
    assert_eq!(gateway.post(&json!({"eventId": "u", "eventType": "unknown"})).await.status, 202);
    assert!(metric(&gateway, "tidemill_schema_unchecked_total").await > before);
}

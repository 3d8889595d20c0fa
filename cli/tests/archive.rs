//! `tidemill archive`, run as the binary that it is, on a table and a database of one's own.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};
use std::sync::Arc;

use serde_json::{Value, json};
use tidemill_archiver::commit::commit;
use tidemill_archiver::files::Files;
use tidemill_archiver::forget::archived;
use tidemill_archiver::positions::{Position, Positions};
use tidemill_archiver::rows::Rows;
use tidemill_archiver::table::Tables;
use tidemill_common::codec::datum;
use tidemill_common::event::Event;
use tidemill_common::origin::Origin;
use tidemill_common::redis::Redis;
use tidemill_stream::{keys, session_key};
use tidemill_testkit::Stack;

const USER: &str = r#"o'hara \ "x""#;
const DAY: i64 = 19_675;

/// Commits an event of each of these users, one commit each, to a partition that goes on at `next`.
async fn fill(stack: &Stack, partition: i32, next: i64, users: &[&str]) {
    let tables = Tables::new(&stack.connections);
    for (offset, user) in (next..).zip(users) {
        let table = tables.load_or_create(&stack.project).await.unwrap();
        let event = Event {
            user_id: Some((*user).to_owned()),
            ..Event::new(format!("e-{partition}-{offset}"), "click", DAY * 86_400_000_000)
        };
        let (mut bytes, mut rows) = (Vec::new(), Rows::default());
        datum::write(&event.as_ref(), &mut bytes);
        rows.add(&event.as_ref(), &bytes, Origin { partition, offset, append_ms: DAY * 86_400_000 });
        let mut files = Files::new(&table, Arc::default(), usize::MAX).unwrap();
        files.write(DAY, rows, true).await.unwrap();
        let files = files.close().await.unwrap();
        let end =
            Positions::from([(partition, Position { incarnation: "one".to_owned(), next: offset + 1, newest_ms: 0 })]);
        let start = tidemill_archiver::positions::read(table.metadata().properties(), "events.any").unwrap();
        let catalog = tables.catalog().await.unwrap();
        commit(catalog, table.identifier(), "events.any", &start, &end, &files).await.unwrap();
    }
}

fn run(stack: &Stack, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidemill"))
        .args(["--output", "json", "archive"])
        .args(arguments)
        .env("DATABASE_URL", &stack.connections.database_url)
        .env("WAREHOUSE_URL", &stack.connections.warehouse_url)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_is_for_all_projects_or_one() {
    let stack = Stack::new().await;
    fill(&stack, 0, 0, &["a", "b", "c"]).await;
    let mine = ["--project", &stack.project];
    let looked = json_of(&run(&stack, &["maintain", "--snapshot-hours", "0", "--keep-snapshots", "1", "--dry-run"]));
    assert_eq!((&looked[0]["snapshots"], &looked[0]["snapshots_left"]), (&json!(0), &json!(3)));
    let done = json_of(&run(
        &stack,
        &[&["maintain", "--yes", "--snapshot-hours", "0", "--keep-snapshots", "2"], &mine[..]].concat(),
    ));
    assert_eq!((&done[0]["project"], &done[0]["snapshots"]), (&json!(stack.project), &json!(1)));
    let unknown = run(&stack, &["maintain", "--project", "nobody"]);
    assert!(text(&unknown.stderr).contains("there is no project \"nobody\""));
    let young = run(&stack, &["maintain", "--orphan-hours", "3"]);
    assert_eq!(young.status.code(), Some(2), "files of commits that are on their way would go");
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_is_kept_with_the_project() {
    let stack = Stack::new().await;
    let days = |arguments: &[&str]| {
        json_of(&run(&stack, &[&["retention", "--project", &stack.project], arguments].concat()))["archive_days"]
            .clone()
    };
    assert_eq!(days(&[]), Value::Null, "unlimited");
    assert_eq!(days(&["--days", "400", "--yes"]), 400);
    assert_eq!(days(&[]), 400);
    assert_eq!(days(&["--days", "unlimited", "--yes"]), Value::Null);
    let unknown = run(&stack, &["retention", "--project", "nobody", "--days", "1"]);
    assert!(text(&unknown.stderr).contains("there is no project"));
}

/// What the stream keeps of a user: a session with an id, one without, and his first event.
async fn remember(stack: &Stack, user: &str) {
    let own = session_key::of_user(user);
    for key in ["s-1", &own] {
        let keys = "INSERT INTO session_keys (generation, project, session_id, version) VALUES (0, $1, $2, 7)";
        sqlx::query(keys).bind(&stack.project).bind(key).execute(&stack.pool).await.unwrap();
        sqlx::query(
            "INSERT INTO sessions (generation, project, session_id, first_event_at, last_event_at, total_events,
                                   page_views, conversions, user_id, user_at, is_new)
             VALUES (0, $1, $2, now(), now(), 1, 1, 0, $3, now(), true)",
        )
        .bind(&stack.project)
        .bind(key)
        .bind(user)
        .execute(&stack.pool)
        .await
        .unwrap();
    }
    let users = "INSERT INTO users (generation, project, user_id, first_event_at) VALUES (0, $1, $2, now())";
    sqlx::query(users).bind(&stack.project).bind(user).execute(&stack.pool).await.unwrap();
    sqlx::query("SELECT tidemill_prepare_raw_events(now()::date)").execute(&stack.pool).await.unwrap();
    sqlx::query(
        "INSERT INTO raw_events (generation, project, append_time, kafka_partition, kafka_offset, event_id,
                                 event_type, user_id, occurred_at)
         VALUES (0, $1, now(), 0, 0, 'e', 'click', $2, now())",
    )
    .bind(&stack.project)
    .bind(user)
    .execute(&stack.pool)
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_forgotten_in_postgres_and_his_archived_events_are_told() {
    let stack = Stack::new().await;
    remember(&stack, USER).await;
    remember_other(&stack).await;
    let redis = Redis::new(&stack.connections.redis_url).unwrap();
    let [seen, own] = [keys::seen_users(&stack.project), session_key::of_user(USER)];
    let copies = [own.as_str(), "s-1", "s-2"].map(|key| keys::session(&stack.project, key));
    let mut shown = redis::pipe();
    shown.sadd(&seen, &[USER, "other"]).ignore();
    for copy in &copies {
        shown.hset(copy, "totalEvents", 1).expire(copy, 60);
    }
    let answers = [&stack.project, "another"].map(|project| format!("query:{project}:1f"));
    for answer in &answers {
        shown.set_ex(answer, "{}", 60);
    }
    redis.run::<()>(&shown).await.unwrap();
    let forget = |user: &str| run(&stack, &["forget", "--yes", "--project", &stack.project, "--user", user]);
    let done = json_of(&forget(USER));
    let expected = json!({"archived": 0, "raw_events": 1, "sessions": 2, "first_seen": 1});
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&done[name], value, "{name}");
    }
    let left: Vec<(String, Option<String>, bool, i64)> = sqlx::query_as(
        "SELECT s.session_id, s.user_id, s.is_new, k.version FROM sessions s JOIN session_keys k USING (session_id)
         ORDER BY 1",
    )
    .fetch_all(&stack.pool)
    .await
    .unwrap();
    let other = Some("other".to_owned());
    assert_eq!(left, [("s-1".to_owned(), None, false, 8), ("s-2".to_owned(), other, false, 3)]);
    let mut look = redis::pipe();
    look.smembers(&seen);
    for key in copies.iter().chain(&answers) {
        look.exists(key);
    }
    let left: (Vec<String>, i64, i64, i64, i64, i64) = redis.run(&look).await.unwrap();
    assert_eq!(left, (vec!["other".to_owned()], 0, 0, 1, 0, 1));
    assert_eq!(json_of(&forget(USER))["sessions"], 0, "again, there is nothing left to do");

    fill(&stack, 0, 0, &[USER, "other", USER]).await;
    let told = forget(USER);
    assert_eq!(told.status.code(), Some(1));
    let command = format!(r#"maintain.py forget --project {} --user 'o'\''hara \ "x"'"#, stack.project);
    let error = text(&told.stderr);
    assert!(error.contains("2 of his events are in the archive") && error.contains(&command), "{error}");
}

async fn remember_other(stack: &Stack) {
    let keys = "INSERT INTO session_keys (generation, project, session_id, version) VALUES (0, $1, 's-2', 3)";
    sqlx::query(keys).bind(&stack.project).execute(&stack.pool).await.unwrap();
    let session = "INSERT INTO sessions (generation, project, session_id, first_event_at, last_event_at, total_events,
                                         page_views, conversions, user_id, user_at)
                   VALUES (0, $1, 's-2', now(), now(), 1, 1, 0, 'other', now())";
    sqlx::query(session).bind(&stack.project).execute(&stack.pool).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Spark: SPARK_JARS names a folder with Iceberg's runtime and Postgres' driver, PYTHON one with pyspark"]
async fn spark_deletes_a_users_archived_events_for_good() {
    let stack = Stack::new().await;
    fill(&stack, 0, 0, &[USER, "other", USER]).await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../archiver/maintenance/maintain.py");
    let python = std::env::var("PYTHON").unwrap();
    let spark = format!("{python} {script}");
    let forgotten = run(&stack, &["forget", "--yes", "--project", &stack.project, "--user", USER, "--spark", &spark]);
    let done = json_of(&forgotten);
    assert_eq!((&done["archived"], &done["snapshots"]), (&json!(2), &json!(3)), "{done}");
    let tables = Tables::new(&stack.connections);
    assert_eq!(archived(&tables, &stack.project, USER).await.unwrap(), 0);
    assert_eq!(archived(&tables, &stack.project, "other").await.unwrap(), 1);
    let in_files =
        Command::new("grep").args(["-rlaF", "hara", &stack.connections.warehouse_url[7..]]).output().unwrap();
    assert_eq!(text(&in_files.stdout), "", "no file has his name any more");

    let script = |arguments: &[&str]| {
        let output = Command::new(&python)
            .arg(script)
            .args(arguments)
            .env("DATABASE_URL", &stack.connections.database_url)
            .env("WAREHOUSE_URL", &stack.connections.warehouse_url)
            .output()
            .unwrap();
        let told: Value = serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap();
        assert_eq!(output.status.success(), told["failed"] == json!([]), "{}", text(&output.stderr));
        told
    };
    let broken = format!("{}-broken", stack.project);
    tables.load_or_create(&broken).await.unwrap();
    sqlx::query("UPDATE iceberg_tables SET metadata_location = 'file:///nowhere.json' WHERE table_namespace LIKE $1")
        .bind(format!("%.{broken}"))
        .execute(&stack.pool)
        .await
        .unwrap();
    fill(&stack, 1, 0, &["more", "more"]).await;
    let told = script(&["compact", "--days", "100000", "--min-files", "2"]);
    assert_eq!(told["failed"][0]["project"], json!(broken), "{told}");
    let compacted = &told["tables"][0];
    assert_eq!((&compacted["rewritten"], &compacted["added"]), (&json!(3), &json!(1)), "{compacted}");
    fill(&stack, 1, 2, &["more"]).await;
    json_of(&run(&stack, &["retention", "--project", &stack.project, "--days", "30", "--yes"]));
    assert_eq!(script(&["retain"])["tables"][0]["project"], json!(stack.project));
    assert_eq!(script(&["compact", "--project", "nobody"])["failed"][0]["project"], "nobody");
    assert_eq!(archived(&tables, &stack.project, "other").await.unwrap(), 0, "its day is over");
    fill(&stack, 1, 3, &["later"]).await;
    assert_eq!(archived(&tables, &stack.project, "later").await.unwrap(), 1, "appends go on");
}

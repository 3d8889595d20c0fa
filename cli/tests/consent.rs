//! Every command that changes something: the plan changes nothing, nobody is taken to have agreed, and what was agreed
//! to is in the book.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tidemill_archiver::table::Tables;
use tidemill_common::kafka::History;
use tidemill_common::names::events_topic;
use tidemill_testkit::{PARTITIONS, Stack};

/// Settings of topics and offsets of groups are not looked at here; and there is nothing to maintain, to forget or to send.
const MAY_CHANGE_NOTHING: [&str; 5] =
    ["topics apply", "replay reset", "archive maintain", "archive forget", "dlq redrive"];

fn command(stack: &Stack, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
    command
        .args(arguments)
        .args(["--output", "json"])
        .current_dir(stack.folder(""))
        .env("DATABASE_URL", &stack.connections.database_url)
        .env("WAREHOUSE_URL", &stack.connections.warehouse_url)
        .env("TIDEMILL_STREAM__SEEN_DIR", stack.folder("seen"))
        .env("TIDEMILL_OPERATOR", "the operator")
        .stdin(Stdio::null());
    command
}

async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// One line of JSON.
fn result(output: &Output) -> Value {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && out.lines().count() == 1, "{out}{err}");
    serde_json::from_str(&out).unwrap()
}

/// All that a command may change, in words: every table in Postgres, the topics, the archive's table, files.
async fn everything(stack: &Stack, but: &[&str]) -> BTreeMap<String, String> {
    let tables = "SELECT c.oid::regclass::text FROM pg_class c
                  WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&stack.pool).await.unwrap();
    let mut all = BTreeMap::new();
    for table in tables.into_iter().filter(|table| !but.contains(&&**table)) {
        let rows = format!("SELECT coalesce(string_agg(t::text, ' ' ORDER BY t::text), '') FROM {table} t");
        all.insert(table, sqlx::query_scalar(sqlx::AssertSqlSafe(rows)).fetch_one(&stack.pool).await.unwrap());
    }
    let topics = [events_topic(&stack.project), events_topic(&format!("{}-new", stack.project))];
    let history = History::new(stack.connections.kafka.clone());
    let asked = move || history.incarnations(&topics, std::time::Duration::from_secs(10)).unwrap();
    let found = tokio::task::spawn_blocking(asked).await.unwrap();
    all.insert("topics".to_owned(), format!("{:?}", found.into_iter().collect::<BTreeMap<_, _>>()));
    let table = Tables::new(&stack.connections).load(&stack.project).await.unwrap();
    all.insert(
        "table".to_owned(),
        format!("{:?}", table.and_then(|table| table.metadata_location().map(str::to_owned))),
    );
    let files = Command::new("find").arg(stack.folder("spool")).args(["-printf", "%p %T@ %s\n"]).output().unwrap();
    all.insert("spool".to_owned(), text(&files.stdout));
    all
}

async fn book(stack: &Stack) -> Vec<(String, String, String)> {
    let rows = "SELECT who, command, outcome FROM audit ORDER BY id";
    sqlx::query_as(rows).fetch_all(&stack.pool).await.unwrap()
}

/// What the commands need to have something to do.
async fn prepare(stack: &Stack) -> String {
    Tables::new(&stack.connections).catalog().await.unwrap(); // whoever looks at the archive first makes its own tables
    let key = stack.create_key(&stack.project, &["write"], None).await;
    let topic = events_topic(&stack.project);
    let (history, asked) = (History::new(stack.connections.kafka.clone()), topic.clone());
    let ask = move || history.incarnations([&asked], std::time::Duration::from_secs(10)).unwrap();
    let incarnation = tokio::task::spawn_blocking(ask).await.unwrap()[&topic].clone();
    let ledger = "INSERT INTO ledger (view, generation, topic, topic_incarnation, partition, next_offset,
                                      projected_offset, as_of)
                  SELECT 'stream', 0, $1, $2, p, 0, 0, now() FROM generate_series(0, $3 - 1) p";
    sqlx::query(ledger).bind(&topic).bind(&incarnation).bind(PARTITIONS).execute(&stack.pool).await.unwrap();
    for (offset, reason) in [(0, "not-avro"), (1, "invalid")] {
        let letter = r#"INSERT INTO dead_letters (project, topic, topic_incarnation, partition, "offset", append_time,
                                                  stage, reason, detail)
                        VALUES ($1, $2, $3, 0, $4, now(), 'decode', $5, 'bad')"#;
        let insert = sqlx::query(letter).bind(&stack.project).bind(&topic).bind(&incarnation).bind(offset).bind(reason);
        insert.execute(&stack.pool).await.unwrap();
    }
    let spool = stack.folder("spool").join(&stack.project);
    std::fs::create_dir_all(&spool).unwrap();
    std::fs::write(spool.join("1.damaged"), "bytes").unwrap();
    std::fs::write(stack.folder("schema.json"), r#"{"type": "object"}"#).unwrap();
    key[..11].to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_changes_something_shows_it_asks_and_is_in_the_book() {
    let stack = Stack::new().await;
    let prefix = prepare(&stack).await;
    let (shop, new) = (stack.project.as_str(), format!("{}-new", stack.project));
    let (spool, schema) =
        (stack.folder("spool").display().to_string(), stack.folder("schema.json").display().to_string());
    let (topic, group) = (events_topic(shop), format!("{shop}-group"));
    let commands: Vec<(&str, Vec<&str>)> = vec![
        ("topics apply", vec![]),
        ("projects create", vec![&new, "--size", "small", "--replication", "1"]),
        ("projects quota", vec![shop, "50"]),
        ("projects suspend", vec![shop]),
        ("projects resume", vec![shop]),
        ("keys create", vec![shop, "--scope", "read"]),
        ("keys revoke", vec![&prefix]),
        ("schemas register", vec![shop, "view", &schema]),
        ("schemas mode", vec![shop, "strict"]),
        ("limits set", vec!["--project", shop, "--user", "u-7", "--rate", "5"]),
        ("limits remove", vec!["--project", shop, "--user", "u-7"]),
        ("archive retention", vec!["--project", shop, "--days", "30"]),
        ("archive maintain", vec!["--project", shop]),
        ("archive forget", vec!["--project", shop, "--user", "u-7"]),
        ("spool release", vec![shop, "--dir", &spool]),
        ("spool discard", vec![shop, "--dir", &spool]),
        ("dlq redrive", vec!["--project", shop, "--reason", "invalid", "--wait", "0"]),
        ("dlq discard", vec!["--project", shop, "--reason", "not-avro", "--why", "a test"]),
        ("replay plan", vec!["--project", shop]),
        ("replay abort", vec!["1"]),
        ("replay plan", vec!["--project", shop]),
        ("replay switch", vec!["2"]),
        ("replay drop", vec!["2"]),
        ("replay reset", vec!["--group", &group, "--topic", &topic, "--to-end"]),
        ("projects delete", vec![&new]),
    ];
    for (name, arguments) in commands {
        let whole: Vec<&str> = name.split(' ').chain(arguments).collect();
        // To show how it would differ, what is built is brought level; nothing that is live is touched.
        let but: &[&str] = if name == "replay switch" { &["replays", "ledger"] } else { &[] };
        let before = everything(&stack, but).await;
        let entries = book(&stack).await.len();
        let planned = result(&run(command(&stack, &[&whole[..], &["--dry-run"]].concat())).await);
        let applied = |value: &Value| value.get("applied").or_else(|| value[0].get("applied")).cloned();
        assert!(matches!(applied(&planned), Some(Value::Bool(false)) | None), "{name}: {planned}");
        let unasked = run(command(&stack, &whole)).await;
        assert_eq!(unasked.status.code(), Some(3), "{name}: {}", text(&unasked.stderr));
        assert!(text(&unasked.stderr).contains("--yes"), "{name}");
        assert_eq!(everything(&stack, but).await, before, "{name}: nobody has agreed");
        let done = result(&run(command(&stack, &[&whole[..], &["--yes"]].concat())).await);
        assert!(matches!(applied(&done), Some(Value::Bool(true)) | None), "{name}: {done}");
        let after = book(&stack).await;
        let expected = ("the operator".to_owned(), name.to_owned(), "done".to_owned());
        assert_eq!(after[entries..], [expected], "{name}: one row");
        if !MAY_CHANGE_NOTHING.contains(&name) {
            let mut now = everything(&stack, but).await;
            now.insert("audit".to_owned(), before["audit"].clone());
            assert!(now != before, "{name}: it did something");
        }
    }
    let plans: String =
        sqlx::query_scalar("SELECT string_agg(plan::text, ' ') FROM audit WHERE command = 'archive forget'")
            .fetch_one(&stack.pool)
            .await
            .unwrap();
    assert!(!plans.contains("u-7"), "who was forgotten is not in the book: {plans}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_is_made_in_one_step_that_can_be_cut_short_anywhere() {
    let stack = Stack::new().await;
    let new = format!("{}-new", stack.project);
    let create = ["projects", "create", &new, "--size", "small", "--replication", "1", "--quota", "70", "--yes"];
    let state = |creation: &Value, part: &str| {
        let parts = creation["parts"].as_array().unwrap().iter().filter(|each| each["part"] == part);
        parts.map(|each| each["state"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    let mut without = command(&stack, &create);
    without.env("SCHEMA_REGISTRY_URL", "http://127.0.0.1:1");
    let refused = run(without).await;
    assert!(text(&refused.stderr).contains("SCHEMA_REGISTRY_URL"), "{}", text(&refused.stderr));
    assert_eq!(book(&stack).await.len(), 0, "what does not answer is noticed before anything is made");

    let steps = [
        ("projects.topics=error", "missing missing missing", "missing missing", "missing", "missing"),
        ("projects.schemas=error@1", "missing missing missing", "missing missing", "missing", "missing"),
        ("projects.schemas=error@2", "there there there", "missing missing", "missing", "missing"),
        ("projects.table=error", "there there there", "there missing", "missing", "missing"),
        ("projects.row=error", "there there there", "there there", "missing", "missing"),
        ("projects.keys=error", "there there there", "there there", "there", "missing"),
        ("projects.keys=abort", "there there there", "there there", "there", "there"),
    ];
    for (point, topics, schemas, table, row) in steps {
        let planned = result(&run(command(&stack, &[&create[..9], &["--dry-run"]].concat())).await);
        let states = ["topic", "schema", "table", "project"].map(|part| state(&planned, part));
        assert_eq!(states, [topics, schemas, table, row], "before {point}");
        let mut failing = command(&stack, &create);
        failing.env("TIDEMILL_FAILPOINTS", point);
        let failed = run(failing).await;
        assert!(!failed.status.success(), "{point}");
        if !point.ends_with("abort") {
            assert!(text(&failed.stderr).contains("run the same command again"), "{}", text(&failed.stderr));
            assert!(book(&stack).await.pop().unwrap().2.starts_with("failed: "), "{point}");
        }
    }
    let made = result(&run(command(&stack, &create)).await);
    assert_eq!(
        (&made["applied"], &made["created"], &made["quota_per_second"]),
        (&json!(true), &json!(false), &json!(70))
    );
    let keys = made["keys"].as_array().unwrap();
    assert_eq!(keys.iter().map(|key| key["scopes"][0].as_str().unwrap()).collect::<Vec<_>>(), ["write", "read"]);
    for key in keys {
        let kept = "SELECT count(*) FROM api_keys WHERE hash = sha256(convert_to($1, 'UTF8')) AND project = $2 AND scopes = $3";
        let kept = sqlx::query_scalar(kept).bind(key["key"].as_str()).bind(&new).bind([key["scopes"][0].as_str()]);
        assert_eq!(kept.fetch_one(&stack.pool).await.ok(), Some(1_i64));
    }
    let entries = book(&stack).await.len();
    let again = result(&run(command(&stack, &create)).await);
    assert_eq!((&again["applied"], &again["keys"]), (&json!(false), &json!([])), "there is nothing to do");
    assert_eq!(state(&again, "key"), "", "and no second first keys");
    assert_eq!(book(&stack).await.len(), entries);
    let bare = format!("{}-bare", stack.project);
    let no_keys = ["projects", "create", &bare, "--size", "small", "--replication", "1", "--no-keys", "--yes"];
    assert_eq!(result(&run(command(&stack, &no_keys)).await)["keys"], json!([]));
}

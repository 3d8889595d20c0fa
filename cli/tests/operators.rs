//! The operators' commands, run as the binary that they are, on the real components.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use serde_json::Value;
use sqlx::{Connection, Executor, PgConnection};
use tidemill_common::codec::EVENT_SCHEMA;
use tidemill_common::config::{Connections, Settings};
use tidemill_common::names::{dlq_topic, events_topic, processed_topic};

/// A database name and a project id of one's own. Both are removed on drop.
struct Scratch {
    connections: Connections,
    server_url: String,
    database: String,
    project: String,
}

impl Scratch {
    fn new() -> Self {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let mut connections = Settings::load("test").unwrap().connections();
        let server_url = connections.database_url.clone();
        let database = format!("test_{}", &id[..10]);
        connections.database_url = format!("{}/{database}", server_url.rsplit_once('/').unwrap().0);
        Self { connections, server_url, database, project: format!("t-{}", &id[..10]) }
    }

    fn warehouse(&self) -> std::path::PathBuf {
        std::env::temp_dir().join(&self.database)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_tidemill"))
            .args(arguments)
            .env("DATABASE_URL", &self.connections.database_url)
            .env("WAREHOUSE_URL", format!("file://{}", self.warehouse().display()))
            .env("TIDEMILL_OPERATOR", "the operator")
            .output()
            .unwrap()
    }

    /// The result of a command that has to succeed: one line of JSON.
    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--output", "json"]].concat());
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{arguments:?} needs the components (dev/services start): {err}");
        assert_eq!(out.lines().count(), 1, "{out}");
        serde_json::from_str(&out).unwrap()
    }

    /// The one line of a command that has to fail.
    fn error(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let err = text(&output.stderr);
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        err
    }

    async fn database(&self) -> PgConnection {
        PgConnection::connect(&self.connections.database_url).await.unwrap()
    }

    /// The project's row alone.
    async fn insert_project(&self) -> PgConnection {
        let insert = "INSERT INTO projects (id, partitions, dlq_partitions) VALUES ($1, 6, 2)";
        let mut db = self.database().await;
        sqlx::query(insert).bind(&self.project).execute(&mut db).await.unwrap();
        db
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let (url, database) = (self.server_url.clone(), self.database.clone());
        let admin: AdminClient<DefaultClientContext> = self.connections.kafka.client().create().unwrap();
        let topics = [events_topic(&self.project), processed_topic(&self.project), dlq_topic(&self.project)];
        let clean_up = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                if let Ok(mut server) = PgConnection::connect(&url).await {
                    let drop_database = format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)");
                    let _ = server.execute(sqlx::AssertSqlSafe(drop_database)).await;
                }
                let names: Vec<&str> = topics.iter().map(String::as_str).collect();
                let _ = admin.delete_topics(&names, &AdminOptions::new()).await;
            });
        };
        let _ = std::thread::spawn(clean_up).join();
        let _ = std::fs::remove_dir_all(self.warehouse());
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn migrate_creates_the_database_once() {
    let scratch = Scratch::new();
    assert!(scratch.error(&["projects", "list"]).contains("run 'tidemill migrate' first"));
    assert_eq!(scratch.json(&["migrate"])["created"], true);
    assert_eq!(scratch.json(&["migrate"])["created"], false);
    assert_eq!(scratch.json(&["projects", "list"]), serde_json::json!([]));
}

#[tokio::test]
async fn a_project_is_created_once_with_everything_it_needs() {
    let scratch = Scratch::new();
    let project = scratch.project.as_str();
    scratch.json(&["migrate"]);
    let create = ["projects", "create", project, "--size", "small", "--replication", "1", "--yes"];
    let first = scratch.json(&create);
    assert_eq!((&first["project"], &first["partitions"]), (&Value::from(project), &Value::from(6)));
    assert_eq!((&first["created"], first["topics_created"].as_array().unwrap().len()), (&Value::Bool(true), 3));
    let second = scratch.json(&create);
    assert_eq!((&second["created"], &second["partitions"]), (&Value::Bool(false), &Value::from(6)));
    assert_eq!(second["topics_created"], serde_json::json!([]));
    assert!(scratch.error(&["projects", "create", project, "--size", "standard"]).contains("6 partitions"));

    for (topic, status) in [(events_topic(project), 200), (processed_topic(project), 200), (dlq_topic(project), 404)] {
        let url = format!("{}/subjects/{topic}-value/versions/latest", scratch.connections.registry_url);
        assert_eq!(reqwest::get(url).await.unwrap().status(), status, "{topic}");
    }

    // A schema that could not read what was written before.
    let mut schema: Value = serde_json::from_str(EVENT_SCHEMA).unwrap();
    schema["fields"].as_array_mut().unwrap().push(serde_json::json!({"name": "required", "type": "string"}));
    let url = format!("{}/subjects/{}-value/versions", scratch.connections.registry_url, events_topic(project));
    let body = serde_json::json!({ "schema": schema.to_string() });
    let answer = reqwest::Client::new().post(url).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 409, "the subject is kept backward compatible");

    scratch.json(&["topics", "apply", "--yes"]);
    let planned = scratch.json(&["topics", "plan", "--check"]);
    // The topics that no project owns may be older than this test.
    let of_project = |step: &&Value| step["topic"].as_str().unwrap().ends_with(project);
    assert_eq!(planned["plan"].as_array().unwrap().iter().find(of_project), None, "its topics are as declared");
}

#[tokio::test]
async fn a_changed_declaration_is_planned_and_then_applied() {
    let scratch = Scratch::new();
    let project = scratch.project.as_str();
    scratch.json(&["migrate"]);
    scratch.json(&["projects", "create", project, "--size", "small", "--replication", "1", "--yes"]);
    let folder = std::env::temp_dir().join(format!("tidemill-{project}"));
    std::fs::create_dir_all(&folder).unwrap();
    let declared = std::fs::read_to_string("../topics/project.yaml").unwrap().replace("604800000", "3600000");
    std::fs::write(folder.join("project.yaml"), declared).unwrap();
    let dir = ["--dir", folder.to_str().unwrap()];

    let check = scratch.run(&[&["topics", "plan", "--check"][..], &dir].concat());
    assert_eq!(check.status.code(), Some(4), "{}", text(&check.stderr));
    let shown = text(&check.stdout);
    assert!(shown.contains("retention.ms") && shown.contains("deletes"), "{shown}");
    assert_eq!(scratch.run(&[&["topics", "apply"][..], &dir].concat()).status.code(), Some(3), "nobody said yes");
    let planned = scratch.json(&[&["topics", "apply", "--dry-run"][..], &dir].concat());
    assert_eq!((&planned["applied"], &planned["plan"][0]["from"]), (&Value::from(false), &Value::from("604800000")));
    assert_eq!(scratch.json(&[&["topics", "apply", "--yes"][..], &dir].concat())["applied"], true);
    assert_eq!(scratch.json(&[&["topics", "plan", "--check"][..], &dir].concat())["plan"], serde_json::json!([]));
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn ids_that_break_the_rules_or_were_deleted_are_refused() {
    let scratch = Scratch::new();
    let project = scratch.project.as_str();
    scratch.json(&["migrate"]);
    for id in ["Shop", "dlq", "processed", "a.b", "", &"x".repeat(49)] {
        let error = scratch.error(&["projects", "create", id]);
        assert!(error.contains("1 to 48 characters"), "{error}");
    }
    let insert = "INSERT INTO projects (id, partitions, dlq_partitions, deleted_at) VALUES ($1, 6, 2, now())";
    sqlx::query(insert).bind(project).execute(&mut scratch.database().await).await.unwrap();
    assert!(scratch.error(&["projects", "create", project]).contains("never used again"));
    assert!(scratch.error(&["keys", "create", project, "--scope", "read"]).contains("there is no project"));
}

#[tokio::test]
async fn keys_are_shown_once_and_kept_as_hashes() {
    let scratch = Scratch::new();
    let project = scratch.project.as_str();
    scratch.json(&["migrate"]);
    assert!(scratch.error(&["keys", "create", project, "--scope", "write"]).contains("tidemill projects create"));
    let mut db = scratch.insert_project().await;

    let limited = ["keys", "create", project, "--scope", "read", "--scope", "write", "--rate-limit", "50", "--yes"];
    let made = scratch.json(&limited);
    let (key, prefix) = (made["key"].as_str().unwrap(), made["prefix"].as_str().unwrap());
    assert_eq!((key.len(), &key[..11]), (46, prefix));
    assert_eq!((&made["scopes"], &made["rate_limit"]), (&serde_json::json!(["write", "read"]), &Value::from(50)));
    assert_eq!(scratch.json(&["keys", "create", project, "--scope", "admin", "--yes"])["rate_limit"], Value::Null);
    let kept = "SELECT count(*) FROM api_keys WHERE prefix = $1 AND hash = sha256(convert_to($2, 'UTF8'))";
    let kept: i64 = sqlx::query_scalar(kept).bind(prefix).bind(key).fetch_one(&mut db).await.unwrap();
    assert_eq!(kept, 1);

    let listed = scratch.json(&["keys", "list", project]);
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert!(!listed.to_string().contains(key));
    let unasked = scratch.run(&["keys", "revoke", prefix]);
    assert_eq!(unasked.status.code(), Some(3), "there is nobody to ask");
    assert!(text(&unasked.stderr).contains("--yes"));
    assert!(scratch.json(&["keys", "revoke", prefix, "--dry-run"])["revoked_at"].is_null());
    let revoked = scratch.json(&["keys", "revoke", prefix, "--yes"]);
    assert!(revoked["revoked_at"].is_string());
    assert_eq!(revoked["note"], format!("no other key of {project} is for: write, read"));
    let again = scratch.json(&["keys", "revoke", prefix, "--yes"]);
    assert_eq!(again["revoked_at"], revoked["revoked_at"], "the first time counts");
    assert!(scratch.error(&["keys", "revoke", "tm_nobody's"]).contains("tidemill keys list"));
}

#[tokio::test]
async fn every_change_leaves_a_row_with_who_what_and_how_it_ended() {
    let scratch = Scratch::new();
    let project = scratch.project.as_str();
    scratch.json(&["migrate"]);
    let mut db = scratch.insert_project().await;
    let key = scratch.json(&["keys", "create", project, "--scope", "write", "--yes"]);
    scratch.json(&["projects", "quota", project, "50", "--yes"]);
    scratch.json(&["keys", "revoke", key["prefix"].as_str().unwrap(), "--dry-run"]);
    scratch.json(&["keys", "revoke", key["prefix"].as_str().unwrap(), "--yes"]);

    let rows = "SELECT who, command, project, plan, outcome FROM audit WHERE command <> 'migrate' ORDER BY id";
    let rows: Vec<(String, String, String, Value, String)> = sqlx::query_as(rows).fetch_all(&mut db).await.unwrap();
    let commands: Vec<_> = rows.iter().map(|(_, command, ..)| command.as_str()).collect();
    assert_eq!(commands, ["keys create", "projects quota", "keys revoke"], "no row for a dry run");
    assert!(rows.iter().all(|(who, _, of, ..)| who == "the operator" && of == project));
    assert!(rows.iter().all(|(.., outcome)| outcome == "done"));
    assert_eq!((&rows[1].3["from"], &rows[1].3["to"]), (&Value::Null, &Value::from(50)));
    let secret = key["key"].as_str().unwrap();
    assert!(rows.iter().all(|(.., plan, _)| !plan.to_string().contains(secret)), "no secrets in the book");
}

#[tokio::test]
async fn keys_can_be_made_to_expire() {
    let scratch = Scratch::new();
    scratch.json(&["migrate"]);
    let mut db = scratch.insert_project().await;
    for (lifetime, minutes) in [("30d", 30 * 24 * 60), ("12h", 12 * 60), ("15m", 15)] {
        let made =
            scratch.json(&["keys", "create", &scratch.project, "--scope", "write", "--yes", "--expires", lifetime]);
        let left =
            "SELECT round(extract(epoch FROM expires_at - created_at) / 60)::int8 FROM api_keys WHERE prefix = $1";
        let left: i64 = sqlx::query_scalar(left).bind(made["prefix"].as_str()).fetch_one(&mut db).await.unwrap();
        assert_eq!(left, minutes, "{lifetime}");
    }
    for lifetime in ["", "d", "5", "0h", "-1d", "99999d"] {
        let expires = format!("--expires={lifetime}");
        let output = scratch.run(&["keys", "create", &scratch.project, "--scope", "write", &expires]);
        assert_eq!(output.status.code(), Some(2), "{lifetime:?}");
        assert!(text(&output.stderr).contains("e.g. 30d, 12h or 15m"));
    }
}

#[tokio::test]
async fn a_projects_quota_is_set_and_taken_away() {
    let scratch = Scratch::new();
    let project = scratch.project.as_str();
    scratch.json(&["migrate"]);
    drop(scratch.insert_project().await);
    assert_eq!(scratch.json(&["projects", "quota", project, "5000", "--yes"])["quota_per_second"], 5000);
    assert_eq!(scratch.json(&["projects", "list"])[0]["quota_per_second"], 5000);
    assert_eq!(scratch.json(&["projects", "quota", project, "none", "--yes"])["quota_per_second"], Value::Null);
    assert_eq!(scratch.json(&["projects", "list"])[0]["quota_per_second"], Value::Null);
    assert!(scratch.error(&["projects", "quota", "nobodys", "1"]).contains("tidemill projects list"));
    assert_eq!(scratch.run(&["projects", "quota", project, "0"]).status.code(), Some(2));
}

#[tokio::test]
async fn a_project_is_suspended_resumed_and_deleted() {
    let scratch = Scratch::new();
    let project = scratch.project.as_str();
    scratch.json(&["migrate"]);
    scratch.json(&["projects", "create", project, "--size", "small", "--replication", "1", "--yes"]);
    assert!(scratch.json(&["projects", "suspend", project, "--dry-run"])["suspended_at"].is_null());
    let suspended = scratch.json(&["projects", "suspend", project, "--yes"]);
    assert!(suspended["suspended_at"].is_string());
    assert_eq!(scratch.json(&["projects", "suspend", project, "--yes"]), suspended, "the first time counts");
    assert!(scratch.json(&["projects", "resume", project, "--yes"])["suspended_at"].is_null());

    let mut db = scratch.database().await;
    let insert = "INSERT INTO users (generation, project, user_id, first_event_at) SELECT 0, $1, 'u' || i, now() FROM generate_series(1, 20001) i";
    sqlx::query(insert).bind(project).execute(&mut db).await.unwrap();
    scratch.json(&["keys", "create", project, "--scope", "write", "--yes"]);
    assert_eq!(scratch.run(&["projects", "delete", project]).status.code(), Some(3), "nobody said yes");
    let planned = scratch.json(&["projects", "delete", project, "--dry-run"]);
    assert_eq!((planned["topics"].as_array().unwrap().len(), &planned["rows"]), (3, &Value::from(20_004)));
    assert_eq!(planned["topics"][0]["partitions"], 6);
    assert!(planned["tables"].to_string().contains(r#"{"rows":20001,"table":"users"}"#), "{}", planned["tables"]);
    let deleted = scratch.json(&["projects", "delete", project, "--yes"]);
    assert_eq!((&deleted["applied"], &deleted["rows"]), (&Value::from(true), &Value::from(20_004)), "users and keys");
    let url = format!("{}/subjects/{}-value/versions", scratch.connections.registry_url, events_topic(project));
    assert_eq!(reqwest::get(url).await.unwrap().status(), 404);
    assert!(scratch.error(&["projects", "create", project]).contains("never used again"));
    assert_eq!(scratch.json(&["projects", "delete", project, "--yes"])["rows"], 0, "there is nothing left");
    assert!(scratch.error(&["projects", "suspend", project, "--yes"]).contains("there is no project"));
}

#[test]
fn mistakes_on_the_command_line_exit_with_2() {
    for arguments in [&["fly"][..], &["keys", "create", "shop"], &["loadgen", "--key", "k", "--duplicates", "2"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_tidemill")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn tables_have_no_colours_in_a_pipe() {
    let scratch = Scratch::new();
    let output = scratch.run(&["migrate"]);
    let table = text(&output.stdout);
    assert!(table.contains("│ created    ┆ true") && !table.contains('\u{1b}'), "{table}");
}

//! `tidemill projects grow`, and declared partitions of a project, on the real components.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

use serde_json::Value;
use tidemill_testkit::{PARTITIONS, Stack};

fn run(stack: &Stack, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
    command.args(arguments).env("DATABASE_URL", &stack.connections.database_url).output().unwrap()
}

fn json(stack: &Stack, arguments: &[&str]) -> Value {
    let output = run(stack, &[arguments, &["--output", "json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn error(stack: &Stack, arguments: &[&str]) -> String {
    let output = run(stack, arguments);
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_grows_by_command_or_by_declaration() {
    let stack = Stack::new().await;
    let project = stack.project.as_str();
    let grow = |partitions: &'static str, more: &'static [&'static str]| {
        [&["projects", "grow", project, "--partitions", partitions], more].concat()
    };
    assert!(error(&stack, &grow("6", &[])).contains("choose 4 or 8"));
    assert!(error(&stack, &grow("2", &[])).contains("Kafka cannot take partitions away; choose a multiple of 4"));
    assert!(error(&stack, &["projects", "grow", "nobody", "--partitions", "8"]).contains("tidemill projects list"));
    assert_eq!(json(&stack, &grow("8", &["--dry-run"]))["applied"], false);
    assert_eq!(run(&stack, &grow("8", &[])).status.code(), Some(3), "nobody was asked");
    assert_eq!(stack.layout().await.partitions(), PARTITIONS, "nothing was changed");

    let grown = json(&stack, &grow("8", &["--yes"]));
    assert_eq!((&grown["applied"], &grown["from"], &grown["to"]), (&true.into(), &4.into(), &8.into()));
    assert_eq!(stack.layout().await.partitions(), 8);
    assert_eq!(json(&stack, &grow("8", &["--yes"]))["applied"], false, "it is so already");
    assert!(error(&stack, &grow("16", &["--yes"])).contains("it may grow again from "));
    let sql = "SELECT plan->>'to' || ' ' || outcome FROM audit WHERE command = 'projects grow'";
    let audited: Vec<String> = sqlx::query_scalar(sql).fetch_all(&stack.pool).await.unwrap();
    assert_eq!(audited, ["8 done"]);

    let folder = stack.folder("declared");
    std::fs::create_dir_all(&folder).unwrap();
    let declared = include_str!("../../topics/project.yaml");
    let declared = format!("{declared}\nprojects: {{ {project}: {{ events: 16 }} }}\n");
    std::fs::write(folder.join("project.yaml"), declared).unwrap();
    let topics = |what: &'static str, more: &'static [&'static str]| {
        json(&stack, &[&["topics", what, "--dir", folder.to_str().unwrap()], more].concat())["plan"].clone()
    };
    let of = |plan: &Value, action: &str| {
        let steps = plan.as_array().unwrap().iter();
        steps.filter(|step| step["action"] == action && step["setting"] == "partitions").cloned().collect::<Vec<_>>()
    };
    let left = of(&topics("plan", &[]), "leave");
    assert!(left.iter().any(|step| step["note"].as_str().unwrap().contains("says when it may")), "{left:?}");
    sqlx::query("UPDATE eras SET ended_at = now() - interval '2 days'").execute(&stack.pool).await.unwrap();
    let planned = of(&topics("plan", &[]), "grow");
    assert_eq!(planned.len(), 2, "events and processed events: {planned:?}");
    assert_eq!((&planned[0]["from"], &planned[0]["to"]), (&"8".into(), &"16".into()));
    topics("apply", &["--yes"]);
    assert_eq!(stack.layout().await.partitions(), 16);
    assert_eq!(of(&topics("plan", &[]), "grow"), Vec::<Value>::new());
}

//! What another engine is told of our projects.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

use serde_json::{Value, json};
use tidemill_archiver::table::Tables;
use tidemill_testkit::Stack;

fn setup(stack: &Stack, settings: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidemill"))
        .args(["archive", "warehouse-setup", "--output", "json"])
        .env("DATABASE_URL", &stack.connections.database_url)
        .env("WAREHOUSE_URL", &stack.connections.warehouse_url)
        .envs(settings.iter().copied())
        .output()
        .unwrap()
}

fn answer(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

const URL: (&str, &str) = ("TIDEMILL_QUERY__WAREHOUSE_URL", "http://127.0.0.1:1");

#[tokio::test]
async fn every_project_is_named_and_gets_its_own_table() {
    let stack = Stack::new().await;
    let (project, other) = (stack.project.clone(), format!("{}-b", stack.project));
    stack.insert_project(&other).await;
    let rules = answer(&setup(&stack, &[("TIDEMILL_QUERY__WAREHOUSE", "trino"), URL]));
    for project in [&project, &other] {
        let own = json!({"user": format!("tidemill_{project}"), "catalog": "tidemill", "table": "events",
                         "schema": format!("tidemill\\.{project}"), "privileges": ["SELECT"]});
        assert!(rules["tables"].as_array().unwrap().contains(&own), "{rules}");
    }
    let table = Tables::new(&stack.connections).load_or_create(&project).await.unwrap();
    let answer = answer(&setup(&stack, &[("TIDEMILL_QUERY__WAREHOUSE", "clickhouse"), URL]));
    let path = table.metadata().location().strip_prefix("file://").unwrap();
    let made = format!("CREATE TABLE IF NOT EXISTS `tidemill_{project}`.`events` ENGINE = IcebergLocal('{path}')");
    assert!(answer["statements"].as_array().unwrap().contains(&json!(made)), "{answer}");
    assert_eq!(answer["without_table"], json!([other]));
}

#[tokio::test]
async fn settings_that_are_incomplete_are_refused() {
    let stack = Stack::new().await;
    for (settings, word) in [
        (vec![], "query.warehouse is not set"),
        (vec![("TIDEMILL_QUERY__WAREHOUSE", "trino")], "query.warehouse_url is missing"),
        (vec![("TIDEMILL_QUERY__WAREHOUSE", "oracle"), URL], "oracle"),
        (vec![URL], "query.warehouse is not"),
    ] {
        let output = setup(&stack, &settings);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(word), "{said}");
        // The service does not start with them either, but for there being none.
        if !settings.is_empty() {
            let mut service = Command::new(env!("CARGO_BIN_EXE_tidemill"));
            let output = service.arg("query").env("PORT", "0").envs(settings).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
            assert!(!output.status.success() && said.contains(word), "{said}");
        }
    }
}

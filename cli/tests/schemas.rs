//! `tidemill schemas`, run as the binary that it is.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tidemill_testkit::Stack;

fn run(stack: &Stack, arguments: &[&str], input: &Value) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidemill"))
        .args(arguments)
        .env("DATABASE_URL", &stack.connections.database_url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.to_string().as_bytes()); // some never read it
    child.wait_with_output().unwrap()
}

/// The result of a command that has to succeed.
fn result(stack: &Stack, arguments: &[&str], input: &Value) -> Value {
    let output = run(stack, &[arguments, &["--output", "json"]].concat(), input);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The one line of a command that has to fail.
fn error(stack: &Stack, arguments: &[&str], input: &Value) -> String {
    let output = run(stack, arguments, input);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_are_registered_checked_and_shown() {
    let stack = Stack::new().await;
    let shop = stack.project.as_str();
    let first = json!({"properties": {"price": {"type": "integer"}}, "additionalProperties": false});
    let wider = json!({"properties": {"price": {"type": "number"}}, "additionalProperties": false});
    let other = json!({"properties": {"price": {"type": "string"}}, "additionalProperties": false});
    let register = ["schemas", "register", shop, "purchase", "-", "--yes"];
    let check = ["schemas", "check", shop, "purchase", "-"];

    let checked = result(&stack, &check, &first);
    assert_eq!((&checked["version"], &checked["created"]), (&json!(1), &json!(false)));
    assert_eq!(result(&stack, &["schemas", "list", shop], &Value::Null), json!([]), "checking leaves nothing");
    let registered = result(&stack, &register, &first);
    let expected = json!({"project": shop, "event_type": "purchase", "version": 1, "created": true, "force": false, "applied": true});
    assert_eq!(registered, expected);
    assert_eq!(result(&stack, &register, &first)["created"], false);
    assert_eq!(result(&stack, &register, &wider)["version"], 2);
    for command in [&check[..], &register] {
        let refused = error(&stack, command, &other);
        assert!(refused.contains("properties/price: no longer allows") && refused.contains("--force"), "{refused}");
    }
    assert_eq!(result(&stack, &[&register[..], &["--force"]].concat(), &other)["version"], 3);

    let listed = result(&stack, &["schemas", "list", shop], &Value::Null);
    assert_eq!(listed.as_array().unwrap().len(), 3);
    assert_eq!(result(&stack, &["schemas", "show", shop, "purchase"], &Value::Null)["schema"], other);
    let show = ["schemas", "show", shop, "purchase", "--version", "1"];
    assert_eq!(result(&stack, &show, &Value::Null)["schema"], first);

    assert_eq!(result(&stack, &["schemas", "mode", shop], &Value::Null)["mode"], "off");
    assert_eq!(result(&stack, &["schemas", "mode", shop, "strict", "--yes"], &Value::Null)["mode"], "strict");
    assert_eq!(result(&stack, &["schemas", "mode", shop], &Value::Null)["mode"], "strict");
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_in_one_line() {
    let stack = Stack::new().await;
    let shop = stack.project.as_str();
    let table = [
        (vec!["schemas", "register", "nobody", "a", "-"], json!({}), "tidemill projects create"),
        (vec!["schemas", "list", "nobody"], Value::Null, "tidemill projects create"),
        (vec!["schemas", "mode", "nobody", "warn"], Value::Null, "tidemill projects create"),
        (vec!["schemas", "show", shop, "a"], Value::Null, "no such schema"),
        (vec!["schemas", "register", shop, "", "-"], json!({}), "1 to 100 characters"),
        (vec!["schemas", "register", shop, "a", "-"], json!([]), "JSON object"),
        (vec!["schemas", "register", shop, "a", "-"], json!({"title": "x".repeat(70_000)}), "at most 65536"),
        (vec!["schemas", "register", shop, "a", "/nowhere.json"], Value::Null, "/nowhere.json"),
    ];
    for (arguments, input, word) in table {
        let told = error(&stack, &arguments, &input);
        assert!(told.contains(word), "{arguments:?}: {told}");
    }
}

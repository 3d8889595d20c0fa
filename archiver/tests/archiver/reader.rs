//! The tables as a reader sees them that shares no code with us: PyIceberg.

use std::process::Command;

use tidemill_common::event::Event;
use tidemill_testkit::event;

use crate::support::{World, archived, config, events_with_copies, start};

const SCRIPT: &str = r#"
import json, sys
from pyiceberg.catalog.sql import SqlCatalog
uri, warehouse, project = sys.argv[1:]
catalog = SqlCatalog("tidemill", uri=uri.replace("postgres://", "postgresql+psycopg2://", 1), warehouse=warehouse)
table = catalog.load_table(("tidemill", project, "events"))
rows = table.scan().to_arrow().to_pylist()
day = table.scan(row_filter="occurred_at >= '2023-11-16T00:00:00+00:00'").to_arrow().num_rows
full = next(row for row in rows if row["event_id"] == "full")
print(json.dumps({
    "rows": len(rows), "ids": len({row["event_id"] for row in rows}), "day": day,
    "full": {key: value.isoformat() if hasattr(value, "isoformat") else value for key, value in full.items()},
    "columns": [[field.name, str(field.field_type), field.required] for field in table.schema().fields],
    "spec": str(table.spec().fields[0].transform), "files": len(list(table.scan().plan_files())),
}))
"#;

fn python() -> String {
    let cache =
        || std::env::var("TIDEMILL_CACHE").unwrap_or(format!("{}/.cache/tidemill", std::env::var("HOME").unwrap()));
    std::env::var("TIDEMILL_PYTHON").unwrap_or_else(|_| format!("{}/venv/bin/python", cache()))
}

#[tokio::test(flavor = "multi_thread")]
async fn pyiceberg_reads_what_was_sent() {
    let world = World::new().await;
    let full = Event {
        received_at: Some(1_700_000_000_654_321),
        user_id: Some("u-1".to_owned()),
        session_id: Some("s-1".to_owned()),
        event_action: Some("add".to_owned()),
        properties: Some(r#"{"price":"9.90"}"#.to_owned()),
        client_address: Some("192.0.2.0".to_owned()),
        user_agent: Some("tests".to_owned()),
        ..event("full", "click", 1_700_000_000)
    };
    world.send_all(&events_with_copies(0, 299)).await;
    let (partition, offset) = world.send(&full).await;
    let archiver = start(&world, config(&world, "a")).await;
    archived(&world, &world.project).await;
    archiver.stop().await;

    let output = Command::new(python())
        .args(["-c", SCRIPT, &world.connections.database_url, &world.connections.warehouse_url, &world.project])
        .output()
        .expect("python with pyiceberg; install it with dev/install");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(read["rows"], 300);
    assert_eq!(read["ids"], 300);
    assert_eq!(read["day"], 99, "every third event, one of them at the end of 299");
    assert_eq!(read["spec"], "day");
    assert!(read["files"].as_u64().unwrap() >= 3);
    let mut row = read["full"].clone();
    let append_time = row.as_object_mut().unwrap().remove("append_time").unwrap();
    assert!(append_time.as_str().unwrap().ends_with("+00:00"));
    let expected = serde_json::json!({
        "event_id": "full", "event_type": "click", "event_action": "add", "user_id": "u-1", "session_id": "s-1",
        "occurred_at": "2023-11-14T22:13:20+00:00", "received_at": "2023-11-14T22:13:20.654321+00:00",
        "properties": "{\"price\":\"9.90\"}", "client_address": "192.0.2.0", "user_agent": "tests",
        "kafka_partition": partition, "kafka_offset": offset,
    });
    assert_eq!(row, expected);
    let columns: Vec<_> = tidemill_archiver::table::COLUMNS
        .iter()
        .map(|column| serde_json::json!([column.name, column.kind.to_string(), column.required]))
        .collect();
    assert_eq!(read["columns"], serde_json::Value::Array(columns));
}

//! A planted mutant for the drills: windows in Redis are counted up instead of being set. It is off unless
//! `TIDEMILL_MUTANT=increments` is set, which only debug builds take.

use std::collections::HashMap;
use std::sync::Mutex;

use tidemill_common::failpoint::mutant;
use tidemill_common::redis::{Redis, RedisFailure};

use super::read::HotWindow;

/// What this process has counted each window up to.
static COUNTED: Mutex<Option<HashMap<String, i64>>> = Mutex::new(None);

/// The windows as they are to be written: as they are, unless the mutant is planted.
pub async fn incremented<'a>(
    redis: &Redis,
    mut windows: Vec<HotWindow<'a>>,
) -> Result<Vec<HotWindow<'a>>, RedisFailure> {
    if !mutant("increments") || windows.is_empty() {
        return Ok(windows);
    }
    let mut pipeline = redis::pipe();
    let keys: Vec<String> = windows.iter().map(key).collect();
    for key in &keys {
        pipeline.get(key);
    }
    let held: Vec<Option<String>> = redis.run(&pipeline).await?;
    let mut counted = COUNTED.lock().expect("no holder panics");
    let counted = counted.get_or_insert_default();
    for ((window, key), held) in windows.iter_mut().zip(keys).zip(held) {
        let before = counted.insert(key, window.totals.count).unwrap_or_default();
        let held: Option<serde_json::Value> = held.and_then(|text| serde_json::from_str(&text).ok());
        window.totals.count += held.and_then(|value| value["count"].as_i64()).unwrap_or_default() - before;
    }
    Ok(windows)
}

fn key(window: &HotWindow<'_>) -> String {
    super::write::window_key(window.key)
}

//! How commands show their results: tables for people, JSON for programs.

use std::io::Write;
use std::time::Duration;

use chrono::DateTime;
use clap::ValueEnum;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Attribute, Cell, ContentArrangement, Table};
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::Value;

/// The form of results.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Table,
    /// For programs: one line
    Json,
}

impl Output {
    /// Shows one thing; the table has a row for each of its `fields`.
    pub fn thing(self, thing: &impl Serialize, fields: &[&str]) -> anyhow::Result<()> {
        match self {
            Self::Json => json_line(thing),
            Self::Table => {
                let value = serde_json::to_value(thing)?;
                let mut table = empty_table();
                for field in fields {
                    table.add_row([heading(field), Cell::new(text(&value[field]))]);
                }
                print_line(&table.to_string())
            }
        }
    }

    /// Shows things of one kind; the table has a column for each of `fields`.
    pub fn things(self, things: &[impl Serialize], fields: &[&str]) -> anyhow::Result<()> {
        match self {
            Self::Json => json_line(&things),
            Self::Table if things.is_empty() => print_line("none"),
            Self::Table => {
                let mut table = empty_table();
                table.set_header(fields.iter().map(|field| heading(field)));
                for thing in things {
                    let value = serde_json::to_value(thing)?;
                    table.add_row(fields.iter().map(|field| text(&value[field])));
                }
                print_line(&table.to_string())
            }
        }
    }
}

impl Output {
    /// Ends a command that was to change something: people have seen the plan, programs get it now, with how it ended.
    pub fn ended(self, change: &impl Serialize, applied: bool) -> anyhow::Result<()> {
        match self {
            Self::Json => json_line(change),
            Self::Table if applied => print_line("done"),
            Self::Table => print_line("nothing was changed"),
        }
    }

    /// Shows people, and nobody else, a plan: a row for each of its `fields`.
    pub fn plan(self, plan: &impl Serialize, fields: &[&str]) -> anyhow::Result<()> {
        match self {
            Self::Json => Ok(()),
            Self::Table => self.thing(plan, fields),
        }
    }
}

/// Prints a value as one line of JSON.
pub fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    print_line(&serde_json::to_string(value)?)
}

/// Unlike `println!`, gives an error instead of a panic when nobody reads on.
pub fn print_line(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// An error and its causes, in one line. Many an error says itself what its cause said.
pub fn told(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.is_empty() {
            told = cause;
        } else if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told.replace('\n', " ")
}

/// Says what is being done, where standard error is a terminal; elsewhere the library shows nothing.
pub fn spinner(message: &'static str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(message);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

fn empty_table() -> Table {
    let mut table = Table::new();
    // Where standard output is a terminal, its width is what there is.
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

/// Bold where it is a terminal; the library leaves styles away elsewhere.
fn heading(field: &str) -> Cell {
    Cell::new(field.replace('_', " ")).add_attribute(Attribute::Bold)
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => time(text).unwrap_or_else(|| text.clone()),
        Value::Array(values) if values.is_empty() => "none".to_owned(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join("\n"),
        other => other.to_string(),
    }
}

/// People need no fractions of seconds, and narrow columns break at spaces.
fn time(text: &str) -> Option<String> {
    let time = text.strip_suffix('Z').and_then(|_| DateTime::parse_from_rfc3339(text).ok())?;
    Some(time.to_utc().format("%Y-%m-%d %H:%M:%SZ").to_string())
}

/// So many of something: "1 table", "2 tables".
pub fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells_are_plain_text() {
        assert_eq!(text(&Value::Null), "-");
        assert_eq!(text(&json!(["write", "read"])), "write\nread");
        assert_eq!(text(&json!([])), "none");
        assert_eq!(text(&json!(6)), "6");
        assert_eq!(text(&json!(true)), "true");
        assert_eq!(text(&json!("2026-11-21T22:11:00.720283085Z")), "2026-11-21 22:11:00Z");
        assert_eq!(text(&json!("u-7 Z")), "u-7 Z");
    }

    #[test]
    fn an_error_says_everything_once() {
        let cause = || std::io::Error::other("no such\nplace");
        assert_eq!(told(&anyhow::Error::from(cause()).context("cannot read")), "cannot read: no such place");
        assert_eq!(
            told(&anyhow::Error::from(cause()).context("cannot read: no such\nplace")),
            "cannot read: no such place"
        );
    }
}
